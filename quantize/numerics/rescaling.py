"""Which per-channel factors lie between a layer's float weights and what a quantized model stores of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LEAST_STEPS = 3.0  # smaller integers say too little about a ratio
MOST_STEPS = 1e3  # no element is more sure than this, so that float layers don't tie two chains rigidly together
ALMOST_ONE = 0.02


@dataclass(frozen=True)
class Tie:
    """What one layer says: `logs` l and `precision` p `[O, I / groups]`, and which unknowns (-1: none) it `writes`, as
    rows, and `reads`, as columns; `rows` and `columns` are the places of these in the unknowns, int64 `[O]`, `[I]`."""

    logs: np.ndarray
    precision: np.ndarray
    writes: int
    reads: int
    groups: int
    rows: np.ndarray
    columns: np.ndarray


def log_ratios(weight: np.ndarray, stored: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of log(v / w) over kernel positions with its precision (1 / variance), float64 `[O, I]` each.

    `weight` w, `stored` v and `step` are `[O, I, K]`; v = r·w + e with e² = step²/12, so that an element's log-ratio
    has the precision 12·(v/step)². Elements below 3 steps, of other sign, or with an infinite step tell nothing.
    """
    w, v = weight.astype(np.float64), stored.astype(np.float64)
    size = np.abs(v) / step
    told = np.isfinite(step) & (size >= LEAST_STEPS) & (w * v > 0)
    logs = np.log(np.where(told, v / np.where(told, w, 1.0), 1.0))
    precision = np.where(told, 12 * np.minimum(size, MOST_STEPS) ** 2, 0.0)
    total = precision.sum(axis=2)
    mean = np.divide((precision * logs).sum(axis=2), total, out=np.zeros_like(total), where=total > 0)
    return mean, total


def is_one(log_factors: np.ndarray, precision: np.ndarray) -> bool:
    """Whether log-factors `[C]` are nothing but estimation error: all within 2 %, or χ² per channel below 9."""
    told = precision > 0
    if not told.any() or float(np.abs(log_factors[told]).max()) < ALMOST_ONE:
        return True
    return float(np.mean(log_factors[told] ** 2 * precision[told])) < 9.0


def solve(ties: Sequence[Tie], sizes: Sequence[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The log-factors x that minimise Σ p·(l − x_written + x_read)² over all ties, and the precision of each.

    `sizes` are the channels of each unknown vector. Sparse normal equations, solved by conjugate gradients with the
    diagonal as preconditioner; a channel that nothing tells about stays at 0.
    """
    right = [np.zeros(size) for size in sizes]
    diagonal = [np.zeros(size) for size in sizes]
    for tie in ties:
        _scatter(tie, tie.precision * tie.logs, right)
        if tie.writes >= 0:
            np.add.at(diagonal[tie.writes], tie.rows, tie.precision.sum(axis=1))
        if tie.reads >= 0:
            np.add.at(diagonal[tie.reads], tie.columns, _columns(tie.precision, tie.groups))

    def product(x: Sequence[np.ndarray]) -> list[np.ndarray]:
        result = [np.zeros(size) for size in sizes]
        for tie in ties:
            difference = x[tie.writes][tie.rows][:, None] if tie.writes >= 0 else 0.0
            if tie.reads >= 0:
                difference = difference - _spread(x[tie.reads][tie.columns], tie)
            _scatter(tie, tie.precision * difference, result)
        return result

    return _conjugate_gradients(product, right, diagonal), diagonal


def _scatter(tie: Tie, amounts: np.ndarray, into: list[np.ndarray]) -> None:
    if tie.writes >= 0:
        np.add.at(into[tie.writes], tie.rows, amounts.sum(axis=1))
    if tie.reads >= 0:
        np.subtract.at(into[tie.reads], tie.columns, _columns(amounts, tie.groups))


def _columns(array: np.ndarray, groups: int) -> np.ndarray:
    """Sums `[C]` over the rows of each group's columns of `[O, C / groups]`."""
    summed: np.ndarray = array.reshape(groups, -1, array.shape[1]).sum(axis=1).reshape(-1)
    return summed


def _spread(channels: np.ndarray, tie: Tie) -> np.ndarray:
    """`[C]` at every element `[O, C / groups]` that reads it."""
    return np.repeat(channels.reshape(tie.groups, -1), len(tie.logs) // tie.groups, axis=0)


def _conjugate_gradients(
    product: Callable[[Sequence[np.ndarray]], list[np.ndarray]],
    right: Sequence[np.ndarray],
    diagonal: Sequence[np.ndarray],
    steps: int = 500,
) -> list[np.ndarray]:
    """x with product(x) = right, to 1e-10 of the first residual in the preconditioned norm."""
    inverse = [np.divide(1.0, d, out=np.zeros_like(d), where=d > 0) for d in diagonal]
    x, residual = [np.zeros_like(r) for r in right], [r.copy() for r in right]
    ahead = [i * r for i, r in zip(inverse, residual, strict=True)]
    size = first = _dot(residual, ahead)
    for _ in range(steps):
        if size <= 1e-10 * first:
            break
        moved = product(ahead)
        step = size / _dot(ahead, moved)
        x = [a + step * b for a, b in zip(x, ahead, strict=True)]
        residual = [r - step * m for r, m in zip(residual, moved, strict=True)]
        scaled = [i * r for i, r in zip(inverse, residual, strict=True)]
        size, last = _dot(residual, scaled), size
        ahead = [s + size / last * a for s, a in zip(scaled, ahead, strict=True)]
    return x


def _dot(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    return float(sum((u @ v for u, v in zip(a, b, strict=True)), 0.0))
