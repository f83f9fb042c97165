"""A worker on the core of the thread that waits for it: only where runs are short, and the thread's cores come back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import edgerun
from edgerun.errors import EdgerunError
from edgerun.runtime import Options, machine
from edgerun.runtime.isolated import IsolatedSession
from edgerun.runtime.near import SHORT, Near
from tests.runtime.conftest import expected, feeds

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or machine.visible() < 2, reason="there are no two cores to choose from"
)
TRIES = 200  # another process may hold a run up
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()


@contextmanager
def run(near: Near) -> Iterator[None]:
    try:
        near.begin()
        yield
    finally:
        near.end()


@pytest.fixture
def other() -> Iterator[int]:
    """A process that sleeps."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


def test_both_are_held_on_one_core_after_a_short_run(other: int) -> None:
    near = Near(other)
    with run(near):
        assert os.sched_getaffinity(0) == os.sched_getaffinity(other) == CORES
    mine = its = set[int]()
    for _ in range(TRIES):
        with run(near):
            mine, its = os.sched_getaffinity(0), os.sched_getaffinity(other)
        assert os.sched_getaffinity(0) == CORES
        if len(mine) == 1:
            break
    assert mine == its and len(its) == 1 and mine <= CORES


def test_neither_is_after_a_long_one(other: int) -> None:
    near = Near(other)
    for _ in range(3):
        with run(near):
            time.sleep(2 * SHORT)
        with run(near):
            assert os.sched_getaffinity(0) == os.sched_getaffinity(other) == CORES


def test_a_run_beside_another_is_held_nowhere(other: int) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        first, second = Near(process.pid), Near(other)
        for _ in range(5):
            with run(second):
                pass
            with run(first), run(second):
                assert os.sched_getaffinity(other) == CORES
        process.kill()


def test_cores_come_back_after_an_error(other: int) -> None:
    near = Near(other)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), run(near):
            raise KeyboardInterrupt
        assert os.sched_getaffinity(0) == CORES


def test_a_worker_that_is_gone_is_the_runs_to_tell() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        near = Near(process.pid)
    for _ in range(3):
        with run(near):
            assert os.sched_getaffinity(0) == CORES


def test_cores_that_the_caller_was_given_stay_its_own(dense: bytes) -> None:
    core = min(CORES)
    with edgerun.load(dense, options=Options(threads=1), isolated=True) as session:
        try:
            for cores in (CORES, {core}, CORES):
                os.sched_setaffinity(0, cores)
                for value in range(10):
                    np.testing.assert_allclose(session.run(feeds(value))["y"], expected(feeds(value)), rtol=1e-6)
                    assert os.sched_getaffinity(0) == cores
        finally:
            os.sched_setaffinity(0, CORES)


@pytest.mark.parametrize("options", [Options(threads=2), Options(threads=2, streams=2)])
def test_several_threads_and_streams_are_left_alone(dense: bytes, options: Options) -> None:
    """What a worker starts while it is held would be held with it, and two that are held might share a core."""
    with edgerun.load(dense, options=options, isolated=True) as session:
        assert isinstance(session, IsolatedSession)
        for value in range(20):
            session.run(feeds(value))
            assert all(os.sched_getaffinity(worker) == CORES for worker in session.pids)


def test_a_killed_worker_leaves_the_caller_its_cores(dense: bytes) -> None:
    with edgerun.load(dense, options=Options(threads=1), isolated=True) as session:
        assert isinstance(session, IsolatedSession)
        for _ in range(3):
            for value in range(5):
                session.run(feeds(value))
            os.kill(session.pids[0], 9)
            with pytest.raises(EdgerunError, match="SIGKILL"):
                for _ in range(1000):
                    session.run(feeds(1))
            assert os.sched_getaffinity(0) == CORES
