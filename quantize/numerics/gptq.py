"""Second-order rounding: GPTQ, and coordinate descent behind it."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgerun.quantize.numerics.blocks import BlockGrid

DAMP = 0.01  # of the mean of H's diagonal is added to it, as in the paper
BATCH = 32  # columns whose errors are collected before the rest of the weight sees them
BLOCK = 64  # columns of a factorization
SHRINK = 0.3  # the same, where rounding is fine and samples are few
SWEEPS = 2
Factor = tuple[np.ndarray, np.ndarray]
BAND = 1 << 22  # weights that are rounded at once: outputs do not depend on each other, and float64 copies are many


def loss(weight: np.ndarray, stored: np.ndarray, grid: BlockGrid, moments: np.ndarray) -> np.ndarray:
    """L_n = (w_n − q_n)·H·(w_n − q_n)ᵀ for each output row n: ‖(W − Q)X‖² with H = X·Xᵀ. float64 `[N]`."""
    return lost(weight.astype(np.float64) - grid.dequantize(stored), moments)


def lost(error: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """e_n·H·e_nᵀ for each row of the errors `[N, K]`: what an output loses. float64 `[N]` where H is."""
    found: np.ndarray = ((error @ moments) * error).sum(axis=1)
    return found


def rounded(weight: np.ndarray, moments: np.ndarray, grid: BlockGrid) -> np.ndarray:
    """Codes uint8 `[N, K]` that make ‖(W − Q)X‖² small, for W `[N, K]` and H = X·Xᵀ `[K, K]` over the data.

    GPTQ (Frantar et al. 2022, as `nearest_plane`): columns are rounded one by one, those of the largest inputs first,
    and the error of each moves the columns still to come. Then coordinate descent (`descend`). A row for which nearest
    rounding has the smaller loss starts from that, so the result is never worse than nearest. H is float64, symmetric,
    positive semidefinite.
    """
    if not np.any(np.diag(moments) > 0):
        return grid.quantize(weight)
    factor, step = factored(moments, DAMP, np.float64), max(1, BAND // weight.shape[1])
    bands = [slice(start, start + step) for start in range(0, len(weight), step)]
    return np.concatenate([_band(weight[rows], moments, grid.rows(rows), factor) for rows in bands])


def _band(weight: np.ndarray, moments: np.ndarray, grid: BlockGrid, factor: Factor) -> np.ndarray:
    nearest, (wanted, scale, zero_point) = grid.quantize(weight), _columns(weight, grid)
    codes = nearest_plane(wanted, scale, zero_point, (0, 2**grid.bits - 1), factor)
    del wanted, scale, zero_point
    first = np.ascontiguousarray(codes.T.astype(np.uint8))
    worse = loss(weight, first, grid, moments) > loss(weight, nearest, grid, moments)
    first[worse] = nearest[worse]
    return descend(weight, first, moments, grid)


def symmetric(weight: np.ndarray, scale: np.ndarray, moments: np.ndarray, steps: int) -> np.ndarray:
    """Codes int8 `[N, K]` within ±`steps` for W `[N, K]` with one scale `[N]` a row, H damped by SHRINK.

    Few samples say little of how inputs go together: with H as it was seen, 24 sentences make MiniLM worse on others
    (23.7 dB for 24.1 of nearest rounding), and damped like this better (25.3).
    """
    wanted = np.ascontiguousarray(weight.T, np.float32)
    rows = np.asarray(scale, np.float32)[None]
    codes = nearest_plane(wanted, rows, np.zeros_like(rows), (-steps, steps), factored(moments, SHRINK, np.float32))
    return np.ascontiguousarray(codes.T.astype(np.int8))


def grouped(weight: np.ndarray, scale: np.ndarray, moments: np.ndarray, steps: int) -> np.ndarray:
    """`symmetric` for W `[G, N, K]`, scales `[G, N]` and H `[G, K, K]`, all groups side by side."""
    own = np.einsum("gkk->gk", moments)
    order = np.argsort(own, axis=1, kind="stable")[:, None]
    damp = SHRINK * own.mean(axis=1)
    damped = np.take_along_axis(np.take_along_axis(moments, order, 2), order.transpose(0, 2, 1), 1)
    damped = damped + np.where(damp > 0, damp, 1)[:, None, None] * np.eye(weight.shape[2])  # a group that reads nothing
    lower = np.linalg.cholesky(damped).astype(np.float32)
    wanted = np.take_along_axis(weight.astype(np.float32) / scale[..., None], order, 2)
    codes, error = np.zeros_like(wanted), np.zeros_like(wanted)
    for k in range(weight.shape[2] - 1, -1, -1):
        pushed = np.einsum("gni,gi->gn", error[:, :, k + 1 :], lower[:, k + 1 :, k]) / lower[:, None, k, k]
        codes[:, :, k] = np.clip(np.rint(wanted[:, :, k] + pushed), -steps, steps)
        error[:, :, k] = wanted[:, :, k] - codes[:, :, k]
    in_place = np.empty(weight.shape, np.int8)
    np.put_along_axis(in_place, np.broadcast_to(order, weight.shape), codes.astype(np.int8), 2)
    return in_place


def factored(moments: np.ndarray, damp: float, dtype: type[np.floating[Any]]) -> Factor:
    """The order of the inputs, those with the least squares first, and L `[K, K]` with H + λI = L·Lᵀ in that order.

    λ is `damp` of the mean of the diagonal of H `[K, K]`.
    """
    own = np.diag(moments)
    order = np.argsort(own, kind="stable")
    damped = moments[np.ix_(order, order)].astype(dtype)
    damped[np.diag_indices(len(own))] += damp * float(own.mean())
    return order, cholesky(damped)


def nearest_plane(
    wanted: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, ends: tuple[int, int], factor: Factor
) -> np.ndarray:
    """Codes `[K, N]` within `ends` for Wᵀ `[K, N]`, scales and zero points `[K, N]` or `[1, N]`, H as `factored`.

    The loss of a row is ‖e·L‖²: the last input k is rounded first, and every other where (e·L)_k would be zero,
    w_k + Σ_{i>k} e_i·L_ik / L_kk (Babai's nearest plane, 1986; GPTQ is the same with the inputs the other way around,
    Chen et al. 2025). Those with the largest inputs go first.
    """
    order, lower = factor
    pivots = np.diag(lower).copy()
    left, step, zero = (np.broadcast_to(part, wanted.shape)[order] for part in (wanted, scale, zero_point))
    codes, error, pushed = (np.zeros_like(left) for _ in range(3))
    for stop in range(len(order), 0, -BATCH):
        start = max(0, stop - BATCH)
        block = np.ascontiguousarray(lower[start:stop, start:stop].T)
        for k in range(stop - 1, start - 1, -1):
            moved, code = pushed[k], codes[k]  # in place: rows are short, and new ones would take most of the time
            moved += block[k - start, k + 1 - start :] @ error[k + 1 : stop]
            moved /= pivots[k]
            moved += left[k]
            moved /= step[k]
            np.rint(moved, out=code)
            code += zero[k]
            np.maximum(code, ends[0], out=code)
            np.minimum(code, ends[1], out=code)
            np.subtract(code, zero[k], out=moved)
            moved *= step[k]
            np.subtract(left[k], moved, out=error[k])
        pushed[:start] += lower[start:stop, :start].T @ error[start:stop]
    in_place = np.empty_like(codes)
    in_place[order] = codes
    return in_place


def cholesky(moments: np.ndarray) -> np.ndarray:
    """L `[K, K]`, lower, with L·Lᵀ = H for a symmetric positive definite H, in H's dtype.

    By blocks, products for all but the diagonal ones: LAPACK's own, as numpy brings it, takes three times as long on
    one thread (K = 2,048: 154 ms for 48).
    """
    lower = np.tril(moments)
    for start in range(0, len(lower), BLOCK):
        part, below = slice(start, start + BLOCK), slice(start + BLOCK, None)
        lower[start:, part] -= lower[start:, :start] @ lower[part, :start].T
        own = np.linalg.cholesky(lower[part, part])  # which reads the lower half alone
        lower[part, part] = own
        lower[below, part] = lower[below, part] @ np.linalg.inv(own).T
    return lower


def descend(weight: np.ndarray, stored: np.ndarray, moments: np.ndarray, grid: BlockGrid) -> np.ndarray:
    """Coordinate descent on the codes: each column in turn goes to its own optimum given all others.

    With the error E = W − Q, the loss as a function of column k has its minimum at q_k + E·H_k / H_kk, and being a
    parabola, its best code is the one nearest to that: no step makes the loss larger. (QuantEase, Behdin et al. 2023.)
    Stops after `SWEEPS` sweeps, or when nothing moves.
    """
    wanted, scale, zero_point = _columns(weight, grid)
    codes = stored.T.astype(np.float64)
    error = wanted - (codes - zero_point) * scale
    own = np.diag(moments)
    for _ in range(SWEEPS):
        moved = False
        slope = moments @ error
        for start in range(0, len(own), BATCH):
            part = slice(start, min(start + BATCH, len(own)))
            before, local = error[part].copy(), slope[part].copy()
            for k in range(part.start, part.stop):
                if own[k] <= 0:
                    continue
                best = wanted[k] - error[k] + local[k - start] / own[k]
                codes[k] = _nearest(best, scale[k], zero_point[k], grid.bits)
                changed = wanted[k] - (codes[k] - zero_point[k]) * scale[k] - error[k]
                if changed.any():
                    moved = True
                    error[k] += changed
                    local += moments[part, k, None] * changed
            slope += moments[:, part] @ (error[part] - before)
        if not moved:
            break
    return np.ascontiguousarray(codes.T.astype(np.uint8))


def _columns(weight: np.ndarray, grid: BlockGrid) -> np.ndarray:
    """W, s and z as float64 `[3, K, N]`: a column of the paper is contiguous here."""
    return np.stack([part.T.astype(np.float64) for part in (weight, *grid.columns(weight.shape[1]))])


def _nearest(value: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, bits: int) -> np.ndarray:
    codes: np.ndarray = np.clip(np.rint(value / scale) + zero_point, 0, 2**bits - 1)
    return codes
