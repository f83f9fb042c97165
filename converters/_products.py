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

MOST = 1 << 22  # elements of a matrix: a larger one may be mapped, or shared, and is not computed anew
Known = Mapping[str, tuple[int, Sequence[int | None] | None]]  # a value's element type and sizes


def joined(node: ir.Node, known: Known) -> bool:
    """Let a MatMul or Gemm take in the constant product, or the factors per column, right before it."""
    second, (view, maker) = matrix(node), rows(node)
    if second is None or maker is None or maker.inputs[0] is None:
        return False
    if maker.op_type == "Mul":
        inner = _factors(maker, known, len(second))
        product = None if inner is None else inner[1].astype(np.float64)[:, None] * second
    else:
        inner = _inner(maker, second)
        product = None if inner is None else inner[1].astype(np.float64) @ second.astype(np.float64)
    if inner is None or product is None:
        return False
    _replace(node, inner[0], view, product.astype(second.dtype))
    return True


def matrix(node: ir.Node) -> np.ndarray | None:
    """The constant right factor [k, m] of a product, in float32 or float64; None of another node."""
    plain = node.op_type == "MatMul" or (
        node.op_type == "Gemm"
        and not any(node.attributes.get_int(side, 0) for side in ("transA", "transB"))
        and node.attributes.get_float("alpha", 1.0) == 1
    )
    held = node.inputs[1].const_value if plain and node.inputs[1] is not None else None
    if held is None or len(held.shape) != 2 or held.size > MOST or held.dtype.name not in ("FLOAT", "DOUBLE"):
        return None
    return held.numpy()


def rows(node: ir.Node) -> tuple[list[int] | None, ir.Node | None]:
    """What makes the rows of a product, for products alone, and the sizes that it gets on the way, whose last is the
    rows' own."""
    second = matrix(node)
    value = node.inputs[0] if second is not None else None
    if value is None or second is None or not _multiplied(value):
        return None, None
    view: list[int] | None = None
    while (maker := value.producer()) is not None and maker.op_type == "Reshape":
        sizes, value = constant(maker.inputs[1]), maker.inputs[0]
        if view is None:  # the last Reshape alone says how it lies
            view = None if sizes is None else sizes.ravel().tolist()
        if value is None or view is None or view[-1] != len(second) or 0 in view[:-1] or not _multiplied(value):
            return None, None
    return view, maker


def _multiplied(value: ir.Value) -> bool:
    """Whether all that reads a value multiplies its rows by constant matrices, or sees them otherwise and does so."""
    return not value.is_graph_output() and all(
        index == 0 and (matrix(user) is not None or (user.op_type == "Reshape" and _multiplied(user.outputs[0])))
        for user, index in value.uses()
    )


def _inner(maker: ir.Node, second: np.ndarray) -> tuple[ir.Value, np.ndarray] | None:
    """x and A of x·A, where A·B is not larger than A and B are."""
    first = matrix(maker)
    alone = len(maker.outputs[0].uses()) == 1
    if first is None or not alone or first.dtype != second.dtype or first.shape[1] != len(second) or maker.inputs[2:]:
        return None
    smaller = len(first) * second.shape[1] <= first.size + second.size
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


def _replace(node: ir.Node, x: ir.Value, view: list[int] | None, product: np.ndarray) -> None:
    """The same node on x, seen as `view` with rows as wide as the matrix is long."""
    import onnx_ir as ir

    inputs = list(node.inputs)
    if view is not None:
        made = ir.node("Reshape", [x, initializer(node, np.array([*view[:-1], len(product)], np.int64), 2)])
        assert node.graph is not None
        made.name = f"{node.name}/rows"
        made.outputs[0].name = f"{node.name}/rows"
        node.graph.insert_before(node, made)
        x = made.outputs[0]
    inputs[:2] = [x, initializer(node, product, 1)]
    instead(node, ir.node(node.op_type, inputs, dict(node.attributes), name=node.name))
