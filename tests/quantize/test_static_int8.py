"""Static INT8 on small networks of every shape: valid, constant Q/DQ, integer kernels where promised, and close."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgerun import quantize, registry
from edgerun.data import open_data
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.verbs.compress import compress

DOOR = "(float[n,8,8,8] x) => (float[n,p,q,r] y)"
FLAT = "(float[n,8,8,8] x) => (float[n,p] y)"
NETS = {
    "plain": (DOOR, "a = Conv<pads=[1,1,1,1]>(x, w3, b) r = Relu(a) y = Conv(r, w, b2)"),
    "normalized": (DOOR, "a = Conv(x, w) k = BatchNormalization(a, g, o, m, v) r = Relu(k) y = Conv(r, w2)"),
    "residual": (DOOR, "a = Conv(x, w, b) r = Relu(a) c = Conv(r, w2, b2) s = Add(r, c) t = Relu(s) y = Conv(t, w, b)"),
    "inverted residual": (
        DOOR,
        "a = Conv(x, wide, b16) r = Clip(a, zero, six) d = Conv<group=16, pads=[1,1,1,1]>(r, dw, c16)"
        " s = Clip(d, zero, six) e = Conv(s, narrow, b) f = Add(x, e) y = Conv(f, w2, b2)",
    ),
    "grouped": (DOOR, "a = Conv(x, w, b) r = Relu(a) y = Conv<group=2>(r, gw, b6)"),
    "concat of unlike scales": (
        DOOR,
        "a = Conv(x, w, b) r = Relu(a) e = Conv(x, w2) c = Mul(e, fifty) k = Concat<axis=1>(r, c) y = Conv(k, narrow)",
    ),
    "pooled": (
        FLAT,
        "a = Conv(x, w, b) r = Relu(a) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) c = Conv(p, w2, b2)"
        " s = Relu(c) h = GlobalAveragePool(s) f = Flatten(h) y = Gemm<transB=1>(f, fc, b6)",
    ),
    "flattened": (FLAT, "a = Conv(x, w, b) r = Relu(a) f = Flatten(r) y = Gemm(f, big, b6)"),
    "float between": (DOOR, "a = Conv(x, w, b) s = Sigmoid(a) t = Mul(a, s) y = Conv(t, w2, b2)"),
    "upsampled": (DOOR, "a = Conv(x, w, b) r = Relu(a) u = Resize<mode=\"nearest\">(r, , twice) y = Conv(u, w2, b2)"),
    "squeeze and excite": (
        DOOR,
        "a = Conv(x, w, b) r = Relu(a) h = GlobalAveragePool(r) e = Conv(h, w2, b2) f = Sigmoid(e) t = Mul(r, f)"
        " y = Conv(t, w)",
    ),
    "shared weights": (DOOR, "a = Conv(x, w, b) s = Sigmoid(a) y = Conv(s, w, b)"),
    "one value twice": (DOOR, "a = Conv(x, w, b) t = Add(a, a) y = Conv(t, w2, b2)"),
    "asymmetric": (DOOR, "a = Conv(x, w, b) r = LeakyRelu<alpha=0.1>(a) y = Conv(r, w2, b2)"),
    "clipped from below zero": (DOOR, "a = Conv(x, w, b) r = Clip(a, minus, six) y = Conv(r, w2)"),
    "an output in the middle": (
        "(float[n,8,8,8] x) => (float[n,8,8,8] r, float[n,8,8,8] y)", "a = Conv(x, w, b) r = Relu(a) y = Conv(r, w2)",
    ),
    "branches": (
        "(float[n,8,8,8] x) => (float[n,8,8,8] y)",
        "a = Conv(x, w, b) r = Relu(a) h = ReduceMax<keepdims=0>(x) k = Greater(h, zero) i = If(k) <"
        "then_branch = yes () => (float[n,8,8,8] t) { t = Add(r, r) },"
        "else_branch = no () => (float[n,8,8,8] e) { e = Conv(r, w2) }> y = Conv(i, w2)",
    ),
}  # fmt: skip
GATES = {"squeeze and excite": 1}  # convolutions over one position
VECTORS = {
    "perceptron": "a = MatMul(x, fc8) c = Add(a, b) r = Relu(c) d = MatMul(r, fc6) y = Add(b6, d)",
    "scalar bias": "a = Gemm(x, fc8, six) r = Relu(a) y = Gemm(r, fc6, b6)",
    "Gemm": "a = Gemm(x, fc8, b) r = Relu(a) y = Gemm<transB=1>(r, fc)",
}


@pytest.fixture
def parts(weights: Any, norm: Any) -> dict[str, np.ndarray]:
    """Arrays for every network, by the names that the texts use."""
    made = {"w": (8, 8, 1, 1), "w2": (8, 8, 1, 1), "w3": (8, 8, 3, 3), "wide": (16, 8, 1, 1), "dw": (16, 1, 3, 3),
            "narrow": (8, 16, 1, 1), "gw": (6, 4, 1, 1), "fc": (6, 8), "fc6": (8, 6), "fc8": (8, 8), "big": (512, 6),
            "b": (8,), "b2": (8,), "b6": (6,), "b16": (16,), "c16": (16,)}  # fmt: skip
    found = {name: weights(seed, *shape) for seed, (name, shape) in enumerate(made.items())}
    scalars = {"zero": 0.0, "six": 1.5, "minus": -0.5, "fifty": 50.0}
    found |= {name: np.array(value, np.float32) for name, value in scalars.items()}
    return {**found, **norm(9, 8), "twice": np.array([1, 1, 2, 2], np.float32)}


def built(net: Any, parts: dict[str, np.ndarray], case: str) -> tuple[Model, dict[str, np.ndarray]]:
    """The network and 24 samples for it."""
    door, text = NETS[case] if case in NETS else ("(float[n,8] x) => (float[n,6] y)", VECTORS[case])
    words = set("".join(c if c.isalnum() else " " for c in text).split())
    shape = (24, 8, 8, 8) if case in NETS else (24, 8)
    model = net(f"{door} {{ {text} }}", **{name: array for name, array in parts.items() if name in words})
    return model, {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}


def quantizers(model: Model) -> Iterator[ir.Node]:
    return (n for n in model.ir.graph.all_nodes() if n.op_type in ("QuantizeLinear", "DequantizeLinear"))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("case", [*NETS, *VECTORS])
def test_result(
    net: Any, evaluate: Any, fused: Any, ops: Any, parts: dict[str, np.ndarray], case: str, target: str
) -> None:
    """Passes the checker, has constant Q/DQ, loads on its target, is at least 25 dB from the float model; on ONNX
    Runtime its own optimizer finds an integer kernel for every convolution but a gate's, which stays float."""
    model, feeds = built(net, parts, case)
    before = model.digest()
    result = compress(model, target=target, calibration=feeds, ranges="minmax")
    assert model.digest() == before, "the caller's model was changed"
    assert (result.inputs, result.outputs) == (model.inputs, model.outputs)
    onnx.checker.check_model(result.to_proto(), full_check=True)
    found = list(quantizers(result))
    assert found
    for node in found:
        scale, zero = node.inputs[1], node.inputs[2]
        assert scale is not None and zero is not None and scale.const_value is not None and zero.const_value is not None
        array = scale.const_value.numpy()
        assert array.dtype == np.float32 and (array > 0).all() and np.isfinite(array).all()
    runtime = registry.target(target)
    with runtime.load(runtime.compile(result, Options(1)), Options(1)) as session:
        got = session.run(feeds)
    for spec, want in zip(model.outputs, evaluate(model, feeds), strict=True):
        assert sqnr_db(want, got[spec.name]) > 25, spec
    if target == "onnxruntime":
        assert fused(result).get("QLinearConv", 0) == ops(model).get("Conv", 0) - GATES.get(case, 0)


@pytest.mark.parametrize(("case", "wanted"), [
    ("residual", {"QLinearConv": 3, "QLinearAdd": 1, "QuantizeLinear": 1, "DequantizeLinear": 1}),
    ("pooled", {"QLinearConv": 2, "MaxPool": 1, "QLinearGlobalAveragePool": 1, "Flatten": 1, "QGemm": 1,
                "QuantizeLinear": 1}),
    ("Gemm", {"QGemm": 2, "QuantizeLinear": 1}),
    ("scalar bias", {"QGemm": 2, "QuantizeLinear": 1}),
    ("perceptron", {"QGemm": 2, "QuantizeLinear": 1}),
])  # fmt: skip
def test_integers_from_the_first_layer_to_the_last(
    net: Any, fused: Any, parts: dict[str, np.ndarray], case: str, wanted: dict[str, int]
) -> None:
    """One quantizer in front and integer kernels behind it: nothing goes back to float on the way."""
    model, feeds = built(net, parts, case)
    kernels = fused(compress(model, calibration=feeds, ranges="minmax"))
    assert kernels == wanted


def test_a_pictures_first_layer_stays_float_on_onnxruntime(net: Any, fused: Any, weights: Any) -> None:
    text = "(float[n,3,8,8] x) => (float[n,p,q,r] y) { a = Conv(x, w) r = Relu(a) y = Conv(r, w2) }"
    model = net(text, w=weights(1, 8, 3, 3, 3), w2=weights(2, 6, 8, 1, 1))
    feeds = {"x": np.random.default_rng(1).standard_normal((24, 3, 8, 8)).astype(np.float32)}
    kernels = fused(compress(model, calibration=feeds, ranges="minmax"))
    assert kernels["QLinearConv"] == 1 and kernels.get("Conv", 0) + kernels.get("FusedConv", 0) == 1
    assert (
        compress(model, target="openvino", calibration=feeds, ranges="minmax").history[-1].options["integer nodes"] == 2
    )


def test_a_block_of_silus_in_parts_stays_on_integers(net: Any, fused: Any, evaluate: Any, weights: Any) -> None:
    """As YOLO has them: every kernel is an integer one, 25 dB from float."""
    silu = "{0}s = Sigmoid({0}) {0}m = Mul({0}, {0}s)"
    text = f"""(float[n,8,12,12] x) => (float[n,8,24,24] y) {{ a = Conv<pads=[1,1,1,1]>(x, w) {silu.format("a")}
        h, k = Split<axis=1>(am) b = Conv<pads=[1,1,1,1]>(k, v) {silu.format("b")} s = Add(k, bm)
        j = Concat<axis=1>(h, k, s) c = Conv(j, u) {silu.format("c")} r = Resize<mode="nearest">(cm, , twice)
        d = Conv(r, t) {silu.format("d")} y = Conv(dm, t) }}"""
    parts = {"w": weights(1, 8, 8, 3, 3), "v": weights(2, 4, 4, 3, 3), "u": weights(3, 8, 12, 1, 1)}
    model = net(text, **parts, t=weights(4, 8, 8, 1, 1), twice=np.array([1, 1, 2, 2], np.float32))
    feeds = {"x": np.random.default_rng(1).standard_normal((24, 8, 12, 12)).astype(np.float32)}
    result = compress(model, calibration=feeds)
    wanted = {"QLinearConv": 5, "QLinearSigmoid": 4, "QLinearMul": 4, "QLinearAdd": 1, "QLinearConcat": 1, "Split": 1,
              "Resize": 1, "QuantizeLinear": 1, "DequantizeLinear": 1}  # fmt: skip
    assert fused(result) == wanted
    assert sqnr_db(evaluate(model, feeds)[0], evaluate(result, feeds, optimized=True)[0]) > 25


def test_kept_nodes_stay_float(net: Any, fused: Any, parts: dict[str, np.ndarray]) -> None:
    model, feeds = built(net, parts, "plain")
    result = compress(model, calibration=feeds, keep_float=["a"], ranges="minmax")
    assert fused(result)["QLinearConv"] == 1
    kept = [n for n in result.ir.graph if n.op_type == "Conv" and n.inputs[1].const_value is not None]  # type: ignore[union-attr]
    assert len(kept) == 1


@pytest.mark.parametrize(("between", "shape"), [
    ("Conv<group=8, pads=[1,1,1,1]>", (8, 1, 3, 3)), ("ConvTranspose", (8, 8, 2, 2)), ("Conv", (8, 8, 1, 1)),
])  # fmt: skip
@pytest.mark.parametrize(
    "behind", ["y = Conv({}, w2)", "r = Relu({}) y = Conv(r, w2)", "r = Clip({}, zero, six) y = Conv(r, w2)"]
)
def test_what_stays_float_between_integers_is_not_rounded_by_the_runtime(
    net: Any, evaluate: Any, weights: Any, between: str, shape: tuple[int, ...], behind: str
) -> None:
    """ONNX Runtime would give such a layer 8-bit weights with one scale for all: nothing is left of small channels."""
    spread = np.logspace(-3, 0, 8, dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    text = f"{DOOR} {{ a = Conv(x, w) s = Relu(a) k = {between}(s, kept) {behind.format('k')} }}"
    shrink = np.moveaxis(spread, 0, 1 if between == "ConvTranspose" else 0)
    parts = {"w": weights(1, 8, 8, 1, 1), "kept": weights(2, *shape) * shrink,
             "w2": weights(3, 8, 8, 1, 1) / spread.reshape(1, 8, 1, 1)}  # fmt: skip
    scalars = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    model = net(text, **parts, **(scalars if "Clip" in behind else {}))
    feeds = {"x": np.random.default_rng(1).standard_normal((24, 8, 8, 8)).astype(np.float32)}
    kept = [] if between == "ConvTranspose" else ["k"]
    result = compress(model, calibration=feeds, keep_float=kept, ranges="minmax")
    [apart], [whole] = evaluate(result, feeds), evaluate(result, feeds, optimized=True)
    assert sqnr_db(apart, whole) > 40


@pytest.mark.parametrize("tail", ["r = Relu(c) y = Add(c, r)", "p = GlobalAveragePool(c) y = Mul(c, p)"])
def test_a_layer_with_several_readers_keeps_its_scale_in_plain_openvino(net: Any, evaluate: Any, tail: str) -> None:
    """A convolution without a bias, read twice, with an open batch: OpenVINO gives one reader unscaled sums.

    All numbers lie on grids, so that no bias is corrected.
    """
    openvino = pytest.importorskip("openvino")
    rng = np.random.default_rng(1)
    exact = rng.integers(-127, 128, (8, 8, 1, 1))
    exact[:, 0] = 127
    feeds = {"x": rng.integers(0, 256, (24, 8, 8, 8)).astype(np.float32)}
    model = net(f"{DOOR} {{ c = Conv(x, w) {tail} }}", w=(exact / 1024).astype(np.float32))
    result = compress(model, target="openvino", calibration=feeds, ranges="minmax")
    [apart] = evaluate(result, feeds)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(result.to_bytes()), "CPU", settings)
    assert sqnr_db(apart, compiled(feeds)[0]) > 40


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_every_opset_that_carries_per_channel_pairs(
    net: Any, evaluate: Any, parts: dict[str, np.ndarray], opset: int
) -> None:
    text = "a = Conv(x, w, b) r = Relu(a) p = MaxPool<kernel_shape=[2,2]>(r) y = Conv(p, w2, b2)"
    chosen = {name: parts[name] for name in ("w", "b", "w2", "b2")}
    model = net(f"{DOOR} {{ {text} }}", opset=opset, **chosen)
    feeds = {"x": np.random.default_rng(1).standard_normal((24, 8, 8, 8)).astype(np.float32)}
    result = compress(model, calibration=feeds, ranges="minmax")
    assert result.ir.opset_imports[""] == opset
    assert sqnr_db(evaluate(model, feeds)[0], evaluate(result, feeds)[0]) > 25


@pytest.mark.parametrize("positions", [(20,), (4, 5, 6)])
def test_one_and_three_dimensions(
    net: Any, evaluate: Any, fused: Any, weights: Any, positions: tuple[int, ...]
) -> None:
    sizes, ones = ",".join(map(str, positions)), (1,) * len(positions)
    text = f"(float[n,8,{sizes}] x) => (float[n,6,{sizes}] y) {{ a = Conv(x, w) r = Relu(a) y = Conv(r, w2) }}"
    model = net(text, w=weights(1, 8, 8, *ones), w2=weights(2, 6, 8, *ones))
    feeds = {"x": np.random.default_rng(1).standard_normal((24, 8, *positions)).astype(np.float32)}
    for target in ("onnxruntime", "openvino"):
        result = compress(model, target=target, calibration=feeds, ranges="minmax")
        assert sqnr_db(evaluate(model, feeds)[0], evaluate(result, feeds)[0]) > 25


def test_variants_share_what_is_known_of_the_float_model(
    net: Any, fused: Any, parts: dict[str, np.ndarray], request_for: Any
) -> None:
    """With nothing kept it is what `apply` makes, byte for byte; others keep what they are told, in any order."""
    model, feeds = built(net, parts, "residual")
    data = open_data(feeds, model.inputs, batch=8)
    make = quantize.variants("static_int8", model, request_for(calibration=data))
    kept = make(frozenset({"c"}))
    assert (
        make(frozenset()).to_bytes() == quantize.apply("static_int8", model, request_for(calibration=data)).to_bytes()
    )
    assert make(frozenset({"c"})).to_bytes() == kept.to_bytes()
    assert fused(kept).get("Conv", 0) == 1 and fused(make(frozenset())).get("Conv", 0) == 0


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_presets_look_at_more_and_lose_no_more(
    net: Any, evaluate: Any, parts: dict[str, np.ndarray], target: str
) -> None:
    """On the calibration data itself `best` is as near to the float model as `default`, to 0.5 dB; `fast` passes 25."""
    model, feeds = built(net, parts, "residual")
    (want,) = evaluate(model, feeds)
    reached = {}
    for preset in ("fast", "default", "best"):
        result = compress(model, target=target, calibration=feeds, preset=preset)
        with registry.target(target).load(registry.target(target).compile(result, Options(1)), Options(1)) as session:
            reached[preset] = sqnr_db(want, session.run(feeds)[model.outputs[0].name])
    assert reached["best"] > reached["default"] - 0.5 and reached["fast"] > 25
    assert "refined" in result.history[-1].options
