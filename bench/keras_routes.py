"""One Keras model by two routes to ONNX: `python -m bench.keras_routes [NAME …]` writes results/keras_routes.json.

edgerun converts the `.keras` file; tf2onnx gets the SavedModel that Keras on TensorFlow exports. Told are the nodes of
both graphs, how far their results differ, and how fast both run on ONNX Runtime: one thread, batch 1, full size, in
turns in sessions opened anew, in processor time. docs/keras.md shows it.
"""

from __future__ import annotations

import contextlib
import json
import os
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
THEIRS = ["-m", "tf2onnx.convert", "--saved-model", "saved", "--opset", OPSET, "--output", "tf2onnx.onnx"]
OURS = ["-m", "edgerun", "convert", "net.keras", "-o", "edgerun.onnx", "--opset", OPSET]


def measure(name: str) -> dict[str, Any]:
    """The figures of one architecture; `ratio` is tf2onnx's time by edgerun's."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        _run(["-c", MAKE, name, str(SIZES.get(name, 224))], where, "tensorflow")
        _run(THEIRS, where, "tensorflow")
        _run(OURS, where, BACKENDS.get(name, "torch"))
        paths = {route: where / f"{route}.onnx" for route in ("edgerun", "tf2onnx")}
        with _opened(paths["edgerun"]) as ours, _opened(paths["tf2onnx"]) as theirs:
            wanted, got = theirs(), ours()
        timed = latency.in_sessions(
            {route: lambda path=path: _opened(path) for route, path in paths.items()},  # type: ignore[misc]
            seconds=SECONDS,
            clock=time.process_time_ns,
        )
        found = stats.speedup(timed["tf2onnx"], timed["edgerun"])
        return {
            "nodes": {route: _nodes(path) for route, path in paths.items()},
            "difference": float(f"{np.abs(wanted - got).max() / np.abs(wanted).max():.2g}"),
            "ms": {route: round(1e3 * stats.quantile(samples, 0.5).value, 2) for route, samples in timed.items()},
            "ratio": [round(number, 3) for number in (found.value, found.interval.low, found.interval.high)],
            "sessions": len(timed["edgerun"]),
        }


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A function that runs the file once, on the same picture whatever the file, and gives its first output."""
    import onnxruntime as ort  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in entry.shape]
    feeds = {entry.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
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
