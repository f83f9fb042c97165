"""Half types: float16, and bfloat16 with float32's range; what each holds of a weight, and what it would lose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgerun.runtime import dtypes


@dataclass(frozen=True)
class Half:
    """`name` is numpy's (bfloat16: ml_dtypes'), `number` ONNX's; no finite value is beyond `largest`.

    `least_db`: rounding leaves 12 dB more; less means that values fall below the normal range. `room`: how many times
    what was seen has to fit, since other data reaches further. `norms`: whether normalization bears it: it subtracts
    the mean of values that differ little, and its result is added to for the rest of the network.
    """

    name: str
    number: int
    largest: float
    least_db: float
    room: float
    norms: bool

    def stored(self, weight: np.ndarray) -> np.ndarray | None:
        """`weight` (float32) in this type, to the nearest, or None when that would lose more than rounding.

        None for |w| > `largest` (they would become infinite), for what is not finite, and for an SQNR
        10·log10(Σw² / Σ(w − ŵ)²) under `least_db`: float16's weights below 2⁻¹⁴ keep ever fewer bits, and below 2⁻²⁵
        they are zero.
        """
        if weight.size and not float(np.abs(weight).max()) <= self.largest:
            return None
        stored = weight.astype(dtypes.dtype(self.name))
        wide = weight.astype(np.float64)
        lost = float(np.square(wide - stored.astype(np.float64)).sum())
        return stored if lost <= float(np.square(wide).sum()) * 10 ** (-self.least_db / 10) else None

    def clipped(self, ends: np.ndarray) -> np.ndarray:
        """A Clip's ends (float32), cut off where this type ends, as all values are."""
        cut: np.ndarray = np.clip(ends, -self.largest, self.largest).astype(dtypes.dtype(self.name))
        return cut


# 11 bits leave about 72 dB, 8 about 54.
FLOAT16 = Half("float16", 10, 65504.0, 60.0, room=4.0, norms=True)
BFLOAT16 = Half("bfloat16", 16, float(np.uint32(0x7F7F0000).view(np.float32)), 42.0, room=1.0, norms=False)
HALVES = {half.name: half for half in (FLOAT16, BFLOAT16)}


def halved(weight: np.ndarray) -> np.ndarray | None:
    """`weight` (float32) as float16, or None: see `Half.stored`."""
    return FLOAT16.stored(weight)
