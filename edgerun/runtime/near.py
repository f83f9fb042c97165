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


class Near:
    """`with near:` is a run of the process `pid` for this thread, which waits meanwhile. Where the last one was short,
    both are held on this thread's core until it ends, and this thread then has the cores back that it had."""

    def __init__(self, pid: int) -> None:
        self._pid, self._cores = pid, os.sched_getaffinity(pid)
        self._core = ctypes.CDLL(None).sched_getcpu
        self._short, self._at, self._mine = False, -1, set[int]()

    def __enter__(self) -> None:
        with suppress(OSError):  # the worker died, or the core was taken away: the run will tell, or do without
            if self._short:
                core = self._core()
                if core != self._at:
                    os.sched_setaffinity(self._pid, {core})
                    self._at = core
                mine = os.sched_getaffinity(0)
                os.sched_setaffinity(0, {core})
                self._mine = mine
            elif self._at >= 0:
                os.sched_setaffinity(self._pid, self._cores)
                self._at = -1
        self._begun = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._short = perf_counter() - self._begun < SHORT
        if self._mine:
            with suppress(OSError):
                os.sched_setaffinity(0, self._mine)
            self._mine = set()
