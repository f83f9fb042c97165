"""Hot swap: nobody waits, nothing is dropped, and the old session is closed when its last run is over."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

import edgerun
from edgerun.errors import EdgerunError
from edgerun.runtime import HotSwapSession, Options
from tests.runtime.conftest import RUNNERS, Doubling, expected, feeds, one, soon


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


def test_what_cannot_serve_does_not_take_the_place() -> None:
    gone, held = Doubling(), Doubling()
    gone.close()
    with HotSwapSession(held) as session:
        for one_of in (gone, held, session):
            with pytest.raises(EdgerunError, match="cannot take the place"):
                session.swap(one_of)
        assert int(session.run(one(2))["y"][0]) == 4


def test_a_file_is_no_session() -> None:
    wanted = r"this is no session\n  got: str\n  wanted: a Session: edgerun\.load"
    with pytest.raises(EdgerunError, match=wanted):
        HotSwapSession("tiny.onnx")  # type: ignore[arg-type]
    with HotSwapSession(Doubling()) as session:
        with pytest.raises(EdgerunError, match=wanted):
            session.swap("tiny.onnx")  # type: ignore[arg-type]
        assert int(session.run(one(2))["y"][0]) == 4


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


@pytest.mark.parametrize("new", RUNNERS)
@pytest.mark.parametrize("old", RUNNERS)
def test_one_target_takes_anothers_place(dense: bytes, old: str, new: str) -> None:
    """OpenVINO calls an open dimension of an .onnx file otherwise than the file does."""
    with HotSwapSession(edgerun.load(dense, old, Options(threads=1))) as session:
        for batch in (2, 3):
            np.testing.assert_allclose(session.run(given := feeds(2, batch))["y"], expected(given), rtol=1e-6)
            session.swap(edgerun.load(dense, new, Options(threads=1)))


def test_a_fixed_dimension_is_another_door(dense: bytes) -> None:
    fixed = onnx.load_from_string(dense)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with HotSwapSession(edgerun.load(dense)) as session, edgerun.load(fixed.SerializeToString()) as other:
        with pytest.raises(EdgerunError, match="another door"):
            session.swap(other)
