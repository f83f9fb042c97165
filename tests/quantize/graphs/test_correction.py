"""Bias correction, seen from outside: what is added to a bias is the mean that rounding takes away."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgerun.model import Model
from edgerun.verbs.compress import compress


def constants(node: ir.Node, index: int) -> np.ndarray:
    """A constant input of `node`: as stored, or scale·(q − z) per channel of its DequantizeLinear."""
    value = node.inputs[index]
    assert value is not None
    pair = value.producer()
    if pair is None:
        return value.const_value.numpy()  # type: ignore[union-attr]
    stored, scale = (v.const_value.numpy().astype(np.float64) for v in pair.inputs[:2])  # type: ignore[union-attr]
    axis = pair.attributes.get_int("axis", 0)
    return np.asarray(stored * scale.reshape([-1 if i == axis else 1 for i in range(stored.ndim)]))


def rounded(x: np.ndarray, model: Model) -> np.ndarray:
    """The input as the model's first pair gives it."""
    pair = next(n for n in model.ir.graph if n.op_type == "QuantizeLinear" and n.inputs[0] is model.ir.graph.inputs[0])
    scale, zero = (v.const_value.numpy() for v in pair.inputs[1:])  # type: ignore[union-attr]
    q = np.clip(np.rint(x / scale) + zero, 0, 255)
    return np.asarray((q - float(zero)) * float(scale))


def coarse(seed: int) -> np.ndarray:
    """A weight whose rounding shifts means: in each column one value of 1 and many that all round down."""
    generator = np.random.default_rng(seed)
    weight = (generator.integers(1, 20, (24, 6)) + 0.45) / 127
    weight[0] = 1.0
    return weight.astype(np.float32)


@pytest.mark.parametrize("kind", ["Gemm", "MatMul", "Conv"])
def test_the_shift_of_one_layer_is_the_mean_of_its_error(net: Any, kind: str) -> None:
    """b' − b = E[W·x] − E[Ŵ·x̂] on the calibration data, less what chance may have made of it: under 1 % here."""
    weight, bias = coarse(0), np.linspace(-1, 1, 6).astype(np.float32)
    x = np.abs(np.random.default_rng(1).standard_normal((16, 24))).astype(np.float32)
    if kind == "Conv":
        model = net("(float[n,24,1,1] x) => (float[n,6,1,1] y) { y = Conv(x, w, b) }",
                    w=np.ascontiguousarray(weight.T.reshape(6, 24, 1, 1)), b=bias)  # fmt: skip
    else:
        door = "(float[n,24] x) => (float[n,6] y)"
        layer = "y = Gemm(x, w, b)" if kind == "Gemm" else "a = MatMul(x, w) y = Add(a, b)"
        model = net(f"{door} {{ {layer} }}", w=weight, b=bias)
    feeds = x.reshape(16, 24, 1, 1) if kind == "Conv" else x
    result = compress(model, target="openvino", calibration={"x": feeds}, ranges="minmax", preset="fast")
    assert result.history[-1].options["bias correction"] is True
    node = next(n for n in result.ir.graph if n.op_type in ("Conv", "Gemm", "MatMul"))
    stored = constants(node, 1)
    stored = stored.reshape(6, 24).T if kind == "Conv" else stored
    # A MatMul and its Add may have become a Gemm: then the bias is its own.
    holder = node if node.op_type != "MatMul" else next(n for n in result.ir.graph if n.op_type == "Add")
    moved = constants(holder, 2 if holder is node else 1).reshape(-1)
    expected = (x @ weight.astype(np.float64) - rounded(x, result) @ stored).mean(axis=0)
    assert np.abs(expected).max() > 0.02, "there is something to correct"
    np.testing.assert_allclose(moved - bias, expected, rtol=0.01, atol=1e-4)
    assert (np.abs(moved - bias) <= np.abs(expected) + 1e-4).all()


def test_weights_on_the_grid_need_no_correction(net: Any, evaluate: Any) -> None:
    """Whole multiples of max/127 and inputs on the input's grid: nothing is lost and no bias moves by 1e-6."""
    generator = np.random.default_rng(2)
    weight = generator.integers(-127, 128, (12, 6)).astype(np.float32)
    weight[0] = 127
    x = generator.integers(0, 256, (40, 12)).astype(np.float32)
    x[0, 0], x[1, 1] = 0, 255
    bias = np.arange(6, dtype=np.float32)
    model = net("(float[n,12] x) => (float[n,6] y) { y = Gemm(x, w, b) }", w=weight, b=bias)
    result = compress(model, calibration={"x": x}, ranges="minmax")
    gemm = next(n for n in result.ir.graph if n.op_type == "Gemm")
    np.testing.assert_allclose(constants(gemm, 2).reshape(-1), bias, rtol=0, atol=1e-6 * np.abs(weight).sum())
    np.testing.assert_allclose(evaluate(result, {"x": x})[0], evaluate(model, {"x": x})[0], rtol=1e-6)


def test_deep_nets_keep_their_means(net: Any, evaluate: Any) -> None:
    """Six layers that each lose a little: with correction the output's mean error is under a tenth of the plain one."""
    text = " ".join(f"h{i} = Gemm({'x' if i == 0 else f'r{i - 1}'}, w{i}, b) r{i} = Relu(h{i})" for i in range(5))
    generator = np.random.default_rng(3)
    parts = {f"w{i}": (coarse(i)[:12, :].repeat(2, axis=1) / 3).astype(np.float32) for i in range(5)}
    model = net(f"(float[n,12] x) => (float[n,6] y) {{ {text} y = Gemm(r4, last, c) }}",
                **parts, b=np.full(12, 0.1, np.float32), last=coarse(9)[:12], c=np.zeros(6, np.float32))  # fmt: skip
    x = np.abs(generator.standard_normal((64, 12))).astype(np.float32)
    result = compress(model, calibration={"x": x[:32]}, ranges="minmax")
    assert result.history[-1].options["bias correction"] is True
    want, got = evaluate(model, {"x": x[:32]})[0], evaluate(result, {"x": x[:32]})[0]
    # The float model with its weights rounded and its biases as they were:
    plain = model.clone()
    for value in plain.graph.initializers.values():
        array = value.const_value.numpy()
        if array.ndim == 2:
            step = np.abs(array).max(axis=0) / 127
            value.const_value = ir.tensor((np.rint(array / step) * step).astype(np.float32))
    lost = np.abs((evaluate(Model.of(plain), {"x": x[:32]})[0] - want).mean(axis=0)).max()
    assert np.abs((got - want).mean(axis=0)).max() < 0.1 * lost
