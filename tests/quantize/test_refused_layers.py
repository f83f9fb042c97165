"""Layers in unusual forms: factors and axes of 1 are taken on; where nothing is left, it is said why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun.errors import Unsupported
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
    "nothing": (FLAT.replace("6", "8") + "{ y = Relu(x) }", X, {}, "no layer of these kinds"),
}  # fmt: skip


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", REFUSED)
def test_the_reason_is_told(name: str, target: str, net: Any) -> None:
    text, x, weights, reason = REFUSED[name]
    with pytest.raises(Unsupported, match="nothing in this model runs on integers") as error:
        compress(net(text, **weights), target=target, calibration={"x": x}, placement="rules")
    assert reason in str(error.value.got)
