"""How many runs a second: `python -m bench.throughput` (adds to results/overhead.json).

`Session.stream` with a stream for each core, against our own loop of `Session.run` on all cores, and against OpenVINO's
benchmark_app (`-hint throughput`, the same model, batch 1). They take turns in every round; a round's ratio is that of
neighbours in time, and the interval is the sign test's over rounds.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

import click
import numpy as np

import edgerun
from bench import zoo
from bench.overhead import RESULTS
from edgerun import files, registry
from edgerun.measure.stats import median
from edgerun.runtime import Options, Session, machine

MODELS = ("cifar_cnn", "mobilenet_v2")


def looped(session: Session, feeds: Mapping[str, np.ndarray], seconds: float) -> float:
    """Runs a second of one call after the other."""
    start, runs = perf_counter(), 0
    while perf_counter() - start < seconds:
        session.run(feeds)
        runs += 1
    return runs / (perf_counter() - start)


def streamed(session: Session, feeds: Mapping[str, np.ndarray], seconds: float) -> float:
    """Runs a second of a stream."""
    start, runs = perf_counter(), 0
    end = start + seconds
    source = itertools.takewhile(lambda _: perf_counter() < end, itertools.repeat(feeds))
    for _ in session.stream(source):
        runs += 1
    return runs / (perf_counter() - start)


def benchmark_app(path: Path, feeds: Mapping[str, np.ndarray], seconds: float) -> float:
    """Runs a second that benchmark_app tells, asynchronous, on `seconds` whole seconds."""
    shapes = ",".join(f"{name}[{','.join(map(str, array.shape))}]" for name, array in feeds.items())
    command = [str(Path(sys.executable).with_name("benchmark_app")), "-m", str(path), "-d", "CPU", "-api", "async"]
    command += ["-hint", "throughput", "-infer_precision", "f32", "-t", str(max(1, round(seconds))), "-shape", shapes]
    with tempfile.TemporaryDirectory() as home:
        told = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HOME": home}, cwd=home)
    match = re.search(r"Throughput:\s+([0-9.]+) FPS", told.stdout)
    if match is None:
        raise RuntimeError(told.stdout[-2000:] + told.stderr[-2000:])
    return float(match[1])


@click.command()
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Measured time per side and round.")
@click.option("--rounds", type=click.IntRange(min=6), default=9, show_default=True, help="Rounds of all sides.")
def main(seconds: float, rounds: int) -> None:
    """Print runs a second, and how many times as many a stream makes, with the 95 % interval."""
    rows, cores = [], machine.quota()
    for name, target in itertools.product(MODELS, ("onnxruntime", "openvino")):
        path, feeds = zoo.model(name).onnx, dict(zoo.model(name).latency_feeds())
        if not path.is_file() or registry.target(target, usable=False).available():
            continue
        rates: dict[str, list[float]] = {"stream": [], "loop": [], "benchmark_app": []}
        usual = {name: array.shape for name, array in feeds.items()}  # benchmark_app knows them as well
        streams, one = (Options(streams=count, usual=usual) for count in (cores, 1))
        with edgerun.load(path, target, streams) as wide, edgerun.load(path, target, one) as narrow:
            for _ in range(rounds):
                rates["stream"].append(streamed(wide, feeds, seconds))
                rates["loop"].append(looped(narrow, feeds, seconds))
                if target == "openvino":
                    rates["benchmark_app"].append(benchmark_app(path, feeds, seconds))
        row: dict[str, object] = {"model": name, "target": target, "streams": cores, "rounds": rounds}
        for side, found in rates.items():
            if not found:
                continue
            ratio = median([a / b for a, b in zip(rates["stream"], found, strict=True)])
            low, high = ratio.interval.low, ratio.interval.high
            row[side] = {"per_second": float(np.median(found)), "ratio": ratio.value, "low": low, "high": high}
            compared = f"; a stream makes {ratio.value:.2f} times as many [{low:.2f}, {high:.2f}]"
            told = f"{name:<14}{target:<12}{side:<14}{np.median(found):>8.1f} /s"
            click.echo(told + (compared if side != "stream" else ""))
        rows.append(row)
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    files.write_bytes(RESULTS, json.dumps({**kept, "throughput": rows}, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
