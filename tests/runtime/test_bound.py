"""Runs into arrays that are given: bound where the same come again, and right whatever comes in between."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.errors import EdgerunError
from edgerun.runtime import Session
from tests.runtime.conftest import expected, feeds


@pytest.mark.parametrize("rows", [1, 70_000])
def test_other_arrays_take_the_place_of_bound_ones(session: Session, rows: int) -> None:
    """Outputs below and above what is worth a copy; the same arrays twice, one of them new, all new."""
    places = {batch: np.zeros((batch * rows, 4), np.float32) for batch in (1, 2, 3)}
    arrays = {(batch, value): feeds(value, batch * rows) for batch in (1, 2, 3) for value in (1, 2)}
    for batch, value in ((1, 1), (1, 1), (1, 2), (1, 2), (1, 2), (1, 1), (3, 1), (2, 2), (2, 2), (3, 1)):
        given = arrays[batch, value]
        assert session.run(given, {"y": places[batch]})["y"] is places[batch]
        np.testing.assert_allclose(places[batch], expected(given), rtol=1e-6)


def test_a_feed_of_another_shape_in_the_same_array(session: Session) -> None:
    given, place = {**feeds(3, 2)}, np.zeros((2, 4), np.float32)
    for _ in range(3):
        session.run(given, {"y": place})
    given["x"].resize((3, 2), refcheck=False)
    with pytest.raises(EdgerunError, match="shape"):
        session.run(given, {"y": place})
