"""Time networks on a GPU through ONNX Runtime's CUDA provider and TensorRT, beside the CPU of the same machine.

    python -m bench.gpu [-o FILE.json] [--within SECONDS] [--cpu]

Each of three networks with random weights (`bench/gpu_nets.py`), at batch 1 and 16: fp32 with TF32 off (the baseline)
and on, fp16, INT8 as Q/DQ, fp32 and fp16 as CUDA graphs; fp32, fp16 and INT8 of TensorRT, each as CUDA graphs too; fp32
on the CPU; all interleaved, in nine sessions. TensorRT's engines are built before, for the one batch. Times are those
of `Session.run`, so copies to the GPU and back are in them. Beside each stand the SQNR to fp32 on the CPU, on the same
feed, and the nodes that the provider leaves to the CPU. A variant that cannot run is named with the reason.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

import edgerun
from bench.gpu_nets import NETS, PRECISIONS
from edgerun import files, registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.measure.stats import Estimate
from edgerun.metrics import sqnr_db
from edgerun.runtime import Options
from edgerun.runtime.spec import batch_dims

# In an order in which the first few tell most, should the time be short.
CELLS = (("mobilenet", 1), ("resnet", 16), ("transformer", 1), ("transformer", 16), ("resnet", 1), ("mobilenet", 16))
SECONDS, ROUNDS = 7.0, 45
CUDA, GRAPH = {"PROVIDER": "CUDA"}, {"CUDA_GRAPH": "1"}


@dataclass(frozen=True)
class Variant:
    """A number format and where it runs: `builder` is the target that makes an engine of the model first."""

    name: str
    precision: str
    extra: Mapping[str, str]
    builder: str = ""

    def file(self, path: Path, batch: int) -> Path:
        """What is opened: the model at `path`, or its engine for this batch. Raises Unsupported where none runs."""
        if not self.builder:
            return path
        target, engine = registry.target(self.builder), path.with_name(f"{path.stem}_{batch}.engine")
        if reason := target.runnable():
            raise Unsupported(f"{self.builder} does not run here", got=reason)
        if not engine.exists():
            model = edgerun.Model.load(path)
            sizes = dict.fromkeys(batch_dims(model.inputs), (batch, batch, batch))
            target.save(target.compile(model, Options(sizes=sizes)), engine)
        return engine


ON_CPU = Variant("fp32, CPU", "fp32", {})
VARIANTS = (
    Variant("fp32", "fp32", CUDA),
    Variant("TF32", "fp32", {**CUDA, "TF32": "1"}),
    Variant("fp16", "fp16", CUDA),
    Variant("INT8 Q/DQ", "int8", CUDA),
    Variant("fp32, CUDA graph", "fp32", {**CUDA, **GRAPH}),
    Variant("fp16, CUDA graph", "fp16", {**CUDA, **GRAPH}),
    Variant("TensorRT fp32", "fp32", {}, "tensorrt"),
    Variant("TensorRT fp16", "fp16", {}, "tensorrt"),
    Variant("TensorRT INT8 Q/DQ", "int8", {}, "tensorrt"),
    Variant("TensorRT fp32, CUDA graph", "fp32", GRAPH, "tensorrt"),
    Variant("TensorRT fp16, CUDA graph", "fp16", GRAPH, "tensorrt"),
    Variant("TensorRT INT8, CUDA graph", "int8", GRAPH, "tensorrt"),
    ON_CPU,
)


def measured(paths: Mapping[str, Path], batch: int, variants: tuple[Variant, ...]) -> list[dict[str, Any]]:
    """One row a variant: what is left to the CPU, how near it is to the CPU's fp32, and how long it takes."""
    with edgerun.load(paths["fp32"]) as session:
        (spec,) = session.inputs
        shape = (batch, *(dim for dim in spec.shape[1:] if isinstance(dim, int)))
        feed = {spec.name: np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
        truth = session.run(feed)["y"]
    rows = [_tried(paths[variant.precision], variant, batch, feed, truth) for variant in variants]
    ran = [(row, variant) for row, variant in zip(rows, variants, strict=True) if "failed" not in row]
    told = edgerun.benchmark(
        [v.file(paths[v.precision], batch) for _, v in ran], options=[Options(extra=v.extra) for _, v in ran],
        data=[feed], batch=batch, seconds=SECONDS, rounds=ROUNDS,
    )  # fmt: skip
    for (row, _), timing in zip(ran, told.timings, strict=True):
        row |= {"verdict": timing.verdict, "runs": timing.runs, "sessions": told.sessions, "rounds": told.rounds}
        row |= {"p50_ms": _estimate(timing.p50, 1e3), "p99_ms": _estimate(timing.p99, 1e3)}
        row["times_fp32"] = _estimate(timing.speedup) if timing.speedup else None
    return rows


def _tried(path: Path, variant: Variant, batch: int, feed: dict[str, np.ndarray], truth: np.ndarray) -> dict[str, Any]:
    """One run of a variant, the first, or why there was none; building an engine is not part of it."""
    try:
        file = variant.file(path, batch)
        start = time.monotonic()
        with edgerun.load(file, options=Options(extra=variant.extra)) as session:
            value = session.run(feed)["y"]
            left = [issue.op for issue in getattr(session, "left", ())]
    except EdgerunError as error:
        return {"variant": variant.name, "failed": f"{error.what}: {error.got}"}
    first, near = time.monotonic() - start, float(sqnr_db(truth, value))
    noise = near if np.isfinite(near) else None  # where nothing differs
    return {"variant": variant.name, "sqnr_db": noise, "left": left, "first_run_s": first}


def _device(name: str) -> dict[str, str]:
    """The fingerprint of a target, or why there is none of it here."""
    target = registry.target(name, usable=False)
    reason = target.available() or target.runnable()
    return {name: f"does not run here: {reason}"} if reason else dict(target.device())


def _estimate(found: Estimate, factor: float = 1.0) -> dict[str, float]:
    low, high = found.interval.low, found.interval.high
    return {"value": found.value * factor, "low": low * factor, "high": high * factor}


def _line(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return f"{row['variant']:<28}did not run: {row['failed']}"
    p50, ratio = row["p50_ms"], row["times_fp32"]
    times = f"{p50['value']:8.3f} ms [{p50['low']:.3f}, {p50['high']:.3f}]"
    against = f"x{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "x1"
    left = f", {len(row['left'])} nodes on the CPU" if row["left"] and "CPU" not in row["variant"] else ""
    near = "the same bits" if row["sqnr_db"] is None else f"{row['sqnr_db']:7.1f} dB"
    differ = ", outputs differ between sessions" if row["verdict"] == "outputs differ" else ""
    return f"{row['variant']:<28}{times:<34}{against:<24}{near}{left}{differ}"


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the results as JSON too.")
@click.option(
    "--within", type=float, default=600.0, show_default=True, help="Begin nothing that would end later, in s."
)
@click.option("--cpu", "only_cpu", is_flag=True, help="The CPU's row alone: to try this where no GPU is.")
def main(output: Path | None, within: float, only_cpu: bool) -> None:
    """Print a table: p50 [interval], times as fast as fp32 on the GPU [interval], SQNR to fp32 on the CPU."""
    begin, took, cells = time.monotonic(), 0.0, list[dict[str, Any]]()
    variants = (ON_CPU,) if only_cpu else VARIANTS
    target = registry.target("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        paths = {net: {p: Path(folder, f"{net}_{p}.onnx") for p in PRECISIONS} for net in NETS}
        for net, make in NETS.items():
            for precision, path in paths[net].items():
                make(precision).save(path)
        some = edgerun.Model.load(paths["transformer"]["fp32"])
        device = dict(target.compile(some, Options(extra=variants[0].extra)).device)
        builders = {v.builder: _device(v.builder) for v in variants if v.builder}
        for told in (device, *builders.values()):
            click.echo(", ".join(f"{key} {value}" for key, value in told.items() if value))
        for net, batch in CELLS:
            if time.monotonic() - begin + took > within:
                click.echo(f"{net}, batch {batch}: left out, it would end after {within:g} s")
                continue
            start = time.monotonic()
            rows = measured(paths[net], batch, variants)
            took = time.monotonic() - start
            cells.append({"net": net, "batch": batch, "rows": rows, "seconds": took})
            click.echo(f"\n{net}, batch {batch} ({took:.0f} s)")
            click.echo("\n".join(_line(row) for row in rows))
            if output:
                text = json.dumps({"device": device, **builders, "cells": cells}, indent=1)
                files.write_bytes(output, text.encode() + b"\n")


if __name__ == "__main__":
    main()
