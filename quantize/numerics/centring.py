"""Centring: move every channel's range onto zero, so that one grid for the tensor wastes none of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STEPS = 15
FLOOR = 0.01  # of the largest residual: nobody's noise is known to be less
RIDGE = 1e-9
SURE = 0.5  # of what the biases differ by must be explained by moved channels


def offsets(low: np.ndarray, high: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """What each writer's channels are moved by: float64 `[W, C]`, to be taken off.

    `low`, `high` `[V, C]` are the ranges of V values, and `sums` `[V, W]` says how often each value adds up the output
    of each of W writers, A: the values move by A·p when the writers move by p. Of all p the one that brings them
    nearest to their middles, min ‖A·p − (l + h)/2‖² (of several, the smallest). A channel that is not narrower around
    zero for it, by Σ_v max(|l|, |h|)², stays where it is.

    Channel-wise shifting is from Wei et al., Outlier Suppression+, 2023 (section 4.1), there for one tensor; sums tie
    the tensors of a residual chain together.
    """
    found: np.ndarray = np.linalg.lstsq(sums.astype(np.float64), (low + high) / 2, rcond=None)[0]
    moved = sums @ found
    before, after = (_width(low, high), _width(low - moved, high - moved))
    found[:, after >= before] = 0.0
    return found


def _width(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    width: np.ndarray = (np.maximum(np.abs(low), np.abs(high)) ** 2).sum(axis=0)
    return width


def recovered(
    writers: Sequence[np.ndarray], readers: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> np.ndarray:
    """The p `[W, C]` that a chain was moved by, from what its layers' biases differ by: float64; zeros if it was not.

    A writer's bias differs by d = −p_w, `[C]`; a reader's by d = M·(a·p), given as d `[O]`, M `[O, C]`, and a `[W]`:
    how often what it reads adds up each writer's output. Both have small corrections on top, and one may be wrong
    altogether. So each layer has a noise of its own, unknown: Σ n·log(rms of its n residuals) is made small, each row
    of M of length 1, by reweighted least squares, from where Σ rms is least or from least squares without one of the
    layers, whichever is lower. Zeros, unless that leaves less
    than half of the sum that p = 0 has, the layer that fits worst left out of both.
    """
    count, channels = len(writers), len(writers[0])
    size = count * channels
    parts = [(-np.eye(size)[w * channels : (w + 1) * channels], d) for w, d in enumerate(writers)]
    for difference, matrix, row in readers:
        length = np.linalg.norm(matrix, axis=1)
        inverse = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
        parts.append((np.kron(row, matrix * inverse[:, None]), difference * inverse))
    grams = [(a.T @ a, a.T @ d) for a, d in parts]

    def residuals(p: np.ndarray) -> np.ndarray:
        return np.array([np.sqrt(np.mean((a @ p - d) ** 2)) for a, d in parts])

    first = residuals(np.zeros(size))
    if not first.any():
        return np.zeros((count, channels))
    least, counts = FLOOR * first.max(), np.array([len(d) for _, d in parts])

    def solved(by: np.ndarray) -> np.ndarray:
        left = sum(w * gram for w, (gram, _) in zip(by, grams, strict=True))
        right = sum(w * side for w, (_, side) in zip(by, grams, strict=True))
        ridge = RIDGE * np.trace(left) / size  # what no layer tells of is zero
        p: np.ndarray = np.linalg.solve(left + ridge * np.eye(size), right)
        return p

    def weighted(p: np.ndarray, power: int) -> np.ndarray:
        for _ in range(STEPS):
            p = solved(np.maximum(residuals(p), least) ** power)
        return p

    def loss(p: np.ndarray) -> float:
        return float(counts @ np.log(np.maximum(residuals(p), least)))

    starts = [weighted(solved(np.ones(len(parts))), -1), *(solved(1.0 - out) for out in np.eye(len(parts)))]
    found = weighted(min(starts, key=loss), -2)
    now = residuals(found)
    others = np.arange(len(parts)) != int(now.argmax())
    sure = now[others].sum() < SURE * first[others].sum()
    return found.reshape(count, channels) if sure else np.zeros((count, channels))
