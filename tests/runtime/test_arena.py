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
from edgerun.runtime.arena import Arena
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
        os.kill(session.pids[0], signal.SIGKILL)  # type: ignore[attr-defined]
        with pytest.raises(EdgerunError, match="killed by SIGKILL"):
            session.run(arrays[2])
        np.testing.assert_array_equal(session.run(arrays[2])["y"], expected(feeds(2)))


def shared_bytes() -> int:
    """Of all files in memory that this process has open."""
    paths = [os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
    files = [os.stat(path) for path in paths if os.path.islink(path) and "memfd" in os.readlink(path)]
    return sum({file.st_ino: file.st_size for file in files}.values())


def test_nothing_of_it_is_copied(dense: bytes) -> None:
    """Shared memory grows by one array of 12 MB and outputs of 16, whose place is used again; by 12 more for a copy."""
    with edgerun.load(dense, options=ONE, isolated=True) as session:
        before, rows = shared_bytes(), 1_000_000
        for value in range(3):
            arrays = filled(session, value, rows)
            np.testing.assert_array_equal(session.run(arrays)["y"][-1], expected(feeds(value))[-1])
            assert 28 * rows <= shared_bytes() - before < 29 * rows
            del arrays
        session.run(feeds(1, rows))
        assert 40 * rows <= shared_bytes() - before < 41 * rows


def test_two_workers_read_the_same_arrays(dense: bytes) -> None:
    with edgerun.load(dense, options=Options(threads=1, streams=2), isolated=True) as session:
        arrays = filled(session, 1)
        runs = [session.run_async(arrays) for _ in range(8)]
        assert all(np.array_equal(run.result()["y"], expected(feeds(1))) for run in runs)
        assert len(session.pids) == 2  # type: ignore[attr-defined]
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


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3000)), max_size=40))
def test_parts_never_overlap_and_are_used_again(steps: list[tuple[int, int]]) -> None:
    """Arrays of random sizes come and go at six places: each keeps what was written, another view of the file sees it,
    and the file is no larger than the most pages that were in use at once, by number of pages."""
    descriptor = os.memfd_create("test")
    ours, theirs = Arena(descriptor), Arena(descriptor)
    held: dict[int, np.ndarray] = {}
    most: dict[int, int] = {}
    for number, (place, size) in enumerate(steps):
        held.pop(place, None)
        held[place] = ours.empty((size,), np.dtype(np.int64))
        held[place][...] = number * 8 + place
        used = [max(1, -(-array.nbytes // 4096)) for array in held.values()]
        most = {pages: max(most.get(pages, 0), used.count(pages)) for pages in {*most, *used}}
    for array in held.values():
        offset = ours.place(array)
        assert offset >= 0 and ours.place(array[:1]) == theirs.place(array) == -1
        assert len(set(array.tolist())) <= 1
        np.testing.assert_array_equal(theirs.view(array.shape, array.dtype, offset), array)
    assert len({ours.place(array) for array in held.values()}) == len(held)
    assert os.fstat(descriptor).st_size <= 4096 * sum(pages * count for pages, count in most.items())
    held.clear()
    gc.collect()
    ours.close()
