"""Who is told how far long work inside a target is: whoever began it, without a word in every signature between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Progress = Callable[[str, int, int], None]  # stage, done, total


def _nobody(stage: str, done: int, total: int) -> None:
    """Where nobody asked."""


_listener: ContextVar[Progress] = ContextVar("progress", default=_nobody)


@contextmanager
def told(progress: Progress) -> Iterator[None]:
    """Tell `progress` of what is done in this block, by this thread."""
    token = _listener.set(progress)
    try:
        yield
    finally:
        _listener.reset(token)


def listener() -> Progress:
    """Whom to tell; work that goes on in other threads takes it along."""
    return _listener.get()
