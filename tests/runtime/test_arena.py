"""Arrays in memory shared with the worker of an isolated session."""

from __future__ import annotations

import gc
import os
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgerun
from edgerun.errors import EdgerunError
from edgerun.runtime import Options, Session
from edgerun.runtime.arena import KEPT, Arena, Looks
from edgerun.runtime.isolated import IsolatedSession
from tests.runtime.conftest import expected, feeds

ONE = Options(threads=1)


def filled(session: Session, value: int, batch: int = 2) -> dict[str, np.ndarray]:
    """The feeds of `feeds` in arrays that the session gave."""
    found = {}
    for name, array in feeds(value, batch).items():
        found[name] = session.empty(name, array.shape)
        found[name][...] = array
    return found


def test_what_a_session_gave_is_read_where_it_lies(dense: bytes) -> None:
    """By turns, filled anew, beside arrays of others, in parts, and by a worker that came later."""
    with edgerun.load(dense, options=ONE, isolated=True) as session:
        arrays = [filled(session, value) for value in range(3)]
        for value in (0, 0, 1, 2, 1, 0, 0):
            np.testing.assert_array_equal(session.run(arrays[value])["y"], expected(feeds(value)))
        for value in (5, 6):
            arrays[0]["x"][...] = feeds(value)["x"]
            np.testing.assert_array_equal(session.run(arrays[0])["y"], expected({**arrays[0]}))
        mixed = {"x": arrays[1]["x"], "c": feeds(7)["c"].copy()}
        np.testing.assert_array_equal(session.run(mixed)["y"], expected(mixed))
        part = {"x": filled(session, 3, batch=9)["x"][2:5], "c": arrays[1]["c"]}
        np.testing.assert_array_equal(session.run(part)["y"], expected(part))
        assert isinstance(session, IsolatedSession)
        os.kill(session.pids[0], signal.SIGKILL)
        with pytest.raises(EdgerunError, match="killed by SIGKILL"):
            session.run(arrays[2])
        np.testing.assert_array_equal(session.run(arrays[2])["y"], expected(feeds(2)))


def shared_bytes() -> int:
    """What all files in memory hold that this process has open, without those of sessions that nobody has any more."""
    gc.collect()
    paths = [os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
    files = [os.stat(path) for path in paths if os.path.islink(path) and "memfd" in os.readlink(path)]
    return sum({file.st_ino: file.st_blocks * 512 for file in files}.values())


def test_nothing_of_it_is_copied(dense: bytes) -> None:
    """Shared memory grows by one array of 12 MB and outputs of 16, whose place is used again; by 12 more for a copy."""
    with edgerun.load(dense, options=ONE, isolated=True) as session:
        before, rows = shared_bytes(), 1_000_000
        for value in range(3):
            arrays = filled(session, value, rows)
            np.testing.assert_array_equal(session.run(arrays)["y"][-1], expected(feeds(value))[-1])
            assert 27 * rows < shared_bytes() - before < 29 * rows
            del arrays
        session.run(feeds(1, rows))
        assert 39 * rows < shared_bytes() - before < 41 * rows


def test_two_workers_read_the_same_arrays(dense: bytes) -> None:
    with edgerun.load(dense, options=Options(threads=1, streams=2), isolated=True) as session:
        assert isinstance(session, IsolatedSession)
        arrays, many, awaited = filled(session, 1), filled(session, 1, 100_000), expected(feeds(1, 100_000))
        for _ in range(20):  # the second worker comes when a run finds the first at work
            runs = [session.run_async(many) for _ in range(8)]
            assert all(np.array_equal(run.result()["y"], awaited) for run in runs)
            if len(session.pids) == 2:
                break
        assert len(session.pids) == 2
        place = session.empty("y", (2, 4))
        assert session.run(arrays, {"y": place})["y"] is place
        np.testing.assert_array_equal(place, expected(feeds(1)))


def test_arrays_of_another_session_and_of_one_that_is_closed(dense: bytes) -> None:
    """The first are copied, the second stay the caller's."""
    with edgerun.load(dense, options=ONE, isolated=True) as other, edgerun.load(dense, options=ONE) as here:
        with edgerun.load(dense, options=ONE, isolated=True) as session:
            theirs = filled(other, 4)
            np.testing.assert_array_equal(session.run(theirs)["y"], expected(feeds(4)))
            ours = filled(session, 2)
        with pytest.raises(EdgerunError, match="the session is closed"):
            session.empty("x", (2, 3))
        for left in (other, here):
            np.testing.assert_array_equal(left.run(ours)["y"], expected(feeds(2)))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3000), st.booleans()), max_size=40))
def test_parts_never_overlap_and_go_back(steps: list[tuple[int, int, bool]]) -> None:
    """Arrays of random sizes come and go at six places, some leave a view behind: each keeps what was written, a worker
    sees it, and when all are gone there is one free part again."""
    ours = Arena()
    theirs, whole = Looks(ours.descriptor), list(ours._free)
    held: dict[int, tuple[np.ndarray, int]] = {}
    for number, (slot, size, view) in enumerate(steps):
        held.pop(slot, None)
        array: np.ndarray | None = ours.empty((size,), np.dtype(np.int64))
        assert array is not None
        place = ours.place(array)
        array[...] = number
        assert place >= 0 == place % 4096
        np.testing.assert_array_equal(theirs.view(array.shape, array.dtype, place), array)
        assert ours.place(array[:1]) == -1
        held[slot] = (array[size // 2 :], number) if view else (array, number)
    for array, number in held.values():
        assert (array == number).all()
    with pytest.raises(ValueError, match="read-only"):
        theirs.view((1,), np.dtype(np.int64), 0)[0] = 1
    held.clear()
    array = None
    gc.collect()
    ours.empty((1,), np.dtype(np.int8))
    assert ours._free == whole
    ours.close()


def test_memory_of_arrays_that_are_gone_goes_back_to_the_system() -> None:
    """Of sizes that are all different, one at a time: no more stays than the largest and what is kept for the next."""
    arena = Arena()
    for size in range(1, 41):
        arena.empty((size * 5_000_000,), np.dtype(np.uint8))[...] = 1
    assert os.fstat(arena.descriptor).st_blocks * 512 <= KEPT + 200_000_000
    arena.close()


def test_a_fork_has_arrays_of_its_own() -> None:
    arena = Arena()
    arena._process = 0  # as if this were another
    assert arena.place(arena.empty((3,), np.dtype(np.float32))) == -1
    arena.close()


def test_there_may_be_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too much is asked for, and addresses are too few: an ordinary array, or the same error as ever."""
    arena = Arena()
    with pytest.raises(MemoryError):
        arena.empty((1 << 45,), np.dtype(np.float64))
    monkeypatch.setattr(os, "sysconf", lambda name: 1 << 50)
    small = Arena()
    assert small.place(small.empty((3,), np.dtype(np.float32))) == -1
    for one in (arena, small):
        one.close()
