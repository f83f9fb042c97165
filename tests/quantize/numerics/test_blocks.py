"""Weights in blocks: against ONNX Runtime's MatMulNBits, and against the plain grid over each block's range."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgerun.quantize.numerics.blocks import BlockGrid, fitted, packed


def weights(rows: int, inputs: int, seed: int, heavy: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_t(2, (rows, inputs)) if heavy else rng.standard_normal((rows, inputs))
    return values.astype(np.float32)


def spanning(weight: np.ndarray, block: int, bits: int) -> np.ndarray:
    """Each block rounded on the grid over [min(w, 0), max(w, 0)], one by one."""
    result = np.empty_like(weight)
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], block):
            part = weight[row, start : start + block]
            low, high = min(part.min(), 0.0), max(part.max(), 0.0)
            scale = np.float32((high - low) / (2**bits - 1)) or np.float32(1)
            zero = np.rint(-low / scale)
            codes = np.clip(np.rint(part / scale) + zero, 0, 2**bits - 1)
            result[row, start : start + block] = (codes - zero) * scale
    return result


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 100), st.sampled_from([16, 32]), st.sampled_from([4, 8]), st.integers(0, 10**6)
)
def test_never_further_than_the_whole_range(rows: int, inputs: int, block: int, bits: int, seed: int) -> None:
    weight = weights(rows, inputs, seed, heavy=True)
    grid = fitted(weight, block, bits)
    values = grid.dequantize(grid.quantize(weight))
    assert grid.scale.shape == (rows, -(-inputs // block))
    ours, plain = np.square(weight - values).sum(), np.square(weight - spanning(weight, block, bits)).sum()
    assert ours <= plain * (1 + 1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_importance_moves_the_error(seed: int) -> None:
    weight = weights(8, 32, seed, heavy=True)
    share = np.random.default_rng(seed).exponential(size=32).astype(np.float32) ** 3
    lost = [
        float((share * np.square(weight - grid.dequantize(grid.quantize(weight)))).sum())
        for grid in (fitted(weight, 32, 4, share), fitted(weight, 32, 4))
    ]
    assert lost[0] <= lost[1] * (1 + 1e-5)


def test_zero_stays_zero() -> None:
    weight = np.zeros((2, 40), np.float32)
    weight[1, 3] = 5.0
    grid = fitted(weight, 32, 4)
    values = grid.dequantize(grid.quantize(weight))
    np.testing.assert_allclose(values, weight, rtol=1e-6)


def product(codes: np.ndarray, grid: BlockGrid, x: np.ndarray) -> np.ndarray:
    """x·Ŵᵀ by ONNX Runtime's own kernel."""
    stored, zero_points = packed(codes, grid)
    rows, inputs = codes.shape
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s", "z"], ["y"], domain="com.microsoft",
        K=inputs, N=rows, bits=grid.bits, block_size=grid.block, accuracy_level=1,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, rows])],
        [numpy_helper.from_array(a, n) for n, a in (("w", stored), ("s", grid.scale.reshape(-1)), ("z", zero_points))],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    data = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    session: Any = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": x})[0]
    return found


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "inputs"), [(1, 8), (5, 32), (7, 33), (16, 160), (3, 95)])
def test_onnx_runtime_reads_what_is_packed(bits: int, rows: int, inputs: int) -> None:
    """Odd numbers of blocks and inputs that do not fill the last one; 1e-5 of the largest output."""
    weight = weights(rows, inputs, seed=rows * inputs)
    grid = fitted(weight, 32, bits)
    codes = grid.quantize(weight)
    x = np.random.default_rng(1).standard_normal((6, inputs)).astype(np.float32)
    wanted = x @ grid.dequantize(codes).T
    assert np.abs(product(codes, grid, x) - wanted).max() <= 1e-5 * np.abs(wanted).max()
