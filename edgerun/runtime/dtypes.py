"""Element types by name: numpy's own, and the narrow ones that the package ml_dtypes adds to numpy."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np

from edgerun.errors import Unsupported

# Bits of one element in a packed tensor; numpy keeps every element in whole bytes.
NARROW = {
    "bfloat16": 16, "float8_e4m3fn": 8, "float8_e4m3fnuz": 8, "float8_e5m2": 8, "float8_e5m2fnuz": 8,
    "float8_e8m0fnu": 8, "float4_e2m1fn": 4, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2,
}  # fmt: skip


@functools.cache
def dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of that name. Raises Unsupported for a narrow one where ml_dtypes is not installed."""
    if name not in NARROW:
        return np.dtype(name)
    try:
        found: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
        return found
    except (ImportError, AttributeError) as error:
        raise Unsupported(f"numpy alone has no {name}", got=str(error), do="pip install 'ml_dtypes>=0.5'") from error


def packed(array: np.ndarray, bits: int) -> np.ndarray:
    """Elements of `bits` (2, 4, 8 or 16) as a flat uint8 array, the first element in the lowest bits of a byte.

    `array` holds one element in the low bits of each of its items; the last byte is filled up with zeros.
    """
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if bits >= 8:
        return flat
    each, mask = 8 // bits, (1 << bits) - 1
    padded = np.zeros(-(-flat.size // each) * each, np.uint8)
    padded[: flat.size] = flat & mask
    shifts = (np.arange(each, dtype=np.uint8) * bits).astype(np.uint8)
    joined: np.ndarray = np.bitwise_or.reduce(padded.reshape(-1, each) << shifts, axis=1).astype(np.uint8)
    return joined


def unpacked(data: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `packed`: flat uint8 `data` as an array of the narrow type `name`, in memory of its own."""
    bits, wanted, count = NARROW[name], dtype(name), int(np.prod(shape, dtype=np.int64))
    if bits >= 8:
        whole: np.ndarray = data.view(wanted)[:count].reshape(shape).copy()
        return whole
    shifts = (np.arange(8 // bits, dtype=np.uint8) * bits).astype(np.uint8)
    items = ((data[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[:count].astype(np.uint8)
    if name.startswith("int"):  # ml_dtypes keeps a signed one sign-extended
        sign = 1 << (bits - 1)
        items = ((items.astype(np.int16) ^ sign) - sign).astype(np.int8).view(np.uint8)
    found: np.ndarray = items.view(wanted).reshape(shape)
    return found
