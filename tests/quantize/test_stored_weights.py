"""Weights of layers that stay float take half the bytes, where the target widens them when it opens a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import edgerun
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.verbs.compress import compress

TEXT = """(float[n,8,16,16] x) => (float[n,8,14,14] y)
          { a = Conv(x, first) k = Clip(a, low, high) b = Conv(k, second) c = Conv(b, third) y = Conv(c, last) }"""
STORED = "float weights stored in 16 bits"


def made(net: Any) -> tuple[Model, np.ndarray]:
    """A model whose first layer is left in float for the peaks that it reads (each one in noise of 1, 500 to 1000 times
    as large), and what it is calibrated with."""
    generator = np.random.default_rng(0)
    shapes = {"first": (8, 8, 3, 3), "second": (128, 8, 1, 1), "third": (256, 128, 1, 1), "last": (8, 256, 1, 1)}
    weights = {name: (generator.standard_normal(shape) / 8).astype(np.float32) for name, shape in shapes.items()}
    ends = {"low": np.float32(-2), "high": np.float32(2)}
    x = generator.standard_normal((48, 8, 16, 16)).astype(np.float32)
    x[:, 0, 8, 8] = 500 * (1 + generator.random(48))
    return net(TEXT, **weights, **ends), x


def floats(model: Model, kind: int) -> dict[str, np.ndarray]:
    """Its weights of one type, by name: no scales, no biases."""
    held = (tensor for tensor in model.to_proto().graph.initializer if tensor.data_type == kind)
    return {tensor.name: array for tensor in held if (array := numpy_helper.to_array(tensor)).ndim == 4}


def widened(model: Model) -> bytes:
    """The same file with every float16 constant as what it means in float32, and no Cast."""
    proto = model.to_proto()
    casts = {node.input[0]: node for node in proto.graph.node if node.op_type == "Cast"}
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            cast = casts[tensor.name]
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), cast.output[0]))
            proto.graph.node.remove(cast)
    onnx.checker.check_model(proto)
    payload: bytes = proto.SerializeToString()
    return payload


def run(payload: bytes, target: str, x: np.ndarray) -> np.ndarray:
    with edgerun.load(payload, target=target, options=Options(1)) as session:
        (found,) = session.run({"x": x}).values()
    result: np.ndarray = found
    return result


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_float_layers_weights_take_two_bytes_each(net: Any, target: str) -> None:
    """11 bits: 2^-11 of a weight at most, computed is what the same numbers in float32 give, bit for bit."""
    model, x = made(net)
    result = compress(model, target=target, calibration={"x": x}, placement="rules", memory_cap=1)
    told = result.history[-1].options
    assert "a" in told["float layers"] and told[STORED] == len(told["float layers"])
    assert not floats(result, TensorProto.FLOAT) and len(floats(result, TensorProto.FLOAT16)) == told[STORED]
    whole = floats(model, TensorProto.FLOAT)["first"]
    (short,) = (a for a in floats(result, TensorProto.FLOAT16).values() if a.shape == whole.shape)
    np.testing.assert_allclose(short.astype(np.float32), whole, rtol=2.0**-11, atol=0)
    assert np.array_equal(run(result.to_bytes(), target, x[:4]), run(widened(result), target, x[:4]))


def test_what_is_asked_to_stay_float_is_left_alone(net: Any) -> None:
    model, x = made(net)
    options: dict[str, Any] = {"calibration": {"x": x}, "placement": "rules", "memory_cap": 1}
    result = compress(model, keep_float=["a", "b"], **options)
    assert result.history[-1].options[STORED] == 0 and not floats(result, TensorProto.FLOAT16)
    kept, whole = floats(result, TensorProto.FLOAT), floats(model, TensorProto.FLOAT)
    assert sorted(map(str, kept)) == ["first", "second"] and np.array_equal(kept["first"], whole["first"])


def test_engines_of_nvidia_get_no_casts(net: Any) -> None:
    """TensorRT's convolutions take no weights that something computes, a Cast among it."""
    model, x = made(net)
    result = compress(model, target="tensorrt", calibration={"x": x}, placement="rules", memory_cap=1)
    assert STORED not in result.history[-1].options
    read = {name for node in result.to_proto().graph.node if node.op_type == "Cast" for name in node.input}
    assert not read & {tensor.name for tensor in result.to_proto().graph.initializer}
