"""Sums of two products in 16 bits, against the instruction computed step by step."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgerun.quantize.numerics.saturation import ANY, FULL_STEPS, SAFE_STEPS, fitted, pairs, repair, saturates, sums

PLAIN = settings(max_examples=60, deadline=None)
# Extreme weights are where it happens: ±127 and the one more that int8 has.
INT8 = st.one_of(st.integers(-128, 127), st.sampled_from([-128, -127, 127]))
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 6))  # positions, channels


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """int8 `[3, K]` and its pairs."""
    positions, channels = draw(SHAPES)
    stored = draw(hnp.arrays(np.int8, (3, positions * channels), elements=INT8))
    return stored, pairs(positions, channels)


def maddubs(stored: np.ndarray, found: np.ndarray, activations: np.ndarray) -> np.ndarray:
    """sat16(a₀·w₀ + a₁·w₁) less the exact sum, for each row and pair: 0 where nothing was cut off."""
    exact = np.zeros((len(stored), len(found)), int)
    for o, row in enumerate(stored.tolist()):
        for p, (i, j) in enumerate(found.tolist()):
            exact[o, p] = int(activations[i]) * row[i] + int(activations[j]) * row[j]
    cut: np.ndarray = np.clip(exact, -32768, 32767) - exact
    return cut


def test_pairs_of_the_kernels() -> None:
    """Even channels: blocks and rows agree. Odd: both kinds. One channel: every two positions."""
    assert pairs(2, 4).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert pairs(2, 3).tolist() == [[0, 1], [2, 3], [3, 4], [4, 5]]
    assert pairs(3, 1).tolist() == [[0, 1], [0, 2], [1, 2]]
    assert pairs(1, 1).shape == (0, 2)


@given(rows(), st.integers(0, 2**32 - 1))
@PLAIN
def test_what_does_not_saturate_is_exact_for_any_input(drawn: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    stored, found = drawn
    activations = np.random.default_rng(seed).choice(np.array([0, 1, 254, 255]), stored.shape[1])
    cut = maddubs(stored, found, activations)
    safe = ~saturates(stored, found)
    assert not cut[safe].any()
    assert not maddubs(fitted(stored, found), found, activations).any()


@given(rows())
@PLAIN
def test_what_saturates_has_an_input_that_shows_it(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    stored, found = drawn
    shown = np.zeros(len(stored), bool)
    for sign in (1, -1):  # 255 on the weights of one sign is the worst there is
        for o, row in enumerate(stored):
            shown[o] |= bool(maddubs(stored[o : o + 1], found, np.where(sign * row.astype(int) > 0, 255, 0)).any())
    # 16 bits hold −32,768, which the bound counts as too far already.
    near = np.abs(sums(stored, found)).max(axis=1, initial=0) == 32768
    np.testing.assert_array_equal(saturates(stored, found) & ~near, shown)


@given(rows())
@PLAIN
def test_fitting_only_shrinks_and_leaves_the_rest_alone(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    stored, found = drawn
    result = fitted(stored, found)
    assert result.dtype == np.int8 and result.shape == stored.shape
    wide, narrow = stored.astype(int), result.astype(int)
    assert (np.abs(narrow) <= np.abs(wide)).all() and (narrow * wide >= 0).all()
    touched = np.zeros(stored.shape, bool)
    for o, p in zip(*np.nonzero(sums(stored, found) > 32767), strict=True):
        touched[o, found[p]] = True
    np.testing.assert_array_equal(result[~touched], stored[~touched])
    np.testing.assert_array_equal(fitted(result, found), result)


def test_measured_codes_tighten_the_sum() -> None:
    stored = np.array([[127, 127]], np.int8)
    assert sums(stored, pairs(1, 2)).item() == 64770
    assert sums(stored, pairs(1, 2), np.array([[255, 3]])).item() == 255 * 127 + 3 * 127
    assert not saturates(stored, pairs(1, 2), np.array([[255, 3]])).item()


@pytest.mark.parametrize("weights", [(127, -127), (-127, 127), (64, 64), (-64, -64), (127, 1), (0, 127)])
def test_pairs_that_fit(weights: tuple[int, int]) -> None:
    assert not saturates(np.array([weights], np.int8), pairs(1, 2)).any()


@pytest.mark.parametrize("weights", [(65, 64), (-65, -64), (127, 2), (-128, -128)])
def test_pairs_that_do_not_fit(weights: tuple[int, int]) -> None:
    stored = np.array([weights], np.int8)
    assert saturates(stored, pairs(1, 2)).all()
    assert not saturates(fitted(stored, pairs(1, 2)), pairs(1, 2)).any()


def damage(weights: np.ndarray, steps: np.ndarray, found: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Σ E[x²]·(s·q − w)² of what is stored on a grid of `steps`, fitted, per channel."""
    scale = (np.abs(weights).max(axis=1) / steps)[:, None]
    kept = fitted(np.clip(np.rint(weights / scale), -127, 127).astype(np.int8), found)
    lost: np.ndarray = (power * (kept * scale - weights) ** 2).sum(axis=1)
    return lost


@pytest.mark.parametrize(("positions", "channels"), list(itertools.product([1, 9], [3, 16])))
@pytest.mark.parametrize("heavy", [False, True])
def test_repair_is_never_worse_than_64_steps_or_than_fitting_alone(positions: int, channels: int, heavy: bool) -> None:
    generator = np.random.default_rng(positions * channels)
    shape = (64, positions * channels)
    drawn = generator.standard_t(2, shape) if heavy else generator.standard_normal(shape)
    weights, found = drawn.astype(np.float32), pairs(positions, channels)
    power = generator.uniform(0.1, 4, (1, positions * channels))
    steps, could = repair(weights, found, power)
    assert steps.dtype == np.float32 and (steps[~could] == FULL_STEPS).all()
    assert ((steps >= SAFE_STEPS - 1e-3) & (steps <= FULL_STEPS)).all() and could.any()
    least = damage(weights, steps, found, power)
    for other in (SAFE_STEPS, FULL_STEPS):
        assert (least <= damage(weights, np.full(64, float(other)), found, power) * (1 + 1e-3))[could].all()


def test_repair_knows_which_channels_could_saturate() -> None:
    weights = np.array([[1, 1], [1, -1], [1, 0.001], [0, 0], [1, 0.5]], np.float32)
    steps, could = repair(weights, pairs(1, 2), np.ones((1, 1)))
    np.testing.assert_array_equal(could, [True, False, False, False, True])
    assert steps[0] == SAFE_STEPS  # both weights are exact there
    np.testing.assert_array_equal(steps[1:4], FULL_STEPS)


def test_power_decides_which_weights_may_lose() -> None:
    """The pair (1, 1) belongs to activations that are nearly never there: the others keep their exactness."""
    weights = np.concatenate([np.ones((1, 2)), np.linspace(0.1, 0.37, 62)[None] * [[1, -1] * 31]], axis=1)
    quiet = np.concatenate([np.full((1, 2), 1e-9), np.ones((1, 62))], axis=1)
    rows_, found = weights.astype(np.float32), pairs(1, 64)
    loud_steps, _ = repair(rows_, found, np.ones((1, 1)))
    quiet_steps, _ = repair(rows_, found, quiet)
    assert damage(rows_, quiet_steps, found, quiet) < damage(rows_, loud_steps, found, quiet)


def test_any_input_is_the_largest_code() -> None:
    assert ANY.item() == np.iinfo(np.uint8).max
