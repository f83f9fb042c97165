"""The integer grid against ONNX Runtime's own QuantizeLinear and DequantizeLinear, bit for bit."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from edgerun.quantize.numerics.grid import (
    BOUNDS,
    Grid,
    asymmetric,
    centred,
    channel_bounds,
    quantize_bias,
    symmetric,
    widen,
)

DTYPES = st.sampled_from(["uint8", "int8"])
VALUES = st.floats(width=32, allow_nan=False, allow_infinity=False)


def reals(limit: float, low: float | None = None) -> st.SearchStrategy[float]:
    """float32 numbers from `low` (−limit when None) to `limit`."""
    start = -limit if low is None else low
    return st.floats(float(np.float32(start)), float(np.float32(limit)), width=32)


ROWS = hnp.arrays(np.float32, st.tuples(st.just(3), st.integers(1, 40)), elements=VALUES)
SCALES = reals(1e30, 1e-30)
PLAIN = settings(max_examples=150, deadline=None)


@functools.cache
def kernel(op: str, dtype: str, axis: int) -> Any:
    """A session of one Q or DQ node whose scale and zero point are inputs too."""
    stored, real = TensorProto.DataType.Value(dtype.upper()), TensorProto.FLOAT
    source, result = (real, stored) if op == "QuantizeLinear" else (stored, real)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "s", "z"], ["y"], axis=axis)],
        "one",
        [helper.make_tensor_value_info(*spec, None) for spec in (("x", source), ("s", real), ("z", stored))],
        [helper.make_tensor_value_info("y", result, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def by_runtime(op: str, grid: Grid, array: np.ndarray) -> np.ndarray:
    session = kernel(op, grid.zero_point.dtype.name, 1 if grid.axis is None else grid.axis)
    found: np.ndarray = session.run(None, {"x": array, "s": grid.scale, "z": grid.zero_point})[0]
    return found


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@PLAIN
@given(ROWS, DTYPES, SCALES, st.data())
def test_per_tensor_is_the_runtimes_kernel(rows: np.ndarray, dtype: str, scale: float, data: st.DataObject) -> None:
    zero = data.draw(st.integers(*BOUNDS[dtype]))
    grid = Grid(np.asarray(scale, np.float32), np.asarray(zero, dtype))
    # Beyond what int32 holds, the runtime's vector code has its own answer: that is no value a grid is made for.
    rows = np.clip(rows, -(2**30) * np.float64(grid.scale), 2**30 * np.float64(grid.scale)).astype(np.float32)
    stored = grid.quantize(rows)
    np.testing.assert_array_equal(stored, by_runtime("QuantizeLinear", grid, rows), strict=True)
    real = grid.dequantize(stored)
    np.testing.assert_array_equal(real, by_runtime("DequantizeLinear", grid, stored), strict=True)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@PLAIN
@given(ROWS, DTYPES, st.integers(0, 1), st.integers(0, 2**32 - 1))
def test_per_channel_is_the_runtimes_kernel(rows: np.ndarray, dtype: str, axis: int, seed: int) -> None:
    generator, channels = np.random.default_rng(seed), rows.shape[axis]
    scale = np.exp(generator.uniform(-20, 20, channels)).astype(np.float32)
    low, high = BOUNDS[dtype]
    grid = Grid(scale, generator.integers(low, high + 1, channels).astype(dtype), axis)
    limit = 2.0**30 * np.expand_dims(scale.astype(np.float64), 1 - axis)
    rows = np.clip(rows, -limit, limit).astype(np.float32)
    stored = grid.quantize(rows)
    np.testing.assert_array_equal(stored, by_runtime("QuantizeLinear", grid, rows), strict=True)
    real = grid.dequantize(stored)
    np.testing.assert_array_equal(real, by_runtime("DequantizeLinear", grid, stored), strict=True)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_halves_go_to_the_even_code(dtype: str) -> None:
    """Every half of the whole range, at a scale where each is exact."""
    grid = Grid(np.asarray(0.5, np.float32), np.asarray(3, dtype))
    halves = (np.arange(-300, 300) * 0.25).astype(np.float32)[None]
    expected = np.clip([round(h / 0.5) + 3 for h in halves[0].tolist()], *BOUNDS[dtype])
    np.testing.assert_array_equal(grid.quantize(halves)[0], expected)
    np.testing.assert_array_equal(grid.quantize(halves), by_runtime("QuantizeLinear", grid, halves))


def test_extremes_denormals_and_infinity() -> None:
    grid = asymmetric(-1.0, 3.0)
    tiny, big = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    odd = np.array([[0.0, -0.0, tiny, -tiny, big, -big, np.inf, -np.inf]], np.float32)
    zero = int(grid.zero_point)
    with np.errstate(over="ignore"):
        assert grid.quantize(odd)[0].tolist() == [zero] * 4 + [255, 0, 255, 0]


@PLAIN
@given(VALUES, VALUES, DTYPES)
@example(0.0, 0.0, "uint8")
@example(0.0, 0.0, "int8")
@example(float(np.finfo(np.float32).min), float(np.finfo(np.float32).max), "uint8")
@example(0.0, 1e-45, "int8")
@example(2.0, 6.0, "uint8")
def test_asymmetric_spans_the_interval_with_zero_on_it(low: float, high: float, dtype: str) -> None:
    """Both ends are within half a step of the interval's; zero comes back as zero."""
    low, high = min(low, high), max(low, high)
    grid = asymmetric(low, high, dtype)
    step = float(grid.scale)
    assert step > 0 and np.isfinite(step) and grid.zero_point.dtype == dtype and grid.axis is None
    assert grid.dequantize(grid.quantize(np.zeros(1, np.float32)))[0] == 0
    if max(high, 0) - min(low, 0) > 1e-35:
        first, last = ((code - float(grid.zero_point)) * step for code in BOUNDS[dtype])
        assert abs(first - min(low, 0)) <= step * 0.5001
        assert abs(last - max(high, 0)) <= step * 0.5001


@PLAIN
@given(hnp.arrays(np.float32, (3, 4, 2), elements=reals(1e37)), st.sampled_from([0, 1, 2, None]))
def test_symmetric_bounds_every_channel(weight: np.ndarray, axis: int | None) -> None:
    """Bounds by a plain loop; no code is -128, and the error is at most half a step."""
    bounds = channel_bounds(weight, axis)
    parts = [weight] if axis is None else list(np.moveaxis(weight, axis, 0))
    expected = [max(abs(float(v)) for v in part.reshape(-1)) for part in parts]
    assert bounds.reshape(-1).tolist() == expected and bounds.shape == (() if axis is None else (len(parts),))
    grid = symmetric(bounds, axis=axis)
    stored = grid.quantize(weight)
    assert stored.dtype == np.int8 and stored.min() >= -127
    assert not grid.zero_point.any() and grid.scale.shape == grid.zero_point.shape == bounds.shape
    error = np.abs(grid.dequantize(stored).astype(np.float64) - weight)
    steps = grid.scale if axis is None else np.expand_dims(grid.scale, [i for i in range(3) if i != axis])
    # Channels without a normal float32 scale become zero: that is within 127 × the smallest normal number.
    assert (error <= np.maximum(0.5001 * steps.astype(np.float64), 2e-36)).all()


@PLAIN
@given(
    hnp.arrays(np.float32, 5, elements=reals(1e20)),
    hnp.arrays(np.float32, 5, elements=reals(1e4, 0.0)),
    reals(1e4, 1e-6),
    st.booleans(),
)
def test_bias_fits_int32_after_widening(bias: np.ndarray, bounds: np.ndarray, scale: float, whole: bool) -> None:
    """Never saturated, and scale·q is within half a step of the bias; no weight scale ever falls."""
    narrow = symmetric(np.asarray(bounds.max()) if whole else bounds, axis=None if whole else 0)
    input_scale = np.asarray(scale, np.float32)
    wide = widen(narrow, bias, input_scale)
    assert (wide.scale >= narrow.scale).all() and wide.scale.dtype == np.float32
    stored, steps = quantize_bias(bias, input_scale, wide)
    assert stored.dtype == np.int32 and steps.dtype == np.float32
    assert np.abs(stored.astype(np.int64)).max() <= 2**30 + 2**8
    error = np.abs(stored.astype(np.float64) * steps.astype(np.float64) - bias.astype(np.float64))
    assert (error <= 0.5000001 * steps.astype(np.float64)).all()


def test_bias_scale_is_the_product_of_both() -> None:
    """s_b = s_x·s_w in float32, as the integer kernels compute it."""
    grid = symmetric(np.array([1.27, 12.7], np.float32), axis=0)
    stored, scale = quantize_bias(np.array([1.0, -1.0], np.float32), np.asarray(0.1, np.float32), grid)
    np.testing.assert_array_equal(scale, np.float32(0.1) * grid.scale)
    assert stored.tolist() == [1000, -100]


@PLAIN
@given(reals(1e30), reals(1e30))
def test_a_centred_interval_has_its_zero_in_the_middle(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    grid, bound = asymmetric(*centred(low, high)), max(-low, high, 0.0)
    if bound > 1e-30:
        assert int(grid.zero_point) == 128
        assert float(grid.scale) == pytest.approx(bound / 127, rel=1e-6)
