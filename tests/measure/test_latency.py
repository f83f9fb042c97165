"""The interleaved run on a clock that the test drives."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from edgerun.errors import EdgerunError
from edgerun.measure.latency import MOST_REPETITIONS, Open, Run, in_sessions, interleaved


class World:
    """A clock that only the sessions move."""

    def __init__(self) -> None:
        self.now, self.calls = 0, list[str]()
        self.gc_enabled = set[bool]()

    def clock(self) -> int:
        return self.now

    def session(self, name: str, nanoseconds: int) -> Callable[[], None]:
        def run() -> None:
            self.now += nanoseconds
            self.calls.append(name)
            self.gc_enabled.add(gc.isenabled())

        return run


def test_every_round_runs_every_session_in_a_drawn_order() -> None:
    world = World()
    sessions = {"a": world.session("a", 2_000_000), "b": world.session("b", 5_000_000)}
    shares: list[float] = []
    samples = interleaved(sessions, rounds=20, seconds=1.4, warmup=2, progress=shares.append, clock=world.clock)
    # 1.4 s / 20 rounds / 7 ms = 10 calls, one of them untimed
    assert samples["a"].shape == samples["b"].shape == (20, 9)
    assert (samples["a"] == 2e-3).all() and (samples["b"] == 5e-3).all()
    assert world.calls[:4] == ["a", "a", "b", "b"]
    rounds = np.array(world.calls[4:]).reshape(20, 2, 10)
    assert (rounds == rounds[:, :, :1]).all()
    orders = {tuple(r[:, 0]) for r in rounds}
    assert orders == {("a", "b"), ("b", "a")}
    assert shares == sorted(shares) and shares[-1] == 1
    assert world.gc_enabled == {False} and gc.isenabled()


def test_time_ends_the_run_after_the_round() -> None:
    world = World()
    samples = interleaved({"a": world.session("a", 10**9)}, rounds=50, seconds=20, clock=world.clock)
    assert samples["a"].shape == (10, 1)  # two calls a round, ten rounds in 20 s
    slow = interleaved({"a": world.session("a", 10**10)}, rounds=50, seconds=1, clock=world.clock)
    assert slow["a"].shape == (1, 1)


def test_new_sessions_are_opened_in_a_drawn_order_and_closed() -> None:
    world = World()
    opened: list[str] = []
    closed: list[str] = []

    def opener(name: str) -> Open:
        @contextmanager
        def session() -> Iterator[Run]:
            opened.append(name)
            yield world.session(name, 1_000_000)
            closed.append(name)

        return session

    shares: list[float] = []
    names = {name: opener(name) for name in "ab"}
    samples = in_sessions(names, sessions=8, rounds=4, seconds=0.16, progress=shares.append, clock=world.clock)
    assert [s.shape for s in samples["a"]] == [s.shape for s in samples["b"]] == [(4, 1)] * 8
    pairs = {tuple(opened[i : i + 2]) for i in range(0, 16, 2)}
    assert pairs == {("a", "b"), ("b", "a")} and sorted(closed) == sorted(opened) == ["a"] * 8 + ["b"] * 8
    assert shares == sorted(shares) and shares[-1] == 1
    with pytest.raises(EdgerunError, match="too few sessions"):
        in_sessions(names, sessions=5)


def test_repetitions_have_a_ceiling() -> None:
    world = World()
    samples = interleaved({"a": world.session("a", 10)}, rounds=6, seconds=5, clock=world.clock)
    assert samples["a"].shape == (6, MOST_REPETITIONS)


def test_the_order_depends_on_the_seed_alone() -> None:
    runs = []
    for seed in (0, 0, 1):
        world = World()
        sessions = {name: world.session(name, 1_000_000) for name in "abc"}
        interleaved(sessions, rounds=10, seconds=0.06, seed=seed, clock=world.clock)
        runs.append(world.calls)
    assert runs[0] == runs[1] != runs[2]


def test_garbage_collection_comes_back_after_an_error() -> None:
    def broken() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        interleaved({"a": broken}, seconds=1)
    assert gc.isenabled()


@pytest.mark.parametrize("arguments", [{"rounds": 0}, {"seconds": 0}, {"warmup": 0}, {"seconds": float("nan")}])
def test_nothing_to_time_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(EdgerunError, match="nothing can be timed"):
        interleaved({"a": lambda: None}, **arguments)  # type: ignore[arg-type]
    with pytest.raises(EdgerunError, match="0 sessions"):
        interleaved({})
