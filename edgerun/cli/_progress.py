"""Progress of long work on stderr: one line per stage on a terminal, nothing where nobody looks."""

from __future__ import annotations

import ctypes
import sys
import time
from types import TracebackType

import click


def give_memory_back() -> None:
    """Let glibc return every block over 1 MiB to the system when it is freed, in place of keeping it for later.

    Its own threshold grows with what a process frees, and with it the memory that nobody uses (mallopt(3)).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


class Stages:
    """Call with (stage, done, total); total 0 means unknown. Shows the rate's estimate of what is left."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._stage, self._start, self._last = "", 0.0, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._end_line()
            self._stage, self._start, self._last = stage, now, 0.0
        if not self._shown or (now - self._last < 0.1 and done != total):
            return
        self._last = now
        spent = now - self._start
        left = f", {spent / done * (total - done):.0f} s left" if total > done > 0 and spent > 0.5 else ""
        of = f"/{total}" if total else ""
        click.echo(f"\r{stage}: {done}{of} samples{left}\033[K", nl=False, err=True)

    def _end_line(self) -> None:
        if self._shown and self._stage:
            click.echo("", err=True)

    def __enter__(self) -> Stages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_line()
