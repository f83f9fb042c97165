"""Small models that ask ONNX Runtime what it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from edgerun.passes import Issue

if TYPE_CHECKING:
    import onnx


def identity(ir_version: int, opset: int) -> bytes:
    """A float32[1] Identity model as ONNX protobuf; both numbers below 128, so each is one varint byte."""
    graph = b'\n\x10\n\x01a\x12\x01b"\x08Identity\x12\x01g'
    for field, name in ((b"Z", b"a"), (b"b", b"b")):
        graph += field + b"\x0f\n\x01" + name + b"\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    return b"\x08" + bytes([ir_version]) + b":" + bytes([len(graph)]) + graph + b"B\x04\n\x00\x10" + bytes([opset])


def blame(proto: onnx.ModelProto, refusal: Callable[[bytes], str | None]) -> Iterator[Issue]:
    """The nodes that `refusal` has a reason for when they stand alone, their inputs of the dtypes that are inferred."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(proto).graph
    types = {v.name: v.type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    for tensor in inferred.initializer:
        types.setdefault(tensor.name, onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims))
    seen: dict[tuple[object, ...], str | None] = {}
    for node in inferred.node:
        if any(name and name not in types for name in node.input):
            continue  # behind an unknown op: that one is named
        dtypes = tuple(types[name].tensor_type.elem_type if name else 0 for name in node.input)
        key = (node.domain, node.op_type, dtypes, tuple(a.SerializeToString() for a in node.attribute))
        if key not in seen:
            inputs = [onnx.ValueInfoProto(name=n, type=types[n]) for n in dict.fromkeys(node.input) if n]
            outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
            alone = onnx.ModelProto(
                ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions
            )
            alone.graph.CopyFrom(onnx.helper.make_graph([node], "alone", inputs, outputs))
            seen[key] = refusal(alone.SerializeToString())
        if reason := seen[key]:
            yield Issue(node.name or node.output[0], node.op_type, reason)
