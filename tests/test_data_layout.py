"""An array in the other layout is refused for its shape, and told which transpose makes it one that is taken."""

from __future__ import annotations

import re

import numpy as np
import pytest

from edgerun.data import open_data
from edgerun.errors import EdgerunError
from edgerun.runtime import TensorSpec


@pytest.mark.parametrize(
    ("have", "door", "told"),
    [
        ((1, 3, 32, 32), ("batch", 32, 32, 3), r"looks NCHW: array.transpose\(0, 2, 3, 1\)"),
        ((3, 32, 32), ("batch", 32, 32, 3), r"looks CHW: array.transpose\(1, 2, 0\)"),
        ((2, 32, 48, 3), ("batch", 3, 32, 48), r"looks NHWC: array.transpose\(0, 3, 1, 2\)"),
        ((32, 48, 3), ("batch", 3, "h", "w"), r"looks HWC: array.transpose\(2, 0, 1\)"),
        ((2, 3, 4, 5, 6), ("batch", 4, 5, 6, 3), r"looks channels first: array.transpose\(0, 2, 3, 4, 1\)"),
        ((2, 3, 30, 32), ("batch", 32, 32, 3), None),
        ((2, 32, 3), ("batch", 32, 32, 3), None),
    ],
)
def test_the_other_layout_is_named(have: tuple[int, ...], door: tuple[int | str, ...], told: str | None) -> None:
    """And what is told makes an array that is taken."""
    spec, array = TensorSpec("x", "float32", door), np.ones(have, np.float32)
    with pytest.raises(EdgerunError, match="wrong shape") as refused:
        list(open_data([array], (spec,)))
    if told is None:
        assert refused.value.do is None
        return
    assert re.search(told, str(refused.value.do))
    order = [int(axis) for axis in str(refused.value.do).rpartition("(")[2].rstrip(")").split(",")]
    assert len(list(open_data([array.transpose(order)], (spec,)))) == 1
