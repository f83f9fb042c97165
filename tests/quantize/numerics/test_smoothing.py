"""Smoothing factors: positive, never growing a channel, and the least predicted noise of all candidates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.quantize.numerics.smoothing import EXPONENTS, LEAST, factors, noise

PLAIN = settings(max_examples=60, deadline=None)


def problem(
    seed: int, channels: int, spread: float, readers: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Lows, highs and powers over e^±spread, and random weights."""
    generator = np.random.default_rng(seed)
    high = np.exp(generator.uniform(-spread, spread, channels))
    low = -high * generator.uniform(0, 1, channels)
    return low, high, (high * generator.uniform(0.1, 0.6, channels)) ** 2, [
        generator.standard_normal((6, channels)) for _ in range(readers)
    ]  # fmt: skip


def by_hand(f: np.ndarray, low: np.ndarray, high: np.ndarray, power: np.ndarray, weights: list[np.ndarray]) -> float:
    """The docstring's sum, term by term."""
    step, total = (max(0, *(high * f)) - min(0, *(low * f))) / 255, 0.0
    for weight in weights:
        n = sum(step**2 / 12 * w**2 / g**2 for row in weight for w, g in zip(row, f, strict=True))
        for row in weight:
            delta = max(abs(w) / g for w, g in zip(row, f, strict=True)) / 127
            errors = [w / g - delta * round(w / g / delta) for w, g in zip(row, f, strict=True)]
            n += sum(p * g**2 * e**2 for p, g, e in zip(power, f, errors, strict=True))
        total += n / sum(w**2 * p for row in weight for w, p in zip(row, power, strict=True))
    return total


@PLAIN
@given(st.integers(0, 9999), st.integers(1, 12), st.floats(0.0, 5.0), st.integers(1, 3))
def test_the_factors_have_the_least_noise(seed: int, channels: int, spread: float, readers: int) -> None:
    low, high, power, weights = problem(seed, channels, spread, readers)
    found, gain = factors(low[None], high[None], power, weights)
    assert found.shape == (channels,) and (found > 0).all() and found.max() == pytest.approx(1.0)
    assert found.min() >= LEAST * (1 - 1e-9)
    before, after = (by_hand(f, low, high, power, weights) for f in (np.ones(channels), found))
    assert gain == pytest.approx(10 * np.log10(before / after), abs=1e-6) and gain >= 0
    assert after == pytest.approx(noise(found, low, high, power, weights), rel=1e-9)
    shares = np.maximum(high / high.max(), LEAST)
    for exponent in EXPONENTS:
        tried = (shares / shares.min()) ** -exponent
        assert after <= by_hand(tried, low, high, power, weights) * (1 + 1e-9)


@PLAIN
@given(st.integers(0, 9999), st.integers(2, 12), st.floats(0.1, 10))
def test_the_unit_of_the_activation_does_not_matter(seed: int, channels: int, unit: float) -> None:
    low, high, power, weights = problem(seed, channels, 2.0, 2)
    found, gain = factors(low[None], high[None], power, weights)
    scaled, same = factors(low[None] * unit, high[None] * unit, power * unit**2, weights)
    np.testing.assert_allclose(scaled, found, rtol=1e-6)
    assert same == pytest.approx(gain, abs=1e-6)


def test_an_outlier_channel_is_what_it_is_for() -> None:
    """One channel of 64 is forty times the rest: rounding, carried out, is 15 dB less after smoothing."""
    generator = np.random.default_rng(3)
    x = generator.uniform(-1, 1, (4000, 64))
    x[:, 7] *= 40
    # The model learnt small weights for the loud channel.
    weight = generator.standard_normal((32, 64))
    weight[:, 7] /= 40
    found, gain = factors(x.min(0)[None], x.max(0)[None], (x**2).mean(0), [weight])

    def measured(f: np.ndarray) -> float:
        y, w = x * f, weight / f
        step, steps = (y.max() - y.min()) / 255, np.abs(w).max(axis=1, keepdims=True) / 127
        rounded = (np.rint(y / step) * step) @ (np.rint(w / steps) * steps).T
        return float(10 * np.log10((((rounded - x @ weight.T) ** 2).mean()) / ((x @ weight.T) ** 2).mean()))

    real = measured(np.ones(64)) - measured(found)
    assert real > 15 and real == pytest.approx(gain, abs=0.7)


@pytest.mark.parametrize("high", [[0.0, 0.0], [1.0, 1.0], [np.inf, 1.0], [np.nan, 1.0]])
def test_where_nothing_is_to_gain_nothing_changes(high: list[float]) -> None:
    array = np.array(high)
    found, gain = factors(-array[None], array[None], array**2, [np.ones((3, 2))])
    assert gain == 0.0 and (found == 1).all()
