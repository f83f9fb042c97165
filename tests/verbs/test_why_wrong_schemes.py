"""`edgerun why-wrong` on dynamic and weight-only products, edgerun's and ONNX Runtime's, and what it cannot look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

import edgerun
from edgerun.data import open_data
from edgerun.errors import EdgerunError
from edgerun.mixed import mixed
from edgerun.model import Model
from edgerun.verbs.why_wrong import why_wrong

NET = """<ir_version: 8, opset_import: ["": 17]> net (float[n,64] x) => (float[n,6] y) {
  h = Gemm<transB=1>(x, w1, b1)  r = Relu(h)  p = MatMul(r, w2)  s = Relu(p)  y = Gemm(s, w3, b3)
}"""


def network(path: Path, loud: float = 1.0) -> Path:
    """x [n, 64] through `h`, `p` [n, 96] to y [n, 6]; `loud` times as large a channel of `h`."""
    draw = np.random.default_rng(11)
    shapes = {"w1": (96, 64), "b1": (96,), "w2": (96, 96), "w3": (96, 6), "b3": (6,)}
    arrays = {name: draw.standard_normal(shape) / 8 for name, shape in shapes.items()}
    arrays["w1"][7] *= loud
    arrays["w2"][7] /= loud
    proto = onnx.parser.parse_model(NET)
    for node in proto.graph.node:
        node.name = node.output[0]
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items())
    onnx.save(proto, path)
    return path


def data(seed: int, count: int = 96) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 64)).astype(np.float32)}


def ops(path: Path) -> list[str]:
    return sorted(node.op_type for node in onnx.load(path).graph.node)


def levels(path: Path) -> list[int]:
    """What each MatMulNBits may compute with."""
    return [a.i for node in onnx.load(path).graph.node for a in node.attribute if a.name == "accuracy_level"]


def sqnr(model: Path, small: Path, seed: int) -> float:
    """By `compare`, in batches of four as `why_wrong` has them: what is dynamic shares its scales over a batch."""
    feeds = mixed(open_data(data(seed), Model.load(model).inputs, batch=4))
    return float(edgerun.compare(model, small, feeds).outputs[0].sqnr_db)


@pytest.mark.parametrize("scheme", ["w8a8_dynamic", "w8a16", "w4a16_b32", "w4a8"])
def test_edgeruns_own_schemes(tmp_path: Path, scheme: str) -> None:
    """Every layer's weight has a row, and every input that is rounded while it runs; the numbers are `compare`'s."""
    model, small = network(tmp_path / "float.onnx"), tmp_path / "small.onnx"
    edgerun.compress(model, scheme=scheme, output=small)
    found = why_wrong(model, small, data(1), limit=96)
    assert found.sqnr_db == pytest.approx(sqnr(model, small, 1), abs=0.3) and found.counterpart_db > 90
    assert {row.layer for row in found.rows if row.kind == "weight"} == {"h", "p", "y"}
    assert {row.tensor for row in found.rows if row.kind == "activation"} == (
        {"x", "r", "s"} if scheme in ("w8a8_dynamic", "w4a8") else set()
    )
    assert all(row.alone_db < 60 for row in found.rows)


TOKENS = """<ir_version: 9, opset_import: ["": 20]> net (float[n,t,32] x) => (float[n,t,8] y) {
  l = LayerNormalization<axis=-1>(x, g)  p = MatMul(l, w1)  h = Add(p, b1)  r = Gelu(h)  q = MatMul(r, w2)
  y = Add(q, b2)
}"""


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_products_of_tokens_that_were_smoothed(tmp_path: Path, target: str) -> None:
    """SmoothQuant's factors, and products that became Gemms over rows: each finds its float weight, and nothing that
    is not rounded remains."""
    draw = np.random.default_rng(5)
    shapes = {"w1": (32, 64), "b1": (64,), "w2": (64, 8), "b2": (8,)}
    arrays = {name: draw.standard_normal(shape) / 6 for name, shape in shapes.items()}
    arrays["g"] = np.where(np.arange(32) == 3, 60.0, 1.0)  # one channel is loud, and the weights read little of it
    arrays["w1"][3] /= 60
    proto = onnx.parser.parse_model(TOKENS)
    for node in proto.graph.node:
        node.name = node.output[0]
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items())
    onnx.save(proto, model := tmp_path / "float.onnx")
    feeds = {"x": draw.standard_normal((64, 6, 32)).astype(np.float32)}
    edgerun.compress(model, target=target, calibration=feeds, placement="rules", output=(small := tmp_path / "s.onnx"))
    history = Model.load(small).history[-1]
    assert history.options["smoothed (dB)"], "the loud channel is smoothed"
    found = why_wrong(model, small, feeds, target=target, limit=32)
    assert found.counterpart_db > 90 and not any("no float weight" in note for note in found.notes)
    weights = {row.layer: row.alone_db for row in found.rows if row.kind == "weight"}
    assert weights.keys() == {"p", "q"} and all(25 < alone < 60 for alone in weights.values())


def test_what_keeping_a_layer_of_a_dynamic_model_in_float_brings(tmp_path: Path) -> None:
    model, small = network(tmp_path / "float.onnx"), tmp_path / "small.onnx"
    edgerun.compress(model, scheme="w8a8_dynamic", output=small)
    found = why_wrong(model, small, data(1, 128))
    assert found.keep_float and found.command is not None and "--scheme=w8a8_dynamic" in found.command
    edgerun.compress(model, scheme="w8a8_dynamic", keep_float=found.keep_float, output=tmp_path / "kept.onnx")
    gained = sqnr(model, tmp_path / "kept.onnx", 2) - sqnr(model, small, 2)
    assert found.keep_float_gain_db is not None and found.keep_float_gain_db.value == pytest.approx(gained, abs=1.5)


def test_one_scale_for_all_of_a_dynamic_products_weight(tmp_path: Path) -> None:
    """As quantize_dynamic makes it, in uint8 with a zero point: one channel sets the steps of all; it stays dynamic."""
    model, small, fixed = network(tmp_path / "float.onnx", 40), tmp_path / "small.onnx", tmp_path / "fixed.onnx"
    quantize_dynamic(model, small, weight_type=QuantType.QUInt8)
    found = why_wrong(model, small, data(1), fix=fixed, limit=80)
    assert found.sqnr_db == pytest.approx(sqnr(model, small, 1), abs=0.5) and found.counterpart_db > 90
    assert "what is rounded while it runs shares its scale over a batch, of 4 samples here" in found.notes
    spread = next(row for row in found.rows if row.layer == "h" and row.kind == "weight")
    assert (spread.cause, spread.fix) == ("weight channel spread", "one weight scale per channel")
    assert "h (weight): one weight scale per channel" in found.fixes
    assert ops(fixed).count("MatMulInteger") == ops(small).count("MatMulInteger") == 3
    assert "DequantizeLinear" not in ops(fixed)
    onnx.checker.check_model(onnx.load(fixed), full_check=True)
    gained = sqnr(model, fixed, 2) - sqnr(model, small, 2)
    assert gained > 3 and found.fixed_gain_db is not None and found.fixed_gain_db.value == pytest.approx(gained, abs=4)


@pytest.mark.parametrize("scheme", ["w4a16_b32", "w4a8"])
def test_a_wrong_bias_of_a_model_in_4_bits_is_repaired_and_its_blocks_stay(tmp_path: Path, scheme: str) -> None:
    model, small, fixed = network(tmp_path / "float.onnx"), tmp_path / "small.onnx", tmp_path / "fixed.onnx"
    edgerun.compress(model, scheme=scheme, output=small)
    proto = onnx.load(small)
    (bias,) = [tensor for tensor in proto.graph.initializer if tensor.name == "b1"]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1), "b1"))
    onnx.save(proto, small)
    found = why_wrong(model, small, data(1), fix=fixed)
    first = found.rows[0]
    assert (first.layer, first.kind, first.cause) == ("h", "bias", "bias shift")
    assert ops(fixed) == ops(small) and ops(fixed).count("MatMulNBits") == 3 and levels(fixed) == levels(small)
    assert sqnr(model, fixed, 2) > sqnr(model, small, 2) + 5


def test_what_it_cannot_look_at_is_said(tmp_path: Path, cli: Any) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]> net (float[n,3,8,8] x)
        => (float[n,4,6,6] y) { y = Conv(x, w) }""")
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    proto.graph.node[0].name = "c"
    onnx.save(proto, tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "small.onnx", weight_type=QuantType.QUInt8)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).standard_normal((8, 3, 8, 8)).astype(np.float32))
    ran = cli("why-wrong", tmp_path / "float.onnx", tmp_path / "small.onnx", "--data", tmp_path / "data.npz")
    assert ran.code == 2 and "convolutions whose input is quantized while they run (c_quant)" in ran.err
    assert "edgerun compare tells how far it is off" in ran.err and "--keep-float NODE" in ran.err


def test_rows_that_no_block_divides_are_rounded_as_the_kernel_does(tmp_path: Path) -> None:
    """Of 40 inputs the second block has 8; and a row that is zero has no scale."""
    draw = np.random.default_rng(5)
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]> net (float[n,m,40] x)
        => (float[n,m,24] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }""")
    for node in proto.graph.node:
        node.name = node.output[0]
    for name, shape in (("w", (40, 48)), ("v", (48, 24))):
        proto.graph.initializer.append(numpy_helper.from_array(draw.standard_normal(shape).astype(np.float32), name))
    model, small = tmp_path / "float.onnx", tmp_path / "small.onnx"
    onnx.save(proto, model)
    edgerun.compress(model, scheme="w4a8", output=small)
    x = np.exp(draw.standard_normal((24, 5, 40))).astype(np.float32)
    x[:, 2] = 0
    found = why_wrong(model, small, {"x": x}, limit=24)
    compared = edgerun.compare(model, small, open_data({"x": x}, Model.load(model).inputs, batch=4)).outputs[0].sqnr_db
    assert found.sqnr_db == pytest.approx(compared, abs=0.01) and found.counterpart_db > 90
    rounded = next(row for row in found.rows if row.tensor == "x")
    assert rounded.evidence == "one scale for each 32 elements of a row" and 30 < rounded.alone_db < 60


def test_another_models_blocks_are_compressed_again_as_they_are(tmp_path: Path) -> None:
    """Without a history the ops tell the scheme, and the accuracy level which of the two."""
    model, small = network(tmp_path / "float.onnx"), tmp_path / "small.onnx"
    edgerun.compress(model, scheme="w4a8", output=small)
    proto = onnx.load(small)
    del proto.metadata_props[:]
    onnx.save(proto, small)
    found = why_wrong(model, small, data(1))
    assert found.command is not None and "--scheme=w4a8" in found.command


def test_a_model_in_halves_is_no_float_model(tmp_path: Path, cli: Any) -> None:
    model, small = network(tmp_path / "float.onnx"), tmp_path / "small.onnx"
    edgerun.compress(model, scheme="fp16", output=small)
    np.savez(tmp_path / "data.npz", x=data(1)["x"])
    ran = cli("why-wrong", model, small, "--data", tmp_path / "data.npz")
    assert ran.code == 2 and "weights in float16, and none in integers" in ran.err
    assert "edgerun compare tells how far it is off" in ran.err and "first" not in ran.err.split("do:")[1]


def test_pairs_in_float8_are_not_looked_at(tmp_path: Path, cli: Any) -> None:
    """The float bias beside them is nothing to look at alone."""
    model = network(tmp_path / "float.onnx")
    proto, kind = onnx.load(model), onnx.TensorProto.FLOAT8E4M3FN
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "w1")
    weight.CopyFrom(onnx.helper.make_tensor("w1", kind, (96, 64), b"\x30" * 96 * 64, raw=True))
    one = numpy_helper.from_array(np.array(1, np.float32), "one")
    proto.graph.initializer.extend([one, onnx.helper.make_tensor("zero", kind, (), b"\0", raw=True)])
    nodes = [onnx.helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"], "q"),
             onnx.helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"], "d"),
             onnx.helper.make_node("DequantizeLinear", ["w1", "one", "zero"], ["w"], "w")]  # fmt: skip
    proto.graph.node[0].input[:2] = ["d", "w"]
    for number, node in enumerate(nodes):
        proto.graph.node.insert(number, node)
    proto.opset_import[0].version, proto.ir_version = 19, 9
    onnx.save(proto, tmp_path / "small.onnx")
    np.savez(tmp_path / "data.npz", x=data(1)["x"])
    ran = cli("why-wrong", model, tmp_path / "small.onnx", "--data", tmp_path / "data.npz")
    assert ran.code == 2 and "pairs in other formats than 8-bit integers" in ran.err


def test_the_order_is_told_where_it_is_wrong(tmp_path: Path) -> None:
    model, small = network(tmp_path / "float.onnx"), tmp_path / "small.onnx"
    edgerun.compress(model, scheme="w4a8", output=small)
    with pytest.raises(EdgerunError, match="give the float model first, then the quantized one"):
        why_wrong(small, model, data(1))
    with pytest.raises(EdgerunError, match=r"a float model[\s\S]*give what edgerun compress made of it"):
        why_wrong(model, model, data(1))
