"""BatchNorm folding against convolutions written as loops over float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from edgerun.quantize.numerics.batchnorm import affine, fold_into, fold_onward

EPSILON = 1e-3
Norm = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # γ, β, μ, σ²


def convolve(x: np.ndarray, w: np.ndarray, b: np.ndarray, group: int) -> np.ndarray:
    """y[o] = b[o] + Σ w[o, c, i, j]·x[c of o's group, · + i, · + j]; no padding; x [C, H, W], w [O, C/group, k, k]."""
    outputs, inputs, k = w.shape[0], w.shape[1], w.shape[2]
    size = x.shape[1] - k + 1
    y = np.zeros((outputs, size, size))
    for o, r, s in itertools.product(range(outputs), range(size), range(size)):
        start = o // (outputs // group) * inputs
        y[o, r, s] = b[o] + (w[o] * x[start : start + inputs, r : r + k, s : s + k]).sum()
    return y


def deconvolve(x: np.ndarray, w: np.ndarray, b: np.ndarray, group: int) -> np.ndarray:
    """Every x[c, r, s] adds w[c]·x to the outputs of c's group; x [C, H, W], w [C, O/group, k, k]."""
    inputs, outputs, k = w.shape[0], w.shape[1], w.shape[2]
    y: np.ndarray = np.zeros((outputs * group, x.shape[1] + k - 1, x.shape[2] + k - 1)) + b[:, None, None]
    for c, r, s in itertools.product(range(inputs), range(x.shape[1]), range(x.shape[2])):
        start = c // (inputs // group) * outputs
        y[start : start + outputs, r : r + k, s : s + k] += w[c] * x[c, r, s]
    return y


def normalize(y: np.ndarray, norm: Norm) -> np.ndarray:
    """γ·(y − μ)/√(σ² + ε) + β with the channels first."""
    scale, shift, mean, variance = (row.reshape(-1, *[1] * (y.ndim - 1)) for row in norm)
    found: np.ndarray = scale * (y - mean) / np.sqrt(variance + EPSILON) + shift
    return found


def random(seed: int, channels: int) -> tuple[np.random.Generator, Norm]:
    generator = np.random.default_rng(seed)
    scale, shift, mean = generator.standard_normal((3, channels))
    return generator, (scale, shift, mean, generator.uniform(0.01, 4, channels))


CASES = [(np.float64, 1e-11), (np.float32, 1e-5)]


@pytest.mark.parametrize("group", [1, 2, 6])
@pytest.mark.parametrize(("dtype", "bound"), CASES)
def test_into_a_convolution(group: int, dtype: Any, bound: float) -> None:
    generator, norm = random(group, 6)
    w, b = generator.standard_normal((6, 6 // group, 3, 3)).astype(dtype), generator.standard_normal(6).astype(dtype)
    x = generator.standard_normal((6, 5, 5))
    new_w, new_b = fold_into(w, b, *affine(*norm, EPSILON), axis=0)
    assert new_w.dtype == new_b.dtype == dtype and new_w.shape == w.shape
    expected = normalize(convolve(x, w.astype(np.float64), b.astype(np.float64), group), norm)
    np.testing.assert_allclose(convolve(x, new_w, new_b, group), expected, rtol=0, atol=bound * np.abs(expected).max())


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize(("dtype", "bound"), CASES)
def test_into_a_transposed_convolution(group: int, dtype: Any, bound: float) -> None:
    generator, norm = random(group, 4 * group)
    w = generator.standard_normal((6, 4, 2, 2)).astype(dtype)
    b, x = generator.standard_normal(4 * group).astype(dtype), generator.standard_normal((6, 3, 3))
    new_w, new_b = fold_into(w, b, *affine(*norm, EPSILON), axis=1, group=group)
    expected = normalize(deconvolve(x, w.astype(np.float64), b.astype(np.float64), group), norm)
    got = deconvolve(x, new_w, new_b, group)
    assert new_w.dtype == dtype
    np.testing.assert_allclose(got, expected, rtol=0, atol=bound * np.abs(expected).max())


@pytest.mark.parametrize("axis", [0, 1])
def test_into_a_matrix(axis: int) -> None:
    generator, norm = random(axis, 5)
    w, b, x = generator.standard_normal((5, 5)), generator.standard_normal(5), generator.standard_normal((5, 7))
    new_w, new_b = fold_into(w, b, *affine(*norm, EPSILON), axis=axis)
    right, new_right = (w, new_w) if axis == 0 else (w.T, new_w.T)
    np.testing.assert_allclose(
        new_right @ x + new_b[:, None], normalize(right @ x + b[:, None], norm), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("group", [1, 2, 6])
def test_onward_into_a_convolution(group: int, with_bias: bool) -> None:
    """The norm stands before the layer, whose input channels it maps."""
    generator, norm = random(10 + group, 6)
    w, x = generator.standard_normal((12, 6 // group, 3, 3)), generator.standard_normal((6, 4, 4))
    b = generator.standard_normal(12)
    new_w, new_b = fold_onward(w, b if with_bias else None, *affine(*norm, EPSILON), axis=1, group=group)
    expected = convolve(normalize(x, norm), w, b if with_bias else 0 * b, group)
    np.testing.assert_allclose(convolve(x, new_w, new_b, group), expected, rtol=0, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize("axis", [0, 1])
def test_onward_into_a_matrix(axis: int) -> None:
    """axis 0: x·w with w [C, O]; axis 1: x·wᵀ with w [O, C]."""
    generator, norm = random(20 + axis, 5)
    w, b = generator.standard_normal((5, 3) if axis == 0 else (3, 5)), generator.standard_normal(3)
    x = generator.standard_normal((7, 5))
    new_w, new_b = fold_onward(w, b, *affine(*norm, EPSILON), axis=axis)
    old, new = (w, new_w) if axis == 0 else (w.T, new_w.T)
    np.testing.assert_allclose(x @ new + new_b, normalize(x.T, norm).T @ old + b, rtol=1e-10, atol=1e-10)


def test_a_vanishing_variance_stays_finite() -> None:
    """ε keeps the gain finite: γ/√ε."""
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    gain, shift = affine(one, zero, one, zero, 1e-5)
    assert gain[0] == pytest.approx(316.2278, rel=1e-6) and shift[0] == pytest.approx(-316.2278, rel=1e-6)
