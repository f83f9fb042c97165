"""Tensor specs: text in, text out, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.errors import EdgerunError
from edgerun.runtime import TensorSpec
from edgerun.runtime.spec import DTYPES

WORDS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_./]{0,8}", fullmatch=True)
SPECS = st.builds(
    TensorSpec,
    WORDS,
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 999) | WORDS, max_size=5).map(tuple),
)


@given(SPECS)
def test_text_and_back(spec: TensorSpec) -> None:
    assert TensorSpec.parse(str(spec)) == spec


@pytest.mark.parametrize("text", ["", "x", "x:float32", "x:float33[1]", "x:float32[1", "[[1]]"])
def test_bad_text(text: str) -> None:
    with pytest.raises(EdgerunError, match="not understood"):
        TensorSpec.parse(text)


def test_defaults() -> None:
    assert TensorSpec.parse("[batch, 3]") == TensorSpec("", "float32", ("batch", 3))
    assert TensorSpec("x", "float32", ("batch", 3)).with_dims({"batch": 7}) == (7, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3)), "dtype"),
        (np.zeros((2, 3), ">f4"), "foreign byte order"),
        (np.zeros((2, 4), np.float32), "shape"),
        (np.zeros(3, np.float32), "shape"),
    ],
)
def test_check_refuses(array: np.ndarray, message: str) -> None:
    with pytest.raises(EdgerunError, match=message):
        TensorSpec("x", "float32", ("batch", 3)).check(array)
