"""Noise per sample, and gains with intervals, against scipy and a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgerun.metrics import sqnr_db
from edgerun.quantize.numerics import noise


def test_the_mean_is_the_sqnr() -> None:
    draw = np.random.default_rng(0)
    r = draw.standard_normal((12, 3, 5))
    v = r + 0.1 * draw.standard_normal(r.shape)
    error, signal = noise.per_sample({"y": r}, {"y": v}, 12)
    shares = noise.relative(error, signal)
    assert shares.shape == (12,)
    assert noise.decibels(float(shares.mean())) == pytest.approx(sqnr_db(r, v), abs=1e-9)


def test_an_output_without_samples_is_shared() -> None:
    error, signal = noise.per_sample({"y": np.array([3.0, 4.0, 0.0])}, {"y": np.array([3.0, 4.0, 1.0])}, 2)
    assert error.tolist() == [[0.5], [0.5]] and signal.tolist() == [[12.5], [12.5]]


def test_what_is_not_finite_is_infinitely_wrong() -> None:
    error, signal = noise.per_sample({"y": np.ones((2, 2))}, {"y": np.array([[1, 1], [np.nan, 1]])}, 2)
    assert error.tolist() == [[0.0], [math.inf]]
    assert noise.decibels(float(noise.relative(error, signal).mean())) == -noise.CAP_DB


def test_a_gain_is_the_ratio_in_db() -> None:
    before = np.full(8, 0.1)
    value, low, high = noise.gain(before, before / 100)
    assert value == pytest.approx(20.0) and low == pytest.approx(20.0) and high == pytest.approx(20.0)
    value, low, high = noise.gain(np.array([0.1]), np.array([0.01]))
    assert value == pytest.approx(10.0) and (low, high) == (-math.inf, math.inf)


def test_the_interval_covers_the_truth() -> None:
    """400 draws of 12 samples whose noises differ 4 times in the mean: 6.02 dB lies inside in 90 to 99 % of them."""
    draw, inside = np.random.default_rng(3), 0
    for _ in range(400):
        before, after = draw.gamma(8, 4, 12), draw.gamma(8, 1, 12)
        _, low, high = noise.gain(before, after)
        inside += low <= 10 * math.log10(4) <= high
    assert 360 <= inside <= 396
