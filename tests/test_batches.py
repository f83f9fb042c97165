"""Shapes of samples: whether they are all alike, and feeds cut or repeated to fit one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgerun.batches import fitted
from edgerun.data import open_data
from edgerun.runtime import TensorSpec


def test_whether_all_samples_have_one_shape() -> None:
    specs = (TensorSpec("x", "float32", ("n", "t")),)
    for lengths, alike in (((3, 3, 3), True), ((3, 4, 3), False)):
        samples = [{"x": np.zeros((1, length), np.float32)} for length in lengths]
        data = open_data(samples, specs, batch=2)
        next(iter(data))
        assert data.uniform is alike


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 5))
def test_feeds_fitted_to_a_shape(have: int, want: int, place: int) -> None:
    """Pieces of a longer axis follow each other and go round; a shorter axis repeats."""
    got = fitted({"x": np.arange(2 * have).reshape(2, have)}, {"x": (2, want)}, place)["x"]
    for row in range(2):
        assert got[row].tolist() == [row * have + (place * want + i) % have for i in range(want)]
