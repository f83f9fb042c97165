"""Activation statistics, streamed: one run per batch gives minimum, maximum and an even sample of every point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
LEAST = 512  # elements kept of each tensor in each batch, however many batches there are


@dataclass(frozen=True)
class Observed:
    """What was seen of one activation: exact `low` and `high`, and an even sample of its values, float32 `[m]`."""

    low: float
    high: float
    sample: np.ndarray


def with_probes(model: ir.Model, names: Sequence[str], per_batch: int) -> ir.Model:
    """A clone of `model` whose only outputs are the probes of the named float tensors.

    For tensor `t`: `t/min` and `t/max` (scalars) and `t/sample` (`[≤ 2·per_batch]`): every k-th element with an odd k,
    so that the sample does not stay in one column of an even-sized picture.
    """
    import onnx_ir as ir

    probed = model.clone()
    graph = probed.graph
    values = {v.name: v for v in [*graph.inputs, *(o for node in graph for o in node.outputs)]}
    graph.outputs.clear()

    def const(name: str, array: np.ndarray) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)  # type: ignore[union-attr]
        graph.register_initializer(value)
        return value

    flat, zero, end, axis, one, two, share = (
        const(f"edgerun/probe/{name}", np.array(v, np.int64))
        for name, v in (
            ("flat", [-1]), ("zero", [0]), ("end", [np.iinfo(np.int64).max]), ("axis", [0]), ("one", [1]), ("two", [2]),
            ("share", [per_batch]),
        )
    )  # fmt: skip

    def emit(op: str, inputs: Sequence[ir.Value], name: str, **attributes: int) -> ir.Value:
        node = ir.node(op, list(inputs), attributes=attributes, name=name)
        node.outputs[0].name = name
        graph.append(node)
        return node.outputs[0]

    for name in names:
        source = values[name]
        line = emit("Reshape", [source, flat], f"{name}/flat")
        size = emit("Shape", [line], f"{name}/size")
        half = emit("Div", [emit("Div", [size, share], f"{name}/ratio"), two], f"{name}/half")
        step = emit("Add", [emit("Mul", [half, two], f"{name}/even"), one], f"{name}/step")
        probes = [
            emit("ReduceMin", [source], f"{name}/min", keepdims=0),
            emit("ReduceMax", [source], f"{name}/max", keepdims=0),
            emit("Slice", [line, zero, end, axis, step], f"{name}/sample"),
        ]
        for probe in probes:
            probe.type = ir.TensorType(ir.DataType.FLOAT)
        probes[0].shape = probes[1].shape = ir.Shape([])
        probes[2].shape = ir.Shape([None])
        graph.outputs.extend(probes)
    return probed


def observe(run: Run, batches: Iterable[Mapping[str, np.ndarray]], names: Sequence[str]) -> dict[str, Observed]:
    """Run the probes over all batches. Memory: the samples, `per_batch` elements × tensors × batches."""
    low = {name: np.inf for name in names}
    high = {name: -np.inf for name in names}
    samples: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for feeds in batches:
        out = run(feeds)
        for name in names:
            low[name] = min(low[name], float(out[f"{name}/min"]))
            high[name] = max(high[name], float(out[f"{name}/max"]))
            samples[name].append(np.array(out[f"{name}/sample"]))
    return {name: Observed(low[name], high[name], np.concatenate(samples[name])) for name in names}
