"""Two processes that run the same model with one thread each, at once: `python -m bench.beside` (adds to
results/overhead.json).

A machine of two cores has room for both. OpenVINO holds one-thread models on its first core, whoever opens them; a
Session leaves them where the kernel puts them. Either side is two new processes that start counting together, in turns
with the other side and with one process alone; ratios are those of neighbours in time, with the sign test's interval.
"""

from __future__ import annotations

import json
import subprocess
import sys

import click

from bench import zoo
from bench.overhead import RESULTS
from edgerun import files, registry
from edgerun.measure.stats import median

MODELS = ("cifar_cnn", "mobilenet_v2")
TARGETS = ("onnxruntime", "openvino")
CHILD = """
import sys
from pathlib import Path
from time import perf_counter
from bench import overhead, overhead_raw, zoo
name, target, side, seconds = sys.argv[1:]
path, feeds = zoo.model(name).onnx, dict(zoo.model(name).latency_feeds())
raw = {"onnxruntime": overhead_raw.ONNXRUNTIME, "openvino": overhead_raw.OPENVINO}[target]
data = path.read_bytes()
opened = raw.plain(data, feeds) if side == "runtime" else overhead.ours(target, data, feeds, None)
with opened as run:
    for _ in range(5):
        run()
    print("ready", flush=True)
    input()
    begun, runs = perf_counter(), 0
    while perf_counter() - begun < float(seconds):
        run()
        runs += 1
    print(runs / (perf_counter() - begun))
"""


def rates(name: str, target: str, side: str, seconds: float, processes: int) -> float:
    """Runs a second of all `processes` together."""
    command = [sys.executable, "-c", CHILD, name, target, side, str(seconds)]
    pipe = subprocess.PIPE
    children = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(processes)]
    for child in children:
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise RuntimeError(f"{name} does not run on {target}")
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    return sum(float(child.communicate()[0]) for child in children)


@click.command()
@click.option("--seconds", type=float, default=1.5, show_default=True, help="Measured time per side and round.")
@click.option("--rounds", type=click.IntRange(min=6), default=9, show_default=True, help="Rounds of all sides.")
def main(seconds: float, rounds: int) -> None:
    """Print runs a second of one and of two processes, and how many times as many two make, with the interval."""
    rows = []
    for name in MODELS:
        for target in TARGETS:
            if not zoo.model(name).onnx.is_file() or registry.target(target, usable=False).available():
                continue
            found: dict[tuple[str, int], list[float]] = {(s, n): [] for s in ("edgerun", "runtime") for n in (1, 2)}
            for number in range(rounds):
                for side, count in list(found)[:: 1 if number % 2 else -1]:
                    found[side, count].append(rates(name, target, side, seconds, count))
            for side in ("edgerun", "runtime"):
                ratio = median([two / one for one, two in zip(found[side, 1], found[side, 2], strict=True)])
                low, high = ratio.interval.low, ratio.interval.high
                one, two = (median(found[side, count]).value for count in (1, 2))
                row = {"model": name, "target": target, "side": side, "rounds": rounds, "one": one, "two": two}
                rows.append(row | {"ratio": ratio.value, "low": low, "high": high})
                told = f"{one:>7.1f} /s, two {two:>7.1f} /s: {ratio.value:.2f} times as many [{low:.2f}, {high:.2f}]"
                click.echo(f"{name:<14}{target:<12}{side:<9}{told}")
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    files.write_bytes(RESULTS, json.dumps({**kept, "beside": rows}, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
