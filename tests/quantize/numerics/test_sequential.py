"""Tests on paired counts: against the likelihood maximised by scipy, and against exact sums over all outcomes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad  # type: ignore[import-untyped]
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from scipy.stats import multinomial, norm  # type: ignore[import-untyped]

from edgerun.errors import EdgerunError
from edgerun.quantize.numerics import sequential

COUNTS = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 3000)).map(lambda c: (c[0], c[1], sum(c)))
BOUNDS = st.sampled_from([0.002, 0.005, 0.02, 0.1])


def outcomes(n: int, bound: float, gained: float) -> tuple[np.ndarray, np.ndarray]:
    """Every (lost, gained) of `n` samples, and its probability when the drop is exactly `bound`."""
    pairs = np.array([(b, c) for b in range(n + 1) for c in range(n + 1 - b)])
    full = np.column_stack([pairs, n - pairs.sum(axis=1)])
    return pairs, multinomial.pmf(full, n, [gained + bound, gained, 1 - 2 * gained - bound])


@given(COUNTS, BOUNDS)
def test_the_score_has_the_variance_of_the_likeliest_rates_at_the_bound(
    counts: tuple[int, int, int], bound: float
) -> None:
    lost, gained, n = counts

    def against(q: float) -> float:
        agreed = n - lost - gained
        return -(lost * math.log(q + bound) + gained * math.log(q) + agreed * math.log(1 - 2 * q - bound))

    ends = (1e-15, (1 - bound) / 2 - 1e-12)
    found: Any = minimize_scalar(against, bounds=ends, method="bounded", options={"xatol": 1e-12})
    q = found.x
    if gained == 0 and against(1e-15) <= against(q):
        q = 0.0
    expected = (lost - gained - n * bound) / math.sqrt(n * (2 * q + bound - bound**2))
    assert sequential.score(lost, gained, n, bound) == pytest.approx(expected, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("gained", [0.0, 0.01, 0.05])
def test_the_score_keeps_its_error_where_few_samples_differ(gained: float) -> None:
    """At the bound itself a one-sided 2.5 % test says yes in at most 3 % of all outcomes of 150 samples."""
    pairs, chances = outcomes(150, 0.05, gained)
    says_yes = np.array([sequential.score(int(b), int(c), 150, 0.05) <= -1.96 for b, c in pairs])
    assert 0.002 < chances[says_yes].sum() <= 0.03


@pytest.mark.parametrize("gained", [0.0, 0.03])
def test_evidence_is_expected_to_be_one_at_the_bound(gained: float) -> None:
    """An e-value: the mean over all outcomes is 1, to rounding."""
    pairs, chances = outcomes(60, 0.04, gained)
    evidence = np.exp([sequential.log_evidence(int(b), int(c), 60, 0.04) for b, c in pairs])
    assert (chances * evidence).sum() == pytest.approx(1, abs=1e-9)


def test_looking_often_keeps_the_error() -> None:
    """400 streams of 1,500 samples at the bound: 5 % may ever reach evidence 20; 6.5 % is the limit."""
    generator, bound = np.random.default_rng(0), 0.02
    draws = generator.random((400, 1500))
    lost, gained = np.cumsum(draws < bound + 0.01, axis=1), np.cumsum(draws > 0.99, axis=1)
    ever = 0
    for b, c in zip(lost, gained, strict=True):
        looks = range(0, 1500, 10)
        ever += any(sequential.log_evidence(int(b[i]), int(c[i]), i + 1, bound) >= math.log(20) for i in looks)
    assert ever / 400 <= 0.065


def test_evidence_finds_a_small_drop() -> None:
    """Nothing differs in 2,000 samples: a drop of half a point is out of question at 0.5 % error; in 1,000 not yet."""
    assert sequential.log_evidence(0, 0, 2000, 0.005) > math.log(200) > sequential.log_evidence(0, 0, 1000, 0.005)


@given(COUNTS, BOUNDS)
def test_more_lost_samples_never_help(counts: tuple[int, int, int], bound: float) -> None:
    lost, gained, n = counts
    if lost + gained < n:
        assert sequential.score(lost + 1, gained, n, bound) > sequential.score(lost, gained, n, bound)
        assert sequential.log_evidence(lost + 1, gained, n, bound) < sequential.log_evidence(lost, gained, n, bound)


@pytest.mark.parametrize(("z", "share"), [(-1.0, 0.125), (0.5, 0.25), (-2.0, 0.5), (3.0, 0.9)])
def test_the_prospect_is_the_integral_over_what_the_drop_may_be(z: float, share: float) -> None:
    """Flat prior on the drift θ of the final score: z/√t is its estimate with variance 1/t; the rest adds 1 − t."""

    def density(theta: float) -> float:
        rest = norm.cdf((-1.96 - z * math.sqrt(share) - theta * (1 - share)) / math.sqrt(1 - share))
        return float(rest * norm.pdf(theta, z / math.sqrt(share), 1 / math.sqrt(share)))

    expected, _ = quad(density, z / math.sqrt(share) - 40, z / math.sqrt(share) + 40, limit=400)
    assert sequential.prospect(z, share, 1.96) == pytest.approx(expected, abs=1e-6)


@given(COUNTS, BOUNDS)
def test_samples_to_hold_are_the_fewest_that_do(counts: tuple[int, int, int], bound: float) -> None:
    lost, gained, n = counts
    needed = sequential.samples_to_hold(lost, gained, n, bound, 1.96)
    if lost - gained >= n * bound:
        assert needed is None
        return
    assert needed is not None and needed >= n
    z = sequential.score(lost, gained, n, bound)
    assert z * math.sqrt(needed / n) <= -1.96 + 1e-9
    assert needed == n or z * math.sqrt((needed - 1) / n) > -1.96


@pytest.mark.parametrize("bound", [0.002, 0.005, 0.01, 0.1])
def test_fewest_samples(bound: float) -> None:
    fewest = sequential.fewest_samples(bound, 1.96)
    assert sequential.score(0, 0, fewest, bound) <= -1.96 < sequential.score(0, 0, fewest - 1, bound)


def test_misuse() -> None:
    for counts in ((-1, 0, 5), (3, 3, 5), (0, 0, 0)):
        with pytest.raises(EdgerunError, match="counts that fit"):
            sequential.score(*counts, 0.01)
    with pytest.raises(EdgerunError, match="no share"):
        sequential.log_evidence(0, 0, 5, 1.0)
    with pytest.raises(EdgerunError, match="part of the samples"):
        sequential.prospect(0.0, 1.0, 1.96)
