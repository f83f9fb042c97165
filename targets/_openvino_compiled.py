"""A compiled OpenVINO model and its infer requests; compiled anew after a run that failed.

The CPU plugin's nodes remember the shapes that they computed last, and infer their outputs' anew when their inputs' are
others. A run that fails in the middle leaves the nodes before it with the outputs of the failed run and the inputs of
the one before: the same good feeds as before then fail too, or meet a shape that is not theirs. Infer requests share
these nodes, so a new request cures nothing (2026.4; seen with an input of another length than the rest, and with an
empty batch).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from edgerun.errors import EdgerunError

MOST = 4096  # shapes that are kept in mind


class Request:
    """One of OpenVINO's, and the address and shape of each input that it was told of last."""

    def __init__(self, own: Any) -> None:
        self.own, self.places = own, dict[int, object]()


class Compiled:
    """OpenVINO's `own` model, as many requests `idle` as `streams`, whether a run on it has `failed`, and the shapes of
    inputs that are `known` to run."""

    def __init__(self, own: Any, streams: int) -> None:
        self.own, self.failed = own, False
        self.known = set[tuple[tuple[int, ...], ...]]()
        self.idle: queue.SimpleQueue[Request | None] = queue.SimpleQueue()  # None where the session is closed
        self.spare: list[Request] = []  # for runs that are begun, beside those
        for _ in range(streams):
            self.last = own.create_infer_request()
            self.idle.put(Request(self.last))

    def learn(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Feeds of these shapes ran."""
        if len(self.known) >= MOST:
            self.known.clear()
        self.known.add(shapes)

    def request(self) -> Request:
        """One for a run that is begun."""
        try:
            return self.spare.pop()
        except IndexError:
            return Request(self.own.create_infer_request())


class Renewed:
    """What `compile` compiles, now and whenever a run fails, for `streams` (None: as many as OpenVINO finds best)."""

    def __init__(self, compile: Callable[[], Any], streams: int | None) -> None:
        own = compile()
        self.streams: int = streams or own.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._compile: Callable[[], Any] | None = compile
        self._now, self._renewing = Compiled(own, self.streams), threading.Lock()

    def now(self) -> Compiled:
        """The one to run on. Raises EdgerunError where OpenVINO could not compile the model a second time."""
        while (found := self._now).failed:
            with self._renewing:  # another run's thread compiles
                if self._now is found:
                    raise EdgerunError("OpenVINO cannot run the model after a run that failed",
                                       do="load the engine again")  # fmt: skip
        return found

    def failed(self, compiled: Compiled) -> bool:
        """A run on it failed: compile anew. False where another one failed before, which may be why."""
        with self._renewing:
            if compiled.failed:
                return False
            compiled.failed = True
            if self._compile is not None and compiled is self._now:
                try:
                    self._now = Compiled(self._compile(), self.streams)
                except (EdgerunError, RuntimeError):
                    pass  # told by the next run; this one has a reason of its own
            return True

    def close(self) -> None:
        """Let runs in flight give their requests back, and free the model."""
        with self._renewing:
            self._compile, last = None, self._now
        for _ in range(self.streams):
            last.idle.get()
        last.idle.put(None)
        last.own = last.last = None
        last.spare.clear()
