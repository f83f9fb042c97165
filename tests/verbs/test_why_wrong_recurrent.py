"""`edgerun why-wrong` on recurrent layers: faults planted in their inputs and weights are named and repaired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

import edgerun
from edgerun.model import Model
from edgerun.verbs.diagnosed import Diagnosed, Gain
from edgerun.verbs.why_wrong import why_wrong

GATES = {"LSTM": 4, "GRU": 3}
TEXT = """<ir_version: 8, opset_import: ["": 17]> net (float[n,12,16] x) => (float[n,6] y) {{
    t = Transpose<perm=[1,0,2]>(x) a = {op}<hidden_size=24{more}>(t, w0, r0) b = Transpose<perm=[0,2,1,3]>(a)
    c = Reshape(b, join) d, h = LSTM<hidden_size=24>(c, w1, r1) f = Squeeze(h, zero) y = Gemm(f, wh, bh) }}"""


def network(path: Path, op: str = "LSTM", *, both: bool = False, **scaled: tuple[Any, float]) -> Path:
    """x [n, 12, 16] through recurrent layers `first` and `second` to y [n, 6]; of the weights `scaled`, slices times
    a factor."""
    ways = 1 + both
    shapes = {
        "w0": (ways, GATES[op] * 24, 16), "r0": (ways, GATES[op] * 24, 24), "w1": (1, 96, 24 * ways),
        "r1": (1, 96, 24), "wh": (24, 6), "bh": (6,),
    }  # fmt: skip
    draw = np.random.default_rng(7)
    arrays = {name: draw.standard_normal(shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    for name, (where, factor) in scaled.items():
        arrays[name][where] *= factor
    proto = onnx.parser.parse_model(TEXT.format(op=op, more=', direction="bidirectional"' if both else ""))
    for node, name in zip(proto.graph.node, ("t", "first", "b", "c", "second", "f", "head"), strict=True):
        node.name = name
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items())
    proto.graph.initializer.append(numpy_helper.from_array(np.array([12, -1, 24 * ways]), "join"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    onnx.save(proto, path)
    return path


def spoken(seed: int, loud: float = 1.0) -> dict[str, np.ndarray]:
    """Slow signals `[48, 12, 16]`, channel 0 `loud` times as large."""
    x = 0.3 * np.cumsum(np.random.default_rng(seed).standard_normal((48, 12, 16)), 1)
    x[..., 0] *= loud
    return {"x": x.astype(np.float32)}


def kinds(path: Path) -> dict[str, str]:
    return {str(node.name): node.op_type for node in Model.load(path).ir.graph}


def decibels(gain: Gain | None) -> float:
    assert gain is not None
    return gain.value


def row(found: Diagnosed, layer: str, tensor: str = "") -> Any:
    return next(row for row in found.rows if row.layer == layer and row.tensor.endswith(tensor))


@pytest.mark.parametrize("both", [False, True])
def test_a_loud_channel_of_the_input_is_evened_out(tmp_path: Path, both: bool) -> None:
    """One channel that W hardly listens to sets the steps for all; evened out, the layer stays on integers."""
    model = network(tmp_path / "float.onnx", both=both, w0=((..., 0), 1e-3))
    edgerun.compress(model, scheme="w8a8_dynamic", keep_float=["head"], output=tmp_path / "small.onnx")
    found = why_wrong(model, tmp_path / "small.onnx", spoken(1, 1000), fix=tmp_path / "fixed.onnx")
    first = found.rows[0]
    assert (first.layer, first.kind, first.cause) == ("first", "recurrent", "outlier channel")
    assert "channel 0 peaks at" in first.evidence and 300 < first.number < 3000
    assert first.fix == "even out its input's channels" and decibels(first.gain_db) > 0.8 * first.cost_db.value > 10
    assert found.counterpart_db > 90 and row(found, "second").cost_db.value < 1
    assert found.fixes == ("first (recurrent): even out its input's channels",)
    assert kinds(tmp_path / "fixed.onnx")["first"] == "DynamicQuantizeLSTM"
    onnx.checker.check_model(onnx.load(tmp_path / "fixed.onnx"))
    new = spoken(2, 1000)  # nobody has seen
    before, after = (edgerun.compare(model, tmp_path / f"{name}.onnx", new).outputs[0].sqnr_db
                     for name in ("small", "fixed"))  # fmt: skip
    assert before < 15 and after > 28


def test_one_scale_for_all_channels_of_a_layer_on_integers(tmp_path: Path) -> None:
    """As another compressor makes it: its layer has another name, and a scale for all of W, set by one row."""
    model = network(tmp_path / "float.onnx", w0=((0, 5), 40.0))
    quantize_dynamic(model, tmp_path / "theirs.onnx", op_types_to_quantize=["LSTM"], weight_type=QuantType.QInt8)
    found = why_wrong(model, tmp_path / "theirs.onnx", spoken(1), fix=tmp_path / "fixed.onnx")
    first = found.rows[0]
    assert first.layer.startswith("first") and first.kind == "recurrent" and first.cause == "weight channel spread"
    assert first.number > 20 and first.fix == "one weight scale per channel" and decibels(first.gain_db) > 6
    assert found.fixes[0] == f"{first.layer} (recurrent): one weight scale per channel"
    assert kinds(tmp_path / "fixed.onnx")[first.layer] == "DynamicQuantizeLSTM"
    measured = edgerun.compare(model, tmp_path / "fixed.onnx", spoken(1)).outputs[0].sqnr_db
    assert measured == pytest.approx(found.fixed_db, abs=1.5) and measured > found.sqnr_db + 6


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_stored_weights_are_ranked_and_repaired(tmp_path: Path, op: str) -> None:
    """R of the first layer in steps that one row sets for all, behind a DequantizeLinear."""
    model = network(tmp_path / "float.onnx", op, r0=((0, 5), 40.0))
    proto = onnx.load(model)
    (r,) = [init for init in proto.graph.initializer if init.name == "r0"]
    array = numpy_helper.to_array(r)
    scale = np.asarray(np.abs(array).max() / 127, np.float32)
    proto.graph.initializer.remove(r)
    codes = np.rint(array / scale).astype(np.int8)
    proto.graph.initializer.extend([numpy_helper.from_array(codes, "q"), numpy_helper.from_array(scale, "s")])
    proto.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "s"], ["r0"], "dq"))
    onnx.save(proto, tmp_path / "small.onnx")
    found = why_wrong(model, tmp_path / "small.onnx", spoken(1), fix=tmp_path / "fixed.onnx")
    (only,) = found.rows
    assert (only.layer, only.kind, only.tensor, only.cause) == ("first", "weight", "first:2", "weight channel spread")
    assert only.fix in ("one weight scale per channel", "its weights in 16 bits") and decibels(only.gain_db) > 6
    assert edgerun.compare(model, tmp_path / "fixed.onnx", spoken(1)).outputs[0].sqnr_db > found.sqnr_db + 6


def test_what_edgerun_stores_in_8_bits_is_seen(tmp_path: Path) -> None:
    """Behind Cast and Mul, with scales by direction and row; where nothing is odd, a repair is told and not written."""
    model = network(tmp_path / "float.onnx", "GRU", both=True)
    edgerun.compress(model, calibration=spoken(1), output=tmp_path / "small.onnx")
    assert kinds(tmp_path / "small.onnx")["first"] == "GRU"
    found = why_wrong(model, tmp_path / "small.onnx", spoken(1), limit=48)
    assert {(r.layer, r.kind, r.cause) for r in found.rows} == {
        ("first", "weight", "rounding"), ("second", "recurrent", "rounding")
    }  # fmt: skip
    assert row(found, "first", ":1").fix == "its weights in 16 bits" and row(found, "first", ":2").cost_db.value < 3
    assert found.fixes == () and found.counterpart_db > 90 and found.sqnr_db > 28


def test_values_that_round_to_zero_have_a_long_tail(tmp_path: Path) -> None:
    """In every channel a few values are a thousand times as large as the rest: no factor evens that out."""
    draw = np.random.default_rng(3)
    x = draw.standard_normal((48, 12, 16)) * np.where(draw.random((48, 12, 16)) < 0.02, 1000, 1)
    model = network(tmp_path / "float.onnx", w0=(..., 0.05))
    edgerun.compress(model, scheme="w8a8_dynamic", keep_float=["head"], output=tmp_path / "small.onnx")
    found = why_wrong(model, tmp_path / "small.onnx", {"x": x.astype(np.float32)})
    first = found.rows[0]
    assert (first.layer, first.cause) == ("first", "long tail") and 0.5 < first.number <= 1
    assert (
        str(first.fix).startswith("run it in float, weights in") and decibels(first.gain_db) > 0.9 * first.cost_db.value
    )


def test_the_command_and_its_page(tmp_path: Path, cli: Any) -> None:
    pytest.importorskip("plotly")
    model = network(tmp_path / "float.onnx", w0=((..., 0), 1e-3))
    edgerun.compress(model, scheme="w8a8_dynamic", keep_float=["head"], output=tmp_path / "small.onnx")
    np.savez(tmp_path / "data.npz", x=spoken(1, 1000)["x"])
    page = tmp_path / "page.html"
    ran = cli("why-wrong", model, tmp_path / "small.onnx", "--data", tmp_path / "data.npz", "--html", page)
    assert ran.code == 0 and "first (recurrent)" in ran.out and "even out its input" in ran.out
    assert "first (recurrent)" in page.read_text()


def test_dynamic_products_beside_them_are_looked_at(tmp_path: Path) -> None:
    model = network(tmp_path / "float.onnx")
    edgerun.compress(model, scheme="w8a8_dynamic", output=tmp_path / "small.onnx")
    found = why_wrong(model, tmp_path / "small.onnx", spoken(1))
    assert row(found, "head", ":1").kind == "weight" and row(found, "f").kind == "activation"
    assert not any("not looked at" in note for note in found.notes) and found.counterpart_db > 90
