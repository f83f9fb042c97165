"""Hot swap: nobody waits, nothing is dropped, and the old session is closed when its last run is over."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import edgerun
from edgerun.errors import EdgerunError
from edgerun.runtime import HotSwapSession
from tests.runtime.conftest import Doubling, one, soon


def test_a_run_ends_on_the_session_that_it_began_on() -> None:
    began, go = threading.Event(), threading.Event()

    def wait(value: int) -> None:
        began.set()
        go.wait()

    old, new = Doubling(wait), Doubling()
    with HotSwapSession(old) as session, ThreadPoolExecutor(1) as pool:
        future = pool.submit(session.run, one(1))
        assert began.wait(20)
        session.swap(new)
        assert int(session.run(one(2))["y"][0]) == 4 and new.ran == [2]
        assert not old.freed, "a run is under way on it"
        go.set()
        assert int(future.result()["y"][0]) == 2 and old.ran == [1]
        assert soon(lambda: old.freed == 1)
    assert new.freed == 1
    with pytest.raises(EdgerunError, match="closed"):
        session.run(one(3))
    with pytest.raises(EdgerunError, match="closed"):
        session.swap(Doubling())


def test_swapping_under_load_loses_nothing() -> None:
    sessions = [Doubling(streams=4) for _ in range(20)]
    with HotSwapSession(sessions[0]) as session:
        futures = []
        for value in range(400):
            if value and value % 20 == 0:
                session.swap(sessions[value // 20])
            futures.append(session.run_async(one(value)))
        assert [int(future.result()["y"][0]) for future in futures] == [2 * value for value in range(400)]
    assert all(old.freed == 1 for old in sessions) and sum(len(old.ran) for old in sessions) == 400


def test_another_door_is_refused(dense: bytes) -> None:
    with HotSwapSession(Doubling()) as session, edgerun.load(dense) as other:
        with pytest.raises(EdgerunError, match="another door"):
            session.swap(other)
        assert int(session.run(one(4))["y"][0]) == 8
        np.testing.assert_array_equal(other.outputs[0].shape[1:], [4])
