"""Coverage against simulation: what fresh data really does to the ranges that n units gave."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtri  # type: ignore[import-untyped]

from edgerun.errors import EdgerunError
from edgerun.quantize.numerics.coverage import tail, verdict

TENSORS = 400


def extremes(seed: int, n: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """`lows`, `highs` [n, TENSORS] of tensors behind a ReLU whose largest value per sample has a known law."""
    generator = np.random.default_rng(seed)
    size = (n, TENSORS)
    # The largest of 1,000 values of an exponential or normal activation, and a bounded one.
    draws = {
        "exponential": lambda share: -np.log(-np.expm1(np.log(share) / 1000)),
        "normal": lambda share: ndtri(share ** (1 / 1000)),
        "bounded": lambda share: share,
    }
    return np.zeros(size), draws[kind](generator.uniform(0.0, 1.0, size))


@pytest.mark.parametrize("n", [8, 40, 160])
@pytest.mark.parametrize("kind", ["exponential", "normal", "bounded"])
def test_a_new_unit_exceeds_as_often_as_said(kind: str, n: int) -> None:
    """Behind a ReLU only one end is open: 1/(n+1), to 4 standard errors over 400 tensors times 20 new units."""
    lows, highs = extremes(0, n, kind)
    told = verdict(lows, highs)
    assert told.exceeding == pytest.approx(1 / (n + 1))
    rates = []
    for seed in range(1, 21):
        _, trial = extremes(seed, n + 1, kind)
        rates.append((trial[-1] > trial[:-1].max(axis=0)).mean())
    assert abs(np.mean(rates) - told.exceeding) < 4 * np.sqrt(told.exceeding / (20 * TENSORS))


@pytest.mark.parametrize("n", [16, 64])
@pytest.mark.parametrize(
    ("kind", "least", "most"), [("exponential", 0.7, 1.4), ("normal", 0.7, 2.0), ("bounded", 0.8, 6.0)]
)
def test_the_expected_overshoot(kind: str, least: float, most: float, n: int) -> None:
    """Predicted over measured clipping of a new unit, in grid steps; light tails are overstated, never understated."""
    told, measured = [], []
    for seed in range(30):
        lows, highs = extremes(seed, n + 1, kind)
        told.append(verdict(lows[:n], highs[:n]).overshoot.mean())
        seen = highs[:n].max(axis=0)
        measured.append((np.maximum(highs[n] - seen, 0) / seen * 255).mean())
    assert least < np.mean(told) / np.mean(measured) < most


@pytest.mark.parametrize("n", [16, 64])
@pytest.mark.parametrize("kind", ["exponential", "normal"])
def test_the_interval_holds_other_scales(kind: str, n: int) -> None:
    """90 % intervals hold the scale of a fresh set of the same size in 80 to 99 % of the tensors."""
    lows, highs = extremes(5, n, kind)
    told = verdict(lows, highs)
    _, fresh = extremes(6, n, kind)
    ratio = fresh.max(axis=0) / highs.max(axis=0)
    inside = ((told.low <= ratio) & (ratio <= told.high)).mean()
    assert 0.8 <= inside <= 0.99


def test_the_number_that_would_do_does() -> None:
    """Open at 16 units; with about as many as it asked for, enough; the law is the same, so the ask is stable."""
    lows, highs = extremes(2, 16, "exponential")
    few = verdict(lows, highs)
    assert few.enough is False and few.wanted > 16 and str(few.wanted) in few.sentence()
    lows, highs = extremes(3, round(1.5 * few.wanted), "exponential")
    assert verdict(lows, highs).enough is True


def test_a_range_that_stands_still_is_covered() -> None:
    """Clipped and constant activations have nothing more to show, however few the units."""
    still = verdict(np.zeros((8, 3)), np.full((8, 3), 6.0))
    assert still.enough is True and not still.overshoot.any() and (still.low == 1).all() and (still.high == 1).all()


def test_batches_count_their_samples() -> None:
    lows, highs = extremes(4, 20, "exponential")
    one, eight = verdict(lows, highs), verdict(lows, highs, rows=8)
    assert (eight.samples, eight.wanted) == (160, 8 * one.wanted)


def test_two_sided_ends_add_up() -> None:
    _, highs = extremes(4, 20, "normal")
    told, one = verdict(-highs, highs), verdict(np.zeros_like(highs), highs)
    assert told.exceeding == pytest.approx(2 * one.exceeding)
    np.testing.assert_allclose(told.overshoot, one.overshoot)  # twice the clipping on twice the range


@pytest.mark.parametrize("n", [1, 3])
def test_too_few_to_say(n: int) -> None:
    told = verdict(np.zeros((n, 2)), np.ones((n, 2)))
    assert told.enough is None and "too few" in told.sentence() and told.to_json(["a", "b"])["enough"] is None


def test_nothing_quantized_is_covered() -> None:
    assert verdict(np.zeros((5, 0)), np.zeros((5, 0))).enough is True


@pytest.mark.parametrize(
    ("lows", "highs"),
    [(np.zeros((3, 2)), np.zeros((3, 1))), (np.zeros((0, 2)), np.zeros((0, 2))), (np.zeros(3), np.zeros(3)),
     (np.full((5, 1), np.nan), np.ones((5, 1))), (np.zeros((5, 1)), np.full((5, 1), np.inf))],
)  # fmt: skip
def test_refusals(lows: np.ndarray, highs: np.ndarray) -> None:
    with pytest.raises(EdgerunError, match="extremes"):
        verdict(lows, highs)


def test_json_names_the_most_open() -> None:
    lows, highs = (array[:, :8] for array in extremes(7, 12, "exponential"))
    highs[:, 5] *= np.geomspace(1, 50, 12)
    told = verdict(lows, highs).to_json([f"t{i}" for i in range(8)])
    worst = told["widest ranges still open"][0]
    assert worst["activation"] == "t5" and worst["scale interval 90%"][1] > 1.1


@given(st.integers(0, 1 << 30), st.integers(4, 60), st.floats(1e-3, 1e3))
def test_scaling_and_order_do_not_matter(seed: int, n: int, factor: float) -> None:
    generator = np.random.default_rng(seed)
    lows, highs = -generator.exponential(1, (n, 4)), generator.exponential(1, (n, 4))
    one, other = verdict(lows, highs), verdict(factor * lows[::-1], factor * highs[::-1])
    np.testing.assert_allclose(one.overshoot, other.overshoot, rtol=1e-9)
    assert (one.enough, one.exceeding) == (other.enough, other.exceeding)
    assert (one.low <= one.high).all() and (one.overshoot >= 0).all()


@given(st.lists(st.floats(0, 1e6), min_size=4, max_size=40))
def test_the_mean_excess_is_the_mean_of_normalized_spacings(values: list[float]) -> None:
    excess, threshold, k = tail(np.array(values)[:, None])
    top = sorted(values, reverse=True)
    spacings = [i * (top[i - 1] - top[i]) for i in range(1, k + 1)]
    assert excess[0] == pytest.approx(np.mean(spacings), rel=1e-6, abs=1e-6) and threshold[0] == top[k]
