"""Streams in turns, on a clock that the test drives."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from edgerun.errors import EdgerunError
from edgerun.measure.stats import speedup
from edgerun.measure.throughput import FEWEST, Streaming, in_sessions

MS = 1_000_000


class World:
    """A machine whose runs take `cost` ns each, `streams` of them at once, and which is told what it did."""

    def __init__(self) -> None:
        self.now, self.begun, self.blocks, self.opened = 0, 0, list[tuple[str, int]](), list[str]()
        self.flying = 0

    def clock(self) -> int:
        return self.now

    @contextmanager
    def open(self, name: str, streams: int, cost: int, filling: int = 0) -> Iterator[Streaming]:
        """A model; `filling` ns pass before its first run of a block is under way."""
        self.opened.append(name)

        def start(items: Iterator[None]) -> Iterator[object]:
            assert self.flying == 0, "another model's runs are still under way"
            self.now += filling
            free, waiting, before = [self.now] * streams, deque[int](), self.begun
            for _ in items:
                lane = min(range(streams), key=free.__getitem__)
                free[lane] = max(free[lane], self.now) + cost
                waiting.append(free[lane])
                self.begun, self.flying = self.begun + 1, len(waiting)
                if len(waiting) == 2 * streams:
                    yield self._arrived(waiting)
            while waiting:
                yield self._arrived(waiting)
            self.blocks.append((name, self.begun - before))

        yield Streaming(streams, start)

    def _arrived(self, waiting: deque[int]) -> int:
        self.now = max(self.now, waiting.popleft())
        self.flying = len(waiting)
        return self.now


def test_only_full_streams_count() -> None:
    """Two streams of 10 ms runs are 5 ms apart, whatever filling them costs; each run waits for one before it."""
    world = World()
    models: dict[str, Any] = {
        "one": lambda: world.open("one", 1, 10 * MS, filling=500 * MS),
        "two": lambda: world.open("two", 2, 10 * MS),
    }
    shares: list[float] = []
    found = in_sessions(models, sessions=9, rounds=4, seconds=72, progress=shares.append, clock=world.clock)
    assert [len(s) for s in found.values()] == [9, 9]
    for session in found["one"]:
        assert (session.apart == 10e-3).all() and (session.under_way == 20e-3).all()
    for session in found["two"]:
        assert session.apart.shape == (4, 1) and (session.apart == 5e-3).all()
        assert (session.under_way == 20e-3).all() and session.under_way.size == 4 * 200  # a second of each block
    ratio = speedup([s.apart for s in found["one"]], [s.apart for s in found["two"]])
    assert ratio.value == ratio.interval.low == ratio.interval.high == 2
    assert shares == sorted(shares) and shares[-1] == 1
    orders = {tuple(world.opened[i : i + 2]) for i in range(0, 18, 2)}
    assert orders == {("one", "two"), ("two", "one")}


def test_slow_models_end_after_a_round() -> None:
    world = World()
    models: dict[str, Any] = {"a": lambda: world.open("a", 3, 1000 * MS)}
    found = in_sessions(models, sessions=6, rounds=12, seconds=1, clock=world.clock)
    for session in found["a"]:
        assert session.apart == pytest.approx(np.full((1, 1), 1 / 3)) and session.under_way.size == 3 * FEWEST
    # A warm-up of two runs a stream; then as many to fill the streams, the timed ones, and what is left under way.
    assert {runs for _, runs in world.blocks} == {6, 6 + 3 * FEWEST + 5}


@pytest.mark.parametrize("arguments", [{"rounds": 0}, {"seconds": 0}, {"sessions": 5}])
def test_nothing_to_time_is_refused(arguments: dict[str, int]) -> None:
    world = World()
    with pytest.raises(EdgerunError, match="nothing can be timed|too few sessions"):
        in_sessions({"a": lambda: world.open("a", 1, MS)}, **arguments)  # type: ignore[arg-type]
