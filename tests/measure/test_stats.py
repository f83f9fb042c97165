"""Claims of speed: false alarms by enumeration and on simulated A/A runs."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from edgerun.errors import EdgerunError
from edgerun.measure.stats import FEWEST_SESSIONS, Sessions, quantile, speedup, verdict
from edgerun.metrics import Interval


def machine(sessions: int, rounds: int, memory: float, generator: np.random.Generator) -> np.ndarray:
    """Timings in ms of one model on a restless machine, [sessions, rounds, slot 0 or 1, 3 repetitions].

    AR(1) in log time through everything, 3 % of spikes, and a lasting luck of 3 % (one sigma) for each slot of a
    session.
    """
    shape = (sessions, rounds, 2, 3)
    size = math.prod(shape)
    shocks = generator.standard_normal(size) * np.where(generator.random(size) < 0.03, 10, 1)
    noise, state = np.empty(size), 0.0
    for index, shock in enumerate(shocks):
        state = memory * state + shock
        noise[index] = state
    luck = 0.03 * generator.standard_normal((sessions, 1, 2, 1))
    times: np.ndarray = np.exp(0.05 * math.sqrt(1 - memory**2) * noise.reshape(shape) + luck)
    return times


def drawn(slots: np.ndarray, generator: np.random.Generator) -> tuple[Sessions, Sessions]:
    """Two names for one model: who opens first is drawn by session (and decides the luck), who runs first by round."""
    sessions, rounds = slots.shape[:2]
    a, b = np.empty_like(slots[:, :, 0]), np.empty_like(slots[:, :, 0])
    for s in range(sessions):
        first = generator.integers(0, 2)
        for r in range(rounds):
            a[s, r], b[s, r] = slots[s, r, first], slots[s, r, 1 - first]
    return list(a), list(b)


@pytest.mark.parametrize(("sessions", "rounds", "memory"), [(6, 4, 0.0), (9, 6, 0.9), (9, 6, 0.999), (12, 4, 0.99)])
def test_false_faster_on_a_a_runs_stays_below_5_percent(sessions: int, rounds: int, memory: float) -> None:
    """400 runs of one model against itself without margin: at most 5 % 'faster', however autocorrelated (about 2 %)."""
    generator = np.random.default_rng(42)
    faster = slower = 0
    for _ in range(400):
        a, b = drawn(machine(sessions, rounds, memory, generator), generator)
        answer = verdict(speedup(a, b).interval, margin=0.0)
        faster, slower = faster + (answer == "faster"), slower + (answer == "slower")
    assert faster / 400 <= 0.05 and slower / 400 <= 0.05


@pytest.mark.parametrize("sessions", [6, 9, 12])
def test_the_interval_misses_at_most_5_percent_by_enumeration(sessions: int) -> None:
    """All 2^n orders in which two sessions of one model can be opened: at most 2.5 % lie above 1, as many below."""
    halves = np.random.default_rng(sessions).uniform(1, 2, (sessions, 2))
    above = below = 0
    for order in product((0, 1), repeat=sessions):
        a = [np.full((1, 1), half[first]) for half, first in zip(halves, order, strict=True)]
        b = [np.full((1, 1), half[1 - first]) for half, first in zip(halves, order, strict=True)]
        interval = speedup(a, b).interval
        above, below = above + (interval.low > 1), below + (interval.high < 1)
    assert above == below and above / 2**sessions <= 0.025


def test_a_real_speedup_is_found_through_drift() -> None:
    generator = np.random.default_rng(0)
    slots = machine(9, 12, 0.99, generator) * np.linspace(1, 3, 108).reshape(9, 12, 1, 1)  # the machine slows down by 3
    a, b = drawn(slots, generator)
    slow = [samples * 1.25 for samples in a]
    found = speedup(slow, b)
    assert found.interval.low <= 1.25 <= found.interval.high and found.value == pytest.approx(1.25, rel=0.05)
    assert verdict(found.interval) == "faster" and verdict(speedup(b, slow).interval) == "slower"


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (1.02, 1.5, "faster"),
        (1.005, 1.5, "no difference"),
        (0.9, 1.1, "no difference"),
        (0.5, 0.98, "slower"),
        (0.5, 0.995, "no difference"),
    ],
)
def test_verdict(low: float, high: float, answer: str) -> None:
    assert verdict(Interval(low, high)) == answer


def test_a_quantile_of_nine_sessions_leaves_out_the_extremes() -> None:
    sessions = [np.full((2, 3), float(value)) for value in (5, 1, 9, 3, 7, 2, 8, 4, 6)]
    found = quantile(sessions, 0.5)
    assert (found.value, found.interval.low, found.interval.high) == (5, 2, 8)


def test_quantile_intervals_cover_the_median() -> None:
    """300 runs: the 95 % interval of p50 holds the true 1 ms in 93 % or more (binomial: 96 %)."""
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(300):
        interval = quantile(list(machine(9, 8, 0.5, generator)[:, :, 0]), 0.5).interval
        covered += interval.low <= 1 <= interval.high
    assert covered / 300 >= 0.93


def test_quantiles_are_ordered() -> None:
    sessions = list(np.random.default_rng(3).lognormal(size=(9, 10, 20)))
    p50, p90, p99 = (quantile(sessions, q) for q in (0.5, 0.9, 0.99))
    assert p50.value < p90.value < p99.value
    assert all(e.interval.low <= e.value <= e.interval.high for e in (p50, p90, p99))


def test_too_few_or_different_sessions_are_refused() -> None:
    few = [np.ones((3, 3))] * (FEWEST_SESSIONS - 1)
    with pytest.raises(EdgerunError, match="too few sessions"):
        speedup(few, few)
    with pytest.raises(EdgerunError, match="same rounds"):
        speedup([np.ones((8, 3))] * 6, [np.ones((9, 3))] * 6)
    with pytest.raises(EdgerunError, match=r"confidence[\s\S]*6 at 0.99"):
        quantile([np.ones((3, 3))] * 6, 0.5, confidence=0.99)
