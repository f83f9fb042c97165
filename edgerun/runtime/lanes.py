"""Threads that run one call each at a time, and a bound on how many calls are in flight."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np

from edgerun.errors import EdgerunError

Result = TypeVar("Result")


class Begun(Protocol):
    """A run that is under way, as a Future is one."""

    def result(self) -> dict[str, np.ndarray]:
        """Its outputs, when they are there. Called once."""
        ...

    def cancel(self) -> object:
        """Nobody will ask for them: end it, or let it end."""
        ...


class Refused:
    """A run that could not begin."""

    def __init__(self, error: EdgerunError) -> None:
        self._error = error

    def result(self) -> dict[str, np.ndarray]:
        raise self._error

    def cancel(self) -> None:
        """There is nothing to end."""


class Lanes:
    """`streams` threads; `submit` waits while two calls for each are in flight, so that no queue grows."""

    def __init__(self, streams: int) -> None:
        self._pool = ThreadPoolExecutor(streams, thread_name_prefix="edgerun")
        self._room = threading.Semaphore(2 * streams)

    def submit(self, call: Callable[[], Result], *, limited: bool = True) -> Future[Result]:
        """A Future of `call()`; with `limited` it waits for room first."""
        if not limited:
            return self._pool.submit(call)
        self._room.acquire()
        try:
            future = self._pool.submit(call)
        except BaseException:
            self._room.release()
            raise
        future.add_done_callback(lambda _: self._room.release())
        return future

    def close(self) -> None:
        """Wait for what was submitted; nothing may be submitted afterwards."""
        with contextlib.suppress(RuntimeError):  # of a thread that would wait for itself: a callback
            self._pool.shutdown()
