"""float16 as a storage format: what it holds, and what it would lose."""

from __future__ import annotations

import numpy as np

LARGEST = 65504.0
LEAST_DB = 60.0  # rounding to 11 bits leaves about 72 dB; less means that values fall below the normal range


def halved(weight: np.ndarray) -> np.ndarray | None:
    """`weight` (float32) as float16, to the nearest, or None when that would lose more than rounding.

    None for |w| > 65504 (they would become infinite), for what is not finite, and for an SQNR
    10·log10(Σw² / Σ(w − ŵ)²) under 60 dB: weights below 2⁻¹⁴ keep ever fewer bits, and below 2⁻²⁵ they are zero.
    """
    if weight.size and not float(np.abs(weight).max()) <= LARGEST:
        return None
    stored = weight.astype(np.float16)
    lost = float(np.square(weight.astype(np.float64) - stored).sum())
    signal = float(np.square(weight.astype(np.float64)).sum())
    return stored if lost <= signal * 10 ** (-LEAST_DB / 10) else None
