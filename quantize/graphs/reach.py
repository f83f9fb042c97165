"""How much of an activation's range its readers can tell apart: beyond that, a grid need not reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import number, sole_consumer
from edgerun.quantize.graphs.placement import Plan

if TYPE_CHECKING:
    import onnx_ir as ir

EVERYTHING = (-np.inf, np.inf)


def ends(plan: Plan) -> dict[str, tuple[float, float]]:
    """By value name, the interval that is `heard` of every point of `plan` of which not everything is."""
    found = {str(value.name): heard(value) for value in plan.points}
    return {name: interval for name, interval in found.items() if interval != EVERYTHING}


def heard(value: ir.Value) -> tuple[float, float]:
    """The interval outside of which every reader of `value` computes the same as at the interval's nearer end.

    HardSigmoid and Clip are constant at both ends. Hard-swish is zero below: as HardSwish, as x·HardSigmoid(x), or as
    x·Clip(x + c, 0, h).
    """
    readers = list(dict.fromkeys(node for node, _ in value.uses()))
    if value.is_graph_output() or not readers:
        return EVERYTHING
    lows, highs = zip(*(_interval(node, value, readers) for node in readers), strict=True)
    return min(lows), max(highs)


def _interval(node: ir.Node, value: ir.Value, readers: list[ir.Node]) -> tuple[float, float]:
    if node.op_type == "Mul" and node.domain == "":
        # Where a gate of the same value has closed, the product is zero whatever the value is.
        gates = [n for n in readers if n is not node and _closed(n) > -np.inf and _multiplied(n) is node]
        return (max(map(_closed, gates)), np.inf) if gates else EVERYTHING
    if _closed(node) > -np.inf and _multiplied(node) in readers:
        return _closed(node), np.inf
    return _flat(node)


def _closed(node: ir.Node) -> float:
    """Below which input this node, or the Clip from zero behind this Add of a constant, gives zero; −inf if never."""
    if node.domain != "":
        return -np.inf
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
