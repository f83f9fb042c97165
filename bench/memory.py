"""Does memory grow with the data? Peaks of `edgerun compress` over more and more pictures: `python -m bench.memory`.

ResNet-50 on ONNX Runtime, its calibration pictures streamed by a function: each round over them is mirrored or rolled
by some pixels, so that no two samples are the same. The clock is left out, which opens no data.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench import zoo
from bench.processes import measured
from edgerun import files
from edgerun.data import open_data
from edgerun.runtime import TensorSpec, machine

RESULTS = Path(__file__).with_name("results") / "memory.json"
COUNTS = (200, 1000, 5000)
ROOT = Path(__file__).resolve().parent.parent


def stream() -> Iterator[dict[str, np.ndarray]]:
    """ResNet-50's calibration pictures, read one at a time from their file, again and again with other pixels."""
    chosen = zoo.model("resnet50")
    inputs = [TensorSpec(name, "float32", ("n", *shape[1:])) for name, shape in chosen.latency.items()]
    for turn in range(max(COUNTS)):
        for feeds in open_data(chosen.calibration, inputs, batch=1):
            yield {
                name: np.roll(array[:, :, :: 1 - 2 * (turn % 2)], turn // 2, axis=1) for name, array in feeds.items()
            }


def peak(count: int, target: str) -> dict[str, Any]:
    """Seconds and peak memory (MB of 1e6 bytes) of one compression on `count` samples, in an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "edgerun", "compress", str(zoo.model("resnet50").onnx), "--target", target,
            "--calibration", "bench.memory:stream", "--limit", str(count), "--placement", "rules",
            "-o", str(Path(folder, "small.onnx")),
        ]  # fmt: skip
        found = measured(command, ROOT, {"EDGERUN_CACHE": folder})
    return {"samples": count, "target": target, "seconds": round(found.seconds, 1), "peak_mb": round(found.peak_mb, 1)}


@click.command()
@click.option("--target", default="onnxruntime", show_default=True)
@click.argument("counts", nargs=-1, type=click.IntRange(min=1, max=max(COUNTS)))
def main(target: str, counts: tuple[int, ...]) -> None:
    """Print one line a count; all of COUNTS are also kept."""
    rows = []
    for count in counts or COUNTS:
        rows.append(peak(count, target))
        click.echo(json.dumps(rows[-1]))
    if not counts:
        files.write_bytes(RESULTS, (json.dumps({"cpu": machine.cpu(), "rows": rows}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
