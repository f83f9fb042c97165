"""Recurrent layers in static INT8: each smaller in the way that the outputs bear, judged on data that was not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun import registry
from edgerun.errors import EdgerunError
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.quantize._sequences import LAYERS
from edgerun.quantize.graphs import quantizers, work
from edgerun.runtime import Options
from edgerun.verbs.compress import compress

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUTS, HIDDEN, STEPS = 16, 48, 20


def net(*ops: str, conv: bool = False, head: bool = False, hidden: int = HIDDEN) -> Model:
    """x [T, B, 16] through recurrent layers `l0`, `l1` …, behind a convolution over time where asked; y."""
    rng, nodes, arrays, value, width = np.random.default_rng(3), [], {}, "x", INPUTS
    if conv:
        arrays["k"] = rng.standard_normal((INPUTS, INPUTS, 3)) / 7
        nodes += [helper.make_node("Transpose", ["x"], ["xt"], "xt", perm=[1, 2, 0]),
                  helper.make_node("Conv", ["xt", "k"], ["xc"], "conv", pads=[1, 1]),
                  helper.make_node("Relu", ["xc"], ["xr"], "relu"),
                  helper.make_node("Transpose", ["xr"], ["xb"], "xb", perm=[2, 0, 1])]  # fmt: skip
        value = "xb"
    for i, op in enumerate(ops):
        arrays[f"W{i}"] = rng.standard_normal((1, GATES[op] * hidden, width)) / width**0.5
        arrays[f"R{i}"] = rng.standard_normal((1, GATES[op] * hidden, hidden)) / hidden**0.5
        nodes += [helper.make_node(op, [value, f"W{i}", f"R{i}"], [f"s{i}"], f"l{i}", hidden_size=hidden),
                  helper.make_node("Squeeze", [f"s{i}", "one"], [f"y{i}"], f"q{i}")]  # fmt: skip
        value, width = f"y{i}", hidden
    if head:
        arrays["m"] = rng.standard_normal((hidden, 8)) / hidden**0.5
        nodes.append(helper.make_node("MatMul", [value, "m"], ["out"], "head"))
        value = "out"
    weights = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    weights.append(numpy_helper.from_array(np.array([1]), "one"))
    door = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b", INPUTS])
    out = helper.make_tensor_value_info(value, TensorProto.FLOAT, ["a", "b", 8 if head else width])
    graph = helper.make_graph(nodes, "net", [door], [out], weights)
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def data(samples: int, seed: int, loud: bool = False) -> list[dict[str, np.ndarray]]:
    """Slow signals `[T, 1, 16]`; `loud`: one channel a thousand times as large as what the others tell."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(samples):
        x = 0.3 * np.cumsum(rng.standard_normal((STEPS, 1, INPUTS)), 0)
        if loud:
            x[..., 0] = 1000 * np.abs(x[..., 0])
        found.append({"x": x.astype(np.float32)})
    return found


def quieted(model: Model) -> Model:
    """The same where the first layer hardly listens to the loud channel."""
    proto = model.to_proto()
    for init in proto.graph.initializer:
        if init.name == "W0":
            array = numpy_helper.to_array(init).copy()
            array[..., 0] /= 1000
            init.CopyFrom(numpy_helper.from_array(array, "W0"))
    return Model.from_proto(proto)


def lost(model: Model, result: Model, feeds: list[dict[str, np.ndarray]], target: str = "onnxruntime") -> float:
    """SQNR in dB on the target, of the float model on ONNX Runtime."""
    outputs = []
    for each, where in ((model, "onnxruntime"), (result, target)):
        with edgerun.load(edgerun.compile(each, where, Options(1)), where) as session:
            name = session.outputs[0].name
            outputs.append(np.concatenate([session.run(feed)[name].reshape(-1) for feed in feeds]))
    return sqnr_db(*outputs)


def told(result: Model) -> dict[str, Any]:
    found: dict[str, Any] = result.history[-1].options[LAYERS]
    return found


def ops(result: Model) -> list[str]:
    return [node.op_type for node in result.ir.graph]


def test_a_layer_that_bears_no_grid_keeps_its_input() -> None:
    """The second of two goes on integers, the first one's weights need 16 bits; all on integers, as without data, the
    answer is lost."""
    model, known, new = quieted(net("LSTM", "LSTM")), data(24, 1, loud=True), data(16, 2, loud=True)
    result = compress(model, calibration=known)
    assert told(result) == {"on integers": ["l1"], "weights in 8 bits": []}
    assert ops(result).count("DynamicQuantizeLSTM") == 1 and ops(result).count("LSTM") == 1
    assert lost(model, result, new) > 28
    assert lost(model, compress(model, scheme="w8a8_dynamic"), new) < 15
    dynamic = compress(model, scheme="w8a8_dynamic", calibration=known)
    assert told(dynamic)["on integers"] == ["l1"] and lost(model, dynamic, new) > 28
    assert result.weight_bytes() < 0.4 * model.weight_bytes()
    assert result.to_bytes() == compress(model, calibration=known).to_bytes()


@pytest.mark.parametrize("op", ["GRU", "RNN"])
def test_without_an_integer_kernel_the_weights_have_8_bits(op: str) -> None:
    model = net(op)
    result = compress(model, calibration=data(24, 1))
    assert told(result) == {"on integers": [], "weights in 8 bits": ["l0"]} and op in ops(result)
    assert result.history[-1].options["integer nodes"] == 0
    assert result.weight_bytes() < 0.35 * model.weight_bytes() and lost(model, result, data(16, 2)) > 29


@pytest.mark.parametrize(("conv", "stored"), [(False, ["l0"]), (True, [])])
def test_on_openvino_beside_integers_weights_have_16_bits(conv: bool, stored: list[str]) -> None:
    """It would leave 8 bits packed there, and its kernel refuse them."""
    model = net("LSTM", conv=conv)
    result = compress(model, target="openvino", calibration=data(24, 1))
    assert told(result) == {"on integers": [], "weights in 8 bits": stored}
    assert result.history[-1].options["integer nodes"] == int(conv)
    rounded = "recurrent weights rounded to the second order" in result.history[-1].options
    assert rounded != conv, "what is stored in 16 bits is not rounded"
    assert result.weight_bytes() < (0.55 if conv else 0.35) * model.weight_bytes()
    assert lost(model, result, data(16, 2), "openvino") > (24 if conv else 29)


def test_beside_integer_layers_on_onnxruntime() -> None:
    model = net("LSTM", conv=True)
    result = compress(model, calibration=data(24, 1))
    assert told(result)["on integers"] == ["l0"] and result.history[-1].options["integer nodes"] == 2
    kept = compress(model, calibration=data(24, 1), keep_float=["l0"])
    assert lost(model, result, data(16, 2)) > lost(model, kept, data(16, 2)) - 2


def test_a_small_head_stays_float() -> None:
    """8 outputs of a state are a fiftieth of the work."""
    model = net("LSTM", head=True)
    result = compress(model, calibration=data(24, 1))
    assert "QuantizeLinear" not in ops(result) and "MatMul" in ops(result)


def test_kept_in_float() -> None:
    result = compress(net("LSTM", "LSTM"), calibration=data(24, 1), keep_float=["l0"])
    assert told(result) == {"on integers": ["l1"], "weights in 8 bits": []} and "LSTM" in ops(result)
    with pytest.raises(EdgerunError, match="keeping 'q0' in float has no effect"):
        compress(net("LSTM", "LSTM"), calibration=data(24, 1), keep_float=["q0"])


def test_what_is_too_small_is_no_choice_of_the_clock() -> None:
    """A layer with weights of fewer than 256 elements stays as it is, and nobody proposes to keep it so."""
    small, rules = net("LSTM", conv=True, hidden=3), registry.target("onnxruntime").quantization()
    assert work.integers(small, rules) == ["conv"]
    assert work.integers(net("LSTM", conv=True), rules) == ["conv", "l0"]
    assert LAYERS not in compress(small, calibration=data(24, 1)).history[-1].options


@pytest.mark.skipif(registry.target("tensorrt").available() is not None, reason="TensorRT is not here")
@pytest.mark.parametrize("op", GATES)
def test_only_dequantizers_read_codes_where_the_target_wants_that(op: str) -> None:
    """TensorRT takes a constant in 8 bits before a DequantizeLinear alone; `why-wrong` finds both weights behind it."""
    model, new = net(op), data(16, 2)
    result = compress(model, target="tensorrt", calibration=data(24, 1))
    assert told(result) == {"on integers": [], "weights in 8 bits": ["l0"]}
    codes = [v for v in result.ir.graph.initializers.values() if v.dtype is not None and v.dtype.name == "INT8"]
    assert {use.node.op_type for value in codes for use in value.uses()} == {"DequantizeLinear"} and len(codes) == 2
    found = quantizers.find(result.ir.graph)
    assert [(one.layer, one.index) for one in found if isinstance(one, quantizers.Constant)] == [("l0", 1), ("l0", 2)]
    assert lost(model, result, new) > 30 and result.weight_bytes() < 0.35 * model.weight_bytes()
