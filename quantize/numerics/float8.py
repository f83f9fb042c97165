"""E4M3: 8-bit floats with 4 bits of exponent and 3 of mantissa, no infinities, ±448 at most (float8_e4m3fn).

Micikevicius et al., *FP8 Formats for Deep Learning*, 2022, section 3; ONNX's QuantizeLinear rounds to it with ties to
even and saturates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgerun.quantize.numerics.grid import Grid

LARGEST = 448.0  # S.1111.110
BIAS, MANTISSA = 7, 3
LOWEST = 1 - BIAS  # exponent of the smallest normal number; below it steps stay 2⁻⁹


def encoded(values: np.ndarray) -> np.ndarray:
    """The codes (uint8) of the nearest E4M3 numbers, ties to even; beyond ±448 is ±448. No NaN."""
    size = np.minimum(np.abs(np.asarray(values, np.float32)), np.float32(LARGEST))
    exponent = np.where(size > 0, np.maximum(np.frexp(size)[1] - 1, LOWEST), LOWEST)  # size = m·2^e, m in [½, 1)
    steps = np.rint(np.ldexp(size, MANTISSA - exponent)).astype(np.int32)
    # 16 steps of an exponent are the first number of the next: adding, not or-ing, carries over.
    codes = ((exponent - LOWEST) << MANTISSA) + steps
    codes = np.minimum(codes, 0x7E)  # what rounds beyond the largest number is it
    found: np.ndarray = (codes | np.signbit(values).astype(np.int32) << 7).astype(np.uint8)
    return found


def decoded(codes: np.ndarray) -> np.ndarray:
    """float32 of E4M3 codes (uint8), NaN for 0x7f and 0xff."""
    exponent, mantissa = (codes >> MANTISSA) & 15, (codes & 7).astype(np.float32)
    normal = exponent > 0
    power = np.where(normal, exponent, 1).astype(np.int32) - BIAS - MANTISSA
    size = np.ldexp(mantissa + np.where(normal, np.float32(8), np.float32(0)), power)
    size = np.where(codes & 127 == 127, np.float32(np.nan), size)
    found: np.ndarray = np.where(codes & 128, -size, size).astype(np.float32)
    return found


@dataclass(frozen=True)
class FloatGrid(Grid):
    """r = s·q with q an E4M3 number: `zero_point` is 0 in that type, and gives graphs the type."""

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """E4M3 numbers nearest to r / s, as an array of that type."""
        scale, _ = self.broadcast(values.ndim)
        stored: np.ndarray = encoded(values / scale).view(self.zero_point.dtype)
        return stored

    def dequantize(self, stored: np.ndarray) -> np.ndarray:
        """r = s·q, float32."""
        scale, _ = self.broadcast(stored.ndim)
        values: np.ndarray = decoded(stored.view(np.uint8)) * scale
        return values


def spanning(bound: np.ndarray | float, axis: int | None = None) -> FloatGrid:
    """The scale with which ±`bound` (scalar or `[C]`) is ±448; a channel or tensor of zeros takes scale 1."""
    import ml_dtypes

    scale = np.asarray(np.asarray(bound, np.float32) / np.float32(LARGEST))
    scale = np.asarray(np.where(scale > np.finfo(np.float32).tiny, scale, np.float32(1)), np.float32)
    return FloatGrid(scale, np.zeros(scale.shape, ml_dtypes.float8_e4m3fn), axis)
