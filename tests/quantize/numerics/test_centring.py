"""Centring against an optimizer that knows nothing of least squares, and its promises on any ranges."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize  # type: ignore[import-untyped]

from edgerun.quantize.numerics import centring

CHAIN = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]])  # a, b, a + b, c, (a + b) + c


def ranges(seed: int, values: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    middle, half = generator.normal(0, 3, (values, channels)), generator.uniform(0, 2, (values, channels))
    return middle - half, middle + half


def width(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Σ_v max(|l|, |h|)² of each channel, `[C]`."""
    return np.array(
        [sum(max(abs(a), abs(b)) ** 2 for a, b in zip(*ends, strict=True)) for ends in zip(low.T, high.T, strict=True)]
    )


def test_one_tensor_moves_to_its_middle() -> None:
    low, high = np.array([[-1.0, 4.0, 0.0, -2.0]]), np.array([[5.0, 6.0, 0.0, 2.0]])
    np.testing.assert_allclose(centring.offsets(low, high, np.ones((1, 1))), [[2, 5, 0, 0]], atol=1e-12)


def test_a_chain_of_sums_is_the_optimizers() -> None:
    """Each channel's middles, by a gradient-free search; a channel that it does not narrow stays."""
    low, high = ranges(1, 5, 6)
    found = centring.offsets(low, high, CHAIN)
    for channel in range(6):
        middle = (low + high)[:, channel] / 2

        def miss(p: np.ndarray, middle: np.ndarray = middle) -> float:
            return float(((CHAIN @ p - middle) ** 2).sum())

        best = minimize(
            miss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000}
        )
        moved = CHAIN @ best.x
        pays = width((low[:, channel] - moved)[:, None], (high[:, channel] - moved)[:, None])
        wanted = best.x if pays < width(low, high)[channel] else np.zeros(3)
        np.testing.assert_allclose(found[:, channel], wanted, atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_no_channel_gets_wider(seed: int, channels: int) -> None:
    low, high = ranges(seed, 5, channels)
    moved = CHAIN @ centring.offsets(low, high, CHAIN)
    assert (width(low - moved, high - moved) <= width(low, high) * (1 + 1e-12)).all()


def test_what_was_not_seen_does_not_matter() -> None:
    """Two writers of which only the sum was seen share its offset evenly: the smallest solution."""
    found = centring.offsets(np.array([[2.0]]), np.array([[6.0]]), np.ones((1, 2)))
    np.testing.assert_allclose(found, [[2.0], [2.0]], atol=1e-12)


Reader = tuple[np.ndarray, np.ndarray, np.ndarray]


def _chain(seed: int, channels: int = 12) -> tuple[np.ndarray, list[np.ndarray], list[Reader]]:
    """Offsets of two layers, one read alone and one as the sum of both, and what the biases differ by, all exact."""
    generator = np.random.default_rng(seed)
    moved = generator.normal(0, 2, (2, channels))
    matrices = generator.normal(0, 0.3, (2, 5 * channels, channels))
    sums: np.ndarray = np.array([[1.0, 0.0], [1.0, 1.0]])
    readers: list[Reader] = [(m @ (row @ moved), m, row) for m, row in zip(matrices, sums, strict=True)]
    return moved, [-p for p in moved], readers


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(0, 3))
def test_what_a_chain_was_moved_by_is_found_again_though_a_layer_is_wrong(seed: int, wrong: int) -> None:
    """Corrections of 1 % everywhere, and one layer's biases off by more than the offsets are: 5 % of the offsets."""
    moved, writers, readers = _chain(seed)
    generator = np.random.default_rng(seed + 1)
    writers = [d + generator.normal(0, 0.02, d.shape) for d in writers]
    readers = [(d + generator.normal(0, 0.02, d.shape), m, row) for d, m, row in readers]
    if wrong < 2:
        writers[wrong] = writers[wrong] + generator.normal(0, 3, writers[wrong].shape)
    else:
        d, m, row = readers[wrong - 2]
        readers[wrong - 2] = d + generator.normal(0, 3, d.shape), m, row
    found = centring.recovered(writers, readers)
    assert np.abs(found - moved).max() < 0.05 * np.abs(moved).max()


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_a_chain_that_was_not_moved_stays(seed: int) -> None:
    """One layer's biases are shifted and all others corrected a little: nobody moved channels."""
    moved, _, exact = _chain(seed)
    generator = np.random.default_rng(seed + 1)
    writers = [
        generator.normal(0, 0.02, p.shape) + (i == 0) * generator.normal(0, 2, p.shape) for i, p in enumerate(moved)
    ]
    readers = [(generator.normal(0, 0.02, d.shape), m, row) for d, m, row in exact]
    assert not centring.recovered(writers, readers).any()
