"""Quantizers before what only moves the numbers that they round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgerun.quantize.graphs.edit import constant

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Quantization

    Points = dict[ir.Value, str]

VIEWS = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})  # as many numbers as before
ELEMENTWISE = frozenset({
    "Abs", "Add", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max",
    "Min", "Mul", "Neg", "Pow", "PRelu", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh", "Where",
})  # fmt: skip


def lift(graph: ir.Graph, points: Points, rules: Quantization, integer: set[ir.Node]) -> None:
    """What is quantized behind a Transpose of an elementwise result is quantized before it, where rounding joins what
    computes that; a quarter of the bytes is moved. Views on the way come along; all are `integer` nodes from then on.
    (Behind a product, as attention's, OpenVINO is 3 % slower so.)"""
    if not rules.joins_rounding:
        return
    for node in reversed(list(graph)):
        chain = list(_movers(node, points, rules, integer))
        source = chain[-1].inputs[0].producer() if chain else None  # type: ignore[union-attr]
        if _elementwise(source) and any(mover.op_type == "Transpose" for mover in chain):
            group = points[node.outputs[0]]
            for mover in chain:
                points.setdefault(mover.inputs[0], group)  # type: ignore[arg-type]
                integer.add(mover)


def _elementwise(node: ir.Node | None) -> bool:
    """Looking back over views, and over a Slice: one that takes all is left out."""
    while node is not None and node.op_type in ("Slice", *VIEWS):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and node.op_type in ELEMENTWISE


def _movers(node: ir.Node, points: Points, rules: Quantization, integer: set[ir.Node]) -> Iterator[ir.Node]:
    """`node` and those before it that move the same numbers, each for the next alone, to integer ops in the end."""
    value: ir.Value | None = node.outputs[0]
    readers = {user for user, _ in value.uses()} if value is not None else set()
    if value not in points or not readers or not readers <= integer:
        return
    while value is not None and not value.is_graph_output():
        mover = value.producer()
        if mover is None or mover in integer or mover.domain != "" or mover.op_type not in VIEWS & rules.through:
            return
        source = mover.inputs[0]
        if source is None or source in points or constant(source) is not None or len(list(source.uses())) != 1:
            return
        yield mover
        value = source
