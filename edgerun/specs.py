"""The door of a graph as TensorSpecs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime.spec import TensorSpec, named

if TYPE_CHECKING:
    import onnx


def specs(values: Any) -> tuple[TensorSpec, ...]:
    """Of onnx_ir values; a dimension without a name gets one. Raises EdgerunError for one without dtype or shape."""
    found: list[TensorSpec] = []
    for value in values:
        kind = _kind(value.type)
        if value.dtype is None or (kind == "tensor" and value.shape is None):
            raise _unknown(value)
        shape = value.shape if kind in ("tensor", "optional") and value.shape is not None else ()
        dims = tuple(_dim(dim, f"{value.name}_{i}") for i, dim in enumerate(shape))
        found.append(TensorSpec(value.name, value.dtype.numpy().name, dims, kind))
    return tuple(found)


def _unknown(value: Any) -> EdgerunError:
    """The error for one without dtype or shape: outputs get theirs in converting, inputs from who converts."""
    do = "edgerun convert MODEL -o NAME.onnx"
    if value.is_graph_input() and value.dtype is not None:
        do += f" --input '{value.name}:{value.dtype.numpy().name}[…]', as in [n,3,224,224]"
    return EdgerunError(f"{value.name!r} has no {'dtype' if value.dtype is None else 'shape'}", do=do)


def _dim(dim: Any, own: str) -> int | str:
    """A size, its name, or `own` where it has none."""
    if isinstance(dim, int):
        return dim if dim >= 0 else own
    return str(dim.value) if named(dim.value) else own


def _kind(found: Any) -> str:
    """A TensorSpec's kind: what a value's type nests, from outside in."""
    names = {"OptionalType": "optional", "SequenceType": "sequence"}
    kinds = []
    while (name := names.get(type(found).__name__)) is not None:
        kinds.append(name)
        found = found.elem_type
    return " ".join(kinds) or "tensor"


def require_arrays(proto: onnx.ModelProto) -> None:
    """Raise Unsupported for outputs that hold dictionaries, as exporters of scikit-learn write them."""
    for value in proto.graph.output:
        held = value.type.sequence_type.elem_type if value.type.HasField("sequence_type") else value.type
        if held.HasField("map_type"):
            raise Unsupported(
                f"output {value.name!r} holds dictionaries (ZipMap)",
                do="edgerun convert the model: they become a table",
            )
