"""Closed forms in float64 Python, published intervals, and exact enumeration as oracles."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgerun import metrics
from edgerun.errors import EdgerunError
from edgerun.metrics import BLOCK, Difference, correct

VALUES = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
PAIRS = st.integers(1, 30).flatmap(
    lambda n: st.tuples(arrays(np.float32, n, elements=VALUES), arrays(np.float32, n, elements=VALUES))
)


@given(PAIRS)
def test_difference_is_what_exact_fractions_give(pair: tuple[np.ndarray, np.ndarray]) -> None:
    r, v = ([Fraction(float(x)) for x in array] for array in pair)
    signal, noise = sum(x * x for x in r), sum((a - b) ** 2 for a, b in zip(r, v, strict=True))
    largest = max(abs(a - b) for a, b in zip(r, v, strict=True))
    got = Difference.of(*pair)
    assert got.signal == pytest.approx(float(signal), rel=1e-12)
    assert got.noise == pytest.approx(float(noise), rel=1e-12)
    assert got.max_error == float(largest)
    if signal and noise:
        assert got.sqnr_db == pytest.approx(10 * math.log10(signal / noise), abs=1e-9)
    power = sum(x * x for x in v)
    if signal and power:
        dot = sum(a * b for a, b in zip(r, v, strict=True))
        assert got.cosine == pytest.approx(float(dot) / math.sqrt(signal * power), abs=1e-9)


@given(PAIRS, st.integers(0, 30))
def test_batches_add_up_to_the_whole(pair: tuple[np.ndarray, np.ndarray], cut: int) -> None:
    r, v = pair
    parts, whole = Difference.of(r[:cut], v[:cut]) + Difference.of(r[cut:], v[cut:]), Difference.of(r, v)
    assert parts.count == whole.count and parts.max_error == whole.max_error
    assert parts.noise == pytest.approx(whole.noise, rel=1e-12)


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_long_arrays_are_summed_whole(size: int) -> None:
    generator = np.random.default_rng(size)
    r, v = generator.standard_normal((2, size, 1)).astype(np.float32)
    r[0] = v[0] = np.nan
    v[-1] = 9
    found, (a, b) = Difference.of(r, v), np.array([r[1:], v[1:]], np.float64)
    sums = ((a**2).sum(), ((a - b) ** 2).sum(), (b**2).sum(), (a * b).sum(), np.abs(a - b).max(), np.abs(a).max(), size)
    assert dataclasses.astuple(found) == pytest.approx(sums, rel=1e-12)


def test_sqnr_of_halved_signal_is_6_02_db() -> None:
    r = np.arange(1, 100, dtype=np.float32)
    assert metrics.sqnr_db(r, r / 2) == pytest.approx(20 * math.log10(2), abs=1e-12)
    assert Difference.of(r, r / 2).relative_error == 0.5
    assert Difference.of(r, r / 2).cosine == pytest.approx(1, abs=1e-15)


def test_float16_does_not_overflow_inside() -> None:
    r = np.full(1000, 60000, np.float16)
    assert metrics.sqnr_db(r, r / 2) == pytest.approx(20 * math.log10(2), abs=1e-9)


def test_unsigned_integers_do_not_wrap() -> None:
    assert Difference.of(np.array([0], np.uint8), np.array([1], np.uint8)).max_error == 1


@pytest.mark.parametrize(
    ("r", "v", "sqnr", "error", "cosine"),
    [
        ([1.0, 2.0], [1.0, 2.0], math.inf, 0, 1),
        ([0.0, 0.0], [0.0, 0.0], math.inf, 0, 1),
        ([0.0, 0.0], [0.0, 1.0], -math.inf, 1, 0),
        ([3.0, 4.0], [0.0, 0.0], 0, 4, 0),
        ([math.inf, 1.0], [math.inf, 1.0], math.inf, 0, 1),
        ([math.nan, 1.0], [math.nan, 1.0], math.inf, 0, 1),
        ([1.0, 1.0], [math.nan, 1.0], -math.inf, math.inf, math.nan),
        ([1.0, 1.0], [math.inf, 1.0], -math.inf, math.inf, math.nan),
    ],
)
def test_edges(r: list[float], v: list[float], sqnr: float, error: float, cosine: float) -> None:
    pair = np.array(r), np.array(v)
    assert metrics.sqnr_db(*pair) == sqnr
    assert Difference.of(*pair).max_error == error
    assert Difference.of(*pair).cosine == pytest.approx(cosine, nan_ok=True)


def test_shapes_must_match() -> None:
    with pytest.raises(EdgerunError, match="different shape"):
        metrics.sqnr_db(np.zeros((2, 1)), np.zeros(2))


def test_top1_and_agreement_count_rows() -> None:
    logits = np.array([[0.1, 0.9], [0.8, 0.2], [0.5, 0.5], [math.nan, 1.0]], np.float32)
    assert correct(logits, np.array([1, 0, 0, 0])).mean() == 0.75
    other = np.array([[0.1, 0.9], [0.1, 0.2], [0.6, 0.5], [math.nan, 1.0]], np.float32)
    same = metrics.same_class(metrics.predicted(logits), metrics.predicted(other))
    assert same.mean() == 0.5  # the NaN row agrees with nothing, not even itself


@pytest.mark.parametrize("shape", [(5, 1), (5,), (5, 0)])
def test_one_class_is_no_choice(shape: tuple[int, ...]) -> None:
    with pytest.raises(EdgerunError, match="no classes"):
        metrics.predicted(np.zeros(shape, np.float32))


# R. G. Newcombe, Stat. Med. 17 (1998), table I, method 3
@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(hits: int, n: int, low: float, high: float) -> None:
    interval = metrics.wilson(hits, n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("p12", "p21"), [(0.02, 0.02), (0.1, 0.1), (0.1, 0.02), (0.3, 0.1), (0.05, 0.0), (0.01, 0.01)])
def test_paired_drop_covers_by_exact_enumeration(p12: float, p21: float) -> None:
    """Over every outcome of the trinomial with n = 60 the 95 % interval covers the true drop in 94 % or more."""
    n, rest, covered = 60, 1 - p12 - p21, 0.0
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            chance = math.comb(n, lost) * math.comb(n - lost, gained)
            probability = chance * p12**lost * p21**gained * rest ** (n - lost - gained)
            drop = metrics.paired_drop(lost, gained, n)
            covered += probability * (drop.low <= p12 - p21 <= drop.high)
    assert covered >= 0.94


def test_paired_drop_is_antisymmetric_and_shrinks() -> None:
    a, b = metrics.paired_drop(30, 10, 1000), metrics.paired_drop(10, 30, 1000)
    assert (a.low, a.high) == (-b.high, -b.low)
    wide, narrow = metrics.paired_drop(3, 1, 100), metrics.paired_drop(300, 100, 10_000)
    assert (narrow.high - narrow.low) < (wide.high - wide.low) / 8


@pytest.mark.parametrize(
    ("lost", "gained", "n", "limit"), [(9, 0, 300, 0.01), (3, 3, 200, 0.003), (40, 38, 2000, 0.005)]
)
def test_samples_to_decide_is_the_turning_point(lost: int, gained: int, n: int, limit: float) -> None:
    needed = metrics.samples_to_decide(lost, gained, n, limit)
    assert needed is not None and needed > n

    def decided(size: int) -> bool:
        drop = metrics.paired_drop(lost / n * size, gained / n * size, size)
        return drop.high < limit or drop.low > limit

    assert decided(needed) and not decided(needed - 1)


def test_a_drop_on_the_limit_is_never_decided() -> None:
    assert metrics.samples_to_decide(10, 0, 1000, 0.01) is None


@pytest.mark.parametrize("arguments", [(0, 0, 0), (3, 3, 5), (-1, 0, 5)])
def test_impossible_counts_are_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(EdgerunError, match="counts"):
        metrics.paired_drop(*arguments)


@pytest.mark.parametrize("labels", [[1, 2, 3], [-1, 0, 1]])
def test_labels_that_are_no_classes_are_refused(labels: list[int]) -> None:
    with pytest.raises(EdgerunError, match="the labels are no classes of this output"):
        correct(np.eye(3), np.array(labels))
