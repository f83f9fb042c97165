"""Progress of long work on stderr: one line per stage on a terminal, nothing where nobody looks."""

from __future__ import annotations

import ctypes
import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

import click


def give_memory_back() -> None:
    """Let glibc return every block over 1 MiB to the system when it is freed, in place of keeping it for later.

    Its own threshold grows with what a process frees, and with it the memory that nobody uses (mallopt(3)).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


RECENT = 100  # updates, a tenth of a second apart or more, that the rate is taken from


class Stages:
    """Call with (stage, done, total), counted in `unit`; total 0 means unknown. Shows what is left at the latest rate.

    As a context manager, what the verbs have to say meanwhile goes to stderr too.
    """

    def __init__(self, unit: str = "samples") -> None:
        self._shown, self._unit = sys.stderr.isatty(), unit
        self._stage, self._last, self._lines = "", 0.0, _Lines(self._end_line)
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT)

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._end_line()
            self._stage, self._last = stage, 0.0
            self._recent.clear()
        if not self._shown or (now - self._last < 0.1 and done != total):
            return
        self._last = now
        self._recent.append((now, done))
        spent, made = now - self._recent[0][0], done - self._recent[0][1]
        left = f", {spent / made * (total - done):.0f} s left" if total > done and made > 0 and spent > 0.5 else ""
        of = f"/{total}" if total else ""
        click.echo(f"\r{stage}: {done}{of} {self._unit}{left}\033[K", nl=False, err=True)

    def _end_line(self) -> None:
        if self._shown and self._stage:
            click.echo("", err=True)

    def __enter__(self) -> Stages:
        logging.getLogger("edgerun").addHandler(self._lines)
        logging.getLogger("edgerun").setLevel(logging.INFO)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_line()
        logging.getLogger("edgerun").removeHandler(self._lines)


class _Lines(logging.Handler):
    """Notes as lines of their own."""

    def __init__(self, before: Callable[[], None]) -> None:
        super().__init__()
        self._before = before

    def emit(self, record: logging.LogRecord) -> None:
        self._before()
        click.echo(record.getMessage(), err=True)
