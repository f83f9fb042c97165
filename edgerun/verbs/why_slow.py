"""Why slow: a float model and its quantized one on one target, kernel by kernel: where time was won, where lost."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import registry
from edgerun.devices import Device
from edgerun.errors import EdgerunError
from edgerun.measure import attribution
from edgerun.measure.accounting import Account, Part, account
from edgerun.measure.stats import Estimate, median
from edgerun.metrics import Interval
from edgerun.passes import Quantization
from edgerun.preprocess import Preprocessing
from edgerun.runtime import Options, TensorSpec
from edgerun.verbs import devices
from edgerun.verbs.benchmark import SESSIONS, agreed, batch_for
from edgerun.verbs.feeds import located
from edgerun.verbs.load import load, target_for
from edgerun.verbs.rounds import Round, measured

ENOUGH = 0.95  # of the measured difference is to be explained
RESTLESS = 1.2
WORTH = 0.005  # of the quantized model's time: a smaller gain is no hint


@dataclass(frozen=True)
class Hint:
    """What may help. `seconds` per run is an estimate from the profile and was not tried.

    `kind` is 'keep float' (of `node`: the time that quantizing its layer lost, which new conversions at its borders
    may eat up) or 'stays float' (an upper bound: what all nodes of the op `node` take in the quantized model).
    """

    kind: str
    node: str
    seconds: float
    reason: str

    def __str__(self) -> str:
        time = f"{1e6 * self.seconds:.1f} µs"
        if self.kind == "keep float":
            return f"--keep-float {self.node!r}: wins about {time} back (estimated; {self.reason})"
        return f"{self.node} kernels that stay in float take {time}: at most so much could be won there"


@dataclass(frozen=True)
class WhySlow:
    """Two models' p50 latencies in seconds, timed interleaved, and what their difference is made of.

    `speedup` is the ratio of a session's two, whose interval holds 1 where that of their difference holds 0: one rule
    says whether there is a difference.

    `restless` is how many times its fastest tenth the float model's p50 is. Where that is far above 1, other work
    interrupts the runs, and that time is nobody's. `waits` is how many times its CPU time the float model's p50 is (1
    where more threads than one are asked for): where other work holds the CPU all the time, `difference` is about CPU
    time, and the p50s are not.
    """

    fp32: str
    int8: str
    target: str
    fp32_p50: Estimate
    int8_p50: Estimate
    speedup: Estimate
    difference: Account
    hints: tuple[Hint, ...]
    sessions: int
    runs: int
    profiled_runs: int
    threads: int
    restless: float
    waits: float
    feed: tuple[str, ...]
    device: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def enough(self) -> bool:
        """Whether the parts account for the measured difference to 5 % of it."""
        explained = self.difference.explained
        return explained is not None and abs(explained.value - 1) <= 1 - ENOUGH

    def summary(self) -> tuple[str, ...]:
        """What was measured, how much of it is explained, and, where it is not enough, that it is not."""
        times = f"fp32 p50 {_ms(self.fp32_p50)}, INT8 {_ms(self.int8_p50)}: {_span(self.speedup, 1, 2)} times as fast"
        counts = f"{self.sessions} sessions, {self.runs} timed and {self.profiled_runs} profiled runs of each"
        found = self.difference
        lines = [f"{times} ({counts})", *self._wholes(), self._between()]
        parts = f"attributed to kernels and between them {_ms(found.attributed)} of {_ms(found.measured)} measured"
        if found.explained is None:
            held = f" in CPU time (other work holds it: a run waits {self.waits:.1f} times)" * (self.waits > RESTLESS)
            return *lines, parts, f"explained: nothing to explain, no difference could be measured{held}"
        lines.append(f"{parts}: explained {_span(found.explained, 100, 1)} %, unexplained {_ms(found.unexplained)}")
        if self.waits > RESTLESS:
            lines.append(f"other work holds the CPU: a run waits {self.waits:.1f} times; what is explained is CPU time")
        if not self.enough:
            more = found.explained.value > 1
            lines.append(
                f"the parts do {'more than' if more else 'not'} account for the difference: what is unexplained is "
                "neither kernels, as profiled, nor what the runtime takes between trivial ones"
            )
            if self.restless > RESTLESS or self.waits > RESTLESS:
                lines.append(f"the machine is busy: p50 is {self.restless:.1f} times p10; repeat it on a quiet one")
        return tuple(lines)

    def _wholes(self) -> Iterator[str]:
        """What each model's run is made of, and whether its kernels are told longer than the run leaves room for."""
        for name, whole in zip(("fp32", "INT8"), self.difference.wholes, strict=True):
            between = f" + {whole.nodes} nodes {_ms(whole.between)} + call {_ms(whole.call)}"
            line = f"{name}: kernels {_ms(whole.kernels)}{between if self.difference.dispatched else ''}"
            over = ": slower under the profiler than without it" if whole.rest.interval.high < 0 else ""
            yield f"{line} of {_ms(whole.run)}, rest {_ms(whole.rest)}{over}"

    def _between(self) -> str:
        found = self.difference
        if not found.dispatched:
            return f"between kernels: not measured, {self.target} runs no chain of nodes that do next to nothing"
        more = found.wholes[1].nodes - found.wholes[0].nodes
        nodes = f"{abs(more)} nodes {'more' if more > 0 else 'fewer'}" if more else "as many nodes"
        saved = found.between
        lost = Estimate(-saved.value, Interval(-saved.interval.high, -saved.interval.low, saved.interval.confidence))
        return f"between kernels: {nodes} in INT8, {_ms(lost)} more"


def _span(estimate: Estimate, factor: float, digits: int) -> str:
    value, low, high = (
        f"{factor * x:.{digits}f}" for x in (estimate.value, estimate.interval.low, estimate.interval.high)
    )
    return f"{value} [{low}, {high}]"


def _ms(estimate: Estimate) -> str:
    return f"{_span(estimate, 1e3, 3)} ms"


def why_slow(
    fp32: str | Path,
    int8: str | Path,
    *,
    target: str | None = None,
    device: Device | str | Path | None = None,
    options: Options | None = None,
    data: Any = None,
    preprocessing: Preprocessing | str | Path | None = None,
    batch: int | None = None,
    shapes: Sequence[TensorSpec | str] = (),
    seconds: float = 20.0,
    progress: Callable[[float], None] | None = None,
) -> WhySlow:
    """Time and profile the float model `fp32` and the quantized `int8` on one target, and align their kernels.

    Nine times both are opened anew in a drawn order, timed interleaved without profiler, profiled in turns, and timed
    again; `seconds` are shared by timing and profiling. On top come opening, the fewest profiled runs of each session
    (ten), and reading profiles: 15 s or more for a small model, over a minute for a ResNet-50. Beside them run chains
    of nodes that do next to nothing, by which it is known what the runtime takes between kernels. Without
    `target` it is the one that `int8`'s kind of file runs on. With `device`, a known one or a file, nothing is timed
    unless this machine may be it. The feed is that of `benchmark`, with the same `data`, `batch` and `shapes`.
    Both models know its shapes (`Options.usual`), whatever their files tell: what differs is the quantization alone.

    Raises EdgerunError for models with different inputs or on two targets, or without a node in common.
    """
    options = options or Options()
    if device is not None:
        known, target = devices.chosen(device, target)
        devices.here(known, target)
    paths, name = _places(fp32, int8, target)
    with ExitStack() as stack:
        opened = {str(path): stack.enter_context(load(path, name, options)) for path in paths}
        feeds = batch_for(agreed(opened, shapes, paths[0]), paths[0], data, preprocessing, batch)
        feed = next(iter(feeds))
        for session in opened.values():
            session.run(feed)
    options = replace(options, usual={name: array.shape for name, array in feed.items()})
    generator, sessions = random.Random(0), list[Round]()
    for number in range(SESSIONS):
        sessions.append(measured(paths, name, options, feed, seconds / SESSIONS, generator))
        if progress is not None:
            progress((number + 1) / SESSIONS)
    p50 = [median([s.p50[side] for s in sessions]) for side in (0, 1)]
    waits = float(np.median([s.waits for s in sessions]))
    found = account([s.accounted(cpu=waits > RESTLESS) for s in sessions])
    rules = registry.target(name).quantization()
    return WhySlow(
        str(fp32),
        str(int8),
        name,
        p50[0],
        p50[1],
        median([s.p50[0] / s.p50[1] for s in sessions]),
        found,
        tuple(_hints(found, p50[1].value, _ops(paths), rules)),
        len(sessions),
        sum(s.timed[0].size for s in sessions),
        sum(s.profiled for s in sessions),
        options.threads,
        float(np.median([np.median(s.timed[0]) / np.quantile(s.timed[0], 0.1) for s in sessions])),
        waits,
        tuple(str(TensorSpec(key, array.dtype.name, array.shape)) for key, array in feed.items()),
        registry.target(name).device(),
        feeds.notes,
    )


def _places(fp32: str | Path, int8: str | Path, target: str | None) -> tuple[tuple[Path, Path], str]:
    (first, own), (second, other) = located(fp32, target), located(int8, target)
    if own != other:
        got = f"{own or 'no target'} and {other or 'no target'}"
        raise EdgerunError("the models are to run on two targets", got=got, do="give one --target for both")
    return (first, second), own or target_for(second.suffix)


def _hints(found: Account, total: float, ops: Mapping[str, str], rules: Quantization) -> Iterator[Hint]:
    """The layers that lost time for sure, the largest loss first; then what stays in float, by op."""
    lost = []
    for number, saved in found.layers.items():
        parts = [part for part in found.parts if part.layer == number]
        node = _quantized_node(parts, ops, rules)
        if node is not None and saved.interval.high < 0 and -saved.value >= WORTH * total:
            worst = min(parts, key=lambda part: part.saved.value)
            lost.append(Hint("keep float", node, -saved.value, worst.cause))
    yield from sorted(lost, key=lambda hint: -hint.seconds)
    floats: dict[str, float] = {}
    for part in found.parts:
        if part.work == "compute" and not part.integer and part.after:
            op = max(part.after, key=lambda kernel: kernel.seconds).op
            floats[op] = floats.get(op, 0.0) + part.after_seconds
    for op, seconds in sorted(floats.items(), key=lambda item: -item[1]):
        if seconds >= WORTH * total:
            yield Hint("stays float", op, seconds, attribution.STAYS_FLOAT)


def _quantized_node(parts: Sequence[Part], ops: Mapping[str, str], rules: Quantization) -> str | None:
    """The node that `compress --keep-float` would take to bring a layer back to float; None where there is none."""
    nodes = (node for part in parts if part.integer and part.before for node in part.nodes)
    return next((node for node in nodes if ops.get(node) in rules.compute | rules.join | rules.dynamic), None)


def _ops(paths: Sequence[Path]) -> dict[str, str]:
    """The op of every named node, from the float model if it is ONNX, else from the quantized one."""
    path = next((path for path in paths if path.suffix == ".onnx"), None)
    if path is None:
        return {}
    from edgerun.model import Model

    return {str(node.name): node.op_type for node in Model.load(path).ir.graph}
