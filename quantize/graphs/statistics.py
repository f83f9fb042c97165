"""Activation statistics, streamed: exact extremes per channel of all data, and an even sample of some of it."""

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


@dataclass(frozen=True)
class Channels:
    """Exact extremes and mean square per channel, `[C]` each (C = 1 where a tensor has no channels), float64."""

    low: np.ndarray
    high: np.ndarray
    power: np.ndarray

    @property
    def peak(self) -> np.ndarray:
        """max |x|."""
        peak: np.ndarray = np.maximum(self.high, -self.low)
        return peak

    def scaled(self, factors: np.ndarray) -> Channels:
        """Of f∘x, for positive f `[C]`."""
        return Channels(self.low * factors, self.high * factors, self.power * factors**2)


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

    def reduce(self, op: str, value: ir.Value, axes: Sequence[int] | None, name: str, kept: int = 1) -> None:
        """A reduction over `axes` (None: all) as an output, in the form that the model's opset has."""
        if axes is None:
            probe = self.emit(op, [value], name, keepdims=0)
        elif self.model.graph.opset_imports.get("", 0) >= 18:
            listed = self.constant("axes/" + ",".join(map(str, axes)), np.array(axes, np.int64))
            probe = self.emit(op, [value, listed], name, keepdims=0)
        else:
            probe = self.emit(op, [value], name, keepdims=0, axes=axes)
        self.output(probe, "FLOAT", [] if axes is None else [value.shape[kept]])  # type: ignore[index]

    def output(self, probe: ir.Value, dtype: str, shape: Sequence[Any]) -> None:
        import onnx_ir as ir

        probe.type, probe.shape = ir.TensorType(ir.DataType[dtype]), ir.Shape(shape)
        self.model.graph.outputs.append(probe)


def with_channel_probes(model: ir.Model, names: Sequence[str], axes: Mapping[str, int] | None = None) -> ir.Model:
    """A clone that gives, for each named `t`, `t/low`, `t/high`, `t/squares` and `t/size` behind PREFIX.

    Per channel `[C]` (axis 1, or what `axes` says by name); of the whole tensor where that axis has no fixed size or
    does not exist.
    """
    probes = _Probes(model)
    for name in names:
        value = probes.values[name]
        rank = len(value.shape or ())
        axis = (axes or {}).get(name, 1) % max(rank, 1)
        fixed = value.shape is not None and rank > 1 and isinstance(value.shape[axis], int)
        rest = [i for i in range(rank) if i != axis] if fixed else None
        for kind, op in (("low", "ReduceMin"), ("high", "ReduceMax"), ("squares", "ReduceSumSquare")):
            probes.reduce(op, value, rest, f"{PREFIX}{name}/{kind}", axis)
        probes.output(probes.emit("Size", [value], f"{PREFIX}{name}/size"), "INT64", [])
    return probes.model


def observe_channels(
    run: Run, batches: Iterable[Mapping[str, np.ndarray]], names: Sequence[str]
) -> dict[str, Channels]:
    """Run the channel probes over all batches. Memory: a few numbers per channel, whatever comes."""
    low = {name: np.array(np.inf) for name in names}
    high = {name: np.array(-np.inf) for name in names}
    squares = {name: np.array(0.0) for name in names}
    sizes = dict.fromkeys(names, 0.0)
    for feeds in batches:
        out = run(feeds)
        for name in names:
            own = PREFIX + name
            low[name] = np.asarray(np.minimum(low[name], out[f"{own}/low"]))
            high[name] = np.asarray(np.maximum(high[name], out[f"{own}/high"]))
            squares[name] = np.asarray(squares[name] + out[f"{own}/squares"].astype(np.float64))
            sizes[name] += float(out[f"{own}/size"])
    found: dict[str, Channels] = {}
    for name in names:
        total = np.atleast_1d(squares[name])
        found[name] = Channels(np.atleast_1d(low[name]), np.atleast_1d(high[name]), total * len(total) / sizes[name])
    return found


def with_samples(model: ir.Model, names: Sequence[str], per_batch: int) -> ir.Model:
    """A clone that gives, for each named `t`, `t/sample` `[≤ 2·per_batch]` behind PREFIX.

    That is every k-th element with an odd k, so that the sample does not stay in one column of an even-sized picture.
    """
    probes = _Probes(model)
    numbers = {"flat": -1, "zero": 0, "axis": 0, "end": np.iinfo(np.int64).max, "share": per_batch, "one": 1, "two": 2}
    flat, zero, axis, end, share, one, two = (probes.constant(n, np.array([v], np.int64)) for n, v in numbers.items())
    for name in names:
        source, own = probes.values[name], PREFIX + name
        line = probes.emit("Reshape", [source, flat], f"{own}/flat")
        ratio = probes.emit("Div", [probes.emit("Shape", [line], f"{own}/size"), share], f"{own}/ratio")
        even = probes.emit("Mul", [probes.emit("Div", [ratio, two], f"{own}/half"), two], f"{own}/even")
        step = probes.emit("Add", [even, one], f"{own}/step")
        probes.output(probes.emit("Slice", [line, zero, end, axis, step], f"{own}/sample"), "FLOAT", [None])
    return probes.model


def sample(run: Run, batches: Iterable[Mapping[str, np.ndarray]], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Run the sample probes; float32 `[m]` by name."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for feeds in batches:
        out = run(feeds)
        for name in names:
            parts[name].append(np.array(out[f"{PREFIX}{name}/sample"]))
    return {name: np.concatenate(pieces) for name, pieces in parts.items()}
