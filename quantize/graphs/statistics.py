"""Activation statistics, streamed: one run per batch gives minimum, maximum and an even sample of every point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.quantize.graphs.edit import initializer

if TYPE_CHECKING:
    import onnx_ir as ir

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
PREFIX = "edgerun/probe/"
LEAST = 256  # elements kept of each tensor in each batch, however many batches there are


@dataclass(frozen=True)
class Observed:
    """What was seen of one activation: exact `low` and `high`, and an even sample of its values, float32 `[m]`."""

    low: float
    high: float
    sample: np.ndarray


class _Probes:
    """Grows measuring nodes on a clone of a model; its only outputs are theirs."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model.clone()
        graph = self.model.graph
        self.values = {v.name: v for v in [*graph.inputs, *(o for node in graph for o in node.outputs)]}
        graph.outputs.clear()

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        known = self.model.graph.initializers.get(f"{PREFIX}constant/{name}")
        return known if known is not None else initializer(self.model.graph, f"{PREFIX}constant/{name}", array)

    def emit(self, op: str, inputs: Sequence[ir.Value], name: str, **attributes: int | Sequence[int]) -> ir.Value:
        import onnx_ir as ir

        node = ir.node(op, list(inputs), attributes=attributes, name=name)
        node.outputs[0].name = name
        self.model.graph.append(node)
        return node.outputs[0]

    def reduce(self, op: str, value: ir.Value, axes: Sequence[int] | None, name: str) -> None:
        """A reduction over `axes` (None: all) as an output, in the form that the model's opset has."""
        if axes is None:
            probe = self.emit(op, [value], name, keepdims=0)
        elif self.model.graph.opset_imports.get("", 0) >= 18:
            listed = self.constant("axes/" + ",".join(map(str, axes)), np.array(axes, np.int64))
            probe = self.emit(op, [value, listed], name, keepdims=0)
        else:
            probe = self.emit(op, [value], name, keepdims=0, axes=axes)
        self.output(probe, "FLOAT", [] if axes is None else [value.shape[1]])  # type: ignore[index]

    def output(self, probe: ir.Value, dtype: str, shape: Sequence[Any]) -> None:
        import onnx_ir as ir

        probe.type, probe.shape = ir.TensorType(ir.DataType[dtype]), ir.Shape(shape)
        self.model.graph.outputs.append(probe)


def with_probes(model: ir.Model, names: Sequence[str], per_batch: int) -> ir.Model:
    """A clone of `model` whose only outputs are the probes of the named float tensors.

    For tensor `t`, behind PREFIX: `t/min` and `t/max` (scalars) and `t/sample` (`[≤ 2·per_batch]`): every k-th
    element with an odd k, so that the sample does not stay in one column of an even-sized picture.
    """
    probes = _Probes(model)
    numbers = {"flat": -1, "zero": 0, "axis": 0, "end": np.iinfo(np.int64).max, "share": per_batch, "one": 1, "two": 2}
    flat, zero, axis, end, share, one, two = (probes.constant(n, np.array([v], np.int64)) for n, v in numbers.items())
    for name in names:
        source, own = probes.values[name], PREFIX + name
        probes.reduce("ReduceMin", source, None, f"{own}/min")
        probes.reduce("ReduceMax", source, None, f"{own}/max")
        line = probes.emit("Reshape", [source, flat], f"{own}/flat")
        ratio = probes.emit("Div", [probes.emit("Shape", [line], f"{own}/size"), share], f"{own}/ratio")
        even = probes.emit("Mul", [probes.emit("Div", [ratio, two], f"{own}/half"), two], f"{own}/even")
        step = probes.emit("Add", [even, one], f"{own}/step")
        probes.output(probes.emit("Slice", [line, zero, end, axis, step], f"{own}/sample"), "FLOAT", [None])
    return probes.model


def with_channel_probes(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A clone that gives, for each named `t` `[N, C, …]`, `t/low`, `t/high` and `t/squares` `[C]`, and `t/size`."""
    probes = _Probes(model)
    for name in names:
        value = probes.values[name]
        rest = [i for i in range(len(value.shape or ())) if i != 1]
        for kind, op in (("low", "ReduceMin"), ("high", "ReduceMax"), ("squares", "ReduceSumSquare")):
            probes.reduce(op, value, rest, f"{PREFIX}{name}/{kind}")
        probes.output(probes.emit("Size", [value], f"{PREFIX}{name}/size"), "INT64", [])
    return probes.model


def observe_channels(
    run: Run, batches: Iterable[Mapping[str, np.ndarray]], names: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """max |x| and mean x² per channel `[C]`, by tensor name."""
    peak: dict[str, np.ndarray] = {}
    squares: dict[str, np.ndarray] = {}
    counts = dict.fromkeys(names, 0.0)
    for feeds in batches:
        out = run(feeds)
        for name in names:
            now = np.maximum(out[f"{PREFIX}{name}/high"], -out[f"{PREFIX}{name}/low"])
            peak[name] = np.maximum(peak[name], now) if name in peak else now
            now = out[f"{PREFIX}{name}/squares"].astype(np.float64)
            squares[name] = squares[name] + now if name in squares else now
            counts[name] += float(out[f"{PREFIX}{name}/size"]) / len(now)
    return peak, {name: squares[name] / counts[name] for name in names}


def observe(
    run: Run, batches: Iterable[Mapping[str, np.ndarray]], names: Sequence[str], budget: int = 1 << 16
) -> dict[str, Observed]:
    """Run the probes over all batches. Memory: at most 2 · `budget` sampled elements of each tensor, whatever comes."""
    low = {name: np.inf for name in names}
    high = {name: -np.inf for name in names}
    samples: dict[str, list[np.ndarray]] = {name: [] for name in names}
    held, every = 0, 1
    for feeds in batches:
        out = run(feeds)
        for name in names:
            low[name] = min(low[name], float(out[f"{PREFIX}{name}/min"]))
            high[name] = max(high[name], float(out[f"{PREFIX}{name}/max"]))
            samples[name].append(np.array(out[f"{PREFIX}{name}/sample"][::every]))
        held = max(held, max(sum(map(len, parts)) for parts in samples.values()))
        if held > 2 * budget:
            # Thin what is held and what is to come alike, so that every batch keeps its weight.
            samples = {name: [np.concatenate(parts)[::2]] for name, parts in samples.items()}
            held, every = held // 2, 2 * every
    return {name: Observed(low[name], high[name], np.concatenate(samples[name])) for name in names}
