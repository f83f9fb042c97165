"""What TensorRT's parser refuses, or would take for something else: read where a model is compiled, with onnx."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgerun.errors import Unsupported
from edgerun.target import Issue
from edgerun.targets import _tensorrt_library as tensorrt

if TYPE_CHECKING:
    import onnx

    from edgerun.model import Model

# What a feed or an output may be; 8-bit floats and bfloat16 are TensorRT's own inside alone.
DOOR = frozenset({"float32", "float16", "int64", "int32", "int8", "uint8", "bool"})
# How errors name a layer; several that became one stand as `a + b`, `PWN(a)` or `{ForeignNode[a...b]}`.
LAYER = re.compile(
    r"'([^'\s]+)'|node_of_(\S+)|(\S+) has no runners|[Ll]ayer (\S+?):?(?:\s|$)"
    r"|implementation for node (.+?)(?= due to|\.\s|\.?\)?$)"
)
JOINED = re.compile(r"\.{3}|[\s+()\[\]{},]+")
PARSED = re.compile(r"parsing node number \d+ \[(\w+)|In function import(\w+):")
NUMBERED = re.compile(r"_U?\d+$")


def misread(proto: onnx.ModelProto) -> Iterator[Issue]:
    """Quantizers with uint8: the parser takes them for int8, if their zero point is 0, and all above 127 is lost."""
    import onnx

    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            point = constants.get(node.input[2]) if len(node.input) > 2 else None
            stored = constants.get(node.input[0])
            kind = next((t.data_type for t in (point, stored) if t is not None), onnx.TensorProto.UINT8)
            if kind == onnx.TensorProto.UINT8 and not any(a.name == "output_dtype" for a in node.attribute):
                yield Issue(_name(node), node.op_type, "uint8 is no type of TensorRT's quantizers")


def unfed(model: Model, proto: onnx.ModelProto) -> Iterator[Issue]:
    """The nodes at the door that read or write a dtype which no feed or output of TensorRT's has here. It would read a
    float64 as float32."""
    for spec in (*model.inputs, *model.outputs):
        if spec.dtype not in DOOR or spec.kind != "tensor":
            dtype = spec.kind if spec.kind != "tensor" else "text" if spec.dtype == "object" else spec.dtype
            for node in _touching(proto, spec.name):
                yield Issue(_name(node), node.op_type, f"TensorRT takes and gives no {dtype}: {spec.name!r}")


def unranged(network: Any, proto: onnx.ModelProto) -> Iterator[Issue]:
    """The nodes that read an input which decides on shapes: its values would need a range, as open dimensions do."""
    inputs = (network.get_input(index) for index in range(network.num_inputs))
    for name in (str(tensor.name) for tensor in inputs if tensor.is_shape_tensor):
        for node in _touching(proto, name):
            yield Issue(_name(node), node.op_type, f"the input {name!r} decides on shapes: make it a constant")


def refused(parser: Any, errors: list[str], proto: onnx.ModelProto) -> Iterator[Issue]:
    """The parser's errors, one a node, or what its log `errors` say. Of a node in a branch or a function, which it
    numbers apart, and where it tells no node, the first of that kind. The first quantizer that has a zero point stands
    for all: models have hundreds."""
    seen, moved = set(), {_name(node): node for node in _moved(proto)}
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        place, op = int(error.node()), str(error.node_operator()) or _logged(errors, proto)
        name = str(error.node_name())
        if not name and 0 <= place < len(proto.graph.node) and proto.graph.node[place].op_type == op:
            name = _name(proto.graph.node[place])
        name = name or next((_name(node) for node in proto.graph.node if node.op_type == op), op)
        if (name, op) not in seen:
            seen.add((name, op))
            known = not op or parser.supports_operator(op)
            reason = tensorrt.shortened(str(error.desc())) if known else "TensorRT has no translation of this op"
            yield Issue(name, op, reason)
            for node in moved.values() if name in moved else ():
                if (other := (_name(node), node.op_type)) not in seen:
                    seen.add(other)
                    yield Issue(*other, reason)
    if not seen:
        op = _logged(errors, proto)
        name = next((_name(node) for node in proto.graph.node if node.op_type == op), op)
        yield Issue(name, op, tensorrt.reason(errors) or "refused")


def _moved(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The quantizers with a zero point other than 0."""
    from onnx import numpy_helper

    nodes = [n for n in proto.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear") and len(n.input) > 2]
    points = {node.input[2] for node in nodes}
    moved = {t.name for t in proto.graph.initializer if t.name in points and numpy_helper.to_array(t).any()}
    yield from (node for node in nodes if node.input[2] in moved)


def _logged(errors: list[str], proto: onnx.ModelProto) -> str:
    """The op of a node that the parser's log was about, "" where it says nothing of one."""
    told = {op for pair in PARSED.findall("\n".join(errors)) for op in pair}
    return next((node.op_type for node in proto.graph.node if node.op_type in told), "")


def named(error: Unsupported, proto: onnx.ModelProto) -> Unsupported:
    """A refusal of the builder's with the first node that its reason is about."""
    for issue in blamed(str(error.got), proto):
        return Unsupported(error.what, got=f"{issue.node} ({issue.op}): {issue.reason}", do=error.do)
    return error


def blamed(reason: str, proto: onnx.ModelProto) -> list[Issue]:
    """The nodes that the builder's `reason` is about, in the model's order: it speaks of layers, `node_of_y_2`."""
    told = [word for words in LAYER.findall(reason) for text in words for word in (text, *JOINED.split(text)) if word]
    words = {form for word in told for form in (word, NUMBERED.sub("", word))}
    nodes = (node for node in proto.graph.node if words & {node.name, *node.output} - {""})
    return [Issue(_name(node), node.op_type, reason) for node in nodes]


def _touching(proto: onnx.ModelProto, value: str) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if value in (*node.input, *node.output)]


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or next(filter(None, node.output), node.op_type))
