"""Layers in unusual forms: factors and axes of 1 are taken on; where nothing is left, it is said why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun.errors import EdgerunError, Unsupported
from edgerun.metrics import sqnr_db
from edgerun.quantize import fold
from edgerun.verbs.compress import compress

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((64, 8)).astype(np.float32)
ROWS, PLANES = X.reshape(16, 4, 8), GENERATOR.standard_normal((16, 8, 4, 4)).astype(np.float32)
W, B = GENERATOR.standard_normal((8, 6)).astype(np.float32), GENERATOR.standard_normal(6).astype(np.float32)
FLAT, DEEP = "(float[n,8] x) => (float[n,6] y)", "(float[n,4,8] x) => (float[n,4,6] y)"

PLAIN: dict[str, tuple[str, np.ndarray, dict[str, np.ndarray], np.ndarray]] = {
    "alpha": (FLAT + "{ y = Gemm<alpha = 0.3>(x, w) }", X, {"w": W}, 0.3 * (X @ W)),
    "beta": (FLAT + "{ y = Gemm<beta = -2.0>(x, w, b) }", X, {"w": W, "b": B}, X @ W - 2 * B),
    "both, turned": (
        FLAT + "{ y = Gemm<alpha = 3.0, beta = 0.5, transB = 1>(x, w, b) }", X, {"w": W.T.copy(), "b": B},
        3 * (X @ W) + B / 2,
    ),
    "alpha of a weight that two read": (
        FLAT + "{ p = Gemm<alpha = 0.3>(x, w) q = Gemm(x, w) y = Add(p, q) }", X, {"w": W}, 1.3 * (X @ W),
    ),
    "an axis of 1": (DEEP + "{ y = MatMul(x, w) }", ROWS, {"w": W[None]}, ROWS @ W),
}  # fmt: skip


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", PLAIN)
def test_factors_and_axes_of_one_are_quantized(name: str, target: str, net: Any, evaluate: Any) -> None:
    text, x, weights, wanted = PLAIN[name]
    model = net(text, **weights)
    folded = type(model).of(fold.apply(model.clone()))
    np.testing.assert_allclose(evaluate(folded, {"x": x})[0], wanted, rtol=1e-5, atol=1e-5)
    small = compress(model, target=target, calibration={"x": x}, placement="rules")
    assert small.history[-1].options["integer nodes"] >= 1
    with edgerun.load(edgerun.compile(small, target)) as session:
        assert sqnr_db(wanted, session.run({"x": x})["y"]) > 30


REFUSED: dict[str, tuple[str, np.ndarray, dict[str, np.ndarray], str]] = {
    "transA": (
        "(float[8,8] x) => (float[8,6] y) { a = Gemm<transA = 1>(x, w) y = Relu(a) }", X, {"w": W},
        "1 Gemm: transA is 1 (a)",
    ),
    "left": (
        "(float[n,8,4] x) => (float[n,6,4] y) { a = MatMul(v, x) y = MatMul(u, a) }", X.reshape(16, 8, 4),
        {"v": W.T.copy(), "u": W[:6]}, "2 MatMul: the constant is on the left (a, …)",
    ),
    "deep": (
        "(float[n,2,4,8] x) => (float[n,2,4,6] y) { y = MatMul(x, w) }", ROWS[:, None].repeat(2, 1),
        {"w": np.stack([W, W])}, "1 MatMul: the constant has 3 axes (y)",
    ),
    "computed": (
        "(float[n,8,4,4] x) => (float[n,6,4,4] y) { m = ReduceMean<keepdims = 0>(x) k = Mul(v, m) y = Conv(x, k) }",
        PLANES, {"v": W.T.reshape(6, 8, 1, 1).copy()}, "1 Conv: the weight is computed (y)",
    ),
    "a bias of several rows": (
        "(float[4,8] x) => (float[4,6] y) { y = Gemm(x, w, b) }", X, {"w": W, "b": W[:4]},
        "1 Gemm: the bias is computed, or more than a row (y)",
    ),
    "a branch": (
        FLAT + """ { m = ReduceMax<keepdims = 0>(x) c = IsInf(m) y = If(c) <then_branch = t () => (float[n,6] p) {
            p = MatMul(x, w) }, else_branch = e () => (float[n,6] q) { q = MatMul(x, u) }> }""",
        X, {"w": W, "u": 2 * W}, "2 MatMul: in a branch or a loop",
    ),
    "nothing": (FLAT.replace("6", "8") + "{ y = Relu(x) }", X, {}, "no layer of these kinds"),
}  # fmt: skip


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", REFUSED)
def test_the_reason_is_told(name: str, target: str, net: Any) -> None:
    text, x, weights, reason = REFUSED[name]
    with pytest.raises(Unsupported, match="nothing in this model runs on integers") as error:
        compress(net(text, **weights), target=target, calibration={"x": x}, placement="rules")
    assert reason in str(error.value.got)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_computed_weight_leaves_the_other_layers(target: str, net: Any, evaluate: Any) -> None:
    text = """(float[n,8,4,4] x) => (float[n,6,4,4] y) {
        m = ReduceMax<keepdims = 0>(x) k = Mul(v, m) a = Conv(x, k) r = Relu(a) y = Conv(r, u) }"""
    kernels: dict[str, np.ndarray] = {"v": GENERATOR.standard_normal((8, 8, 1, 1)), "u": W.T.reshape(6, 8, 1, 1)}
    model = net(text, **{name: array.astype(np.float32) for name, array in kernels.items()})
    small = compress(model, target=target, calibration={"x": PLANES}, placement="rules")
    assert small.history[-1].options["integer nodes"] == 1
    assert sqnr_db(evaluate(model, {"x": PLANES[:4]})[0], evaluate(small, {"x": PLANES[:4]})[0]) > 30


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_what_is_empty_for_some_samples_is_told_as_that(target: str, net: Any, evaluate: Any) -> None:
    """Of rows that nothing is selected from, there are no extremes; what reads them may stay in float."""
    text = """(float[n,8] x) => (float[1,6] y, float[n,8] h) {
        h = Gemm(x, v) m = ReduceMax<axes = [1], keepdims = 0>(h) k = Greater(m, high)
        q = Compress<axis = 0>(h, k) s = MatMul(q, w) y = ReduceSum(s, rows) }"""
    square = GENERATOR.standard_normal((8, 8)).astype(np.float32)
    told = {"v": square, "w": W, "high": np.float32(5), "rows": np.array([0])}
    model = net(text, **{name: np.asarray(array) for name, array in told.items()})
    with pytest.raises(EdgerunError, match="activation 'q' is empty for some of the calibration data") as error:
        compress(model, target=target, calibration={"x": X}, placement="rules")
    assert "--keep-float the nodes that read it" in str(error.value)
    small = compress(model, target=target, calibration={"x": X}, placement="rules", keep_float=["s"])
    assert sqnr_db(evaluate(model, {"x": X})[1], evaluate(small, {"x": X})[1]) > 30
