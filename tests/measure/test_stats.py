"""Claims of speed: coverage by exact enumeration, and false alarms on simulated A/A runs."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from edgerun.errors import EdgerunError
from edgerun.measure.stats import FEWEST_ROUNDS, quantile, speedup, verdict
from edgerun.metrics import Interval


def machine(rounds: int, repetitions: int, memory: float, generator: np.random.Generator) -> np.ndarray:
    """Timings of one model on a restless machine, [rounds, 2, repetitions]: AR(1) in log time, 3 % spikes."""
    size = rounds * 2 * repetitions
    shocks = generator.standard_normal(size) * np.where(generator.random(size) < 0.03, 10, 1)
    noise, state = np.empty(size), 0.0
    for index, shock in enumerate(shocks):
        state = memory * state + shock
        noise[index] = state
    times: np.ndarray = 1e-3 * np.exp(0.05 * math.sqrt(1 - memory**2) * noise).reshape(rounds, 2, repetitions)
    return times


@pytest.mark.parametrize(("rounds", "memory"), [(6, 0.0), (20, 0.9), (40, 0.99), (40, 0.999)])
def test_false_faster_on_a_a_runs_stays_below_5_percent(rounds: int, memory: float) -> None:
    """400 runs of one model against itself without margin: about 2 % 'faster' (5 % allowed), however autocorrelated."""
    generator = np.random.default_rng(42)
    faster = slower = 0
    for _ in range(400):
        slots = machine(rounds, 3, memory, generator)
        first = generator.integers(0, 2, rounds)  # the drawn order
        a, b = slots[np.arange(rounds), first], slots[np.arange(rounds), 1 - first]
        answer = verdict(speedup(a, b).interval, margin=0.0)
        faster, slower = faster + (answer == "faster"), slower + (answer == "slower")
    assert faster / 400 <= 0.05 and slower / 400 <= 0.05


@pytest.mark.parametrize("rounds", [6, 8, 11])
def test_the_interval_misses_at_most_5_percent_by_enumeration(rounds: int) -> None:
    """All 2^n orders of a round's two halves: the interval lies wholly above or below 1 in at most 5 % of them."""
    halves = np.random.default_rng(rounds).uniform(1, 2, (rounds, 2))
    missed = 0
    for order in product((0, 1), repeat=rounds):
        first = np.array(order)
        a, b = halves[np.arange(rounds), first], halves[np.arange(rounds), 1 - first]
        interval = speedup(a[:, None], b[:, None]).interval
        missed += interval.low > 1 or interval.high < 1
    assert missed / 2**rounds <= 0.05


def test_a_real_speedup_is_found_through_drift() -> None:
    generator = np.random.default_rng(0)
    slots = machine(60, 5, 0.99, generator) * np.linspace(1, 3, 60)[:, None, None]  # the machine slows down by 3
    found = speedup(slots[:, 0] * 1.1, slots[:, 1])
    assert found.interval.low <= 1.1 <= found.interval.high
    assert found.value == pytest.approx(1.1, rel=0.03)
    assert verdict(found.interval) == "faster" and verdict(speedup(slots[:, 1], slots[:, 0] * 1.1).interval) == "slower"


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


def test_quantile_interval_covers_in_spite_of_autocorrelation() -> None:
    """200 runs: the 95 % interval of p50 holds the true median (1 ms) in 85 % or more."""
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(200):
        interval = quantile(machine(64, 2, 0.8, generator)[:, 0], 0.5).interval
        covered += interval.low <= 1e-3 <= interval.high
    assert covered / 200 >= 0.85


def test_quantiles_are_ordered_and_reproducible() -> None:
    samples = np.random.default_rng(3).lognormal(size=(50, 20))
    p50, p90, p99 = (quantile(samples, q) for q in (0.5, 0.9, 0.99))
    assert p50.value < p90.value < p99.value
    assert p50.value == float(np.median(samples)) and p50 == quantile(samples, 0.5)
    assert all(e.interval.low <= e.value <= e.interval.high for e in (p50, p90, p99))


def test_too_few_rounds_are_refused() -> None:
    few = np.ones((FEWEST_ROUNDS - 1, 3))
    with pytest.raises(EdgerunError, match="too few timings"):
        speedup(few, few)
    with pytest.raises(EdgerunError, match="same rounds"):
        speedup(np.ones((8, 3)), np.ones((9, 3)))


def test_many_rounds_do_not_overflow() -> None:
    samples = np.random.default_rng(0).uniform(1, 2, (3000, 1))
    interval = speedup(samples, np.roll(samples, 1)).interval
    assert 0.9 < interval.low < 1 < interval.high < 1.1
