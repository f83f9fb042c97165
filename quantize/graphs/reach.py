"""How much of an activation's range its readers can tell apart: beyond that, a grid need not reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import number, sole_consumer
from edgerun.quantize.graphs.placement import Plan

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.quantize.graphs.activation import Activation

EVERYTHING = (-np.inf, np.inf)
FALLING = -np.arange(1.28, 20, 0.01)  # where x·Sigmoid(x) has passed its least value and rises to zero
FADING = FALLING / (1 + np.exp(-FALLING))


def ends(plan: Plan, seen: Mapping[str, Activation]) -> dict[str, tuple[float, float]]:
    """By value name, the interval that is `heard` of every point of `plan` of which not everything is, given what was
    `seen` of them."""
    tops = {value: float(seen[str(value.name)].channels.high.max()) for value in plan.points}
    found = {str(value.name): heard(value, top) for value, top in tops.items()}
    return {name: interval for name, interval in found.items() if interval != EVERYTHING}


def heard(value: ir.Value, top: float = np.inf) -> tuple[float, float]:
    """The interval outside of which every reader of `value` computes the same as at the interval's nearer end.

    HardSigmoid and Clip are constant at both ends. Hard-swish is zero below: as HardSwish, as x·HardSigmoid(x), or as
    x·Clip(x + c, 0, h). x·Sigmoid(x) comes ever nearer to zero: what is less than half a step of 8 bits of it, where x
    reaches `top`, is rounded to zero. A detector's first layer of -27 to 15 so has steps half as wide.
    """
    readers = list(dict.fromkeys(node for node, _ in value.uses()))
    if value.is_graph_output() or not readers:
        return EVERYTHING
    lows, highs = zip(*(_interval(node, readers, top) for node in readers), strict=True)
    return min(lows), max(highs)


def _interval(node: ir.Node, readers: list[ir.Node], top: float) -> tuple[float, float]:
    if node.op_type == "Mul" and node.domain == "":
        # Where a gate of the same value has closed, the product is zero whatever the value is.
        ends = [_closed(n, top) for n in readers if n is not node and _multiplied(n) is node]
        return max(ends, default=-np.inf), np.inf
    if _closed(node, top) > -np.inf and _multiplied(node) in readers:
        return _closed(node, top), np.inf
    return _flat(node)


def _closed(node: ir.Node, top: float) -> float:
    """Below which input this node, or the Clip from zero behind this Add of a constant, gives zero, or makes nothing of
    an input up to `top`; −inf if never."""
    if node.domain != "":
        return -np.inf
    if node.op_type == "Sigmoid" and np.isfinite(top):
        step = (max(top, 0.0) / (1 + np.exp(-max(top, 0.0))) - FADING.min()) / 255
        return float(FALLING[np.argmax(FADING > -step / 2)])
    if node.op_type == "Add":
        clip, offset = sole_consumer(node.outputs[0]), number(node.inputs[1])
        offset = number(node.inputs[0]) if offset is None else offset
        return -offset if offset is not None and clip is not None and _flat(clip)[0] == 0 else -np.inf
    if node.op_type == "Clip":
        return 0.0 if _flat(node)[0] == 0 else -np.inf
    return _flat(node)[0] if node.op_type == "HardSigmoid" else -np.inf


def _multiplied(node: ir.Node) -> ir.Node | None:
    """The Mul that alone reads this gate."""
    after = sole_consumer(node.outputs[0])
    if node.op_type == "Add" and after is not None:
        after = sole_consumer(after.outputs[0])
    return after if after is not None and after.op_type == "Mul" else None


def _flat(node: ir.Node) -> tuple[float, float]:
    """Outside of which inputs the op is constant."""
    if node.domain != "":
        return EVERYTHING
    if node.op_type == "HardSwish":
        return -3.0, np.inf
    if node.op_type == "HardSigmoid":
        slope, offset = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
        return (-offset / slope, (1 - offset) / slope) if slope > 0 else EVERYTHING
    if node.op_type == "Clip" and len(node.inputs) > 1:
        low, high = number(node.inputs[1]), number(node.inputs[2]) if len(node.inputs) > 2 else None
        return -np.inf if low is None else low, np.inf if high is None else high
    return EVERYTHING
