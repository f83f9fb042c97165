"""A worker on the core of whoever waits for it: what one wrote, the other then reads from that core's own cache.

A thread that waits leaves its core idle, and the kernel still wakes the worker on another one, since the waiting
thread has not yet let go of its own. Feeds then cross between two caches, twice with the next ones, which for 602 kB
takes longer than a small model (a Xeon with AMX; cores that share a cache lose less).
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from time import perf_counter

SHORT = 1e-3  # seconds; longer runs gain too little, and may meet other work on that core while another one is free
APART = 16  # one run in so many is left to the kernel, which parts processes that met on one core
_under_way = set[int]()  # the workers of this process that run just now: several shall spread over the cores


class Near:
    """Runs of the process `pid`, each between `begin` and `end`, for this thread, which waits meanwhile.

    Where the last one took less than `short` seconds (0: never) and no other is under way, both are held on this
    thread's core until it ends, and this thread then has the cores back that it had. `end` belongs into a `finally`
    whose `try` holds `begin` as well.
    """

    def __init__(self, pid: int, short: float = SHORT) -> None:
        self._pid, self._short, self._cores = pid, short, os.sched_getaffinity(pid)
        self._core = ctypes.CDLL(None).sched_getcpu
        self._close, self._at, self._mine, self._begun, self._runs = False, -1, set[int](), 0.0, 0

    def begin(self) -> None:
        """A run begins."""
        self._begun, self._runs = perf_counter(), self._runs + 1
        _under_way.add(self._pid)
        with suppress(OSError):  # the worker died, or the core was taken away: the run will tell, or do without
            if self._close and len(_under_way) == 1 and self._runs % APART:
                core = self._core()
                if core != self._at:
                    os.sched_setaffinity(self._pid, {core})
                    self._at = core
                self._mine = os.sched_getaffinity(0)
                os.sched_setaffinity(0, {core})
            elif self._at >= 0:
                os.sched_setaffinity(self._pid, self._cores)
                self._at = -1

    def end(self) -> None:
        """It ended, however."""
        _under_way.discard(self._pid)
        self._close = perf_counter() - self._begun < self._short
        if self._mine:
            with suppress(OSError):
                os.sched_setaffinity(0, self._mine)
            self._mine = set()
