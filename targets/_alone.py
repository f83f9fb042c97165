"""Which nodes a runtime refuses: each is given to it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from edgerun.passes import Issue


def blame(proto: onnx.ModelProto, refusal: Callable[[bytes], str | None]) -> Iterator[Issue]:
    """The nodes that are refused when they stand alone, with the dtypes that shape inference finds for their inputs."""
    import onnx

    from edgerun.passes import Issue

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
