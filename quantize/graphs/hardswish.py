"""Hard-swish and hard-sigmoid as one operator each (Howard et al. 2019), where a file has them in pieces.

Clip(x + 3, 0, 6) / 6 is HardSigmoid(x) with α = 1/6 and β = 1/2, and x times that is HardSwish(x), which runtimes
compute inside the layer before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import constant, fresh_name, initializer, number, sole_consumer

if TYPE_CHECKING:
    import onnx_ir as ir

SAME = 1e-6  # how near to each other, as a share, numbers are that float32 cannot tell apart behind two roundings
_SWISH = (1 / 6, 0.5)  # α and β in HardSwish
_SINCE = 14  # the opset that has HardSwish


@dataclass
class _Found:
    """What the last of `nodes` writes: factor · HardSigmoid(x), or that times x."""

    nodes: list[ir.Node]
    factor: float
    times_x: bool = False

    @property
    def whole(self) -> bool:
        return abs(self.factor - 1) < SAME


def join(model: ir.Model) -> int:
    """Put HardSwish, or HardSigmoid, in the place of their pieces, float32, in place; return how many.

    Values agree to float rounding. A product x · Clip(x + 3, 0, 6) whose ÷ 6 stands elsewhere is HardSwish(x) · 6, and
    that 6 goes where other factors go (`affine`). Products with another slope stay: HardSigmoid and Mul are two passes,
    and OpenVINO knows hard-swish by its pieces alone.
    """
    joined = 0
    for node in list(model.graph):
        gate = _gate(node)
        if gate is None:
            continue
        x, alpha, beta, height = gate
        steps = list(_behind(node, x, height))
        ends = [step for step in steps if step.times_x and step.whole] or [step for step in steps if step.times_x][:1]
        if ends:
            if not np.allclose((alpha, beta), _SWISH, rtol=SAME, atol=0) or model.opset_imports.get("", 0) < _SINCE:
                continue
            made = _made("HardSwish", x)
        elif node.op_type == "Clip" and (ends := [step for step in steps if step.whole]):
            made = _made("HardSigmoid", x, alpha=alpha, beta=beta)
        else:
            continue
        _replace(model.graph, made, ends[0])
        joined += 1
    return joined


def _gate(node: ir.Node) -> tuple[ir.Value, float, float, float] | None:
    """(x, α, β, h) of Clip(h·(α·x + β), 0, h) = h · HardSigmoid(x), or of HardSigmoid itself; else None."""
    value = node.inputs[0] if node.inputs else None
    if node.domain != "" or value is None or value.dtype is None or value.dtype.name != "FLOAT":
        return None
    if node.op_type == "HardSigmoid":
        return value, node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5), 1.0
    low, high = (number(end) for end in (*node.inputs, None, None)[1:3])
    if node.op_type != "Clip" or low != 0 or high is None or high <= 0:
        return None
    slope, offset = 1.0, 0.0
    while (stage := _stage(value)) is not None:
        value, by, plus = stage
        slope, offset = slope * by, offset + slope * plus
    return (value, slope / high, offset / high, high) if offset and slope > 0 else None


def _stage(value: ir.Value) -> tuple[ir.Value, float, float] | None:
    """(x, a, b) where `value`, which one node reads, is written as a·x + b by a node that has one number."""
    node = value.producer()
    if node is None or sole_consumer(value) is None:
        return None
    return _scaled(node)


def _scaled(node: ir.Node) -> tuple[ir.Value, float, float] | None:
    """(x, a, b) of a node that computes a·x + b with one number; it changes no shape."""
    if node.domain != "" or node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    first, second = node.inputs
    swapped = node.op_type in ("Add", "Mul") and constant(first) is not None
    x, other = (second, first) if swapped else (first, second)
    by = number(other)
    if x is None or x.shape is None or by is None or other is None or constant(x) is not None:
        return None
    if len(other.shape or ()) > len(x.shape) or not np.isfinite(by) or (node.op_type == "Div" and by == 0):
        return None
    forms = {"Add": (1.0, by), "Sub": (1.0, -by), "Mul": (by, 0.0), "Div": (1 / by if by else 0.0, 0.0)}
    return x, *forms[node.op_type]


def _behind(gate: ir.Node, x: ir.Value, height: float) -> Iterator[_Found]:
    """What stands behind the gate, step by step: factors, and one product with x or with x times a factor."""
    found = _Found([gate], height)
    if gate.op_type == "Clip":
        yield found
    while (node := sole_consumer(value := found.nodes[-1].outputs[0])) is not None:
        scaled = _scaled(node)
        if scaled is not None and scaled[0] is value and scaled[2] == 0:
            found = _Found([*found.nodes, node], found.factor * scaled[1], found.times_x)
        elif node.op_type == "Mul" and node.domain == "" and not found.times_x:
            other = next((v for v in node.inputs if v is not value), None)
            stage = _stage(other) if other is not None and other is not x else (x, 1.0, 0.0)
            if other is None or stage is None or stage[0] is not x or stage[2] != 0:
                return
            found = _Found([*found.nodes, node], found.factor * stage[1], True)
        else:
            return
        yield found


def _made(op: str, value: ir.Value, by: ir.Value | None = None, **attributes: float) -> ir.Node:
    import onnx_ir as ir

    return ir.node(op, [value] if by is None else [value, by], attributes)


def _replace(graph: ir.Graph, made: ir.Node, found: _Found) -> None:
    """Let `made`, and a Mul behind it where a factor is left, write what `found` does, under its names."""
    import onnx_ir.convenience as convenience

    last = found.nodes[-1]
    old, new = last.outputs[0], made.outputs[0]
    made.name, new.name, new.type, new.shape = last.name, old.name, old.type, old.shape
    nodes = [made]
    if not found.whole:
        new.name = fresh_name(graph, f"{old.name}/{made.op_type}")  # it is another value
        by = initializer(graph, f"{last.name}/factor", np.array(found.factor, np.float32))
        nodes.append(_made("Mul", new, by))
        new = nodes[-1].outputs[0]
        new.name, new.type, new.shape = old.name, old.type, old.shape
        nodes[-1].name = fresh_name(graph, f"{last.name}/Mul")
    convenience.replace_nodes_and_values(graph, last, [last], nodes, [old], [new])
