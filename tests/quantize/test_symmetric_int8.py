"""INT8 for targets whose activations have zero point 0 and whose biases stay float (GPUs)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgerun
from edgerun import quantize
from edgerun.data import open_data
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.quantize._ranges import intervals
from edgerun.quantize.graphs.activation import Activation, Channels
from edgerun.quantize.graphs.edit import constant
from edgerun.quantize.graphs.placement import Plan

DOOR = "(float[n,8,8,8] x) => (float[n,p,q,r] y)"
NETS = {
    "residual": "a = Conv(x, w, b) r = Relu(a) c = Conv(r, w2, b2) s = Add(r, c) t = Relu(s) y = Conv(t, w, b)",
    "capped": "a = Conv(x, w, b) r = Clip(a, zero, six) y = Conv(r, w2, b2)",
    "capped on both sides": "a = Conv(x, w, b) r = Clip(a, minus, six) y = Conv(r, w2)",
    "pooled": "a = Conv(x, w, b) r = Relu(a) p = MaxPool<kernel_shape=[2,2]>(r) y = Conv(p, w2, b2)",
}


@pytest.fixture
def rules(request_for: Any) -> Any:
    """OpenVINO's placement with a GPU's numbers, and biases in float."""
    plain = request_for("openvino").rules
    return replace(plain, activation="int8", symmetric=True, float_bias=True, reduced_range=False)


def built(net: Any, weights: Any, case: str) -> tuple[Model, dict[str, np.ndarray]]:
    parts = {"w": weights(1, 8, 8, 1, 1), "w2": weights(2, 8, 8, 1, 1), "b": weights(3, 8), "b2": weights(4, 8)}
    parts |= {name: np.array(v, np.float32) for name, v in (("zero", 0.0), ("six", 1.5), ("minus", -2.5))}
    words = set("".join(c if c.isalnum() else " " for c in NETS[case]).split())
    model = net(f"{DOOR} {{ {NETS[case]} }}", **{name: array for name, array in parts.items() if name in words})
    return model, {"x": np.random.default_rng(1).standard_normal((24, 8, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize("ranges", ["auto", "minmax", "mse", "percentile"])
@pytest.mark.parametrize("case", NETS)
def test_result(
    net: Any, evaluate: Any, weights: Any, request_for: Any, rules: Any, ops: Any, case: str, ranges: str
) -> None:
    """All zero points are int8 0 and all biases floats; at least 25 dB, computed node by node by ONNX Runtime."""
    model, feeds = built(net, weights, case)
    request = request_for(calibration=open_data(feeds, model.inputs, batch=8), ranges=ranges)
    request.rules = rules
    result = quantize.apply("static_int8", model, request)
    onnx.checker.check_model(result.to_proto(), full_check=True)
    for node in result.ir.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            point = constant(node.inputs[2])
            assert point is not None and point.dtype == np.int8 and not point.any()
        if node.op_type == "Conv":
            bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
            assert len(node.inputs) < 3 or (bias is not None and bias.dtype == np.float32)
    made, had = ops(result), ops(model)  # a quantizer that reaches below zero does not clip there
    assert made.get("Relu", 0) + made.get("Clip", 0) == had.get("Relu", 0) + had.get("Clip", 0)
    assert sqnr_db(evaluate(model, feeds)[0], evaluate(result, feeds)[0]) > 25


def _seen(low: float, high: float) -> Activation:
    sample = np.linspace(low, high, 4096, dtype=np.float32)
    channels = Channels(np.array([[low]]), np.array([[high]]), np.array([float((sample**2).mean())]))
    return Activation(channels, None, sample, np.zeros(4096, np.uint8), np.array([low]), np.array([high]), 4096.0)


@settings(max_examples=60, deadline=None)
@given(st.floats(-8, 0), st.floats(0.1, 1.5), st.sampled_from(["minmax", "mse", "percentile"]))
def test_intervals_are_mirrored(low: float, high: float, estimator: str) -> None:
    """±high, never beyond the extremes, and a cap only where nothing below zero reaches further than it."""
    text = f'<ir_version: 8, opset_import: ["": 17]> g {DOOR} {{ y = Clip(x, low, six) }}'
    proto = onnx.parser.parse_model(text)
    for name, end in (("low", -9.0), ("six", 1.5)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(end, np.float32), name))
    model = Model.from_proto(proto)
    value = next(node.outputs[0] for node in model.ir.graph)
    plan = Plan(points={value: "group"})
    (found,) = intervals(plan, {str(value.name): _seen(low, high)}, estimator, symmetric=True).values()
    assert found[0] == -found[1] and 0 < found[1] <= max(-low, high) * (1 + 1e-6)
    if estimator == "minmax":
        assert found[1] == pytest.approx(max(-low, high))


@pytest.mark.parametrize(
    ("low", "high", "device", "point"),
    [
        (-0.95, 1.0, "xeon-amx", 128),
        (-1.0, 0.95, "xeon-amx", 128),
        (-0.85, 1.0, "xeon-amx", 117),
        (0.0, 1.0, "xeon-amx", 0),
        (-0.95, 1.0, "xeon-avx512-vnni", 124),
    ],
)
def test_nearly_symmetric_values_have_no_zero_point_to_correct_for_on_amx(
    net: Any, weights: Any, low: float, high: float, device: str, point: int
) -> None:
    """The zero point of a model's input that reaches from `low` to `high`: −low / (high − low) of 255 steps, or 128,
    which the runtime takes for signed values without one."""
    x = np.random.default_rng(0).uniform(low, high, (24, 8, 8, 8)).astype(np.float32)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = low, high
    model = net(
        "(float[n,8,8,8] x) => (float[n,8,8,8] y) { y = Conv(x, w, b) }", w=weights(0, 8, 8, 1, 1), b=weights(1, 8)
    )
    made = edgerun.compress(model, device=device, calibration={"x": x}, placement="rules", ranges="minmax")
    first = next(node for node in made.ir.graph if node.op_type == "QuantizeLinear")
    found = constant(first.inputs[2])
    assert found is not None and found.dtype == np.uint8 and found.tolist() == point
