"""Timing several sessions against each other, interleaved, so that they share the machine's good and bad moments."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Mapping
from time import perf_counter_ns

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.measure.stats import FEWEST_ROUNDS

Run = Callable[[], object]
MOST_REPETITIONS = 100


def interleaved(
    sessions: Mapping[str, Run],
    *,
    rounds: int = 100,
    seconds: float = 10.0,
    warmup: int = 3,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
    clock: Callable[[], int] = perf_counter_ns,
) -> dict[str, np.ndarray]:
    """Time every session in every round; seconds as float64 [rounds, repetitions] by name.

    A round runs each session once in a newly drawn order: one untimed call (the other session has just used the
    caches), then several timed ones. The number of repetitions (1..100, the same for all) is chosen after `warmup`
    calls so that `rounds` rounds fill about `seconds`; the run ends after `rounds`, or when the time is up and six
    rounds, the fewest that carry an interval, are done. Garbage collection rests while timing.
    `progress` gets the share done, 0..1, after every round. `clock` counts nanoseconds.
    """
    if not sessions or rounds < FEWEST_ROUNDS or not seconds > 0 or warmup < 1:
        got = f"{len(sessions)} sessions, rounds={rounds}, seconds={seconds}, warmup={warmup}"
        wanted = f"sessions, rounds >= {FEWEST_ROUNDS}, seconds > 0, warmup >= 1"
        raise EdgerunError("nothing can be timed", got=got, wanted=wanted)
    order, generator = list(sessions), random.Random(seed)
    taken: dict[str, list[list[int]]] = {name: [] for name in sessions}
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        each = sum(_warm(run, warmup, clock) for run in sessions.values())
        repetitions = max(1, min(MOST_REPETITIONS, int(seconds * 1e9 / rounds / max(1, each)) - 1))
        start, done = clock(), 0
        while done < rounds and (done < FEWEST_ROUNDS or clock() - start < seconds * 1e9):
            generator.shuffle(order)
            for name in order:
                taken[name].append(_block(sessions[name], repetitions, clock))
            done += 1
            if progress is not None:
                progress(min(1.0, max(done / rounds, (clock() - start) / (seconds * 1e9))))
    finally:
        if was_enabled:
            gc.enable()
    return {name: np.asarray(blocks, np.float64) / 1e9 for name, blocks in taken.items()}


def _warm(run: Run, calls: int, clock: Callable[[], int]) -> int:
    """Nanoseconds of the last of `calls` calls."""
    for _ in range(calls):
        start = clock()
        run()
    return clock() - start


def _block(run: Run, repetitions: int, clock: Callable[[], int]) -> list[int]:
    """Nanoseconds of each of `repetitions` calls after an untimed one."""
    run()
    times = []
    for _ in range(repetitions):
        start = clock()
        run()
        times.append(clock() - start)
    return times
