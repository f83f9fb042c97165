"""Whether numbers lie on a grid of their own, evenly spaced, as those made of pixels of 8 bits do."""

from __future__ import annotations

import numpy as np

FEWEST = 64  # different values: fewer of them lie on some grid by chance, or on a coarser one than they should
LEVELS = 256
NEAR = 4  # that many different numbers may stand for a level, as float32 rounds them
EXACT = 0.02  # of a step: a value that is farther off has been through more than a shift and a factor


def found(values: np.ndarray) -> tuple[float, float] | None:
    """(step, lowest) of the grid lowest + step·k, k = 0 … 255 at most, on which all `values` `[n]` lie; None without.

    A least-squares line through the different values by their places; cost: sorting.
    """
    levels = np.unique(values).astype(np.float64)
    if not FEWEST <= len(levels) <= NEAR * LEVELS or not np.isfinite(levels).all():
        return None
    span = levels[-1] - levels[0]
    gaps = np.diff(levels)
    step = float(gaps[gaps > span / (NEAR * LEVELS)].min(initial=np.inf))
    places = np.round((levels - levels[0]) / step)
    if places[-1] >= LEVELS:
        return None
    step, lowest = (float(each) for each in np.polyfit(places, levels, 1))
    return (step, lowest) if np.abs(levels - lowest - step * places).max() <= EXACT * step else None
