"""Range estimators: what each promises, and each against an independent way to the same number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.quantize.numerics import ranges
from edgerun.quantize.numerics.ranges import ESTIMATORS

FEW = settings(max_examples=25, deadline=None)
KINDS = ("normal", "relu", "laplace", "uniform", "negative", "outlier", "positive", "zeros")


def draw(kind: str, seed: int, size: int = 3000) -> np.ndarray:
    """float32 samples of one shape of activation."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(size)
    found = {
        "normal": x, "relu": np.maximum(x, 0), "laplace": generator.laplace(size=size),
        "uniform": generator.uniform(-1, 3, size), "negative": -np.abs(x), "positive": 2 + np.abs(x),
        "outlier": np.where(np.arange(size) == 7, 50.0, x), "zeros": 0 * x,
    }[kind]  # fmt: skip
    return found.astype(np.float32)


def ends(sample: np.ndarray) -> tuple[float, float]:
    return float(sample.min()), float(sample.max())


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@FEW
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 999))
def test_intervals_lie_inside_what_was_seen(name: str, kind: str, seed: int) -> None:
    """Within the observed extremes widened to zero, finite, in order; a one-sided tensor stays one-sided."""
    sample = draw(kind, seed)
    low, high = ends(sample)
    first, last = ESTIMATORS[name](low, high, sample)
    assert math.isfinite(first) and math.isfinite(last) and first <= last
    assert min(low, 0.0) <= first and last <= max(high, 0.0)
    if low >= 0:
        assert first >= 0
    if high <= 0:
        assert last <= 0


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@FEW
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 999), power=st.integers(-8, 8))
def test_scaling_the_data_scales_the_interval(name: str, kind: str, seed: int, power: int) -> None:
    """By powers of two, so that the equality is exact up to the last bits."""
    sample, factor = draw(kind, seed), 2.0**power
    low, high = ends(sample)
    plain = np.array(ESTIMATORS[name](low, high, sample))
    scaled = np.array(ESTIMATORS[name](low * factor, high * factor, sample * np.float32(factor)))
    np.testing.assert_allclose(scaled, plain * factor, rtol=1e-12, atol=0)


@FEW
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 999))
def test_simple_estimators_by_definition(kind: str, seed: int) -> None:
    sample = draw(kind, seed)
    low, high = ends(sample)
    assert ranges.minmax(low, high, sample) == (low, high)
    assert ranges.shrink90(low, high, sample) == pytest.approx((0.9 * low, 0.9 * high), rel=1e-12)
    assert ranges.shrink80(low, high, sample) == pytest.approx((0.8 * low, 0.8 * high), rel=1e-12)
    assert ranges.percentile(low, high, sample, share=100.0) == pytest.approx((low, high), rel=1e-6)


@pytest.mark.parametrize(("kind", "below", "above"), [("normal", 10, 10), ("relu", 0, 20), ("negative", 20, 0)])
def test_percentile_cuts_the_share_it_says(kind: str, below: int, above: int) -> None:
    """Of 20,001 samples 0.1 percent are 20: half at each end, or all of them at a one-sided end."""
    sample = draw(kind, 5, 20001)
    low, high = ranges.percentile(*ends(sample), sample, share=99.9)
    assert abs(int((sample < low).sum()) - below) <= 1
    assert abs(int((sample > high).sum()) - above) <= 1


def error(low: float, high: float, sample: np.ndarray, steps: int) -> float:
    """Mean squared error of rounding to `steps` equal steps from `low` to `high`, value by value."""
    step = (high - low) / steps
    x = sample.astype(np.float64)
    rounded = low + np.clip(np.rint((x - low) / step), 0, steps) * step
    return float(((x - rounded) ** 2).mean())


@pytest.mark.parametrize("kind", ["normal", "laplace", "uniform", "outlier"])
@pytest.mark.parametrize("steps", [15, 255])
def test_mse_is_minimal_against_brute_force(kind: str, steps: int) -> None:
    """The real rounding error of the interval found is within 3 % of the best of a 100 × 100 search."""
    sample = draw(kind, 11, 4000)
    low, high = ends(sample)
    first, last = ranges.mse(low, high, sample, steps)
    fractions = np.geomspace(0.02, 1.0, 100)
    lows = fractions * low if low < 0 else [0.0]
    best = min(error(a, b, sample, steps) for a in lows for b in fractions * high)
    assert error(first, last, sample, steps) <= 1.03 * best


@pytest.mark.parametrize("zeros", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("steps", [15, 255])
def test_mse_counts_no_error_for_zeros(zeros: float, steps: int) -> None:
    """Zeros are exact on every grid: however many a ReLU leaves, the error is within 10 % of the best interval's."""
    generator = np.random.default_rng(0)
    sample = np.abs(generator.standard_normal(20_000)).astype(np.float32)
    sample[generator.random(sample.size) < zeros] = 0
    high = float(sample.max())
    first, last = ranges.mse(0.0, high, sample, steps)
    best = min(error(0.0, b, sample, steps) for b in np.geomspace(0.02, 1.0, 100) * high)
    assert error(first, last, sample, steps) <= 1.1 * best


@pytest.mark.parametrize(("bits", "clip"), [(4, 2.55), (8, 3.92)])
def test_mse_finds_the_known_optimum_of_a_gaussian(bits: int, clip: float) -> None:
    """The clipping value of a normal distribution in σ (Banner, Nahshan, Soudry 2019, table of ACIQ), within 5 %."""
    sample = np.random.default_rng(3).standard_normal(1 << 20).astype(np.float32)
    low, high = ranges.mse(*ends(sample), sample, steps=2**bits - 1)
    assert high == pytest.approx(clip, rel=0.05) and low == pytest.approx(-clip, rel=0.05)


def slow_entropy(low: float, high: float, sample: np.ndarray, levels: int = 128) -> tuple[float, float]:
    """The same definition with loops: for every threshold, P clipped, Q merged into `levels` cells and spread."""
    bound = max(abs(low), abs(high))
    counts = [0.0] * ranges.BINS
    for value in np.abs(sample.astype(np.float64)):
        counts[min(int(value / bound * ranges.BINS), ranges.BINS - 1)] += 1
    best, threshold = math.inf, bound
    for end in range(levels, ranges.BINS + 1, 16):
        total, members = [0.0] * levels, [0] * levels
        for i in range(end):
            total[i * levels // end] += counts[i]
            members[i * levels // end] += counts[i] > 0
        inside, everything, divergence = sum(counts[:end]), sum(counts), 0.0
        for i in range(end):
            p = (counts[i] + (sum(counts[end:]) if i == end - 1 else 0.0)) / everything
            cell = i * levels // end
            q = total[cell] / members[cell] / inside if counts[i] > 0 else 0.0
            if p > 0:
                divergence += p * math.log(p / max(q, 1e-12))
        if divergence < best:
            best, threshold = divergence, bound * end / ranges.BINS
    return max(low, -threshold), min(high, threshold)


@pytest.mark.parametrize("kind", ["normal", "relu", "outlier"])
def test_entropy_is_the_plain_loop(kind: str) -> None:
    sample = draw(kind, 2, 2000)
    assert ranges.entropy(*ends(sample), sample) == pytest.approx(slow_entropy(*ends(sample), sample), rel=1e-12)


def test_entropy_cuts_a_lone_outlier() -> None:
    """One value of 50 σ among 3,000 goes; the rest, up to 3.5 σ and more, stays."""
    sample = draw("outlier", 4)
    low, high = ranges.entropy(*ends(sample), sample)
    assert low == float(sample.min()) and 3.5 < high < 6


def test_nothing_but_zero() -> None:
    sample = np.zeros(64, np.float32)
    for name, estimate in ESTIMATORS.items():
        assert estimate(0.0, 0.0, sample) == (0.0, 0.0), name
