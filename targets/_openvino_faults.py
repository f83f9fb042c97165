"""Uses of operators that OpenVINO translates without a word and computes otherwise: they are refused, each by name.

All were found by ONNX's conformance cases, and a self-check on feeds that do not reach them would not notice.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgerun.passes import Issue

if TYPE_CHECKING:
    import numpy as np
    import onnx

RECURRENT = ("GRU", "LSTM", "RNN")
FLOAT8 = (17, 19)  # TensorProto's E4M3FN and E5M2
STRING = 8  # TensorProto's
PEEPHOLES = 7  # which input of an LSTM
SMOOTH = (b"linear", b"cubic")  # modes of Resize


class Facts:
    """What a model says of its values, looked up only where a use of an operator hangs on it."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self.opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=1)

    @cached_property
    def _types(self) -> dict[str, Any]:
        import onnx

        graph = onnx.shape_inference.infer_shapes(self._proto).graph
        return {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}

    @cached_property
    def _constants(self) -> dict[str, onnx.TensorProto]:
        nodes = [node for node in self._proto.graph.node if node.op_type == "Constant"]
        tensors = {node.output[0]: a.t for node in nodes for a in node.attribute if a.name == "value"}
        return {tensor.name: tensor for tensor in self._proto.graph.initializer} | tensors

    def element(self, name: str) -> int | None:
        """The element type of a value, as TensorProto numbers them."""
        if name in self._constants:
            return self._constants[name].data_type
        return self._types[name].elem_type if name in self._types else None

    def shape(self, name: str) -> list[int | None] | None:
        """The sizes of a value, None where one is open."""
        if name in self._constants:
            return list(self._constants[name].dims)
        if name not in self._types or not self._types[name].HasField("shape"):
            return None
        return [d.dim_value if d.HasField("dim_value") else None for d in self._types[name].shape.dim]

    def constant(self, name: str) -> np.ndarray | None:
        """The numbers of a value that is constant."""
        import onnx

        return onnx.numpy_helper.to_array(self._constants[name]) if name in self._constants else None


def found(proto: onnx.ModelProto) -> list[Issue]:
    """The nodes of such uses, those of branches and loops included."""
    return [*_texts(proto.graph), *_found(proto.graph, Facts(proto))]


def _texts(graph: onnx.GraphProto) -> Iterator[Issue]:
    doors = {value.name for value in (*graph.input, *graph.output) if value.type.tensor_type.elem_type == STRING}
    for node in graph.node:
        if doors & {*node.input, *node.output}:
            yield Issue(node.name or next(filter(None, node.output), ""), node.op_type, "no texts go in or out")


def _found(graph: onnx.GraphProto, facts: Facts) -> Iterator[Issue]:
    import onnx

    for node in graph.node:
        told: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.domain in ("", "ai.onnx") and (reason := _reason(node, told, facts)):
            yield Issue(node.name or next(filter(None, node.output), ""), node.op_type, reason)
        for value in told.values():
            if isinstance(value, onnx.GraphProto):
                yield from _found(value, facts)


def _reason(node: onnx.NodeProto, told: dict[str, Any], facts: Facts) -> str | None:
    op = node.op_type
    if op in ("Cast", "CastLike") and told.get("saturate", 1):
        if (told.get("to") if op == "Cast" else facts.element(node.input[1])) in FLOAT8:
            return "OpenVINO writes infinity or NaN where an 8-bit float saturates"
    if op in RECURRENT and told.get("layout", 0):
        return "OpenVINO takes layout 1 for layout 0"
    if op == "LSTM" and len(node.input) > PEEPHOLES and node.input[PEEPHOLES]:
        return "OpenVINO ignores peepholes"
    if op == "LSTM" and told.get("input_forget", 0):
        return "OpenVINO ignores input_forget"
    if op == "Attention" and max(told.get("left_window_size", -1), told.get("right_window_size", -1)) >= 0:
        return "OpenVINO ignores windows"
    if op == "RoiAlign" and told.get("mode") == b"max":
        return "OpenVINO takes the largest of the interpolated points, ONNX the largest of their weighted neighbours"
    if op == "DFT":
        return _transformed(node, told, facts)
    if op == "Resize":
        return _resized(node, told, facts)
    return None


def _transformed(node: onnx.NodeProto, told: dict[str, Any], facts: Facts) -> str | None:
    """From opset 20 on the axis is an input, -2 where there is none."""
    if told.get("onesided", 0):
        return "OpenVINO gives a one-sided transform another number of axes"
    if facts.opset < 20:
        return None
    given = facts.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    absent, shape = len(node.input) < 3 or not node.input[2], facts.shape(node.input[0])
    axis = -2 if absent else None if given is None else int(given.item())
    first = axis == 1 or (axis is not None and shape is not None and axis + len(shape) == 1)
    return None if first else "OpenVINO transforms axis 1, whatever the input says"


def _resized(node: onnx.NodeProto, told: dict[str, Any], facts: Facts) -> str | None:
    mode, policy = told.get("mode", b"nearest"), told.get("keep_aspect_ratio_policy", b"stretch")
    smooth, cubic = mode in SMOOTH and told.get("antialias", 0), mode == b"cubic" and told.get("exclude_outside", 0)
    if not (smooth or cubic or policy != b"stretch"):
        return None
    scales, sized = _scales(node, told, facts), len(node.input) > 3 and bool(node.input[3])
    if smooth and (scales is None or min(scales) < 1):
        return "OpenVINO ignores antialias"
    if cubic and (scales is None or set(scales) != {1.0}):
        return "OpenVINO ignores exclude_outside"
    if policy != b"stretch" and sized and (scales is None or len(set(scales)) > 1):
        return "OpenVINO ignores keep_aspect_ratio_policy"
    return None


def _scales(node: onnx.NodeProto, told: dict[str, Any], facts: Facts) -> list[float] | None:
    """How many times as large each axis in question becomes, where that is known."""
    names = [*node.input, "", "", ""]
    scales, sizes, shape = facts.constant(names[2]), facts.constant(names[3]), facts.shape(names[0])
    if scales is not None and scales.size:
        return [float(scale) for scale in scales]
    if sizes is None or shape is None:
        return None
    had = [shape[axis] for axis in told.get("axes", range(len(shape)))]
    return None if None in had else [int(size) / (old or 1) for size, old in zip(sizes, had, strict=True)]
