"""What a node and the types of its inputs say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

ABSENT = '""'  # an input or output that is left out, in ONNX's text


def repeated(value: int, times: int) -> str:
    """As a list in ONNX's text."""
    return ", ".join([str(value)] * times)


def shape(kind: onnx.TypeProto) -> list[int | None] | None:
    """Sizes, None where open; None altogether where not even their number is known."""
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]


def rank(kind: onnx.TypeProto) -> int | None:
    """The number of dimensions, None where it is not known."""
    sizes = shape(kind)
    return None if sizes is None else len(sizes)


def element(kind: onnx.TypeProto) -> str | None:
    """An element type as ONNX's text has it: float, int64 …"""
    import onnx

    number = kind.tensor_type.elem_type
    return onnx.TensorProto.DataType.Name(number).lower() if number else None


def attribute(node: onnx.NodeProto, name: str) -> Any:
    """Its value; None where it is left to its default."""
    import onnx

    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def integer(node: onnx.NodeProto, name: str, default: int) -> int:
    """An attribute that is an integer."""
    found = attribute(node, name)
    return default if found is None else int(found)


def integers(node: onnx.NodeProto, name: str) -> list[int]:
    """An attribute that is a list of integers; empty where it is left out."""
    return list(attribute(node, name) or ())


def string(node: onnx.NodeProto, name: str, default: str) -> str:
    """An attribute that is a string."""
    found = attribute(node, name)
    return default if found is None else found.decode()
