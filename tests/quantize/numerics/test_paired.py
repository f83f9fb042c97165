"""The paired bound against scipy's, and how often it is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from edgerun.errors import EdgerunError
from edgerun.quantize.numerics import paired


@given(st.floats(0.6, 0.995), st.integers(1, 200))
def test_the_quantile_is_scipys(share: float, freedom: int) -> None:
    """To 1 %."""
    assert paired.student(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=0.01)


@given(st.integers(0, 2**32 - 1), st.integers(3, 50))
def test_the_bound_is_scipys(seed: int, n: int) -> None:
    before, after = np.random.default_rng(seed).normal(size=(2, n))
    mean, surely = paired.gain(before, after, 0.05)
    wanted = stats.ttest_rel(after, before, alternative="greater").confidence_interval(0.95).low
    assert mean == pytest.approx((after - before).mean())
    assert surely == pytest.approx(wanted, rel=0.01, abs=0.01 * (mean - wanted))


def test_chance_is_taken_for_a_gain_as_often_as_it_says() -> None:
    """Of 4,000 pairs without a difference 5 % ± 1 point, at eight samples."""
    pairs = np.random.default_rng(3).normal(size=(4000, 2, 8))
    wrong = sum(paired.gain(before, after, 0.05)[1] > 0 for before, after in pairs)
    assert 0.04 < wrong / 4000 < 0.06


def test_one_sample_proves_nothing() -> None:
    assert paired.gain(np.zeros(1), np.ones(1), 0.05) == (1.0, -np.inf)


def test_different_samples_are_refused() -> None:
    with pytest.raises(EdgerunError, match="same samples"):
        paired.gain(np.zeros(3), np.zeros(4), 0.05)


@given(st.integers(0, 2**32 - 1), st.integers(2, 50))
def test_the_jackknife_of_a_mean_is_its_standard_error(seed: int, n: int) -> None:
    x = np.random.default_rng(seed).normal(size=n)
    left_out = np.array([np.delete(x, i).mean() for i in range(n)])
    assert paired.jackknife(left_out) == pytest.approx(stats.sem(x))
    assert paired.jackknife(left_out[:1]) == np.inf
