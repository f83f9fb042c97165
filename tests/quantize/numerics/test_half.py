"""float16 as storage: what it takes, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.quantize.numerics.half import halved


@given(st.integers(0, 2**32 - 1), st.floats(-3, 3))
def test_usual_weights_keep_eleven_bits(seed: int, size: float) -> None:
    weight = (np.random.default_rng(seed).standard_normal(200) * 10**size).astype(np.float32)
    stored = halved(weight)
    assert stored is not None and stored.dtype == np.float16
    # Half a step is 2⁻¹¹ of the value, and below 2⁻¹⁴ it is 2⁻²⁵.
    assert (np.abs(weight - stored.astype(np.float64)) <= np.maximum(np.abs(weight) * 2.0**-11, 2.0**-25)).all()


@pytest.mark.parametrize("bad", [65536.0, -70000.0, np.inf, np.nan])
def test_overflow_is_refused(bad: float) -> None:
    assert halved(np.array([1.0, bad], np.float32)) is None


def test_the_largest_value_is_taken() -> None:
    stored = halved(np.array([65504.0, -65504.0], np.float32))
    assert stored is not None and np.isfinite(stored).all()


def test_underflow_is_refused_only_where_it_costs() -> None:
    """Weights around 1e-7 keep two bits at best; the same ones beside a weight of 1 are no loss."""
    small = (np.random.default_rng(0).standard_normal(100) * 1e-7).astype(np.float32)
    assert halved(small) is None
    assert halved(np.append(small, np.float32(1))) is not None
    assert halved(np.zeros(4, np.float32)) is not None
