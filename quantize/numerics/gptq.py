"""Second-order rounding: GPTQ, and coordinate descent behind it."""

from __future__ import annotations

import numpy as np

from edgerun.quantize.numerics.blocks import BlockGrid

DAMP = 0.01  # of the mean of H's diagonal is added to it, as in the paper
BATCH = 32  # columns whose errors are collected before the rest of the weight sees them
SWEEPS = 2


def loss(weight: np.ndarray, stored: np.ndarray, grid: BlockGrid, moments: np.ndarray) -> np.ndarray:
    """L_n = (w_n − q_n)·H·(w_n − q_n)ᵀ for each output row n: ‖(W − Q)X‖² with H = X·Xᵀ. float64 `[N]`."""
    error = weight.astype(np.float64) - grid.dequantize(stored)
    found: np.ndarray = ((error @ moments) * error).sum(axis=1)
    return found


def rounded(weight: np.ndarray, moments: np.ndarray, grid: BlockGrid) -> np.ndarray:
    """Codes uint8 `[N, K]` that make ‖(W − Q)X‖² small, for W `[N, K]` and H = X·Xᵀ `[K, K]` over the data.

    GPTQ (Frantar et al. 2022): columns are rounded one by one, those of the largest inputs first; the error of each,
    e = (w_k − q_k) / U_kk with U the upper Cholesky factor of (H + λI)⁻¹, moves the columns still to come by −e·U_k.
    Then coordinate descent (`descend`). A row for which nearest rounding has the smaller loss starts from that, so the
    result is never worse than nearest. H is float64, symmetric, positive semidefinite.
    """
    nearest = grid.quantize(weight)
    if not np.any(np.diag(moments) > 0):
        return nearest
    first = _gptq(weight, moments, grid)
    worse = loss(weight, first, grid, moments) > loss(weight, nearest, grid, moments)
    first[worse] = nearest[worse]
    return descend(weight, first, moments, grid)


def _gptq(weight: np.ndarray, moments: np.ndarray, grid: BlockGrid) -> np.ndarray:
    inputs = weight.shape[1]
    order = np.argsort(-np.diag(moments), kind="stable")
    damped = moments[np.ix_(order, order)]
    damped[np.diag_indices(inputs)] += DAMP * float(np.mean(np.diag(moments)))
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    left, scale, zero_point = (np.ascontiguousarray(part) for part in _columns(weight, grid)[:, order])
    codes = np.empty(left.shape)
    for start in range(0, inputs, BATCH):
        stop = min(start + BATCH, inputs)
        errors = np.empty((stop - start, left.shape[1]))
        for k in range(start, stop):
            codes[k] = _nearest(left[k], scale[k], zero_point[k], grid.bits)
            errors[k - start] = (left[k] - (codes[k] - zero_point[k]) * scale[k]) / upper[k, k]
            left[k + 1 : stop] -= upper[k, k + 1 : stop, None] * errors[k - start]
        left[stop:] -= upper[start:stop, stop:].T @ errors
    in_place = np.empty(codes.shape, np.uint8)
    in_place[order] = codes
    return np.ascontiguousarray(in_place.T)


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
