"""A compiled OpenVINO model and its infer requests; compiled anew after a run that failed."""

# The CPU plugin's nodes remember the shapes that they computed last, and infer their outputs' anew when their inputs'
# are others. A run that fails in the middle leaves the nodes before it with the outputs of the failed run and the
# inputs of the one before: the same good feeds as before then fail too, meet a shape that is not theirs, or write where
# nothing is theirs and end the process. Infer requests share these nodes, so a new request cures nothing (2026.4; seen
# with an input of another length than the rest, and with an empty batch). So feeds run alone until their like has run
# once.

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from edgerun.errors import EdgerunError

MOST = 4096  # shapes that are kept in mind


class Request:
    """One of OpenVINO's, and the address and shape of each input that it was told of last."""

    def __init__(self, own: Any) -> None:
        self.own, self.places = own, dict[int, object]()


class Begun(Protocol):
    """A run that OpenVINO was handed."""

    def wait(self) -> object:
        """Until it ended, however."""
        ...


class Compiled:
    """OpenVINO's `own` model, as many requests `idle` as `streams`, whether a run on it has `failed`, which feeds are
    `known` to run by their shapes, and what was `begun`, which happens with `gate` in hand."""

    def __init__(self, own: Any, streams: int) -> None:
        self.own, self.failed, self._streams = own, False, streams
        self.known = set[Hashable]()
        self.idle: queue.SimpleQueue[Request | None] = queue.SimpleQueue()  # None where the session is closed
        self.spare: list[Request] = []  # for runs that are begun, beside those
        self.begun = set[Begun]()
        self.gate = threading.Lock()
        for _ in range(streams):
            self.last = own.create_infer_request()
            self.idle.put(Request(self.last))

    def learn(self, feeds: Hashable) -> None:
        """Feeds like these ran."""
        if len(self.known) >= MOST:
            self.known.clear()
        self.known.add(feeds)

    def request(self) -> Request:
        """One for a run that is begun."""
        try:
            return self.spare.pop()
        except IndexError:
            return Request(self.own.create_infer_request())

    def take(self) -> Request:
        """The next idle one, which has to be put back. Raises EdgerunError where the session was closed meanwhile."""
        request = self.idle.get()
        if request is None:
            self.idle.put(None)
            raise EdgerunError("the session is closed", do="load the engine again")
        return request

    @contextmanager
    def alone(self) -> Iterator[Request]:
        """A request, while no other runs."""
        with self.gate:
            taken = [self.take() for _ in range(self._streams)]
            try:
                for run in tuple(self.begun):
                    run.wait()
                yield taken[0]
            finally:
                for request in taken:
                    self.idle.put(request)


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
            with self._renewing:
                if self._now is found:
                    self._now = self._anew()
        return found

    def _anew(self) -> Compiled:
        if self._compile is None:
            raise EdgerunError("the session is closed", do="load the engine again")
        try:
            return Compiled(self._compile(), self.streams)
        except (EdgerunError, RuntimeError) as error:
            what = "OpenVINO cannot run the model after a run that failed"
            raise EdgerunError(what, got=str(error), do="load the engine again") from error

    def close(self) -> None:
        """Let runs in flight give their requests back, and free the model."""
        with self._renewing:
            self._compile, last = None, self._now
        with last.gate:
            for _ in range(self.streams):
                last.idle.get()
            for run in tuple(last.begun):
                run.wait()
            last.own = last.last = None
            last.spare.clear()
            last.idle.put(None)
