"""What stays in float beside 8-bit layers computes in float16 where the target wants that, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper, shape_inference

import edgerun
from bench import gpu_nets
from edgerun import quantize, registry
from edgerun.data import open_data
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.passes import Request
from edgerun.quantize import _rest
from edgerun.runtime import Options
from edgerun.targets import tensorrt as target
from edgerun.verbs.fallbacks import meant
from edgerun.verbs.making import opened

RULES = registry.target("tensorrt", usable=False).quantization()
LAYERS, HEADS = 2, 4


def net(scale: float = 1.0) -> Model:
    """Two transformer blocks; what attention multiplies is `scale` times as large."""
    proto = gpu_nets.transformer("fp32", 16, 64, LAYERS, HEADS).to_proto()
    first = next(node.input[1] for node in proto.graph.node if node.op_type == "MatMul")
    for init in proto.graph.initializer:
        if init.name == first:
            init.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(init) * np.float32(scale), init.name))
    return Model.from_proto(proto)


def data(model: Model, samples: int, seed: int) -> dict[str, np.ndarray]:
    shape = (samples, *(int(d) for d in model.inputs[0].shape[1:]))
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def made(model: Model, scheme: str = "static_int8", **options: Any) -> Model:
    calibration = open_data(data(model, 24, 1), model.inputs, batch=4)
    return quantize.apply(scheme, model, Request(RULES, opened, calibration, **options))


def dtypes(model: Model) -> dict[str, int]:
    """By node, the dtype that it computes in."""
    graph = shape_inference.infer_shapes(model.to_proto(), strict_mode=True).graph
    known = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return {node.name: known[node.output[0]] for node in graph.node}


def outputs(model: Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with edgerun.load(model.to_bytes(), options=Options(1)) as session:
        (found,) = session.run(feeds).values()
    result: np.ndarray = found
    return result


@pytest.mark.parametrize("scheme", ["static_int8", "static_fp8"])
def test_attention_is_in_float16_between_8_bit_layers(scheme: str) -> None:
    """Both products of each attention and the Softmax between; products on 8 bits read and write float32. It takes less
    than a tenth of a dB from the outputs."""
    model = net()
    result = made(model, scheme)
    told, on_integers = dtypes(result), {str(node.name) for node in meant(result, RULES)}
    half = {name for name, dtype in told.items() if dtype == TensorProto.FLOAT16}
    ops = [node.op_type for node in result.ir.graph if node.name in half]
    assert ops.count("MatMul") == 2 * LAYERS and ops.count("Softmax") == LAYERS and not half & on_integers
    found = result.history[-1].options[_rest.FOUND]
    assert found["products"] == 2 * LAYERS and found["overflowing"] == [] and found["type"] == "float16"
    assert (result.inputs, result.outputs) == (model.inputs, model.outputs)
    (step,) = [s for s in result.history[-1].options["steps"] if s["step"] == "half precision beside 8 bits"]
    assert step["kept"] and abs(step["gain_db"]) < 0.1
    feeds = data(model, 8, 2)
    assert sqnr_db(outputs(model, feeds), outputs(result, feeds)) > 20


def test_what_would_overflow_stays() -> None:
    """Scores of the first attention beyond a quarter of 65504; those of the second are in float16."""
    result = made(net(3e4))
    found = result.history[-1].options[_rest.FOUND]
    assert found["overflowing"] and found["products"] >= 2
    told = dtypes(result)
    assert all(told[name] == TensorProto.FLOAT for name in found["overflowing"])


def test_a_target_without_the_rule_keeps_float32() -> None:
    model = net()
    result = edgerun.compress(model, target="onnxruntime", calibration=data(model, 24, 1), placement="rules")
    assert TensorProto.FLOAT16 not in dtypes(result).values()
    assert _rest.FOUND not in result.history[-1].options


def test_what_costs_too_much_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rest, "LOSS_DB", -100.0)
    result = made(net())
    assert TensorProto.FLOAT16 not in dtypes(result).values()
    steps = result.history[-1].options["steps"]
    assert [s["kept"] for s in steps if s["step"] == "half precision beside 8 bits"] == [False]


@pytest.mark.skipif(target.available() is not None, reason=str(target.available()))
def test_each_attention_is_one_kernel() -> None:
    """What the builder says of it: a kernel covers both products and the Softmax, reads float16 and writes the 8 bits
    that the next layer reads."""
    from edgerun.targets import _tensorrt_build as build
    from edgerun.targets import _tensorrt_kernels as kernels
    from edgerun.targets import _tensorrt_library as tensorrt

    extra = {build.CAPABILITY: "SM89"} if tensorrt.chosen() == "tensorrt_rtx" else {}
    result = made(net())
    found = kernels.read(build.build(tensorrt.library(), result.to_bytes(), Options(extra=extra)).kernels)
    ops = {str(node.name): node.op_type for node in result.ir.graph}
    whole = [k for k in found if [ops.get(name) for name in k.covers].count("MatMul") == 2
             and "Softmax" in {ops.get(name) for name in k.covers}]  # fmt: skip
    assert len(whole) == LAYERS and {dtype for k in whole for dtype in k.read_dtypes} == {"Half"}
