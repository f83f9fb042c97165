"""Timing several models against each other, interleaved, so that they share the machine's good and bad moments."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from time import perf_counter_ns
from typing import TypeVar

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.measure.stats import FEWEST_SESSIONS

Run = Callable[[], object]
Open = Callable[[], AbstractContextManager[Run]]
Progress = Callable[[float], None]
Clock = Callable[[], int]
MOST_REPETITIONS = 100
Opened = TypeVar("Opened")
Timed = TypeVar("Timed")


def in_sessions(
    models: Mapping[str, Open],
    *,
    sessions: int = 9,
    rounds: int = 12,
    seconds: float = 10.0,
    warmup: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
    clock: Clock = perf_counter_ns,
) -> dict[str, list[np.ndarray]]:
    """Open all models together `sessions` times and time them interleaved; by name one [rounds, repetitions] a session.

    Two sessions of one model differ lastingly by where their memory happens to lie, by several percent: only new
    sessions, opened in a newly drawn order, show how much of a difference is luck. `seconds` is shared by the
    sessions, opening not counted; the other arguments are those of `interleaved`.
    """

    def measure(opened: Mapping[str, Run], seed: int, progress: Progress | None) -> Mapping[str, np.ndarray]:
        return interleaved(
            opened, rounds=rounds, seconds=seconds / sessions, warmup=warmup, seed=seed, progress=progress, clock=clock
        )

    return anew(models, measure, sessions=sessions, seed=seed, progress=progress)


def anew(
    models: Mapping[str, Callable[[], AbstractContextManager[Opened]]],
    measure: Callable[[Mapping[str, Opened], int, Progress | None], Mapping[str, Timed]],
    *,
    sessions: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, list[Timed]]:
    """What `measure`, given the open models, a seed and whom to tell the share done, finds of each in each of
    `sessions`, in which all are opened in a newly drawn order.
    """
    if sessions < FEWEST_SESSIONS:
        raise EdgerunError("too few sessions for an interval", got=sessions, wanted=f"at least {FEWEST_SESSIONS}")
    order, generator = list(models), random.Random(seed)
    taken: dict[str, list[Timed]] = {name: [] for name in models}
    for number in range(sessions):
        generator.shuffle(order)
        with ExitStack() as stack:
            opened = {name: stack.enter_context(models[name]()) for name in order}
            timed = measure(opened, generator.getrandbits(32), _part(progress, number, sessions))
        for name, samples in timed.items():
            taken[name].append(samples)
    return taken


def interleaved(
    sessions: Mapping[str, Run],
    *,
    rounds: int = 100,
    fewest: int = 1,
    seconds: float = 10.0,
    warmup: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
    clock: Clock = perf_counter_ns,
) -> dict[str, np.ndarray]:
    """Time every session in every round; seconds as float64 [rounds, repetitions] by name.

    A round runs each session once in a newly drawn order: one untimed call (the other session has just used the
    caches), then several timed ones. The number of repetitions (1..100, the same for all) is chosen after `warmup`
    calls so that `rounds` rounds fill about `seconds`; the run ends after `rounds`, or after the round in which the
    time runs out, but not before `fewest`. Garbage collection rests while timing.
    `progress` gets the share done, 0..1, after every round. `clock` counts nanoseconds.
    """
    if not sessions or rounds < 1 or not seconds > 0 or warmup < 1:
        got = f"{len(sessions)} sessions, rounds={rounds}, seconds={seconds}, warmup={warmup}"
        raise EdgerunError("nothing can be timed", got=got, wanted="sessions, rounds >= 1, seconds > 0, warmup >= 1")
    order, generator = list(sessions), random.Random(seed)
    taken: dict[str, list[list[int]]] = {name: [] for name in sessions}
    with uncollected():
        each = sum(_warm(run, warmup, clock) for run in sessions.values())
        repetitions = max(1, min(MOST_REPETITIONS, int(seconds * 1e9 / rounds / max(1, each)) - 1))
        start, done, spent = clock(), 0, 0.0
        while done < rounds and (spent < 1 or done < fewest):
            generator.shuffle(order)
            for name in order:
                taken[name].append(_block(sessions[name], repetitions, clock))
            done, spent = done + 1, (clock() - start) / (seconds * 1e9)
            if progress is not None:
                progress(min(1.0, max(done / rounds, spent)))
    return {name: np.asarray(blocks, np.float64) / 1e9 for name, blocks in taken.items()}


@contextmanager
def uncollected() -> Iterator[None]:
    """Garbage collection rests meanwhile, after a last one; where it rests already there is none."""
    was_enabled = gc.isenabled()
    if was_enabled:
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _part(progress: Progress | None, number: int, total: int) -> Progress | None:
    """The progress of part `number` of `total` as that of the whole."""
    if progress is None:
        return None
    whole = progress
    return lambda share: whole((number + share) / total)


def _warm(run: Run, calls: int, clock: Clock) -> int:
    """Nanoseconds of the last of `calls` calls."""
    took = 0
    for _ in range(calls):
        start = clock()
        run()
        took = clock() - start
    return took


def _block(run: Run, repetitions: int, clock: Clock) -> list[int]:
    """Nanoseconds of each of `repetitions` calls after an untimed one."""
    run()
    times = []
    for _ in range(repetitions):
        start = clock()
        run()
        times.append(clock() - start)
    return times
