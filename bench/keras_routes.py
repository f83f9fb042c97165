"""One Keras model by two routes to ONNX: `python -m bench.keras_routes [NAME …]` writes results/keras_routes.json.

edgerun converts the `.keras` file; tf2onnx gets the SavedModel that Keras on TensorFlow exports. Told are the nodes of
both graphs, how far their results are from Keras in float64, and how fast both run on ONNX Runtime: one thread, batch
1, full size, in turns in sessions opened anew, in processor time. docs/keras.md shows it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.keras_coverage import BACKENDS
from edgerun import files
from edgerun.measure import latency, stats

RESULTS = Path(__file__).with_name("results") / "keras_routes.json"
NAMES = (
    "MobileNet", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "ResNet50", "DenseNet121",
    "NASNetMobile", "Xception", "InceptionV3", "ConvNeXtTiny",
)  # fmt: skip
SIZES = {"Xception": 299, "InceptionV3": 299}  # pixels; the others have 224
SECONDS = 6.0  # of processor time for each pair
OPSET = "18"  # tf2onnx's newest
MAKE = """
import sys
from bench.keras_coverage import application
size = int(sys.argv[2])
net = application(sys.argv[1], input_shape=(size, size, 3), classes=1000)
net.save("net.keras")
net.export("saved", verbose=False)
"""
TRUTH = """
import sys
import numpy as np
from edgerun.converters import keras
found = keras.convert("net.keras", inputs=[], factory=None, opset=int(sys.argv[1]))
feeds = {found.model.inputs[0].name: np.load("picture.npy")}
np.save("truth.npy", next(iter((found.run64 or found.run)(feeds).values())))
"""
THEIRS = ["-m", "tf2onnx.convert", "--saved-model", "saved", "--opset", OPSET, "--output", "tf2onnx.onnx"]
OURS = ["-m", "edgerun", "convert", "net.keras", "-o", "edgerun.onnx", "--opset", OPSET]


def measure(name: str) -> dict[str, Any]:
    """The figures of one architecture; `ratio` is tf2onnx's time by edgerun's. `failed` says why tf2onnx's file does
    not run, where that is so."""
    size, backend = SIZES.get(name, 224), BACKENDS.get(name, "torch")
    picture = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        np.save(where / "picture.npy", picture)
        _run(["-c", MAKE, name, str(size)], where, "tensorflow")
        _run(THEIRS, where, "tensorflow")
        _run(OURS, where, backend)
        _run(["-c", TRUTH, OPSET], where, backend)
        routes = {route: where / f"{route}.onnx" for route in ("edgerun", "tf2onnx")}
        found: dict[str, Any] = {"nodes": {route: _nodes(path) for route, path in routes.items()}}
        if failed := _failed(routes["tf2onnx"], picture):
            found["failed"] = failed
            del routes["tf2onnx"]
        errors, openers = {}, {route: functools.partial(_opened, path, picture) for route, path in routes.items()}
        for route, opener in openers.items():
            with opener() as run:
                errors[route] = _error(run(), np.load(where / "truth.npy"))
        timed = latency.in_sessions(openers, seconds=SECONDS, clock=time.process_time_ns)
        if "tf2onnx" in timed:
            ratio = stats.speedup(timed["tf2onnx"], timed["edgerun"])
            found["ratio"] = [round(number, 3) for number in (ratio.value, ratio.interval.low, ratio.interval.high)]
        return {
            **found,
            "errors": errors,
            "ms": {route: round(1e3 * stats.quantile(samples, 0.5).value, 2) for route, samples in timed.items()},
            "sessions": len(timed["edgerun"]),
        }


def _error(got: np.ndarray, truth: np.ndarray) -> float:
    return float(f"{np.abs(got - truth).max() / np.abs(truth).max():.2g}")


def _failed(path: Path, picture: np.ndarray) -> str:
    """Why ONNX Runtime does not run the file; empty where it does."""
    try:
        with _opened(path, picture) as run:
            run()
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        return re.sub(r"(?s).*(Error |failed:)", "", str(error)).strip()[:200]
    return ""


@contextlib.contextmanager
def _opened(path: Path, picture: np.ndarray) -> Iterator[Any]:
    """A function that runs the file once on the picture, and gives its first output."""
    import onnxruntime as ort  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: picture}
    yield lambda: session.run(None, feeds)[0]


def _nodes(path: Path) -> int:
    import onnx

    return len(onnx.load(path, load_external_data=False).graph.node)


def _run(arguments: list[str], folder: Path, backend: str) -> None:
    top = str(Path(__file__).resolve().parents[1])
    told = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": top}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ | told, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments[:3])}: {done.stderr[-600:]}")


def main(names: list[str]) -> None:
    """Measure what is named (all, when nothing is), keep, print."""
    table: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names or NAMES:
        table[name] = measure(name)
        print(name, table[name], flush=True)
        files.write_bytes(RESULTS, (json.dumps(table, indent=1, sort_keys=True) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
