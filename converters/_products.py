"""Products with constant matrices in a row are one: (x·A)·B is x·(A·B), and (x∘w)·B is x·(diag(w)·B).

The matrix that is left is computed in float64 and rounded once. Written only where it has no more elements than what it
replaces, so that a factorized layer stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.converters._torch_graph import constant, initializer, instead

if TYPE_CHECKING:
    import onnx_ir as ir

Known = Mapping[str, tuple[int, Sequence[int | None] | None]]  # a value's element type and sizes


def joined(node: ir.Node, known: Known) -> bool:
    """Let a MatMul or Gemm take in the constant product, or the factors per column, right before it."""
    matrix = _matrix(node)
    if matrix is None or matrix.dtype.kind != "f":
        return False
    view, maker = _before(node.inputs[0], len(matrix))
    if maker is None or maker.inputs[0] is None or maker.domain not in ("", "ai.onnx"):
        return False
    if maker.op_type == "Mul":
        inner = _factors(maker, known, len(matrix))
        product = None if inner is None else inner[1].astype(np.float64)[:, None] * matrix
    else:
        inner = _inner(maker, matrix)
        product = None if inner is None else inner[1].astype(np.float64) @ matrix.astype(np.float64)
    if inner is None or product is None:
        return False
    _replace(node, inner[0], view, product.astype(matrix.dtype))
    return True


def _matrix(node: ir.Node) -> np.ndarray | None:
    """The constant right factor [k, m] of a product; None of another node."""
    plain = node.op_type == "MatMul" or (
        node.op_type == "Gemm"
        and not any(node.attributes.get_int(side, 0) for side in ("transA", "transB"))
        and node.attributes.get_float("alpha", 1.0) == 1
    )
    held = node.inputs[1].const_value if plain and node.inputs[1] is not None else None
    return held.numpy() if held is not None and len(held.shape) == 2 else None


def _before(value: ir.Value | None, width: int) -> tuple[list[int] | None, ir.Node | None]:
    """What makes a value for this one reader, and the sizes that it gets on the way, which keep rows of `width`."""
    maker = value.producer() if value is not None and _alone(value) else None
    if maker is None or maker.op_type != "Reshape":
        return None, maker
    sizes, value = constant(maker.inputs[1]), maker.inputs[0]
    if sizes is None or int(sizes.ravel()[-1]) != width or value is None or not _alone(value):
        return None, None
    return sizes.ravel().tolist(), value.producer()


def _alone(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _inner(maker: ir.Node, matrix: np.ndarray) -> tuple[ir.Value, np.ndarray] | None:
    """x and A of x·A, where A·B is not larger than A and B are."""
    first = _matrix(maker)
    if first is None or first.dtype != matrix.dtype or first.shape[1] != len(matrix) or maker.inputs[2:]:
        return None
    smaller = len(first) * matrix.shape[1] <= first.size + matrix.size
    return (maker.inputs[0], first) if smaller and maker.inputs[0] is not None else None


def _factors(maker: ir.Node, known: Known, width: int) -> tuple[ir.Value, np.ndarray] | None:
    """x and w of x∘w, a number per column of x."""
    for value, other in (maker.inputs, maker.inputs[::-1]):
        held = other.const_value if other is not None else None
        sizes = known.get(value.name or "", (0, None))[1] if value is not None else None
        if held is None or value is None or value.const_value is not None or sizes is None or sizes[-1] != width:
            continue
        factors = held.numpy()
        if factors.size in (1, width) and factors.ndim <= len(sizes) and factors.shape[-1:] in ((), (1,), (width,)):
            if factors.size == 1 or factors.shape[-1] == width:
                return value, np.broadcast_to(factors.reshape(-1), width)
    return None


def _replace(node: ir.Node, x: ir.Value, view: list[int] | None, matrix: np.ndarray) -> None:
    """The same node on x, seen as `view` with rows as wide as the matrix is long."""
    import onnx_ir as ir

    inputs = list(node.inputs)
    if view is not None:
        made = ir.node("Reshape", [x, initializer(node, np.array([*view[:-1], len(matrix)], np.int64), 2)])
        assert node.graph is not None
        made.name = f"{node.name}/rows"
        made.outputs[0].name = f"{node.name}/rows"
        node.graph.insert_before(node, made)
        x = made.outputs[0]
    inputs[:2] = [x, initializer(node, matrix, 1)]
    instead(node, ir.node(node.op_type, inputs, dict(node.attributes), name=node.name))
