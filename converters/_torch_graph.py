"""Cheaper forms of what PyTorch's exporter writes: shapes that need no arithmetic, attention as torch defines it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

_SMALL = 64  # elements of a constant that can be a shape
_NEUTRAL = {"Mul": 1, "Div": 1, "Add": 0, "Sub": 0}  # the second operand that changes nothing
_END = np.iinfo(np.int64).max
Size = int | str | tuple[Any, ...]  # a number, a dimension's name, or (what it is computed from)


def simplify(model: ir.Model) -> None:
    """In place: Reshapes by constants where they only move dimensions, one Transpose for attention's keys, no second
    computation of the same, and attention whose fully masked rows are zero, as torch's are."""
    import onnx_ir.passes.common as common

    for node in list(model.graph):
        if node.op_type == "Reshape" and not _transposed(node):
            _reshaped(node)
        elif node.op_type == "Where":
            _unguarded(node)
        elif node.op_type in ("Cast", "Pad", *_NEUTRAL):
            _left_out(node)
    common.RemoveUnusedNodesPass()(model)
    common.CommonSubexpressionEliminationPass()(model)


def settle(model: ir.Model) -> None:
    """In place: Reshapes to computed sizes, of which all but one are known or the input's own, are by constants."""
    for node in list(model.graph):
        if node.op_type == "Reshape":
            _reshaped(node)


def _reshaped(node: ir.Node) -> None:
    """Reshape(x, computed) where every size is x's own at the same axis (0), a number, or the only other one (-1)."""
    x, shape = node.inputs[0], node.inputs[1]
    sizes = _sizes(shape) if shape is not None else None
    if x is None or shape is None or sizes is None or 0 in sizes:
        return
    own = _own(x)
    if sizes == [-1] and own is not None and len(own) == 1:
        read_instead(node.outputs[0], x)
    if constant(shape) is not None:
        return
    written = [0 if own and i < len(own) and s == own[i] else s for i, s in enumerate(sizes)]
    others = [i for i, s in enumerate(written) if not isinstance(s, int)]
    if len(others) > 1 or (others and -1 in written):
        return
    fixed = np.array([-1 if i in others else s for i, s in enumerate(written)], np.int64)
    node.replace_input_with(1, initializer(node, fixed))
    node.attributes.pop("allowzero", None)  # here a 0 is the input's own size


def _left_out(node: ir.Node) -> None:
    """A Cast to the type that a value has, a Pad by nothing, a product with 1 and a sum with 0 are the value."""
    x, other = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    number = constant(other)
    if x is None:
        return
    if node.op_type == "Cast":
        same = x.dtype is not None and x.dtype == node.attributes.get_int("to", 0)
    elif node.op_type == "Pad":
        same = number is not None and not number.any()
    else:
        # one number of no more axes than x has changes neither shape nor value
        axes = number is not None and number.size == 1 and x.shape is not None and number.ndim <= len(x.shape)
        same = number is not None and axes and bool(number.ravel()[0] == _NEUTRAL[node.op_type])
    if same:
        read_instead(node.outputs[0], x)


def _transposed(node: ir.Node) -> bool:
    """Reshape(Transpose(Reshape(x, [-1, r, c])), [..., c, r]) is x with its last two axes swapped."""
    import onnx_ir as ir

    swap = node.inputs[0].producer() if node.inputs[0] is not None else None
    flat = swap.inputs[0].producer() if swap is not None and swap.inputs[0] is not None else None
    if swap is None or flat is None or swap.op_type != "Transpose" or flat.op_type != "Reshape":
        return False
    x, inner, outer = flat.inputs[0], flat.inputs[1], node.inputs[1]
    own = _own(x) if x is not None else None
    if x is None or inner is None or outer is None or own is None or len(own) < 3 or node.outputs[0].is_graph_output():
        return False
    first, last = _sizes(inner), _sizes(outer)
    if (
        first != [-1, *own[-2:]]
        or last != [*own[:-2], own[-1], own[-2]]
        or list(swap.attributes.get_ints("perm") or ()) != [0, 2, 1]
    ):
        return False
    perm = [*range(len(own) - 2), len(own) - 1, len(own) - 2]
    made = ir.node("Transpose", [x], {"perm": perm}, name=node.name)
    instead(node, made)
    return True


def _unguarded(node: ir.Node) -> None:
    """Where(IsNaN(Softmax(s)), 0, Softmax(s)): the guard of fully masked rows.

    Where s is a product alone, no row is masked, and torch has no guard. Where a mask of the most negative number is
    added, no row would be NaN: the mask is -inf, as torch's definition of attention has it.
    """
    condition, zero, softmax = node.inputs
    test = condition.producer() if condition is not None else None
    maker = softmax.producer() if softmax is not None else None
    if test is None or maker is None or softmax is None or test.op_type != "IsNaN" or test.inputs[0] is not softmax:
        return
    scores = maker.inputs[0].producer() if maker.op_type == "Softmax" and maker.inputs[0] is not None else None
    if scores is None or zero is None or (guard := constant(zero)) is None or guard.any():
        return
    if scores.op_type == "MatMul":
        read_instead(node.outputs[0], softmax)
        return
    for value in scores.inputs if scores.op_type == "Add" else ():
        mask = value.producer() if value is not None else None
        low = constant(mask.inputs[2]) if mask is not None and mask.op_type == "Where" else None
        if mask is not None and low is not None and low.dtype.kind == "f" and (low == np.finfo(low.dtype).min).all():
            mask.replace_input_with(2, initializer(mask, np.full_like(low, -np.inf)))


def read_instead(old: ir.Value, new: ir.Value) -> None:
    """Let whatever reads `old` read `new`, unless `old` leaves the graph."""
    if not old.is_graph_output():
        old.replace_all_uses_with(new)


def _own(value: ir.Value) -> list[Size] | None:
    """A value's own sizes. A number that was inferred is no proof: exporters declare the example's behind an LSTM."""
    if value.shape is None:
        return None
    return [
        ("size", id(value), i) if isinstance(d, int) else d.value or ("size", id(value), i)
        for i, d in enumerate(value.shape)
    ]


def _sizes(value: ir.Value) -> list[Size] | None:
    """The elements of a shape as sizes, through the arithmetic that exporters write; None where there is other."""
    if (held := constant(value)) is not None:
        return [int(n) for n in held.ravel()] if held.size <= _SMALL and held.dtype.kind == "i" else None
    node = value.producer()
    if node is None or node.inputs[0] is None:
        return None
    if node.op_type == "Shape":
        own = _own(node.inputs[0])
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", _END)
        return own[start:end] if own is not None else None
    if node.op_type == "Concat":
        parts = [_sizes(part) if part is not None else None for part in node.inputs]
        return None if any(part is None for part in parts) else [size for part in parts for size in part or []]
    inner = _sizes(node.inputs[0])
    if inner is None:
        return None
    if node.op_type in ("Squeeze", "Unsqueeze", "Reshape", "Cast", "Identity"):
        return inner
    rest = [constant(v) if v is not None else None for v in node.inputs[1:]]
    if node.op_type == "Slice" and len(rest) >= 2 and all(r is not None and r.size == 1 for r in rest):
        start, end = (int(r.ravel()[0]) for r in rest[:2] if r is not None)
        step = int(rest[3].ravel()[0]) if len(rest) > 3 and rest[3] is not None else 1
        return inner[start:end:step]
    if node.op_type == "Gather" and rest[0] is not None and rest[0].size == 1:
        return [inner[int(rest[0].ravel()[0])]]
    if node.op_type in ("Mul", "Div", "Add", "Sub") and len(inner) == 1 and node.inputs[1] is not None:
        other = _sizes(node.inputs[1])
        return [(node.op_type, inner[0], other[0])] if other is not None and len(other) == 1 else None
    return None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """What a small constant holds; None for another value."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy() if value.const_value.size <= _SMALL else None
    node = value.producer()
    if node is not None and node.op_type == "Constant" and (held := node.attributes.get("value")) is not None:
        tensor = held.as_tensor()
        return tensor.numpy() if tensor.size <= _SMALL else None
    return None


def initializer(node: ir.Node, array: np.ndarray, slot: int = 0) -> ir.Value:
    """A new constant for one input of `node`, in its graph; `slot` tells several of one node apart."""
    import onnx_ir as ir

    graph = node.graph
    assert graph is not None
    owner = graph.graph if isinstance(graph, ir.Function) else graph
    number = len(owner.initializers)
    while (name := f"{node.outputs[0].name}_constant_{slot}_{number}") in owner.initializers:
        number += 1  # some were dropped in between
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                     const_value=ir.tensor(array, name=name))  # fmt: skip
    owner.register_initializer(value)
    return value


def instead(node: ir.Node, made: ir.Node) -> None:
    """Put `made` in the place of `node`, with its output's name, type and shape."""
    import onnx_ir.convenience as convenience

    old, new = node.outputs[0], made.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    made.metadata_props.update(node.metadata_props)
    assert node.graph is not None
    convenience.replace_nodes_and_values(node.graph, node, [node], [made], [old], [new])
