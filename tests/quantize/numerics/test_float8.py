"""E4M3 against ml_dtypes, bit for bit, and against ONNX's reference for what lies beyond its end."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edgerun.quantize.numerics import float8

E4M3 = ml_dtypes.float8_e4m3fn
CODES = np.arange(256, dtype=np.uint8)
NUMBERS = CODES[CODES & 127 != 127]


def test_every_code_is_the_number_that_ml_dtypes_says() -> None:
    np.testing.assert_array_equal(float8.decoded(CODES), CODES.view(E4M3).astype(np.float32))
    np.testing.assert_array_equal(float8.encoded(float8.decoded(NUMBERS)), NUMBERS)


def test_ties_go_to_even() -> None:
    positive = float8.decoded(np.arange(0x7F, dtype=np.uint8))
    middles = (positive[1:] + positive[:-1]) / 2
    codes = float8.encoded(middles)
    assert not (codes & 1).any()
    np.testing.assert_array_equal(codes, middles.astype(E4M3).view(np.uint8))


@given(st.lists(st.floats(-448, 448, width=32), min_size=1, max_size=64))
def test_the_nearest_number(values: list[float]) -> None:
    array = np.array(values, np.float32)
    np.testing.assert_array_equal(float8.encoded(array), array.astype(E4M3).view(np.uint8))


@settings(deadline=None)  # the evaluator is imported and built in it
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=64))
def test_onnx_rounds_and_saturates_the_same_way(values: list[float]) -> None:
    array = np.array(values, np.float32)
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT8E4M3FN, saturate=1)
    door = [helper.make_tensor_value_info(n, t, ["n"]) for n, t in (("x", 1), ("y", TensorProto.FLOAT8E4M3FN))]
    graph = helper.make_graph([node], "cast", door[:1], door[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": array})
    np.testing.assert_array_equal(
        float8.decoded(float8.encoded(array)), np.asarray(wanted).view(E4M3).astype(np.float32)
    )


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_grid_spans_its_bound_and_loses_a_sixteenth_at_most(axis: int | None) -> None:
    """Of numbers down to 2⁻⁶ of a scale the error is 1/16 of each at most: half a step of 2⁻³."""
    values = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    bound = np.abs(values).max(axis=None if axis is None else 1 - axis)
    grid = float8.spanning(bound, axis)
    back = grid.dequantize(grid.quantize(values))
    assert grid.quantize(values).dtype == E4M3 == grid.zero_point.dtype
    large = np.abs(values) > 2.0**-6 * grid.scale.max()
    assert (np.abs(back - values)[large] <= np.abs(values)[large] / 16 * (1 + 1e-6)).all()
    np.testing.assert_allclose(np.abs(back).max(axis=None if axis is None else 1 - axis), bound, rtol=1e-6)


def test_a_tensor_of_zeros_has_scale_one() -> None:
    assert float8.spanning(0.0).scale == 1 and not float8.spanning(np.zeros(3), 0).quantize(np.zeros((3, 2))).any()
