"""Range estimators: from what was observed of an activation to the interval that the grid shall span.

Each takes (low, high, sample): exact extremes and an even float32 sample `[m]`; each returns (low, high).
All keep an interval's zero end at zero, so that what follows a ReLU stays one-sided.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Estimator = Callable[[float, float, np.ndarray], tuple[float, float]]
BINS = 2048


def minmax(low: float, high: float, sample: np.ndarray) -> tuple[float, float]:
    """The observed extremes."""
    return low, high


def shrink90(low: float, high: float, sample: np.ndarray) -> tuple[float, float]:
    """Nine tenths of the observed extremes: finer steps, against clipping of the rarest values."""
    return 0.9 * low, 0.9 * high


def shrink80(low: float, high: float, sample: np.ndarray) -> tuple[float, float]:
    """Eight tenths of the observed extremes."""
    return 0.8 * low, 0.8 * high


def percentile(low: float, high: float, sample: np.ndarray, share: float = 99.99) -> tuple[float, float]:
    """The central `share` percent of the sample, half of the rest cut at each end (all of it at a one-sided end)."""
    tail = (100.0 - share) / 100.0
    if low >= 0:
        return low, float(np.quantile(sample, 1 - tail))
    if high <= 0:
        return float(np.quantile(sample, tail)), high
    ends = np.quantile(sample, [tail / 2, 1 - tail / 2])
    return float(ends[0]), float(ends[1])


def mse(low: float, high: float, sample: np.ndarray, steps: int = 255) -> tuple[float, float]:
    """The interval [a·low, b·high], a, b ∈ (0, 1], with the least mean squared rounding-and-clipping error.

    Minimises Σ_i n_i·(c_i − Q(c_i))² over a histogram with centres c_i and counts n_i, where Q rounds to the grid of
    `steps` steps; one end is searched after the other, twice. Rounding inside a cell counts as its mean, s²/12.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 0:
        return low, high
    # Zero is exact on every grid, so the many zeros behind a ReLU have no rounding error to weigh in.
    counts, edges = np.histogram(sample[sample != 0], BINS, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    # Σ n, Σ n·c and Σ n·c² of the cells before each cell give every tail's Σ n·(c − end)² at once.
    sums = np.concatenate([np.zeros((3, 1)), np.cumsum(counts * np.stack([np.ones(BINS), centres, centres**2]), 1)], 1)
    fractions = np.geomspace(0.02, 1.0, 128)

    def loss(lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
        first, last = np.searchsorted(centres, lows), np.searchsorted(centres, highs, side="right")
        below, above = sums[:, first], sums[:, -1:] - sums[:, last]
        clipped = sum(m2 - 2 * end * m1 + end**2 * m0 for (m0, m1, m2), end in ((below, lows), (above, highs)))
        rounded: np.ndarray = clipped + (sums[0, last] - sums[0, first]) * ((highs - lows) / steps) ** 2 / 12
        return rounded

    best_low, best_high = low, high
    for _ in range(2):
        if high > 0:
            highs = high * fractions
            best_high = float(highs[np.argmin(loss(np.full_like(highs, best_low), highs))])
        if low < 0:
            lows = low * fractions
            best_low = float(lows[np.argmin(loss(lows, np.full_like(lows, best_high)))])
    return best_low, best_high


def entropy(low: float, high: float, sample: np.ndarray, levels: int = 128) -> tuple[float, float]:
    """The symmetric threshold whose clipped histogram, merged into `levels` cells, is nearest in KL divergence.

    Minimises D(P‖Q) = Σ P·ln(P/Q) over the threshold (Migacz, 8-bit inference with TensorRT, GTC 2017),
    on 2048 bins of |x|; a one-sided tensor keeps its zero end, a two-sided one is cut at ±threshold.
    """
    bound = max(abs(low), abs(high))
    if bound <= 0:
        return low, high
    counts = np.histogram(np.abs(sample), BINS, (0.0, bound))[0].astype(np.float64)
    ends = np.arange(levels, BINS + 1, 16)
    divergences = [_divergence(counts, int(end), levels) for end in ends]
    threshold = bound * ends[int(np.argmin(divergences))] / BINS
    return max(low, -threshold), min(high, threshold)


def _divergence(counts: np.ndarray, end: int, levels: int) -> float:
    reference = counts[:end].copy()
    reference[-1] += counts[end:].sum()
    cell = np.arange(end) * levels // end
    filled = counts[:end] > 0
    total = np.bincount(cell, counts[:end], levels)
    members = np.bincount(cell, filled, levels)
    spread = np.divide(total, members, out=np.zeros_like(total), where=members > 0)[cell] * filled
    p, q = reference / max(reference.sum(), 1), spread / max(spread.sum(), 1)
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))))


ESTIMATORS: dict[str, Estimator] = {
    "minmax": minmax,
    "shrink90": shrink90,
    "shrink80": shrink80,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}
