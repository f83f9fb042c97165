"""Nodes that do the work of several: Reshapes, Unsqueezes, Concats and Slices in a row, and what changes nothing.

Values stay what they are to the bit, but for a factor that joins the weights before it and for products that join
(`_products`), which round those once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.converters import _frames, _products
from edgerun.converters._torch_graph import constant, initializer, instead, read_instead

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")  # the same elements in the same order
Known = Mapping[str, tuple[int, Sequence[int | None] | None]]  # a value's element type and sizes


def merged(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with fewer nodes; sizes that a rule needs are inferred anew, for what stands in a file is no proof."""
    import onnx_ir as ir

    model = ir.from_proto(proto)
    merge(model, known(type(proto).FromString(proto.SerializeToString())))
    return ir.to_proto(model)


def merge(model: ir.Model, told: Known) -> None:
    """As `merged`, in place; rules that need sizes find them in what is `told`, and do nothing without."""
    import onnx_ir.passes.common as common

    for rule in (_merge, _frames.convolved, _merge):  # a matrix first takes in all that it can
        while any([rule(node, told) for node in list(model.graph) if node.graph is not None]):
            common.RemoveUnusedNodesPass()(model)


def known(bare: onnx.ModelProto) -> Known:
    """Element types and sizes of a graph's values, inferred from its inputs alone; `bare` is consumed."""
    import onnx

    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    found: dict[str, tuple[int, Sequence[int | None] | None]] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        found[value.name] = (tensor.elem_type, dims if tensor.HasField("shape") else None)
    return found


def _merge(node: ir.Node, known: Known) -> bool:
    if node.graph is None or node.domain not in ("", "ai.onnx") or node.inputs[:1] in ((), (None,)):
        return False
    rules = {"Reshape": _reshape, "Transpose": _turned, "Cast": _cast, "MatMul": _products.joined,
             "Gemm": _products.joined}  # fmt: skip
    if (rule := rules.get(node.op_type)) is not None:
        return rule(node, known)
    plain = {"Unsqueeze": _unsqueeze, "Concat": _concat, "Slice": _slice, "Mul": _factor}
    return node.op_type in plain and plain[node.op_type](node)


def _sizes(value: ir.Value | None, known: Known) -> Sequence[int | None] | None:
    return known.get(value.name or "", (0, None))[1] if value is not None else None


def _alone(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _cast(node: ir.Node, known: Known) -> bool:
    """A Cast to the type that a value has is the value."""
    x = node.inputs[0]
    same = x is not None and known.get(x.name or "", (0, None))[0] == node.attributes.get_int("to", 0)
    return same and x is not None and _dropped(node, x)


def _dropped(node: ir.Node, x: ir.Value) -> bool:
    if node.outputs[0].is_graph_output() or not node.outputs[0].uses():
        return False
    read_instead(node.outputs[0], x)
    return True


def _reshape(node: ir.Node, known: Known) -> bool:
    """Reshape(view(x), sizes) is Reshape(x, sizes); of one axis to one axis it is x."""
    x, sizes = node.inputs[0], constant(node.inputs[1])
    if x is None:
        return False
    if sizes is None:
        return _softmax(node, known)
    have, wanted = _sizes(x, known), sizes.ravel().tolist()
    if wanted == [-1] and have is not None and len(have) == 1:
        return _dropped(node, x)
    view = x.producer()
    if view is None or view.op_type not in _VIEWS or not _alone(x) or view.inputs[0] is None:
        return False
    if not node.attributes.get_int("allowzero", 0):  # a 0 is x's own size there
        wanted = [have[i] if n == 0 and have is not None and i < len(have) else n for i, n in enumerate(wanted)]
    if any(n is None or n == 0 for n in wanted):
        return False
    if wanted != sizes.ravel().tolist():
        node.replace_input_with(1, initializer(node, np.array(wanted, np.int64)))
    node.replace_input_with(0, view.inputs[0])
    return True


def _softmax(node: ir.Node, known: Known) -> bool:
    """Reshape(Softmax(Flatten(x)), Shape(x)), as older opsets are brought up, is Softmax(x) along the last axis."""
    import onnx_ir as ir

    inner = node.inputs[0].producer() if node.inputs[0] is not None else None
    flat = inner.inputs[0].producer() if inner is not None and inner.inputs[:1] and inner.inputs[0] else None
    shape = node.inputs[1].producer() if node.inputs[1] is not None else None
    if inner is None or flat is None or shape is None or flat.op_type != "Flatten" or shape.op_type != "Shape":
        return False
    x, have = flat.inputs[0], _sizes(flat.inputs[0], known)
    last = inner.op_type in ("Softmax", "LogSoftmax") and inner.attributes.get_int("axis", -1) in (-1, 1)
    whole = shape.inputs[0] is x and not {"start", "end"} & set(shape.attributes)
    if not last or not whole or have is None or flat.attributes.get_int("axis", 1) not in (-1, len(have) - 1):
        return False
    instead(node, ir.node(inner.op_type, [x], {"axis": -1}, name=node.name))
    return True


def _turned(node: ir.Node, known: Known) -> bool:
    """A Transpose that moves nothing but axes of one element, beside a Reshape, is a Reshape and joins that."""
    import onnx_ir as ir

    x, have = node.inputs[0], _sizes(node.inputs[0], known)
    if x is None or have is None:
        return False
    perm = list(node.attributes.get_ints("perm") or range(len(have))[::-1])
    wide = [axis for axis in perm if have[axis] != 1]
    sizes = [-1 if have[axis] is None else have[axis] for axis in perm]
    before, out = x.producer(), node.outputs[0]
    after = [user for user, _ in out.uses()]
    beside = (before is not None and before.op_type in _VIEWS and _alone(x)) or (
        _alone(out) and after[0].op_type == "Reshape" and constant(after[0].inputs[1]) is not None
    )
    if wide != sorted(wide) or not beside or sizes.count(-1) > 1 or 0 in sizes:
        return False
    made = ir.node("Reshape", [x, initializer(node, np.array(sizes, np.int64))], name=node.name)
    instead(node, made)
    return True


def _inner(node: ir.Node) -> ir.Node | None:
    """The node of the same operator that writes the first input, for this node alone."""
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    fits = maker is not None and maker.op_type == node.op_type and maker.domain == node.domain
    return maker if fits and _alone(maker.outputs[0]) else None  # type: ignore[union-attr]


def _unsqueeze(node: ir.Node) -> bool:
    """Two Unsqueezes are one of the axes of both."""
    inner = _inner(node)
    lists = [constant(n.inputs[1]) if n is not None else None for n in (inner, node)]
    if inner is None or any(axes is None or axes.min() < 0 for axes in lists):
        return False
    first, second = ({int(axis) for axis in axes.ravel()} for axes in lists if axes is not None)
    left = [
        axis for axis in range(len(second) + max(first) + 1) if axis not in second
    ]  # where inner's axes come to lie
    both = sorted({left[axis] for axis in first} | second)
    node.replace_input_with(1, initializer(node, np.array(both, np.int64)))
    node.replace_input_with(0, inner.inputs[0])
    return True


def _concat(node: ir.Node) -> bool:
    """A Concat of a Concat along the same axis is one of all their parts."""
    import onnx_ir as ir

    axis = node.attributes.get_int("axis", 0)
    parts: list[ir.Value | None] = []
    for value in node.inputs:
        maker = value.producer() if value is not None else None
        joins = maker is not None and maker.op_type == "Concat" and maker.attributes.get_int("axis", 0) == axis
        parts += maker.inputs if joins and maker is not None and value is not None and _alone(value) else [value]
    if len(parts) == len(node.inputs):
        return False
    instead(node, ir.node("Concat", parts, {"axis": axis}, name=node.name))
    return True


def _slice(node: ir.Node) -> bool:
    """A Slice of a Slice along other axes is one along both, where all that reads the inner one is such a Slice."""
    import onnx_ir as ir

    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    if maker is None or maker.op_type != "Slice" or maker.outputs[0].is_graph_output():
        return False
    inner, outer = _bounds(maker), [_bounds(user) for user, _ in maker.outputs[0].uses()]
    if inner is None or any(one is None or set(one[2]) & set(inner[2]) for one in outer):
        return False
    own = _bounds(node)
    assert own is not None
    arrays = [
        initializer(node, np.array([*a, *b], np.int64), i) for i, (a, b) in enumerate(zip(inner, own, strict=True))
    ]
    instead(node, ir.node("Slice", [maker.inputs[0], *arrays], name=node.name))
    return True


def _bounds(node: ir.Node) -> list[list[int]] | None:
    """Starts, ends, axes and steps of a Slice; None where they are not constant, or axes count from the end."""
    if node.op_type != "Slice":
        return None
    found = [constant(value) for value in node.inputs[1:]]
    if len(found) < 3 or any(array is None for array in found[:3]) or (len(found) > 3 and found[3] is None):
        return None
    lists = [[int(n) for n in array.ravel()] for array in found if array is not None]
    lists = lists if len(lists) == 4 else [*lists, [1] * len(lists[0])]
    return lists if min(lists[2], default=-1) >= 0 else None


def _factor(node: ir.Node) -> bool:
    """A factor behind a Gemm, through views, joins its weights and its bias."""
    x, number = node.inputs[0], constant(node.inputs[1])
    if x is None or number is None or number.size != 1 or number.ndim > 1:
        return False
    between: list[ir.Value] = []
    value = x
    while _alone(value) and (maker := value.producer()) is not None and maker.op_type in _VIEWS and maker.inputs[0]:
        between.append(value)
        value = maker.inputs[0]
    gemm = value.producer() if value is not None else None
    if gemm is None or gemm.op_type != "Gemm" or not _alone(value) or gemm.domain:
        return False
    held = [v.const_value for v in gemm.inputs[1:] if v is not None]
    if any(tensor is None for tensor in held) or node.outputs[0].is_graph_output():
        return False
    for slot, tensor in enumerate(held, 1):
        array = tensor.numpy()  # type: ignore[union-attr]
        scaled = (array.astype(np.float64) * np.float64(number.ravel()[0])).astype(array.dtype)
        gemm.replace_input_with(slot, initializer(gemm, scaled, slot))
    for changed in (value, *between):
        changed.name = f"{changed.name}_scaled"  # it is another value now
    read_instead(node.outputs[0], x)
    return True
