"""Transposes that meet: two in a row are one or none, also around what looks at every element alone.

Values stay what they are to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgerun.converters._torch_graph import constant, instead, read_instead

if TYPE_CHECKING:
    import onnx_ir as ir

_EACH = frozenset({  # what looks at every element alone
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Softplus", "Gelu", "Mish", "Erf", "Exp",
    "Log", "Sqrt", "Abs", "Neg", "Clip", "Cast", "Floor", "Ceil", "Round", "Reciprocal", "Mul", "Add", "Sub", "Div",
    "Pow",
})  # fmt: skip


def meet(model: ir.Model) -> None:
    """Let Transposes meet, in place, as long as any do. Every step takes one away, or one that others still read."""
    import onnx_ir.passes.common as common

    while any([_met(node) for node in list(model.graph) if node.op_type == "Transpose" and not node.domain]):
        common.RemoveUnusedNodesPass()(model)


def _met(node: ir.Node) -> bool:
    x, outer = node.inputs[0], node.attributes.get_ints("perm")
    if x is None or outer is None or not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
        return False
    if list(outer) == sorted(outer):
        return _dropped(node, x)
    between: list[ir.Node] = []
    while (maker := x.producer()) is not None and maker.op_type in _EACH and _alone(x) and _by_numbers(maker):
        between.append(maker)
        x = maker.inputs[0]
        assert x is not None  # _by_numbers says so
    alone = not between or _alone(x)
    first = maker.attributes.get_ints("perm") if alone and maker is not None and maker.op_type == "Transpose" else None
    if maker is None or first is None or maker.domain or maker.inputs[0] is None:
        return False
    _rewrite(node, between, maker.inputs[0], [int(first[axis]) for axis in outer])
    return True


def _rewrite(node: ir.Node, between: Sequence[ir.Node], source: ir.Value, perm: list[int]) -> None:
    """Let `node` turn `source` by `perm`, with what stood `between`, the last first, in front of it."""
    import onnx_ir as ir

    if between:
        between[-1].replace_input_with(0, source)
        source = between[0].outputs[0]
    for value in (one.outputs[0] for one in between):
        value.name, value.shape = f"{value.name}_before", None  # it is another value now
    if perm != sorted(perm) or not _dropped(node, source):
        instead(node, ir.node("Transpose", [source], {"perm": perm}, name=node.name))


def _dropped(node: ir.Node, x: ir.Value) -> bool:
    if node.outputs[0].is_graph_output():
        return False
    read_instead(node.outputs[0], x)
    return True


def _alone(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _by_numbers(node: ir.Node) -> bool:
    """Whether all but the first input are constants of one number, which no order of axes changes."""
    rest = [constant(value) for value in node.inputs[1:] if value is not None]
    return node.inputs[0] is not None and all(
        array is not None and array.size == 1 and array.ndim < 2 for array in rest
    )
