"""Weights that several layers read: stored once, as an LSTM cell that is unrolled over time has them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.quantize.graphs.edit import constant
from edgerun.runtime import Options
from edgerun.verbs.compress import compress

INPUTS, HIDDEN = 24, 64
STEP = """g{t} = Gather<axis=1>(x, t{t}) a{t} = Gemm<transB=1>(g{t}, wi, bi) b{t} = Gemm<transB=1>(h{t}, wh, bh)
    s{t} = Add(a{t}, b{t}) i{t}, f{t}, c{t}, o{t} = Split<axis=1>(s{t}, four)
    si{t} = Sigmoid(i{t}) sf{t} = Sigmoid(f{t}) tc{t} = Tanh(c{t}) so{t} = Sigmoid(o{t})
    kept{t} = Mul(sf{t}, m{t}) new{t} = Mul(si{t}, tc{t}) m{n} = Add(kept{t}, new{t})
    out{t} = Tanh(m{n}) h{n} = Mul(so{t}, out{t}) """


def cells(net: Any, weights: Any, steps: int) -> Model:
    """x [n, steps, 24] through a cell that begins with zeros, to y [n, 8]."""
    begin = (
        "n = Shape<start=0, end=1>(x) shape = Concat<axis=0>(n, width) h0 = ConstantOfShape(shape) m0 = Identity(h0) "
    )
    text = "".join(STEP.format(t=t, n=t + 1) for t in range(steps))
    text = f"(float[n,{steps},{INPUTS}] x) => (float[n,8] y) {{ {begin}{text} y = Gemm<transB=1>(h{steps}, w, b) }}"
    arrays = {
        "wi": weights(0, 4 * HIDDEN, INPUTS), "bi": weights(1, 4 * HIDDEN), "wh": weights(2, 4 * HIDDEN, HIDDEN),
        "bh": weights(3, 4 * HIDDEN), "w": weights(4, 8, HIDDEN), "b": weights(5, 8),
        "four": np.array([HIDDEN] * 4), "width": np.array([HIDDEN]), **{f"t{t}": np.array(t) for t in range(steps)},
    }  # fmt: skip
    model: Model = net(text, **arrays)
    return model


def spoken(seed: int, samples: int, steps: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((samples, steps, INPUTS)).astype(np.float32)}


def lost(model: Model, result: Model, feeds: dict[str, np.ndarray], target: str) -> float:
    """SQNR in dB on the target, of the float model on ONNX Runtime; one sample a run."""
    outputs = []
    for each, where in ((model, "onnxruntime"), (result, target)):
        with edgerun.load(edgerun.compile(each, where, Options(1)), where) as session:
            runs = [session.run({"x": feeds["x"][i : i + 1]})["y"] for i in range(len(feeds["x"]))]
            outputs.append(np.concatenate(runs))
    return sqnr_db(*outputs)


def arrays(model: Model, dtype: str) -> Counter[tuple[int, ...]]:
    """How many initializers of each shape there are."""
    tensors = [value.const_value for value in model.ir.graph.initializers.values()]
    return Counter(tuple(t.shape.numpy()) for t in tensors if t is not None and t.dtype.name == dtype)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_an_unrolled_cell_holds_its_weights_once(net: Any, weights: Any, target: str) -> None:
    """Ten steps: apart, their biases would be more than their weights, so they share scales too."""
    model = cells(net, weights, 10)
    result = compress(model, target=target, calibration=spoken(1, 64, 10))
    codes = arrays(result, "INT8")
    assert codes[4 * HIDDEN, INPUTS] == codes[4 * HIDDEN, HIDDEN] == 1
    assert arrays(result, "INT32")[(4 * HIDDEN,)] == 2 + 1, "one bias each, and zero points"
    assert result.history[-1].options["integer nodes"] == 21
    readers = [node for node in result.ir.graph if node.op_type == "Gemm"]
    assert all(node.inputs[1].producer().op_type == "DequantizeLinear" for node in readers)  # type: ignore[union-attr]
    assert result.weight_bytes() < 0.35 * model.weight_bytes()
    assert lost(model, result, spoken(2, 16, 10), target) > 30


def test_few_readers_have_scales_of_their_own(net: Any, weights: Any) -> None:
    model = cells(net, weights, 3)
    result = compress(model, calibration=spoken(1, 64, 3))
    assert arrays(result, "INT8")[4 * HIDDEN, HIDDEN] == 1
    assert arrays(result, "INT32")[(4 * HIDDEN,)] == 6 + 1
    assert lost(model, result, spoken(2, 16, 3), "onnxruntime") > 30


def test_convolutions_of_two_branches(net: Any, weights: Any) -> None:
    """Rounded to the second order for what both read, and not equalized apart."""
    text = """(float[n,3,16,16] x) => (float[n,32,8,8] y) { p = Conv<strides=[2,2]>(x, k) q = Conv<strides=[2,2]>(x, l)
        a = Relu(p) b = Relu(q) c = Conv<pads=[1,1,1,1]>(a, w, v) d = Conv<pads=[1,1,1,1]>(b, w, v)
        e = Relu(c) f = Relu(d) s = Add(e, f) y = Conv(s, m) }"""
    first = {"k": weights(0, 32, 3, 2, 2), "l": weights(1, 32, 3, 2, 2)}
    model = net(text, **first, w=weights(2, 32, 32, 3, 3), v=weights(3, 32), m=weights(4, 32, 32, 1, 1))
    x = np.random.default_rng(4).standard_normal((48, 3, 16, 16)).astype(np.float32)
    result = compress(model, calibration={"x": x[:32]})
    assert arrays(result, "INT8")[32, 32, 3, 3] == 1
    assert result.history[-1].options["rounded to the second order"]["layers"] == 3
    assert lost(model, result, {"x": x[32:]}, "onnxruntime") > 30


def test_one_reader_in_float_keeps_the_float_weight(net: Any, weights: Any) -> None:
    """What the user keeps is exact, at the price of holding both."""
    model = cells(net, weights, 3)
    result = compress(model, calibration=spoken(1, 64, 3), keep_float=["b1"])
    assert arrays(result, "INT8")[4 * HIDDEN, HIDDEN] == arrays(result, "FLOAT")[4 * HIDDEN, HIDDEN] == 1


def test_layers_that_stay_float_share_too(net: Any) -> None:
    """The first layers of two branches are kept, since their inputs have peaks (`test_float_layers`)."""
    text = """(float[n,8,16,16] x, float[n,8,16,16] z) => (float[n,8] y) { a = Conv(x, first) b = Conv(z, first)
        k = Clip(a, low, high) l = Clip(b, low, high) s = Add(k, l) c = Conv(s, second) d = Conv(c, third)
        p = GlobalAveragePool(d) f = Flatten(p) y = Gemm(f, last) }"""
    generator = np.random.default_rng(0)
    shapes = {"first": (8, 8, 3, 3), "second": (128, 8, 1, 1), "third": (256, 128, 1, 1), "last": (256, 8)}
    arrays_ = {name: (generator.standard_normal(shape) / 8).astype(np.float32) for name, shape in shapes.items()}
    feeds = {name: generator.standard_normal((48, 8, 16, 16)).astype(np.float32) for name in "xz"}
    for x in feeds.values():
        x[:, 0, 8, 8] = 500 * (1 + generator.random(48))
    model = net(text, **arrays_, low=np.float32(-2), high=np.float32(2))
    result = compress(model, calibration=feeds, memory_cap=1)
    assert {"a", "b"} <= set(result.history[-1].options["float layers"])
    assert arrays(result, "FLOAT16")[8, 8, 3, 3] == 1
    assert not arrays(result, "INT8")[8, 8, 3, 3] and not arrays(result, "FLOAT")[8, 8, 3, 3]


def test_two_weights_never_share_a_zero_point(net: Any, weights: Any) -> None:
    """OpenVINO ran a 3x3 layer of a detector in float where another weight read its zero point: 2 times the time."""
    text = """(float[n,8,8,8] x) => (float[n,8,8,8] y) { a = Conv(x, v) r = Relu(a) b = Conv(r, w) s = Relu(b)
        y = Conv(s, u) }"""
    model = net(text, **{name: weights(seed, 8, 8, 1, 1) for seed, name in enumerate("uvw")})
    x = np.random.default_rng(5).standard_normal((16, 8, 8, 8)).astype(np.float32)
    graph = compress(model, target="openvino", calibration={"x": x}, memory_cap=1).ir.graph
    pairs = [node.inputs for node in graph if node.op_type == "DequantizeLinear"]
    stored = [
        (code, zero) for code, _, zero in pairs if (array := constant(code)) is not None and array.dtype == np.int8
    ]
    assert len(stored) == 3 == len({zero.name for _, zero in stored if zero is not None})
