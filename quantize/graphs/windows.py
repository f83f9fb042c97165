"""Which vectors of an activation are kept: what a layer reads at some places, evenly spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import constant

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Window:
    """A kernel's `sizes` and `dilations` over an activation `[N, C, *spatial]`; none of both where a matrix reads it.

    `places` of every sample are looked at, of `rows` samples a batch.
    """

    places: int
    rows: int
    sizes: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()

    def indices(self, shape: tuple[int | None, ...]) -> list[np.ndarray] | None:
        """For each spatial axis of an activation of this `shape` the places `[places · size]`, int64, kernels in a row.

        None without a kernel, and where an axis is open or too short for it: what lies beyond the border is left out.
        """
        if not self.sizes:
            return None
        share, found = round(self.places ** (1 / len(self.sizes))), []
        for length, size, dilation in zip(shape[2:], self.sizes, self.dilations, strict=True):
            room = 0 if length is None else length - (size - 1) * dilation
            if room < 1:
                return None
            count = min(room, max(1, share))
            starts = ((np.arange(count) + 0.5) * room / count).astype(np.int64)
            found.append((starts[:, None] + np.arange(size) * dilation).reshape(-1))
        return found

    def vectors(self, array: np.ndarray, axis: int, cut: list[np.ndarray] | None) -> np.ndarray:
        """`[m, C · taps]`, a copy, as a Conv's weight has its inputs; `cut`: `indices`, where `array` has only the rows
        (axis 2) that they name.

        Where a matrix reads it, m vectors along `axis`, about `places` for each of `rows`; m = 0 where no kernel fits.
        """
        if not self.sizes:
            rows = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
            step = max(1, round(len(rows) / (self.places * self.rows)))
            return rows[step // 2 :: step].copy()
        if (indices := cut or self.indices(array.shape)) is None:
            return np.zeros((0, 0), np.float32)
        for place, index in enumerate(indices, 2):
            if place > 2 or cut is None:
                array = np.take(array, index, axis=place)
        split = [
            part for length, size in zip(array.shape[2:], self.sizes, strict=True) for part in (length // size, size)
        ]
        rank = len(self.sizes)
        order = (0, *range(2, 2 + 2 * rank, 2), 1, *range(3, 3 + 2 * rank, 2))
        taken = array.reshape(*array.shape[:2], *split).transpose(order)
        return np.ascontiguousarray(taken).reshape(-1, array.shape[1] * int(np.prod(self.sizes)))


def groups(node: ir.Node) -> int:
    """Into how many parts its inputs and outputs fall, each of which knows the others not."""
    return node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1


def kernel(node: ir.Node) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Sizes and dilations with which `node` reads its input; none of both for a product, None for what is neither."""
    weight = constant(node.inputs[1])
    assert weight is not None
    if node.op_type == "Conv":
        sizes = weight.shape[2:]
        return sizes, tuple(node.attributes.get_ints("dilations", [1] * len(sizes)))
    matrix = node.op_type in ("MatMul", "Gemm") and weight.ndim == 2 and not node.attributes.get_int("transA", 0)
    return ((), ()) if matrix else None


def matrix(node: ir.Node) -> np.ndarray:
    """The weight of a layer as `[N, K]`, K being what one of its groups reads."""
    weight = constant(node.inputs[1])
    assert weight is not None
    return weight.reshape(len(weight), -1) if _outputs_first(node) else weight.T


def like_weight(node: ir.Node, codes: np.ndarray) -> np.ndarray:
    """`codes` `[N, K]` as the weight of `node` has its axes."""
    weight = constant(node.inputs[1])
    assert weight is not None
    return np.ascontiguousarray(codes if _outputs_first(node) else codes.T).reshape(weight.shape)


def _outputs_first(node: ir.Node) -> bool:
    return node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1
