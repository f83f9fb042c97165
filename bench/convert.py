"""How long it takes to convert MobileNetV2 from Keras: edgerun beside tf2onnx, `python -m bench.convert`.

Whole processes from the same `.keras` file to an ONNX file, in turns, in wall time and in processor time (of all
threads and children), which other work on the machine changes less. Python may write bytecode, as it does where a
package is installed: tf2onnx's is. tf2onnx gets the SavedModel that Keras on
TensorFlow exports: told with that export, as a user of it has to make it, and without. edgerun's time has its
comparison with the source in it; tf2onnx compares nothing. Prints medians and the span of all rounds.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
NAMES = ("edgerun", "export + tf2onnx", "tf2onnx")
ROUNDS = 5


Seconds = tuple[float, float]  # wall, processor


def rounds(count: int = ROUNDS) -> Iterator[dict[str, Any]]:
    """After every round: seconds of every whole process under "wall" and "processor", and the nodes of both files."""
    found: dict[str, Any] = {word: {name: [] for name in NAMES} for word in ("wall", "processor")}
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        _run(["-c", MAKE], where, "torch")
        for _ in range(count):
            ours = _run(["-m", "edgerun", "convert", "net.keras", "-o", "ours.onnx", "--force"], where, "torch")
            export = _run(["-c", EXPORT], where, "tensorflow")
            theirs = _run(CONVERT, where, "tensorflow")
            for at, word in enumerate(("wall", "processor")):
                for name, seconds in zip(NAMES, (ours[at], export[at] + theirs[at], theirs[at]), strict=True):
                    found[word][name].append(round(seconds, 3))
            yield found | {"nodes": [_nodes(where / "ours.onnx"), _nodes(where / "theirs.onnx")]}


def _run(arguments: list[str], folder: Path, backend: str) -> Seconds:
    told = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, env=own | told, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _nodes(path: Path) -> int:
    import onnx

    return len(onnx.load(path, load_external_data=False).graph.node)


def told(times: dict[str, list[float]], name: str) -> str:
    """As `24.2 s [23.9 to 24.5] (2.60 × edgerun's)`: the median, the span of all rounds, the median of the ratios."""
    taken, ours = times[name], times[NAMES[0]]
    text = f"{statistics.median(taken):.1f} s [{min(taken):.1f} to {max(taken):.1f}]"
    ratio = statistics.median(b / a for a, b in zip(ours, taken, strict=True))
    return text if name == NAMES[0] else f"{text} ({ratio:.2f} × edgerun's)"


def main() -> None:
    """Measure, keep, print."""
    found: dict[str, Any] = {}
    for found in rounds():
        files.write_bytes(RESULTS, (json.dumps(found, indent=1) + "\n").encode())
    for word in ("wall", "processor"):
        for name in NAMES:
            print(f"{word:<10}{name:<18}{told(found[word], name)}, n = {len(found[word][name])}")
    print("nodes: edgerun {:.0f}, tf2onnx {:.0f}".format(*found["nodes"]))


if __name__ == "__main__":
    main()
