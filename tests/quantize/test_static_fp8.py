"""FP8 models: their numbers by our own rounding and by ONNX's reference, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from edgerun import quantize, registry
from edgerun.data import open_data
from edgerun.errors import Unsupported
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.passes import Quantization, Request
from edgerun.quantize.numerics import float8
from edgerun.quantize.static_fp8 import HEADROOM
from edgerun.runtime import Options
from edgerun.verbs.making import opened

RULES = Quantization(
    schemes=("fp8",), activation="int8", symmetric=True, float_bias=True, compute=frozenset({"Conv", "Gemm"}),
    float_output=frozenset({"Conv", "Gemm"}), absorbed=frozenset({"Relu", "Clip"}), join=frozenset({"Add"}),
    fused_sum=True,
)  # fmt: skip
CONV = """(float[n,8,8,8] x) => (float[n,8,8,8] y) {
    a = Conv(x, w, b) r = Relu(a) c = Conv(r, w, b) s = Add(r, c) t = Relu(s) y = Conv(t, w) }"""


def built(text: str, opset: int = 19, **arrays: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> net {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in arrays.items())
    for node in proto.graph.node:
        node.name = node.output[0]
    return Model.from_proto(proto)


def made(model: Model, feeds: dict[str, np.ndarray], **options: Any) -> Model:
    request = Request(RULES, opened, open_data(feeds, model.inputs, batch=8), **options)
    return quantize.apply("static_fp8", model, request)


def run(model: Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    target = registry.target("onnxruntime")
    with target.load(target.compile(model, Options(1)), Options(1)) as session:
        return session.run(feeds)["y"]


@pytest.fixture
def net() -> tuple[Model, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    weight = (0.4 * rng.standard_normal((8, 8, 1, 1))).astype(np.float32)
    feeds = {"x": rng.standard_normal((32, 8, 8, 8)).astype(np.float32)}
    return built(CONV, w=weight, b=rng.standard_normal(8).astype(np.float32)), feeds


def test_a_product_by_hand() -> None:
    """Both sides rounded to E4M3 numbers on their scales, multiplied in float64: 1e-6 of the largest output."""
    rng = np.random.default_rng(1)
    weight, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 16), (40, 16)))
    model = built("(float[n,16] x) => (float[n,6] y) { y = Gemm<transB=1>(x, w) }", w=weight)
    result = made(model, {"x": x}, ranges="minmax")
    assert {tensor.data_type for tensor in result.to_proto().graph.initializer} >= {onnx.TensorProto.FLOAT8E4M3FN}
    rows, inputs = float8.spanning(np.abs(weight).max(axis=1), 0), float8.spanning(HEADROOM * np.abs(x).max())
    weight, rounded = rows.dequantize(rows.quantize(weight)), inputs.dequantize(inputs.quantize(x))
    bias = next((edit for name, edit in _constants(result) if name.endswith("bias")), np.zeros(6))
    wanted = rounded.astype(np.float64) @ weight.T.astype(np.float64) + bias
    assert np.abs(run(result, {"x": x}) - wanted).max() <= 1e-6 * np.abs(wanted).max()


def _constants(model: Model) -> list[tuple[str, np.ndarray]]:
    values = model.ir.graph.initializers.items()
    return [(name, value.const_value.numpy()) for name, value in values if value.const_value is not None]


def test_onnxruntime_computes_what_the_reference_does(net: tuple[Model, dict[str, np.ndarray]]) -> None:
    """Relus in front of quantizers included, which it would leave out; at least 24 dB to the float model."""
    model, feeds = net
    result = made(model, feeds)
    onnx.checker.check_model(result.to_proto(), full_check=True)
    (reference,) = ReferenceEvaluator(result.to_proto()).run(None, dict(feeds))
    found = run(result, feeds)
    assert sqnr_db(np.asarray(reference), found) > 45  # a tie that falls the other way is a step
    assert sqnr_db(run(model, feeds), found) > 24


def test_no_value_of_twice_the_range_is_clipped(net: tuple[Model, dict[str, np.ndarray]]) -> None:
    model, feeds = net
    result, louder = made(model, feeds), {"x": feeds["x"] * np.float32(1.9)}
    assert sqnr_db(run(model, louder), run(result, louder)) > 24


def test_an_opset_without_8_bit_floats_is_brought_to_one_that_has(net: tuple[Model, dict[str, np.ndarray]]) -> None:
    model, feeds = net
    old = built(CONV, 17, **{name: array for name, array in _constants(model)})
    result = made(old, feeds)
    assert result.ir.opset_imports[""] == 19
    np.testing.assert_allclose(run(result, feeds), run(made(model, feeds), feeds), atol=1e-5)


def test_recurrent_layers_alone_are_refused() -> None:
    """No kernel of 8-bit floats computes them; with nothing else there, there is nothing to do."""
    rng = np.random.default_rng(0)
    text = """(float[t,1,8] x) => (float[t,1,1,32] y) { y = LSTM<hidden_size=32>(x, W, R) }"""
    w, r = (rng.standard_normal(shape).astype(np.float32) / 6 for shape in ((1, 128, 8), (1, 128, 32)))
    model = built(text, W=w, R=r)
    data = [{"x": rng.standard_normal((5, 1, 8)).astype(np.float32)} for _ in range(4)]
    with pytest.raises(Unsupported, match="nothing in this model runs on 8-bit floats") as error:
        quantize.apply("static_fp8", model, Request(RULES, opened, open_data(data, model.inputs)))
    assert error.value.do == "--scheme w8a8"
