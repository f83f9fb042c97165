"""`edgerun why-wrong` through its front door: planted faults in small models, files, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import edgerun
from edgerun.errors import EdgerunError
from edgerun.mixed import order
from edgerun.model import Model
from edgerun.verbs.why_wrong import why_wrong

TEXT = """<ir_version: 8, opset_import: ["": 17]> net (float[n,16] x) => (float[n,6] y) {
  h = Gemm(x, w1, b1)  r = Relu(h)  k = Gemm(r, w2, b2)  s = Relu(k)  y = Gemm(s, w3, b3)
}"""


@pytest.fixture
def placed(tmp_path: Path) -> Path:
    """float.onnx, good.onnx (INT8), clipped.onnx (the range behind `k` five times too small), data.npz with labels."""
    draw = np.random.default_rng(3)
    proto = onnx.parser.parse_model(TEXT)
    for number, shape in enumerate([(16, 32), (32, 32), (32, 6)], 1):
        weight = draw.standard_normal(shape) * np.sqrt(2 / shape[0])
        bias = 0.1 * draw.standard_normal(shape[1])
        for name, array in ((f"w{number}", weight), (f"b{number}", bias)):
            proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    for node in proto.graph.node:
        node.name = node.output[0]
    model = Model.from_proto(proto)
    model.save(tmp_path / "float.onnx")
    x = draw.standard_normal((96, 16)).astype(np.float32)
    good = edgerun.compress(model, calibration={"x": x}, ranges="minmax", output=tmp_path / "good.onnx")
    with edgerun.load(tmp_path / "float.onnx") as session:
        labels = session.run({"x": x})["y"].argmax(axis=1)
    np.savez(tmp_path / "data.npz", x=x, labels=labels)
    np.savez(tmp_path / "plain.npz", x=x)
    clipped = onnx.ModelProto.FromString(good.to_bytes())
    makers = {out: node for node in clipped.graph.node for out in node.output}
    tensors = {t.name: t for t in clipped.graph.initializer}
    quantize = next(n for n in clipped.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "k")
    reader = next(n for n in clipped.graph.node if n.name == "y")
    bias = makers[reader.input[2]]
    for name, factor in ((quantize.input[1], 0.2), (bias.input[1], 0.2), (bias.input[0], 5)):
        array = numpy_helper.to_array(tensors[name])
        tensors[name].CopyFrom(numpy_helper.from_array(np.asarray(array * factor, array.dtype), name))
    onnx.save(clipped, tmp_path / "clipped.onnx")
    return tmp_path


def _diagnosed(placed: Path, name: str, data: str = "plain.npz", **options: Any) -> Any:
    return why_wrong(placed / "float.onnx", placed / name, placed / data, **options)


def test_a_clipped_range_is_found_named_and_repaired(placed: Path) -> None:
    result = _diagnosed(placed, "clipped.onnx", fix=placed / "fixed.onnx", limit=96)
    good = edgerun.compare(placed / "float.onnx", placed / "good.onnx", placed / "plain.npz").outputs[0].sqnr_db
    row = result.rows[0]
    assert (row.layer, row.kind, row.cause) == ("k", "activation", "clipping")
    assert row.gain_db is not None and row.gain_db.value > 0.8 * (good - result.sqnr_db)
    assert row.gain_db.interval.low <= row.gain_db.value <= row.gain_db.interval.high
    fixed = edgerun.compare(placed / "float.onnx", placed / "fixed.onnx", placed / "plain.npz").outputs[0].sqnr_db
    assert fixed == pytest.approx(result.fixed_db, abs=0.5) and fixed > good - 1
    made = Model.load(placed / "fixed.onnx").history[-1]
    assert made.name == "quantize/repair" and made.options["fixes"] == list(result.fixes) and made.data == result.data
    onnx.checker.check_model(onnx.load(placed / "fixed.onnx"), full_check=True)


def test_the_sqnr_is_that_of_compare(placed: Path) -> None:
    result = _diagnosed(placed, "clipped.onnx", limit=96)
    compared = edgerun.compare(placed / "float.onnx", placed / "clipped.onnx", placed / "plain.npz").outputs[0].sqnr_db
    assert result.sqnr_db == pytest.approx(compared, abs=0.01) and result.samples == 96
    assert result.counterpart_db > 90 and result.drop_points is None


def test_with_labels_the_points_are_paired(placed: Path) -> None:
    result = _diagnosed(placed, "clipped.onnx", "data.npz", limit=96)
    accuracy = edgerun.evaluate(placed / "clipped.onnx", placed / "data.npz", baseline=placed / "float.onnx").against
    assert accuracy is not None and result.drop_points is not None
    assert result.drop_points.value == pytest.approx(100 * accuracy.drop)
    assert result.drop_points.interval.low == pytest.approx(100 * accuracy.interval.low)
    assert result.rows[0].layer == "k" and result.rows[0].cost_points.value > 5


def test_a_good_model_is_not_repaired(placed: Path) -> None:
    result = _diagnosed(placed, "good.onnx")
    assert result.sqnr_db > 30
    assert all(row.cost_db.value < 6 for row in result.rows)


def test_16_bit_sums_are_counted_when_the_device_has_them(placed: Path) -> None:
    plain, saturating = (_diagnosed(placed, "good.onnx", saturating=s) for s in (False, True))
    assert saturating.sqnr_db <= plain.sqnr_db + 0.01
    assert not any(row.kind == "sums" for row in plain.rows)


def test_the_command(placed: Path, cli: Any) -> None:
    arguments = ["why-wrong", placed / "float.onnx", placed / "clipped.onnx", "--data", placed / "data.npz", "--top", 3]
    ran = cli(*arguments)
    lines = ran.out.splitlines()
    assert ran.code == 0 and "n=32" in lines[0] and "points lost" in lines[0]
    assert lines[1].split()[0] == "layer" and lines[2].startswith("k (activation)") and "clipping" in lines[2]
    assert "new range" in ran.out
    found = json.loads(cli(*arguments, "--json").out)
    assert found["rows"][0]["cause"] == "clipping" and len(found["rows"]) <= 3 and found["rows"][0]["cost_points"]


def test_the_page_needs_no_network(placed: Path, cli: Any) -> None:
    pytest.importorskip("plotly")
    page = placed / "page.html"
    ran = cli(
        "why-wrong", placed / "float.onnx", placed / "clipped.onnx", "--data", placed / "plain.npz", "--html", page
    )
    text = page.read_text()
    assert ran.code == 0 and f"wrote {page}" in ran.out
    assert "clipping" in text and "<title>Why clipped.onnx differs from float.onnx</title>" in text
    assert 'src="http' not in text and "href=" not in text.replace("xlink:href=", "").split("</script>")[-1]


def test_nothing_is_overwritten_without_force(placed: Path, cli: Any) -> None:
    taken = placed / "taken.onnx"
    taken.write_bytes(b"mine")
    arguments = ["why-wrong", placed / "float.onnx", placed / "clipped.onnx", "--data", placed / "plain.npz"]
    ran = cli(*arguments, "--fix", taken)
    assert ran.code == 2 and "the output exists" in ran.err and taken.read_bytes() == b"mine"
    assert cli(*arguments, "--fix", taken, "--force").code == 0 and Model.load(taken).history


def test_a_page_without_the_extra_says_what_to_install(placed: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "plotly" else real(name, *a))
    ran = cli("why-wrong", placed / "float.onnx", placed / "clipped.onnx", "--data", placed / "plain.npz",
              "--html", placed / "page.html")  # fmt: skip
    assert ran.code == 3 and "edgerun[report]" in ran.err


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        ("float.onnx", "float.onnx", {}, "no QuantizeLinear"),
        ("nope.onnx", "good.onnx", {}, "nope.onnx"),
        ("float.onnx", "good.onnx", {"top": 0}, "nothing to show"),
        ("float.onnx", "good.onnx", {"data": "nope.npz"}, "does not exist"),
        ("float.onnx", "good.onnx", {"target": "nope"}, "unknown target"),
    ],
)
def test_misuse(placed: Path, first: str, second: str, options: dict[str, Any], message: str) -> None:
    data = placed / options.pop("data", "plain.npz")
    with pytest.raises(EdgerunError, match=message):
        why_wrong(placed / first, placed / second, data, **options)


def test_another_models_door_is_refused(placed: Path, place: Any) -> None:
    other = place.save(place.folder / "other.onnx", names=("z", "y"))
    with pytest.raises(EdgerunError, match="different inputs"):
        why_wrong(other, placed / "good.onnx", placed / "plain.npz")


def near_float(outputs: dict[str, np.ndarray], float_outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Whether the largest output of a sample is within a tenth of the float model's."""
    largest = float_outputs["y"].argmax(axis=1)[:, None]
    ours, theirs = (np.take_along_axis(given["y"], largest, axis=1)[:, 0] for given in (outputs, float_outputs))
    return np.asarray(np.abs(ours - theirs) < 0.1 * np.abs(theirs))


@pytest.mark.parametrize("metric", ["agreement", near_float])
def test_a_metric_without_labels_counts_points(placed: Path, metric: Any) -> None:
    """As numpy counts them on all samples; the row of the clipped range comes first, and what it costs is sure."""
    result = _diagnosed(placed, "clipped.onnx", limit=48, metric=metric)
    sessions = [edgerun.load(placed / name) for name in ("float.onnx", "clipped.onnx")]
    x = np.load(placed / "plain.npz")["x"]
    exact, clipped = (session.run({"x": x[[*order(len(x))][:48]]}) for session in sessions)
    same = exact["y"].argmax(1) == clipped["y"].argmax(1) if metric == "agreement" else near_float(clipped, exact)
    assert result.drop_points is not None and result.drop_points.value == pytest.approx(100 * (1 - same.mean()))
    row = result.rows[0]
    assert (row.layer, row.cause) == ("k", "clipping") and row.cost_points is not None
    assert row.cost_points.interval.low > 0
    for session in sessions:
        session.close()


def test_a_quantizer_behind_another_is_looked_at(placed: Path) -> None:
    """What is rounded is rounded once more to the same grid, for a reader of integers; both are taken out by name."""
    proto = onnx.load(placed / "good.onnx")
    first = next(n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0].startswith("k"))
    grid, value = list(first.input[1:]), first.output[0]
    again = [
        onnx.helper.make_node("QuantizeLinear", [value, *grid], ["again"], name="again/Q"),
        onnx.helper.make_node("DequantizeLinear", ["again", *grid], ["again/value"], name="again/DQ"),
    ]
    for node in proto.graph.node:
        node.input[:] = ["again/value" if name == value else name for name in node.input]
    place = list(proto.graph.node).index(first) + 1
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes[:place], *again, *nodes[place:]])
    onnx.save(proto, placed / "twice.onnx")
    once, twice = _diagnosed(placed, "good.onnx"), _diagnosed(placed, "twice.onnx")
    assert twice.sqnr_db == pytest.approx(once.sqnr_db, abs=0.01)
    assert {row.layer for row in twice.rows} >= {"k", "y"}
