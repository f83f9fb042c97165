"""Memory shared with worker processes, in which feeds lie already: what is in it need not be copied."""

from __future__ import annotations

import bisect
import math
import mmap
import os
import sys
import threading
import weakref
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np

KEPT = 64 << 20  # bytes of arrays that are gone, which the next ones get without having to be made anew
WIDE = sys.maxsize > 1 << 32


class _Part(np.ndarray):
    """The bytes of one array; `whole` gives that array."""

    arena: Arena
    place: int
    whole: weakref.ref[np.ndarray]


class Arena:
    """Arrays in a shared file, each in pages of its own, which go back when its last view does.

    The file has room for the machine's memory, and takes of that what is written to. This process gives arrays out; a
    worker (`Looks`) reads them where they are.
    """

    def __init__(self) -> None:
        self.descriptor, self._map = os.memfd_create("edgerun"), None
        pages = os.sysconf("SC_PHYS_PAGES") if WIDE else 1 << 16
        with suppress(OSError, ValueError):  # a limit on addresses or files: arrays are as any other then, and copied
            os.ftruncate(self.descriptor, pages * mmap.PAGESIZE)
            self._map = mmap.mmap(self.descriptor, pages * mmap.PAGESIZE)
        # First page and number of pages, in order, none beside another.
        self._free = [(0, pages)] if self._map is not None else []
        self._gone, self._loose = deque[tuple[int, int]](), 0
        self._lock, self._process = threading.Lock(), os.getpid()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """A new array, not initialized; an ordinary one where there is no room, and in a fork of the process."""
        pages = -(-max(1, math.prod(shape) * dtype.itemsize) // mmap.PAGESIZE)
        memory = self._map
        place = self._taken(pages) if os.getpid() == self._process and memory is not None else None
        if place is None or memory is None:
            return np.empty(shape, dtype)
        part = np.ndarray.__new__(_Part, pages * mmap.PAGESIZE, np.uint8, memory, place * mmap.PAGESIZE)
        part.arena, part.place = self, place * mmap.PAGESIZE
        weakref.finalize(part, self._back, place, pages).atexit = False
        array = np.ndarray(shape, dtype, part)
        part.whole = weakref.ref(array)
        return array

    def place(self, array: np.ndarray) -> int:
        """Where it begins; -1 where it is not one of this arena's, as it was given out."""
        part: object = array.base
        if type(part) is _Part and part.arena is self and part.whole() is array and array.flags.c_contiguous:
            return part.place
        return -1

    def close(self) -> None:
        """No worker begins any more. The arrays that there are stay, and hold what they lie in."""
        os.close(self.descriptor)
        self._map = None

    def _taken(self, pages: int) -> int | None:
        """The first page of as many."""
        with self._lock:
            self._join()
            for at, (first, room) in enumerate(self._free):
                if room >= pages:
                    self._free[at : at + 1] = [(first + pages, room - pages)] if room > pages else []
                    self._loose = max(0, self._loose - pages)
                    return first
        return None

    def _back(self, first: int, pages: int) -> None:
        """Pages that no array has. Called by the garbage collector, wherever this thread is: even in here."""
        self._gone.append((first, pages))
        if self._lock.acquire(blocking=False):
            try:
                self._join()
            finally:
                self._lock.release()

    def _join(self) -> None:
        """Put what came back beside what is free, and give the system the memory that is too much."""
        while self._gone:
            first, pages = self._gone.popleft()
            if (self._loose + pages) * mmap.PAGESIZE <= KEPT:
                self._loose += pages
            elif self._map is not None:
                with suppress(OSError):
                    self._map.madvise(mmap.MADV_REMOVE, first * mmap.PAGESIZE, pages * mmap.PAGESIZE)
            at = bisect.bisect(self._free, (first, pages))
            before, behind = self._free[max(0, at - 1) : at], self._free[at : at + 1]
            start, end = at, at
            if before and sum(before[0]) == first:
                first, pages, start = before[0][0], before[0][1] + pages, at - 1
            if behind and first + pages == behind[0][0]:
                pages, end = pages + behind[0][1], at + 1
            self._free[start:end] = [(first, pages)]


class Looks:
    """A worker's look at the arena in the file `descriptor`: it reads, and cannot write."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map: mmap.mmap | None = None

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any], place: int) -> np.ndarray:
        """The array that begins there, read-only."""
        if self._map is None:
            self._map = mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ)
        return np.ndarray(shape, dtype, self._map, place)
