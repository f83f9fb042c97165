"""A grid of their own is found in numbers that lie on one, and in no others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.quantize.numerics import lattice

COUNT = 4000


@given(
    step=st.floats(1e-4, 10.0),
    start=st.floats(-400.0, 400.0),
    top=st.integers(150, 255),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_grid_of_pixels_is_found(step: float, start: float, top: int, seed: int) -> None:
    """Steps within 1e-5, ends within a hundredth of a step, whatever factor and shift float32 pixels went through."""
    pixels = np.random.default_rng(seed).integers(0, top + 1, COUNT)
    pixels[:2] = 0, top
    values = (step * (pixels + start)).astype(np.float32)
    found = lattice.found(values)
    assert found is not None
    assert found[0] == pytest.approx(step, rel=1e-5) and abs(found[1] - step * start) < 0.01 * step


@given(seed=st.integers(0, 2**32 - 1))
def test_other_numbers_have_none(seed: int) -> None:
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, COUNT).astype(np.float32)
    others = {
        "floats": draw.standard_normal(COUNT), "pixels moved by a tenth": pixels + draw.uniform(-0.1, 0.1, COUNT),
        "two pixels' mean": pixels / 2 + draw.permutation(pixels) / 2, "squares": pixels**2,
        "even floats": np.linspace(-1, 1, COUNT),
        "few values": pixels % 16, "one": np.zeros(COUNT), "not a number": np.where(pixels == 3, np.nan, pixels),
    }  # fmt: skip
    for kind, values in others.items():
        assert lattice.found(np.asarray(values, np.float32)) is None, kind
