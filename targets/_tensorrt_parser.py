"""What TensorRT's parser refuses, or would take for something else: read where a model is compiled, with onnx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgerun.runtime import dtypes
from edgerun.target import Issue
from edgerun.targets import _tensorrt_library as tensorrt

if TYPE_CHECKING:
    import onnx

    from edgerun.model import Model


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
                yield Issue(node.name or node.output[0], node.op_type, "uint8 is no type of TensorRT's quantizers")


def unfed(model: Model, proto: onnx.ModelProto) -> Iterator[Issue]:
    """The nodes at the door that read or write a dtype which no feed or output of TensorRT's has here."""
    for spec in (*model.inputs, *model.outputs):
        if spec.dtype == "object" or spec.dtype in dtypes.NARROW:
            dtype = "text" if spec.dtype == "object" else spec.dtype
            for node in proto.graph.node:
                if spec.name in (*node.input, *node.output):
                    yield Issue(
                        node.name or node.output[0], node.op_type, f"TensorRT takes and gives no {dtype}: {spec.name!r}"
                    )


def refused(parser: Any, proto: onnx.ModelProto) -> Iterator[Issue]:
    """The parser's errors, one a node."""
    seen = set()
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        place, op = int(error.node()), str(error.node_operator())
        name = str(error.node_name())
        if not name and 0 <= place < len(proto.graph.node) and proto.graph.node[place].op_type == op:
            name = proto.graph.node[place].output[0]
        if (name, op) not in seen:
            seen.add((name, op))
            known = parser.supports_operator(op)
            yield Issue(
                name, op, tensorrt.shortened(str(error.desc())) if known else "TensorRT has no translation of this op"
            )
