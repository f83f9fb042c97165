"""Memory shared with worker processes, in which feeds lie already: what is in it need not be copied."""

from __future__ import annotations

import math
import mmap
import os
import threading
import weakref
from typing import Any

import numpy as np


class _Region(mmap.mmap):
    """A mapped part of an arena's file, from `offset` on; `whole` gives the array that was made of it."""

    arena: Arena
    offset: int
    whole: weakref.ref[np.ndarray]


class Arena:
    """Arrays in the shared file `descriptor`, each in pages of its own.

    A part that no array uses any more is given out again, to arrays of as many pages; the file never shrinks. One
    process gives arrays out, others look at the places that they are told.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self._end = descriptor, 0
        self._free: dict[int, list[int]] = {}  # offsets by size
        self._seen: dict[int, _Region] = {}
        self._growing = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """A new array, not initialized."""
        size = math.ceil(max(1, math.prod(shape) * dtype.itemsize) / mmap.PAGESIZE) * mmap.PAGESIZE
        with self._growing:
            free = self._free.setdefault(size, [])
            if not free:
                os.ftruncate(self.descriptor, self._end + size)
                free.append(self._end)
                self._end += size
            region = self._mapped(free.pop(), size)
        weakref.finalize(region, free.append, region.offset)
        array = np.ndarray(shape, dtype, region)
        region.whole = weakref.ref(array)
        return array

    def place(self, array: np.ndarray) -> int:
        """Where it begins; -1 where it is not one of this arena's, as a whole."""
        base: object = array.base
        return base.offset if type(base) is _Region and base.arena is self and base.whole() is array else -1

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> np.ndarray:
        """The array that lies there."""
        size = max(1, math.prod(shape) * dtype.itemsize)
        region = self._seen.get(offset)
        if region is None or len(region) < size:
            region = self._seen[offset] = self._mapped(offset, size)
        return np.ndarray(shape, dtype, region)

    def close(self) -> None:
        """No more arrays; those that there are stay."""
        os.close(self.descriptor)

    def _mapped(self, offset: int, size: int) -> _Region:
        region = _Region(self.descriptor, size, offset=offset)
        region.arena, region.offset = self, offset
        return region
