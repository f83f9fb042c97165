"""Shapes of samples: whether they are all alike, and feeds cut or repeated to fit one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.batches import cuttable, fitted
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


@pytest.mark.parametrize(("dtype", "shape", "values", "cut", "whole"), [
    ("int32", ("b",), [10], 4, False),  # a length behind what is left of the steps
    ("int32", ("b",), [4], 4, False),  # an index would be
    ("int32", ("b",), [3], 4, True),
    ("int32", ("b",), [-4], 4, False),
    ("int32", ("b",), [10], 12, True),  # steps are repeated, none is lost
    ("float32", ("b",), [10], 4, True),
    ("int64", ("b", "t"), [[30_000] * 10], 4, True),  # an element a step, as a token
    ("int64", ("b", "s"), [[9, 0]], 4, False),  # places in the steps, a dimension of their own
])  # fmt: skip
def test_what_points_into_a_dimension_is_not_cut(
    dtype: str, shape: tuple[str, ...], values: list[int], cut: int, whole: bool
) -> None:
    inputs = TensorSpec("x", "float32", ("b", "t")), TensorSpec("n", dtype, shape)
    feeds = {"x": np.zeros((1, 10), np.float32), "n": np.array(values, dtype)}
    sizes = {"b": 1, "t": cut, "s": 2}
    assert cuttable(feeds, {spec.name: spec.with_dims(sizes) for spec in inputs}, inputs) is whole


@pytest.mark.parametrize(("inputs", "outputs", "batch"), [
    ([("n", 3)], [("n", 2)], 4),
    ([(8, 3)], [(8, 2)], 8),
    ([(8, 3)], [("m", 2)], 8),
    ([(8, 3)], [], 8),
    ([(1, 3)], [(5,)], 1),
    ([(3, 8, 8)], [(10,)], None),  # channels
    ([(64,)], [(10,)], None),  # features
    ([(64,)], [], None),
    ([(8, 3)], [(8, 2), ()], None),
    ([(2, 3), (4, 3)], [(2, 3)], None),
    ([("t", 40)], [(1, 10)], None),  # frames
    ([("t",)], [(10,), (1, 4)], None),
    ([("t", "n", 40)], [("n", 10)], None),
    ([("L",)], [("L", 10)], None),  # tokens, by name
    ([("seq_len", 8)], [("seq_len", 10)], None),
    ([("T", "n", 8)], [("T", "n", 4)], None),
    ([("batch_times_steps", 8)], [("batch_times_steps", 4)], 4),
    ([("n", 3)], [("m", 2)], 4),  # a name of its own says nothing
    ([("n", 3)], [("n", 2), (5, 4)], 4),
    ([("n", 7, 3)], [(1, "n", 6)], 4),  # a state
    ([("n", 3)], [()], 4),
])  # fmt: skip
def test_a_first_axis_is_a_batch_where_outputs_begin_with_it(
    inputs: list[tuple[int | str, ...]], outputs: list[tuple[int | str, ...]], batch: int | None
) -> None:
    """And else a feed is one sample: an array of the input's own shape, or a row of one with an axis more."""
    doors = [[TensorSpec(f"x{i}", "float32", shape) for i, shape in enumerate(shapes)] for shapes in (inputs, outputs)]
    rows = {s.name: np.random.default_rng(0).random((12, *s.with_dims({"n": 1})), np.float32) for s in doors[0]}
    if batch is not None:
        rows = {name: array.reshape(-1, *array.shape[2:]) for name, array in rows.items()}
    data = open_data(rows, doors[0], batch=4, outputs=doors[1])
    assert data.batch == batch
    for name, array in rows.items():
        served = [feeds[name] for feeds in data]
        np.testing.assert_array_equal(np.stack(served) if batch is None else np.concatenate(served), array)
