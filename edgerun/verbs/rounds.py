"""Rounds of `why-slow`: two models profiled, and timed without profiler, all in turns."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import registry
from edgerun.data import Feeds
from edgerun.measure.accounting import Dispatch, Profiled
from edgerun.measure.latency import interleaved, uncollected
from edgerun.measure.turns import TURNS, in_turns, of_one
from edgerun.passes import NodeTime
from edgerun.runtime import Engine, Options
from edgerun.verbs.dispatch import chains, dispatch
from edgerun.verbs.load import load

FEWEST_RUNS, MOST_RUNS = 10, 200  # that are profiled, by round and model
ROUNDS = 6  # of CPU time

Job = Callable[[Iterable[Feeds]], list[NodeTime]]


@dataclass(frozen=True)
class Round:
    """Wall and CPU time without profiler [rounds, repetitions], and kernels with it, of both models, the float one
    first; and what the runtime takes besides kernels.

    CPU time says something where one thread computes; where there are more, it is wall time once again.
    """

    timed: tuple[np.ndarray, np.ndarray]
    computed: tuple[np.ndarray, np.ndarray]
    kernels: tuple[list[NodeTime], list[NodeTime]]
    profiled: int
    dispatch: Dispatch | None

    @property
    def p50(self) -> tuple[float, float]:
        """Of the wall time of both, in seconds."""
        return float(np.median(self.timed[0])), float(np.median(self.timed[1]))

    @property
    def waits(self) -> float:
        """How many times its CPU time the float model's p50 is."""
        return self.p50[0] / max(float(np.median(self.computed[0])), 1e-9)

    def accounted(self, cpu: bool) -> Profiled:
        """What is to be accounted for: CPU time or wall time."""
        before, after = self.computed if cpu else self.timed
        return Profiled((float(np.median(before)), float(np.median(after))), self.kernels, self.dispatch)


def measured(
    paths: Sequence[Path], target: str, options: Options, feed: Feeds, seconds: float, generator: random.Random
) -> Round:
    """Both models opened in a drawn order; then, in turns, each profiled and both timed without profiler. Takes about
    `seconds`, opening not counted."""
    order = [0, 1]
    generator.shuffle(order)
    with ExitStack() as stack:
        opened = {index: stack.enter_context(load(paths[index], target, options)) for index in order}
        runs = {str(index): _runner(opened[index], feed) for index in (0, 1)}
        first = interleaved(runs, rounds=1, seconds=seconds / 8)
        slower = max(float(np.median(samples)) for samples in first.values())
        count = int(np.clip(seconds / 4 / slower, FEWEST_RUNS, MOST_RUNS))
        runs |= stack.enter_context(chains(target, options))
        timer = _Timer(runs, seconds / 2, of_one(count), generator)
        jobs: list[Job] = [*(_profiler(paths[index], target, options) for index in order), timer]
        with uncollected():  # else every turn of the timer begins with a collection
            *kernels, _ = in_turns(jobs, feed, count)
        timed = timer.timed()
        computed = timed
        if options.threads == 1:
            computed = interleaved(runs, rounds=ROUNDS, seconds=seconds / 8, clock=time.process_time_ns)
    before, after = (kernels[order.index(side)] for side in (0, 1))
    walls, processed = ((samples["0"], samples["1"]) for samples in (timed, computed))
    return Round(walls, processed, (before, after), count, dispatch(timed))


class _Timer:
    """Times `runs` in every turn, of `feeds` of which it gets `each`, for `seconds` in all."""

    def __init__(
        self, runs: Mapping[str, Callable[[], object]], seconds: float, each: int, generator: random.Random
    ) -> None:
        self._runs, self._seconds, self._each, self._generator = runs, seconds / TURNS, each, generator
        self._rounds: list[dict[str, np.ndarray]] = []

    def __call__(self, feeds: Iterable[Feeds]) -> list[NodeTime]:
        for index, _ in enumerate(feeds):
            if index % self._each == 0:
                seed = self._generator.getrandbits(32)
                self._rounds.append(interleaved(self._runs, rounds=1, seconds=self._seconds, seed=seed))
        return []

    def timed(self) -> dict[str, np.ndarray]:
        """Seconds [rounds, repetitions] by name; as many repetitions as all rounds have."""
        fewest = min(samples.shape[1] for found in self._rounds for samples in found.values())
        return {name: np.concatenate([found[name][:, :fewest] for found in self._rounds]) for name in self._runs}


def _runner(session: Any, feed: Feeds) -> Callable[[], object]:
    return lambda: session.run(feed)


def _profiler(path: Path, target: str, options: Options) -> Job:
    return lambda feeds: registry.target(target).profile(Engine(target, path), feeds, options)
