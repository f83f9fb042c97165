"""A session in a process of its own: whatever happens there is an exception here."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgerun import errors
from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import worker
from edgerun.runtime.arena import Arena
from edgerun.runtime.mailbox import ARRAYS, Closed, Late, Mailbox
from edgerun.runtime.near import SHORT, Near
from edgerun.runtime.session import Session, copied
from edgerun.runtime.spec import TensorSpec

ENDING = 5.0  # seconds for a worker that closed its pipes to end
START_SECONDS = 120.0  # to start Python, import the runtime and open the model, on top of a run's limit


class IsolatedSession(Session):
    """What `function` ("module:name") opens with `arguments`, in a worker process that has its own memory.

    Feeds are copied once, into memory shared with the worker, where those that `empty` gave lie already, and outputs
    once, out of it. A crash of the worker and a run of more than `timeout` seconds (None: no limit) raise EdgerunError;
    the next run starts a new worker. Each of `streams` has a worker, and so a model, of its own, from the first run on
    that needs it: a crash in one ends no run of another. `near` says that the worker may share the caller's core: it
    computes with one thread. Where feeds come one after the other, a run costs some 40 to 60 µs more than in this
    process, and 602 kB that are copied 20 to 60 µs.
    """

    def __init__(
        self, function: str, arguments: Mapping[str, Any], timeout: float | None = None, streams: int = 1,
        near: bool = False,
    ) -> None:  # fmt: skip
        if timeout is not None and not timeout > 0:
            raise EdgerunError("the time limit of a run is no time", got=timeout, wanted="seconds, above 0")
        if not hasattr(os, "memfd_create"):
            raise Unsupported("isolated sessions need memory that only Linux shares", got=sys.platform)
        self._task, self._timeout, self._near = pickle.dumps((function, dict(arguments))), timeout, near
        self._arena = Arena()
        try:
            first = self._begun_worker()
        except BaseException:
            self._arena.close()
            raise
        self._idle = _Idle((*[None] * (streams - 1), first))
        self._living = {first}
        self._ends = weakref.finalize(self, _end, self._living, self._arena)
        super().__init__(first.inputs, first.outputs, streams, first.defaults)
        self._metadata = first.metadata

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers that there are just now."""
        return tuple(sorted(worker.process.pid for worker in tuple(self._living)))

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._fill(feeds, {})

    def _fill(self, feeds: Mapping[str, np.ndarray], into: Mapping[str, Any]) -> dict[str, np.ndarray]:
        running = self._idle.get()
        try:
            if self._closed:
                raise EdgerunError("the session is closed", do="load the engine again")
            if running is None:
                running = self._begun_worker()
                self._living.add(running)
            try:
                kind, told = self._answer(running, feeds)
            except EdgerunError:
                raise  # of feeds that cannot be sent: nothing was
            except BaseException as error:  # whatever a signal handler raises, too: its answer would be the next run's
                dead, running = running, None
                self._living.discard(dead)
                if (reason := dead.ended(error, self._timeout)) is error:
                    raise
                raise reason from error
            if kind != ARRAYS:
                raise errors.from_json(told["error"])
            kept = copied(told, into)
            return {name: value if name in into else _owned(value) for name, value in kept.items()}
        finally:
            self._idle.put(running)

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        return self._arena.empty(shape, dtype) if not dtype.hasobject else super()._empty(shape, dtype)

    def _answer(self, running: _Worker, feeds: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, Any]]:
        try:
            running.near.begin()
            running.inbox.post(feeds)
            return running.outbox.take(self._timeout)
        finally:
            running.near.end()

    def _close(self) -> None:
        for running in [self._idle.get() for _ in range(self.streams)]:  # a run in flight gives its worker back first
            if running is not None:
                running.stop()
            self._idle.put(None)
        self._living.clear()
        self._ends()

    def _begun_worker(self) -> _Worker:
        return _Worker(self._task, self._timeout, self._near, self._arena)


class _Idle:
    """A place for each stream, None where it has no worker. The last one back is the next to run: its caches are warm.

    The same as `queue.LifoQueue`, which takes 2 µs longer for a place and back."""

    def __init__(self, places: Iterable[_Worker | None]) -> None:
        self._places = list[_Worker | None]()
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for place in places:
            self.put(place)

    def put(self, place: _Worker | None) -> None:
        self._places.append(place)
        self._free.put(None)

    def get(self) -> _Worker | None:
        """Waits for one."""
        self._free.get()
        return self._places.pop()

    def qsize(self) -> int:
        return self._free.qsize()


class _Worker:
    """One process, its two directions, and the door that it told."""

    def __init__(self, task: bytes, timeout: float | None, near: bool, arena: Arena) -> None:
        own = [os.memfd_create("edgerun"), os.memfd_create("edgerun")]
        memory = [*own, arena.descriptor]
        (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()
        boot = worker.BOOT.format(path=sys.path, memory=memory, pipes=[theirs_in, theirs_out])
        self._descriptors = [*own, ours_in, ours_out]
        self.inbox, self.outbox = Mailbox(own[0], ours_in, arena), Mailbox(own[1], ours_out)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", boot], stdin=subprocess.PIPE, pass_fds=(*memory, theirs_in, theirs_out),
                start_new_session=True,
            )  # fmt: skip
        except BaseException as error:
            for descriptor in self._descriptors:
                os.close(descriptor)
            if not isinstance(error, OSError):
                raise
            raise EdgerunError("no worker process can be started", got=error.strerror or str(error)) from error
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        limit = None if timeout is None else timeout + START_SECONDS
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(task)
            self.process.stdin.flush()  # and it stays open: its end is the worker's
            told = self.outbox.take(limit)[1]
        except BaseException as error:
            if (dead := self.ended(Closed() if isinstance(error, OSError) else error, limit)) is error:
                raise
            raise dead from error
        if "error" in told:
            self.stop()
            raise errors.from_json(told["error"])
        self.near = Near(self.process.pid, SHORT if near else 0.0)
        self.metadata: dict[str, str] = told["metadata"]
        self.inputs, self.outputs, self.defaults = (
            tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"]), s["kind"]) for s in told[door])
            for door in ("inputs", "outputs", "defaults")
        )

    def ended(self, error: BaseException, limit: float | None) -> BaseException:
        """Kill it if it lives, and say as an exception what happened."""
        status = self._status() if isinstance(error, Closed) else None
        self.stop(patience=0)
        if not isinstance(error, (Closed, Late)):
            return error
        if status is None:
            limit = limit or ENDING
            return EdgerunError(
                "the worker process hung, and was ended", got=f"no answer in {limit:g} s",
                do="the next run starts a new worker; a longer timeout= lets it take longer",
            )  # fmt: skip
        reason = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        do = "the next run starts a new worker; other feeds may not do this"
        return EdgerunError("the worker process died", got=reason, do=do)

    def stop(self, patience: float = 5.0) -> None:
        """End it, by closing its pipes, or by force after `patience` seconds; free what it shared."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        if self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except OSError:
                pass  # it died with the task half read
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _status(self) -> int | None:
        """How it ended; None when it did not, though it closed its pipe."""
        try:
            return self.process.wait(ENDING)
        except subprocess.TimeoutExpired:
            return None


def _end(living: set[_Worker], arena: Arena) -> None:
    """Of a session that is closed, or that nobody has any more."""
    for running in living:
        running.stop(patience=0)
    arena.close()


def _owned(value: Any) -> Any:
    """Shared memory copied out; texts are copies already."""
    if isinstance(value, list):
        return [_owned(item) for item in value]
    return value if value is None or value.dtype.kind == "O" else value.copy()
