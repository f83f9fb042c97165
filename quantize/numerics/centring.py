"""Centring: move every channel's range onto zero, so that one grid for the tensor wastes none of it."""

from __future__ import annotations

import numpy as np


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
