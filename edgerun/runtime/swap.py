"""A session whose model can be replaced while it serves."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.runtime.session import Session
from edgerun.runtime.spec import TensorSpec

if TYPE_CHECKING:
    from edgerun.runtime.dlpack import DeviceArray


class HotSwapSession(Session):
    """Runs whatever session it holds; `swap` puts another in its place, and no caller waits or notices.

    Runs that are under way end on the session that they began on, which the last of them closes. It owns the sessions
    that it is given.
    """

    def __init__(self, session: Session) -> None:
        _sides(session)
        super().__init__(session.inputs, session.outputs, session.streams)
        self._changing, self._current = threading.Lock(), _Held(session)

    @property
    def metadata(self) -> Mapping[str, str]:
        with self._held() as session:
            return session.metadata

    def run(self, feeds: Mapping[str, Any], out: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """As `Session.run`, on the session that is current when the run begins."""
        with self._held() as session:
            return session.run(feeds, out)

    def swap(self, session: Session) -> None:
        """Let all runs from now on go to `session`; warm it up before. Raises EdgerunError when its door is another:
        what open dimensions are called counts for nothing, since some targets lose their names."""
        if _sides(session) != _sides(self):
            raise EdgerunError(
                "the new model has another door", got=_text(session), wanted=_text(self),
                do="open a session of its own for it",
            )  # fmt: skip
        with self._changing:
            if self._current.leaving:
                raise EdgerunError("the session is closed", do="open another")
            if session._closed or session in (self, self._current.session):
                got = "a closed session" if session._closed else "the one that it holds"
                raise EdgerunError("this session cannot take the place", got=got, do="load the new model first")
            old, self._current = self._current, _Held(session)
        self._leave(old)

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        with self._held() as session:
            return session._empty(shape, dtype)

    def _empty_on_device(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        with self._held() as session:
            return session._empty_on_device(shape, dtype)

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.run(feeds)

    def _close(self) -> None:
        self._leave(self._current)

    @contextmanager
    def _held(self) -> Iterator[Session]:
        """The current session, which stays open while this lasts."""
        with self._changing:
            held = self._current
            if held.leaving:
                raise EdgerunError("the session is closed", do="load the engine again")
            held.runs += 1
        try:
            yield held.session
        finally:
            with self._changing:
                held.runs -= 1
                last = held.leaving and not held.runs
            if last:
                held.session.close()

    def _leave(self, held: _Held) -> None:
        with self._changing:
            held.leaving = True
            last = not held.runs
        if last:
            held.session.close()


class _Held:
    """A session and how many runs are under way on it."""

    def __init__(self, session: Session) -> None:
        self.session, self.runs, self.leaving = session, 0, False


def _sides(session: Session) -> tuple[list[TensorSpec], ...]:
    """Inputs and outputs, open dimensions without names. Raises EdgerunError for what is no session."""
    if not isinstance(session, Session):
        raise EdgerunError("this is no session", got=type(session).__name__, wanted="a Session: edgerun.load(…)")
    return tuple(
        [replace(spec, shape=tuple(dim if isinstance(dim, int) else "" for dim in spec.shape)) for spec in specs]
        for specs in (session.inputs, session.outputs)
    )


def _text(session: Session) -> str:
    return f"{', '.join(map(str, session.inputs))} -> {', '.join(map(str, session.outputs))}"
