"""How long it takes to convert MobileNetV2 from Keras: edgerun beside tf2onnx, `python -m bench.convert`.

Whole processes from the same `.keras` file to an ONNX file, in turns, wall time. tf2onnx gets the SavedModel that Keras
on TensorFlow exports: told with that export, as a user of it has to make it, and without. edgerun's time has its
comparison with the source in it; tf2onnx compares nothing. Prints medians and the span of all rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgerun import files

RESULTS = Path(__file__).with_name("results") / "convert.json"
MAKE = """
import keras
keras.utils.set_random_seed(1)
keras.applications.MobileNetV2(weights=None).save("net.keras")
"""
EXPORT = """
import keras
keras.models.load_model("net.keras", compile=False).export("saved", verbose=False)
"""
CONVERT = ["-m", "tf2onnx.convert", "--saved-model", "saved", "--opset", "18", "--output", "theirs.onnx"]
ROUNDS = 5


def rounds(count: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of every whole process, in turns."""
    found: dict[str, list[float]] = {"edgerun": [], "export + tf2onnx": [], "tf2onnx": []}
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        _run(["-c", MAKE], where, "torch")
        for number in range(count + 1):  # the first one warms the disk's cache
            ours = _run(["-m", "edgerun", "convert", "net.keras", "-o", "ours.onnx", "--force"], where, "torch")
            export = _run(["-c", EXPORT], where, "tensorflow")
            theirs = _run(CONVERT, where, "tensorflow")
            if number:
                for name, seconds in zip(found, (ours, export + theirs, theirs), strict=True):
                    found[name].append(seconds)
        found |= {"nodes": [_nodes(where / "ours.onnx"), _nodes(where / "theirs.onnx")]}
    return found


def _run(arguments: list[str], folder: Path, backend: str) -> float:
    told = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, env=os.environ | told, check=True, capture_output=True)
    return time.perf_counter() - start


def _nodes(path: Path) -> int:
    import onnx

    return len(onnx.load(path, load_external_data=False).graph.node)


def main() -> None:
    """Measure, keep, print."""
    found = rounds()
    ours = found["edgerun"]
    for name in ("edgerun", "export + tf2onnx", "tf2onnx"):
        times = found[name]
        ratio = statistics.median(b / a for a, b in zip(ours, times, strict=True))
        span = f"{min(times):.1f} to {max(times):.1f} s, n = {len(times)}"
        print(f"{name:<18}{statistics.median(times):>7.1f} s  ({span}), {ratio:.2f} × edgerun's")
    print("nodes: edgerun {:.0f}, tf2onnx {:.0f}".format(*found["nodes"]))
    files.write_bytes(RESULTS, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
