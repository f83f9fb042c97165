"""The schemes beside w8a8: what each computes, stores and leaves alone, on both runtimes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun import registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.verbs.compress import compress

ONE = Options(1)
TARGETS = ("onnxruntime", "openvino")
SCHEMES = ("w8a8_dynamic", "w8a16", "w4a16_b32", "w4a8", "fp16")
MLP = """(float[n,64] x) => (float[n,10] y) {
    a = Gemm<transB=1>(x, w1, b1) r = Relu(a) p = MatMul(r, w2) q = Add(p, b2) s = Relu(q) y = Gemm(s, w3) }"""
SHAPES = {"w1": (256, 64), "b1": (256,), "w2": (256, 128), "b2": (128,), "w3": (128, 10)}


def build(text: str, shapes: dict[str, tuple[int, ...]], opset: int = 17, **more: np.ndarray) -> Model:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> net {text}')
    arrays = {n: rng.standard_normal(s) * np.sqrt(2 / max(s[0], s[-1])) for n, s in shapes.items()} | more
    proto.graph.initializer.extend(
        numpy_helper.from_array(a.astype(np.float32) if a.dtype.kind == "f" else a, n) for n, a in arrays.items()
    )
    for node in proto.graph.node:
        node.name = node.name or node.output[0]
    onnx.checker.check_model(proto)
    return Model.from_proto(proto)


def data(samples: int = 64, width: int = 64) -> dict[str, np.ndarray]:
    """Correlated inputs, as real ones are."""
    mixing, rng = np.random.default_rng(1).standard_normal((8, width)), np.random.default_rng(samples)
    mixed = rng.standard_normal((samples, 8)) @ mixing
    return {"x": (mixed + 0.3 * rng.standard_normal((samples, width))).astype(np.float32)}


@pytest.fixture(scope="module")
def mlp() -> Model:
    return build(MLP, SHAPES)


def run(model: Model | Path, target: str, feeds: dict[str, np.ndarray], name: str = "y") -> np.ndarray:
    engine = edgerun.compile(model, target, ONE) if isinstance(model, Model) else model
    with edgerun.load(engine, target, ONE) as session:
        return session.run(feeds)[name]


def initializers(model: Model) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in model.ir.graph.initializers.items():
        assert value.const_value is not None
        yield name, value.const_value.numpy()


# dB on data that the scheme has not seen, and the share of the float model's bytes.
EXPECTED = {
    "w8a8_dynamic": (30.0, 0.33),
    "w8a16": (38.0, 0.33),
    "w4a16_b32": (20.0, 0.27),
    "w4a8": (20.0, 0.27),
    "fp16": (60.0, 0.53),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_near_and_small(scheme: str, target: str, mlp: Model, tmp_path: Path) -> None:
    output = tmp_path / ("small.onnx" if target == "onnxruntime" else "small.xml")
    result = compress(mlp, scheme=scheme, target=target, calibration=data(150), output=output)
    decibels, share = EXPECTED[scheme]
    fresh = {"x": data(200)["x"][100:]}
    assert sqnr_db(run(mlp, target, fresh), run(output, target, fresh)) > decibels
    weights = sum(array.nbytes for _, array in initializers(result))
    assert weights < share * sum(array.nbytes for _, array in initializers(mlp))
    written = output.with_suffix(".bin") if target == "openvino" else output
    assert written.stat().st_size < 1.1 * weights + 16_000, "stays small in the file"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_calibration_data(scheme: str, target: str, mlp: Model) -> None:
    first, again = (compress(mlp, scheme=scheme, target=target) for _ in range(2))
    assert first.to_bytes() == again.to_bytes()
    assert first.history[-1].data == "" and "calibration SQNR (dB)" not in first.history[-1].options
    assert sqnr_db(run(mlp, target, data()), run(first, target, data())) > 14


@pytest.mark.parametrize("scheme", SCHEMES)
def test_kept_nodes_stay_float(scheme: str, mlp: Model) -> None:
    kept = compress(mlp, scheme=scheme, keep_float=["a"])
    assert any(array.shape == (256, 64) and array.dtype == np.float32 for _, array in initializers(kept))
    with pytest.raises(EdgerunError, match="no effect"):
        compress(mlp, scheme=scheme, keep_float=["r"])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_options_without_effect_and_quantized_models_are_refused(scheme: str, mlp: Model) -> None:
    with pytest.raises(EdgerunError, match="no static ranges"):
        compress(mlp, scheme=scheme, ranges="mse")
    quantized = compress(mlp, scheme="w8a8_dynamic")
    if scheme != "fp16":
        with pytest.raises(EdgerunError, match="quantized already"):
            compress(quantized, scheme=scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_to_do_is_said(scheme: str) -> None:
    with pytest.raises(Unsupported):
        compress(build("(float[n,4] x) => (float[n,4] y) { y = Relu(x) }", {}), scheme=scheme)


def test_static_int8_still_needs_data(mlp: Model) -> None:
    with pytest.raises(EdgerunError, match="needs calibration data"):
        compress(mlp)


def test_dynamic_int8_by_hand() -> None:
    """ONNX's definition in float64: u8 codes over [min(x, 0), max(x, 0)], s8 weights per column; 1e-5 relative."""
    model = build("(float[n,64] x) => (float[n,32] y) { y = Gemm(x, w, b) }", {"w": (64, 32), "b": (32,)})
    weight, bias = (dict(initializers(model))[name].astype(np.float64) for name in "wb")
    x = data()["x"]
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    codes = np.clip(np.rint(x / scale) + zero, 0, 255)
    steps = 63 if registry.target("onnxruntime").quantization().reduced_range else 127
    s_w = np.abs(weight).max(axis=0) / steps
    wanted = (codes - zero) @ np.rint(weight / s_w) * (s_w * scale) + bias
    found = run(compress(model, scheme="w8a8_dynamic"), "onnxruntime", {"x": x})
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_dynamic_products_share_their_input_and_are_fused(mlp: Model, fused: Callable[[Model], dict[str, int]]) -> None:
    text = "(float[n,64] x) => (float[n,32] y) { a = MatMul(x, w1) b = MatMul(x, w2) y = Mul(a, b) }"
    result = compress(build(text, {"w1": (64, 32), "w2": (64, 32)}), scheme="w8a8_dynamic")
    assert [node.op_type for node in result.ir.graph].count("DynamicQuantizeLinear") == 1
    ops = fused(compress(mlp, scheme="w8a8_dynamic"))
    assert "MatMulInteger" not in ops and ops.get("DynamicQuantizeMatMul", 0) + ops.get("MatMulIntegerToFloat", 0) == 3


def test_openvino_runs_dynamic_products_on_integers(mlp: Model, tmp_path: Path) -> None:
    """The IR keeps int8 weights and says how inputs are rounded; its result is nearer to float than ONNX's own."""
    from edgerun.targets import _openvino_ir as ir

    result = compress(mlp, scheme="w8a8_dynamic", target="openvino", output=tmp_path / "small.xml")
    graph = ir.core().read_model(str(tmp_path / "small.xml"))
    assert graph.get_rt_info(["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]).value != "0"
    stored = [op.get_element_type().to_string() for op in graph.get_ops() if op.get_type_name() == "Constant"]
    assert stored.count("i8") == 3
    result.save(tmp_path / "small.onnx")
    x = data()
    exact = run(mlp, "onnxruntime", x)
    errors = [
        sqnr_db(exact, run(tmp_path / n, t, x)) for n, t in (("small.xml", "openvino"), ("small.onnx", "openvino"))
    ]
    assert errors[0] == errors[1], "an .onnx file is rounded as the IR is"
    assert errors[0] > sqnr_db(exact, run(tmp_path / "small.onnx", "onnxruntime", x))
    weight_only = compress(mlp, scheme="w8a16", target="openvino")
    reference = run(weight_only, "onnxruntime", x)
    assert sqnr_db(reference, run(weight_only, "openvino", x)) > 100, "float activations stay float"


def test_four_bits_stay_four_bits_in_openvino(mlp: Model, tmp_path: Path) -> None:
    from edgerun.targets import _openvino_ir as ir

    compress(mlp, scheme="w4a16_b32", target="openvino", output=tmp_path / "small.xml")
    graph = ir.core().read_model(str(tmp_path / "small.xml"))
    stored = [op.get_element_type().to_string() for op in graph.get_ops() if op.get_type_name() == "Constant"]
    assert stored.count("u4") >= 3


def test_data_makes_four_bits_better(mlp: Model) -> None:
    """Second-order rounding on correlated inputs: 4 dB and more on fresh data, without a layer in 8 bits."""
    fresh = {"x": data(200)["x"][100:]}
    exact = run(mlp, "onnxruntime", fresh)
    plain, better = (compress(mlp, scheme="w4a16_b32", calibration=c) for c in (None, data(300)))
    told = better.history[-1].options
    assert told["rounding"] == "second order" and told["weights in 4 bits"] + told["weights in 8 bits"] == 3
    gain = sqnr_db(exact, run(better, "onnxruntime", fresh)) - sqnr_db(exact, run(plain, "onnxruntime", fresh))
    assert gain > 4, gain


RECURRENT = {
    "LSTM": ("y, h, c = LSTM<hidden_size=48, direction=\"bidirectional\">(x, w, r, b)", 4),
    "GRU": ("y, h = GRU<hidden_size=48, direction=\"bidirectional\", linear_before_reset=1>(x, w, r, b)", 3),
}  # fmt: skip


@pytest.mark.parametrize("op", RECURRENT)
@pytest.mark.parametrize("target", TARGETS)
def test_recurrent_nets_keep_their_precision_in_weight_only(op: str, target: str) -> None:
    text, gates = RECURRENT[op]
    shapes = {"w": (2, gates * 48, 24), "r": (2, gates * 48, 48), "b": (2, 2 * gates * 48)}
    model = build(f"(float[t,n,24] x) => (float[t,2,n,48] y) {{ {text} }}", shapes)
    result = compress(model, scheme="w8a16", target=target)
    assert result.history[-1].options["weights in 8 bits"] == 2
    x = {"x": np.random.default_rng(2).standard_normal((20, 3, 24)).astype(np.float32)}
    assert sqnr_db(run(model, target, x), run(result, target, x)) > 35


def test_a_dynamic_lstm() -> None:
    """Both directions, with its final states and the initial ones given; ONNX Runtime's own contrib kernel."""
    text = """(float[t,n,24] x, float[2,n,48] h0, float[2,n,48] c0) => (float[t,2,n,48] y, float[2,n,48] c) {
        y, h, c = LSTM<hidden_size=48, direction="bidirectional">(x, w, r, b, , h0, c0) }"""
    model = build(text, {"w": (2, 192, 24), "r": (2, 192, 48), "b": (2, 384)})
    result = compress(model, scheme="w8a8_dynamic")
    assert [node.op_type for node in result.ir.graph] == ["DynamicQuantizeLSTM"]
    rng = np.random.default_rng(2)
    x = {"x": rng.standard_normal((20, 3, 24)), "h0": rng.standard_normal((2, 3, 48)), "c0": np.zeros((2, 3, 48))}
    feeds = {name: array.astype(np.float32) for name, array in x.items()}
    for name in ("y", "c"):
        assert sqnr_db(run(model, "onnxruntime", feeds, name), run(result, "onnxruntime", feeds, name)) > 22
    with pytest.raises(Unsupported):
        compress(model, scheme="w8a8_dynamic", target="openvino")


@pytest.mark.parametrize("target", TARGETS)
def test_tables_keep_one_scale_per_row(target: str) -> None:
    """Rows of sizes 10⁻³ to 10³ each keep 8 bits of their own."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((500, 64)) * 10 ** rng.uniform(-3, 3, (500, 1))
    text = "(int64[n,l] x) => (float[n,l,64] y) { y = Gather(table, x) }"
    model = build(text, {}, table=table)
    result = compress(model, scheme="w8a16", target=target)
    ids = np.arange(-500, 500).reshape(2, 500)
    wanted, found = table[ids], run(result, target, {"x": ids})
    assert np.abs(wanted - found).max(axis=-1).max() > 0
    assert (np.abs(wanted - found).max(axis=-1) <= np.abs(wanted).max(axis=-1) / 254 * 1.001).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scheme", ["w8a16", "fp16"])
def test_convolutions_and_shared_weights(scheme: str, target: str) -> None:
    text = """(float[n,8,9,9] x) => (float[n,8,9,9] y) { a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a)
        c = Conv<pads=[1,1,1,1]>(r, w, b) d = Conv<group=8>(c, dw) y = ConvTranspose(d, up) }"""
    model = build(text, {"w": (8, 8, 3, 3), "b": (8,), "dw": (8, 1, 9, 9), "up": (8, 8, 9, 9)})
    result = compress(model, scheme=scheme, target=target)
    shapes = [array.shape for _, array in initializers(result) if array.dtype in (np.int8, np.float16)]
    assert sorted(shapes) == sorted([(8, 8, 3, 3), (8, 1, 9, 9), (8, 8, 9, 9)]), "a shared weight is stored once"
    x = {"x": np.random.default_rng(3).standard_normal((2, 8, 9, 9)).astype(np.float32)}
    assert sqnr_db(run(model, target, x), run(result, target, x)) > (35 if scheme == "w8a16" else 60)


def test_weights_that_float16_cannot_hold_stay() -> None:
    rng = np.random.default_rng(0)
    big, small = rng.standard_normal((64, 32)) * 1e5, rng.standard_normal((32, 32)) * 1e-7
    text = "(float[n,64] x) => (float[n,32] y) { a = MatMul(x, big) b = MatMul(a, small) y = MatMul(b, usual) }"
    result = compress(build(text, {"usual": (32, 32)}, big=big, small=small), scheme="fp16")
    assert sorted(result.history[-1].options["left in float32"]) == ["big", "small"]
    assert result.history[-1].options["weights in float16"] == 1


def test_weights_inside_a_branch() -> None:
    """An If whose branches hold weights of their own, as recurrent detectors have them."""
    rng = np.random.default_rng(0)
    branches = []
    for name in ("then", "else"):
        weight = numpy_helper.from_array(rng.standard_normal((64, 64)).astype(np.float32) / 8, f"w_{name}")
        node = helper.make_node("MatMul", ["x", f"w_{name}"], [f"out_{name}"], f"product_{name}")
        info = helper.make_tensor_value_info(f"out_{name}", TensorProto.FLOAT, ["n", 64])
        branches.append(helper.make_graph([node], name, [], [info], [weight]))
    graph = helper.make_graph(
        [helper.make_node("If", ["flag"], ["y"], "if", then_branch=branches[0], else_branch=branches[1])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64]),
         helper.make_tensor_value_info("flag", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
    )  # fmt: skip
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    for scheme, least in (("w8a16", 38), ("fp16", 60)):
        result = compress(model, scheme=scheme)
        assert len(result.to_bytes()) < 0.6 * len(model.to_bytes())
        for flag in (True, False):
            feeds: dict[str, Any] = {**data(), "flag": np.array(flag)}
            assert sqnr_db(run(model, "onnxruntime", feeds), run(result, "onnxruntime", feeds)) > least
