"""A running mean against numpy's, and what is left of it when chance is taken off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.quantize.numerics.running import Running


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 12))
def test_mean_and_squares_are_numpys(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    arrays, weights = generator.standard_normal((count, 5)).astype(np.float32), generator.integers(1, 9, count)
    running = Running()
    for array, weight in zip(arrays, weights, strict=True):
        running = running.with_(array, int(weight))
    mean = np.average(arrays, axis=0, weights=weights)
    np.testing.assert_allclose(running.mean, mean, atol=1e-5)
    np.testing.assert_allclose(running.squares, (weights[:, None] * (arrays - mean) ** 2).sum(axis=0), atol=1e-3)
    assert running.weight == weights.sum() and running.count == count


def test_less_is_missed_of_means_that_are_small_beside_their_error() -> None:
    """Half the elements are 0 and half 1, seen through noise: the shrunk mean is nearer; the large ones stay."""
    generator = np.random.default_rng(0)
    truth, running = np.repeat([0.0, 1.0], 500), Running()
    for _ in range(10):
        running = running.with_((truth + generator.standard_normal(1000)).astype(np.float32), 4)
    shrunk, plain = running.shrunk(), np.asarray(running.mean)
    before, after = ((found - truth) ** 2 for found in (plain, shrunk))
    assert before[:500].mean() == pytest.approx(0.1, rel=0.2) and after[:500].mean() < 0.7 * before[:500].mean()
    assert after.mean() < before.mean() and shrunk[500:].mean() > 0.85
    assert np.array_equal(Running().with_(truth.astype(np.float32), 3).shrunk(), truth.astype(np.float32))
