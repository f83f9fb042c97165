"""Uses of operators that OpenVINO translates without a word and computes otherwise: they are refused, each by name.

All were found by ONNX's conformance cases, and a self-check on feeds that do not reach them would not notice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgerun.passes import Issue

if TYPE_CHECKING:
    import onnx

RECURRENT = ("GRU", "LSTM", "RNN")
FLOAT8 = (17, 19)  # TensorProto's E4M3FN and E5M2
PEEPHOLES = 7  # which input of an LSTM


def found(proto: onnx.ModelProto) -> list[Issue]:
    """The nodes of such uses, those of branches and loops included."""
    return list(_found(proto.graph, _like(proto)))


def _found(graph: onnx.GraphProto, like: dict[str, int]) -> Iterator[Issue]:
    import onnx

    for node in graph.node:
        told: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.domain in ("", "ai.onnx") and (reason := _reason(node, told, like)):
            yield Issue(node.name or next(filter(None, node.output), ""), node.op_type, reason)
        for value in told.values():
            if isinstance(value, onnx.GraphProto):
                yield from _found(value, like)


def _reason(node: onnx.NodeProto, told: dict[str, Any], like: dict[str, int]) -> str | None:
    op = node.op_type
    if op in ("Cast", "CastLike") and told.get("saturate", 1):
        if (told.get("to") if op == "Cast" else like.get(node.input[1])) in FLOAT8:
            return "OpenVINO writes infinity or NaN where an 8-bit float saturates"
    if op in RECURRENT and told.get("layout", 0):
        return "OpenVINO takes layout 1 for layout 0"
    if op == "LSTM" and len(node.input) > PEEPHOLES and node.input[PEEPHOLES]:
        return "OpenVINO ignores peepholes"
    if op == "Attention" and max(told.get("left_window_size", -1), told.get("right_window_size", -1)) >= 0:
        return "OpenVINO ignores windows"
    return None


def _like(proto: onnx.ModelProto) -> dict[str, int]:
    """Element types by value, looked up only where CastLike needs one."""
    import onnx

    if all(node.op_type != "CastLike" for node in proto.graph.node):
        return {}
    graph = onnx.shape_inference.infer_shapes(proto).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return types | {value.name: value.type.tensor_type.elem_type for value in values}
