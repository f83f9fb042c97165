"""Products in the form that they are known by as layers: a constant matrix, and no factors beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import constant, set_constant, shared

if TYPE_CHECKING:
    import onnx_ir as ir


def write(graph: ir.Graph) -> int:
    """Put a Gemm's alpha into its constant weight and its beta into its constant bias, and a MatMul's constant
    `[1, …, 1, K, N]` into `[K, N]`; return how many. Shapes must have been inferred.

    αAB + βC = A(αB) + βC, to float rounding; a weight that others read too would have to be stored twice, and stays.
    """
    return sum(
        _factored(graph, node) if node.op_type == "Gemm" else _squeezed(graph, node)
        for node in graph
        if node.domain == "" and node.op_type in ("Gemm", "MatMul")
    )


def _factored(graph: ir.Graph, node: ir.Node) -> bool:
    changed = False
    for index, name in ((1, "alpha"), (2, "beta")):
        factor, value = node.attributes.get_float(name, 1.0), node.inputs[index] if index < len(node.inputs) else None
        if factor == 1.0 or (value is not None and not _multiplied(graph, node, index, factor)):
            continue
        node.attributes.pop(name)
        changed = True
    return changed


def _multiplied(graph: ir.Graph, node: ir.Node, index: int, factor: float) -> bool:
    array, value = constant(node.inputs[index]), node.inputs[index]
    if array is None or array.dtype != np.float32 or shared(value):
        return False
    with np.errstate(over="ignore"):
        product = array * np.float32(factor)
    if not np.isfinite(product).all():
        return False
    set_constant(graph, node, index, product)
    return True


def _squeezed(graph: ir.Graph, node: ir.Node) -> bool:
    source, value = node.inputs
    array = constant(value)
    if array is None or array.ndim < 3 or array.shape[:-2] != (1,) * (array.ndim - 2) or shared(value):
        return False
    if source is None or source.shape is None or len(source.shape) < array.ndim:  # the result has as many axes
        return False
    set_constant(graph, node, 1, array.reshape(array.shape[-2:]))
    return True
