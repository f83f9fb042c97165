"""Which outputs a quantized model is judged by: those that hold numbers, as many of them as the float model gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerun.errors import Unsupported

if TYPE_CHECKING:
    import onnx_ir as ir

COUNTING = frozenset({"NonZero", "NonMaxSuppression", "Unique", "Compress"})  # whose values say how many there are


def outputs(graph: ir.Graph) -> list[str]:
    """The names of the outputs that have an SQNR: not texts, nor, where others are left, those of a size that the data
    decide: rounding may find one box more, and nothing says which ones belong together.

    Shapes must have been inferred. Raises Unsupported when there is none.
    """
    import onnx_ir as ir

    numeric = [value for value in graph.outputs if value.dtype != ir.DataType.STRING]
    if not numeric:
        raise Unsupported("the model has no numeric output to compare", do="add the scores as an output")
    counted = _counted(graph)
    given = {size.value for value in graph.inputs for size in value.shape or () if not isinstance(size, int)}
    fixed = [value for value in numeric if value not in counted or _known(value, given)]
    return [str(value.name) for value in fixed or numeric]


def _counted(graph: ir.Graph) -> set[ir.Value]:
    """The values computed from what such a node counted."""
    found: set[ir.Value] = set()
    for node in graph:
        if node.op_type in COUNTING or any(value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def _known(value: ir.Value, given: set[str | None]) -> bool:
    """Whether every size is a number, or one of an input's."""
    sizes = [None] if value.shape is None else list(value.shape)
    names = [size if size is None else size.value for size in sizes if not isinstance(size, int)]
    return all(name is not None and name in given for name in names)
