"""Equalization factors: positive, neutral where there is nothing to gain, and the least noise of all exponents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.quantize.numerics.equalization import EXPONENTS, FLOOR, Read, Reader, clipped, even, others, scales

PLAIN = settings(max_examples=60, deadline=None)


def problem(seed: int, channels: int, spread: float, readers: int) -> tuple[np.ndarray, np.ndarray, list[Reader]]:
    """Ranges over e^±spread, powers that fit them, and readers with random weights; every third is depthwise."""
    generator = np.random.default_rng(seed)
    ranges = np.exp(generator.uniform(-spread, spread, channels))
    power = (ranges * generator.uniform(0.1, 0.6, channels)) ** 2
    found = []
    for index in range(readers):
        weight = generator.standard_normal((6, channels, 9)) * generator.uniform(0.1, 2, (6, channels, 1))
        peaks = None if index % 3 == 2 else np.abs(weight).max(axis=2)
        found.append(Reader((weight**2).sum(axis=(0, 2)), peaks, 9))
    return ranges, power, found


def noise(factors: np.ndarray, ranges: np.ndarray, power: np.ndarray, readers: list[Reader]) -> float:
    """Σ_j N_j / P_j of the docstring, term by term."""
    step, total = max(r * f for r, f in zip(ranges, factors, strict=True)) / 255, 0.0
    for reader in readers:
        n = sum(step**2 / 12 * e / f**2 for e, f in zip(reader.energy, factors, strict=True))
        for row in reader.peaks if reader.peaks is not None else ():
            delta = max(w / (127 * f) for w, f in zip(row, factors, strict=True))
            n += delta**2 / 12 * reader.positions * sum(p * f**2 for p, f in zip(power, factors, strict=True))
        total += n / sum(e * p for e, p in zip(reader.energy, power, strict=True))
    return total


def read(peaks: np.ndarray, power: np.ndarray, count: float, readers: list[Reader]) -> Read:
    """A value that has all channels."""
    return Read(peaks, power, count, readers, np.arange(peaks.shape[1]))


@PLAIN
@given(st.integers(0, 9999), st.integers(1, 12), st.floats(0.0, 4.0), st.integers(1, 3))
def test_the_chosen_exponent_has_the_least_noise(seed: int, channels: int, spread: float, readers: int) -> None:
    ranges, power, found = problem(seed, channels, spread, readers)
    factors, exponent, gain = scales([read(ranges[None], power, 1e9, found)])
    shares = np.maximum(ranges / ranges.max(), FLOOR)
    np.testing.assert_allclose(factors, shares**-exponent, rtol=1e-12)
    assert exponent in EXPONENTS and (factors > 0).all() and np.isfinite(factors).all()
    least = noise(factors, ranges, power, found)
    assert all(least <= noise(shares**-a, ranges, power, found) * (1 + 1e-9) for a in EXPONENTS)
    # The largest range stays the largest: the tensor's grid does not change for the worse.
    assert (ranges * factors).max() == pytest.approx(ranges.max(), rel=1e-9)


@PLAIN
@given(st.integers(0, 9999), st.integers(1, 12))
def test_equal_ranges_are_left_alone(seed: int, channels: int) -> None:
    _, power, found = problem(seed, channels, 1.0, 2)
    factors, exponent, gain = scales([read(np.full((1, channels), 3.0), power, 1e9, found)])
    assert exponent == gain == 0.0 and (factors == 1).all()


def test_a_depthwise_reader_takes_everything() -> None:
    """Its weights have a scale for each channel: filling the activation's range costs nothing."""
    ranges = np.array([1.0, 0.05, 0.2])
    factors, exponent, gain = scales([read(ranges[None], ranges**2 / 3, 1e9, [Reader(np.ones(3), None, 9)])])
    assert exponent == 1.0
    np.testing.assert_allclose(ranges * factors, 1.0)


@pytest.mark.parametrize("ranges", [[0.0, 0.0], [1.0, 0.0], [1.0, 1e-30], [np.inf, 1.0], [np.nan, 1.0]])
def test_dead_and_broken_channels_get_finite_factors(ranges: list[float]) -> None:
    """A channel that never moves is scaled by at most 1 / FLOOR; where nothing can be said, nothing is changed."""
    array = np.array(ranges)
    weight = np.abs(np.random.default_rng(0).standard_normal((4, 2)))
    power, readers = np.nan_to_num(array, posinf=1.0) ** 2, [Reader((weight**2).sum(0), weight, 1)]
    factors, exponent, gain = scales([read(np.stack([array, array]), power, 1e9, readers)])
    assert np.isfinite(factors).all() and (factors > 0).all() and factors.max() <= 1 / FLOOR * (1 + 1e-9)
    if not array.any() or not np.isfinite(array).all():
        assert exponent == gain == 0.0 and (factors == 1).all()


def test_the_noise_predicted_is_the_noise_that_rounding_makes() -> None:
    """A linear layer with rounded inputs and weights: measured noise over predicted, within 15 %."""
    generator = np.random.default_rng(8)
    x = generator.uniform(-1, 1, (4000, 64)) * np.exp(generator.uniform(-1, 1, 64))
    weight = generator.standard_normal((32, 64))
    ranges, power = np.abs(x).max(axis=0), (x**2).mean(axis=0)
    # The formula's grid spans one side: 255 steps to the largest value.
    step, steps = ranges.max() / 255, np.abs(weight).max(axis=1, keepdims=True) / 127
    rounded = np.rint(x / step) * step @ (np.rint(weight / steps) * steps).T
    exact = x @ weight.T
    measured = ((rounded - exact) ** 2).mean(axis=0).sum() / (exact**2).mean(axis=0).sum()
    predicted = noise(np.ones(64), ranges, power, [Reader((weight**2).sum(axis=0), np.abs(weight), 1)])
    assert measured == pytest.approx(predicted, rel=0.15)


@PLAIN
@given(st.integers(0, 9999), st.integers(1, 12), st.floats(0.0, 4.0), st.integers(1, 3))
def test_evened_channels_have_less_noise_by_what_is_told(seed: int, channels: int, spread: float, readers: int) -> None:
    height, power, found = problem(seed, channels, spread, readers)
    depth = np.random.default_rng(seed).uniform(0, 1, channels) * height
    factors, gain = even(-depth[None], height[None], power, found)
    assert (factors > 0).all() and np.isfinite(factors).all() and factors.max() <= 1 / FLOOR * (1 + 1e-9) and gain >= 0

    def judged(by: np.ndarray) -> float:
        # `noise` takes one range: an equal step comes from ranges that reach as far as both ends together.
        span = (height * by).max() + (depth * by).max()
        return noise(by, np.full(channels, span) / by, power, found)

    assert 10 * np.log10(judged(np.ones(channels)) / judged(factors)) == pytest.approx(gain, abs=1e-6)


def test_a_depthwise_reader_has_every_channel_fill_the_range() -> None:
    height, depth = np.array([10.0, 1.0, 0.5, 2.0]), np.array([0.1, 0.4, 0.1, 0.0])
    factors, gain = even(-depth[None], height[None], height**2 / 9, [Reader(np.ones(4) / height**2, None, 9)])
    assert gain > 6
    span = (height * factors).max() + (depth * factors).max()
    assert ((height + depth) * factors > 0.5 * span).all()


def test_alike_or_silent_channels_are_left_alone() -> None:
    reader = [Reader(np.ones(4), None, 1)]
    for height in (np.ones(4), np.zeros(4)):
        factors, gain = even(np.zeros((1, 4)), height[None], height, reader)
        assert gain == pytest.approx(0, abs=1e-9) and np.array_equal(factors, np.ones(4))


def test_rare_channels_are_not_made_edges_of_the_grid() -> None:
    """One sample in ten moves a channel. What is expected to be cut off new data is what is cut off, within 2.5 times
    (one element a part is counted), and no exponent would have lost much less than the chosen one."""
    generator = np.random.default_rng(5)

    def drawn(samples: int) -> np.ndarray:
        size = generator.exponential(1.0, (samples, 400)) * np.geomspace(0.05, 1, 400)
        return np.where(generator.random((samples, 400)) < 0.1, size, 0.01 * size)

    def factors(sizes: np.ndarray, exponent: float) -> np.ndarray:
        by: np.ndarray = np.maximum(sizes / sizes.max(axis=-1, keepdims=True), FLOOR) ** -exponent
        return by

    seen, unseen = drawn(64), drawn(6400)
    peaks, power, reader = seen.reshape(8, 8, 400).max(axis=1), (seen**2).mean(axis=0), Reader(np.ones(400), None, 1)
    chosen, exponent, _ = scales([read(peaks, power, 64.0, [reader])])
    lost, cut = dict[float, float](), 0.0
    for a in EXPONENTS:  # the last is 1
        by = factors(peaks.max(axis=0), a)
        top = (peaks * by).max()
        cut = float((np.maximum(unseen - top / by, 0) ** 2).mean(axis=0).sum())
        lost[a] = cut + float(((top / 255) ** 2 / 12 / by**2).sum())
    told = float(clipped([peaks], factors(others(peaks), 1.0), 64.0).sum())
    assert 0.4 < told / cut < 2.5
    assert lost[exponent] <= 1.5 * min(lost.values()) and exponent < 1.0
    assert scales([read(peaks[:1], power, 64.0, [reader])])[1] == 1.0, "where nothing is known of new data"


def test_what_other_parts_reach() -> None:
    ends = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 1.0]])
    np.testing.assert_array_equal(others(ends), [[3, 5], [3, 5], [2, 5]])
    np.testing.assert_array_equal(clipped([ends], np.ones((3, 2)), 2.0), [0.0, 0.0])
    np.testing.assert_array_equal(clipped([ends[:, :1]], np.ones((3, 1)), 2.0), [0.5])
