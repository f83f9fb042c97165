"""Progress of long work on stderr: one line that changes on a terminal, elsewhere a plain one now and then."""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
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
EVERY = 10.0  # seconds between two lines where stderr is no terminal: a log, a pipe


class Stages:
    """Call with (stage, done, total); total 0 means unknown. `percent`: shares are shown, in place of counts.

    Says what is left of this step at the latest rate: how long later ones take, nobody knows. As a context manager, it
    also speaks where there is no terminal, and `notes`, what the verbs have to say meanwhile, go to stderr too.
    """

    def __init__(self, percent: bool = False, notes: bool = True) -> None:
        self._shown, self._percent, self._notes = sys.stderr.isatty(), percent, notes
        self._stage, self._text, self._last, self._lines = "", "", 0.0, _Lines(self._end_line)
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self._ended = threading.Event()
        self._beat = threading.Thread(target=self._speak, daemon=True)

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._end_line()
            self._stage, self._last = stage, 0.0
            self._recent.clear()
        if now - self._last < 0.1 and done != total:
            return
        self._last = now
        self._recent.append((now, done))
        self._text = self._line(done, total)
        if self._shown:
            click.echo(f"\r{self._text}\033[K", nl=False, err=True)

    def _line(self, done: int, total: int) -> str:
        spent, made = self._recent[-1][0] - self._recent[0][0], done - self._recent[0][1]
        left = spent / made * (total - done) if total > done and made > 0 and spent > 0.5 else 0.0
        count = f": {done}" if done else ""
        if total:
            count = f": {100 * done // total} %" if self._percent else f": {done} of {total}"
        return f"{self._stage}{count}" + (f", {left:.0f} s left in this step" if left else "")

    def _end_line(self) -> None:
        if self._shown and self._stage:
            click.echo("", err=True)

    def _speak(self) -> None:
        began = time.monotonic()
        while not self._ended.wait(EVERY):
            if self._text:
                click.echo(f"{self._text} ({time.monotonic() - began:.0f} s so far)", err=True)

    def __enter__(self) -> Stages:
        if not self._shown:
            self._beat.start()
        if self._notes:
            logging.getLogger("edgerun").addHandler(self._lines)
            logging.getLogger("edgerun").setLevel(logging.INFO)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if not self._shown:
            self._beat.join()
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
