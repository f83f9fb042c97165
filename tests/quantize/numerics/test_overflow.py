"""Which pairs can leave 16 bits, by trying all extremes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgerun.quantize.numerics import saturation

WEIGHTS = hnp.arrays(np.int8, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=st.integers(-128, 127))


@given(WEIGHTS)
def test_exactly_the_pairs_that_can(weight: np.ndarray) -> None:
    pairs, rows = saturation.pairs_at_risk(weight, 1 << 20)
    wanted = set()
    for row, values in enumerate(weight.astype(int)):
        for first in range(0, len(values), 2):
            a, b = values[first], values[first + 1] if first + 1 < len(values) else 0
            sums = [x * a + y * b for x in (0, 255) for y in (0, 255)]
            if max(sums) > 32767 or min(sums) < -32768:
                wanted.add((row, first))
    found = {(int(row), int(np.flatnonzero(pair)[0]) // 2 * 2) for pair, row in zip(pairs, rows, strict=True)}
    assert found == wanted and len(rows) == len(wanted)
    for pair, row in zip(pairs, rows, strict=True):
        used = np.flatnonzero(pair)
        assert (pair[used] == weight[row, used]).all() and len(used) <= 2


def test_the_worst_come_first() -> None:
    weight = np.array([[127, 127, 100, 40, -128, -128]], np.int8)
    pairs, rows = saturation.pairs_at_risk(weight, 1)
    assert pairs.tolist() == [[0, 0, 0, 0, -128, -128]] and rows.tolist() == [0]
