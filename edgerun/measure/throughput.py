"""Runs a second of several models that stream in turns, so that they share the machine's good and bad moments."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.measure.latency import Clock, Progress, anew, uncollected

IN_FLIGHT = 2  # runs that a stream holds, as Session.stream does
FEWEST = 4  # timed runs a stream and block


@dataclass(frozen=True)
class Streaming:
    """An open model: `start` begins a run for each item that it takes, and yields as each is done, in order; at most
    IN_FLIGHT times `streams` runs are under way."""

    streams: int
    start: Callable[[Iterator[None]], Iterator[object]]


@dataclass(frozen=True)
class Streamed:
    """What one session took, in seconds: wall time over runs, float64 [rounds, 1], and from taking each feed to handing
    its outputs over, float64 [runs]."""

    apart: np.ndarray
    under_way: np.ndarray


def in_sessions(
    models: Mapping[str, Callable[[], AbstractContextManager[Streaming]]],
    *,
    sessions: int = 9,
    rounds: int = 12,
    seconds: float = 10.0,
    seed: int = 0,
    progress: Progress | None = None,
    clock: Clock = perf_counter_ns,
) -> dict[str, list[Streamed]]:
    """Open all models together `sessions` times and let them stream in turns; what each took, by name and session.

    A round lets every model stream once, in a newly drawn order. Only the time between two of its results counts, the
    first when as many runs are under way as may be and the second before any of them is missing: neither filling
    nor emptying the streams is a run's time. Each block has a multiple of `streams` runs, FEWEST of them at least, and
    takes its share of `seconds`; what it left under way ends before the next model begins. The other arguments
    are those of `edgerun.measure.latency.in_sessions`.
    """

    def measure(opened: Mapping[str, Streaming], seed: int, progress: Progress | None) -> Mapping[str, Streamed]:
        return _interleaved(opened, rounds, seconds / sessions, seed, progress, clock)

    return anew(models, measure, sessions=sessions, seed=seed, progress=progress)


def _interleaved(
    models: Mapping[str, Streaming], rounds: int, seconds: float, seed: int, progress: Progress | None, clock: Clock
) -> dict[str, Streamed]:
    if not models or rounds < 1 or not seconds > 0:
        got = f"{len(models)} models, rounds={rounds}, seconds={seconds}"
        raise EdgerunError("nothing can be timed", got=got, wanted="models, rounds >= 1, seconds > 0")
    order, generator = list(models), random.Random(seed)
    apart: dict[str, list[list[float]]] = {name: [] for name in models}
    under_way: dict[str, list[int]] = {name: [] for name in models}
    least = int(seconds * 1e9 / rounds / len(models))
    with uncollected():
        for model in models.values():
            deque(model.start(itertools.repeat(None, IN_FLIGHT * model.streams)), maxlen=0)
        start, done, spent = clock(), 0, 0.0
        while done < rounds and spent < 1:
            generator.shuffle(order)
            for name in order:
                took, waited = _block(models[name], least, clock)
                apart[name].append([took / len(waited)])
                under_way[name] += waited
            done, spent = done + 1, (clock() - start) / (seconds * 1e9)
            if progress is not None:
                progress(min(1.0, max(done / rounds, spent)))
    return {
        name: Streamed(np.asarray(apart[name], np.float64) / 1e9, np.asarray(under_way[name], np.float64) / 1e9)
        for name in models
    }


def _block(model: Streaming, least: int, clock: Clock) -> tuple[int, list[int]]:
    """Nanoseconds of at least `least` while the streams are full, and of each run that ended meanwhile."""
    going, taken, waited = True, deque[int](), list[int]()

    def feeds() -> Iterator[None]:
        while going:
            taken.append(clock())
            yield None

    results = model.start(feeds())
    for _ in itertools.islice(results, IN_FLIGHT * model.streams):
        taken.popleft()
    start = now = clock()
    while len(waited) < FEWEST * model.streams or len(waited) % model.streams or now - start < least:
        next(results)
        now = clock()
        waited.append(now - taken.popleft())
    going = False
    deque(results, maxlen=0)
    return now - start, waited
