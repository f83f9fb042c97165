"""Which fixes `edgerun why-wrong` keeps, on which samples it judges them, and what it says where none pays."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import edgerun
from edgerun.errors import GateFailed
from edgerun.verbs.why_wrong import why_wrong

NET = """<ir_version: 8, opset_import: ["": 17]> net (float[n,16] x) => (float[n,6] y) {
  h = Gemm(x, w1, b1)  r = Relu(h)  y = Gemm(r, w2, b2)
}"""
BLOCKS = """<ir_version: 8, opset_import: ["": 17]> net (float[frames,16] x, float[1,32] state) => (float[frames,6] y) {
  h = Gemm(x, w1, state)  r = Relu(h)  y = Gemm(r, w2, b2)
}"""


def network(path: Path, text: str = NET, differ: bool = False) -> Path:
    """x [n, 16] through `h` [n, 32] to y [n, 6]; `differ`: the first layer only hears differences of neighbours."""
    draw = np.random.default_rng(5)
    arrays = {"w1": draw.standard_normal((16, 32)) / 4, "b1": 0.1 * draw.standard_normal(32),
              "w2": draw.standard_normal((32, 6)) / 6, "b2": 0.1 * draw.standard_normal(6)}  # fmt: skip
    if differ:
        arrays["w1"] = np.zeros((16, 32))
        for column in range(32):
            arrays["w1"][2 * (column % 8) + np.arange(2), column] = (20, -20) if column < 16 else (-20, 20)
    proto = onnx.parser.parse_model(text)
    for node in proto.graph.node:
        node.name = node.output[0]
    names = [name for node in proto.graph.node for name in node.input if name in arrays]
    proto.graph.initializer.extend(numpy_helper.from_array(arrays[n].astype(np.float32), n) for n in names)
    onnx.save(proto, path)
    return path


def samples(seed: int, count: int) -> np.ndarray:
    """`[count, 16]` of channels that come in pairs which hardly differ."""
    draw = np.random.default_rng(seed)
    pairs = np.repeat(draw.uniform(-1, 1, (count, 8)), 2, axis=1)
    return (pairs + 0.02 * draw.standard_normal((count, 16))).astype(np.float32)


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    """float.onnx, small.onnx and data.npz (64 samples, labels of 9 classes where y has 6 scores)."""
    x = np.random.default_rng(1).standard_normal((64, 16)).astype(np.float32)
    model = network(tmp_path / "float.onnx")
    edgerun.compress(model, calibration={"x": x}, placement="rules", ranges="minmax", output=tmp_path / "small.onnx")
    np.savez(tmp_path / "data.npz", x=x, labels=np.arange(64) % 9)
    return tmp_path


def test_where_no_fix_pays_all_is_told_and_the_answer_is_no(healthy: Path, cli: Any) -> None:
    pytest.importorskip("plotly")
    fixed, page = healthy / "fixed.onnx", healthy / "page.html"
    arguments = ["why-wrong", healthy / "float.onnx", healthy / "small.onnx", "--data", healthy / "data.npz"]
    ran = cli(*arguments, "--limit", 4, "--fix", fixed, "--html", page, "--json")
    found = json.loads(ran.out)
    assert ran.code == 1 and "no fix was written" in ran.err and found["unfixed"] in ran.err
    assert not fixed.exists() and found["fixes"] == [] and found["rows"] and found["sqnr_db"] > 25
    assert found["unfixed"].replace("'", "&#39;") in page.read_text()
    told = cli(*arguments, "--limit", 4, "--fix", fixed)
    assert told.code == 1 and told.out.splitlines()[1].startswith("layer") and found["unfixed"] in told.out
    assert "wrote" not in told.out and cli(*arguments, "--limit", 4).code == 0


def test_the_library_returns_what_it_found(healthy: Path) -> None:
    found = why_wrong(healthy / "float.onnx", healthy / "small.onnx", healthy / "data.npz", fix=healthy / "fixed.onnx")
    assert found.rows and found.fixes == () and found.unfixed and found.fixed_db is None
    assert {row.cause for row in found.rows} <= {"rounding", "little damage"}
    with pytest.raises(GateFailed, match="no fix was written"):
        found.require_fixes()


def test_fixes_are_judged_on_other_samples_where_there_are_eight(healthy: Path) -> None:
    def judged(limit: int) -> Any:
        return why_wrong(healthy / "float.onnx", healthy / "small.onnx", healthy / "data.npz", limit=limit, top=2)

    some, few, all_ = judged(32), judged(4), judged(60)
    assert (some.samples, some.fix_samples, some.apart) == (32, 32, True)
    assert (few.samples, few.fix_samples, few.apart) == (4, 8, True)
    assert (all_.samples, all_.fix_samples, all_.apart) == (60, 60, False)
    told = "fixes are judged on the samples that they were found on: of 64 samples 4 are left, and 8 are wanted"
    assert told in all_.notes and not any("judged on the samples" in note for note in (*some.notes, *few.notes))


def test_a_fix_that_only_float_brings_is_a_command(tmp_path: Path, cli: Any) -> None:
    """The first layer subtracts what hardly differs: the input's rounding is all there is, and nothing is odd."""
    model, small, data = network(tmp_path / "float.onnx", differ=True), tmp_path / "small.onnx", tmp_path / "data.npz"
    np.savez(data, x=samples(1, 128))
    edgerun.compress(model, calibration=data, placement="rules", output=small)
    found = why_wrong(model, small, data)
    first = found.rows[0]
    assert (first.layer, first.kind, first.cause, first.fix) == ("x", "activation", "rounding", "leave it in float")
    assert first.trade and first.gain_db is not None and first.gain_db.interval.low > 5
    assert (
        found.keep_float == ("h",)
        and found.unfixed == "no fix pays that leaves all on integers: what is left is rounding"
    )
    assert found.command == shlex.join(
        ["edgerun", "compress", str(model), "--calibration", str(data), "--keep-float", "h", "-o", "OUT.onnx"]
    )
    edgerun.compress(model, calibration=data, placement="rules", keep_float=["h"], output=tmp_path / "kept.onnx")
    new = {"x": samples(2, 512)}  # nobody has seen
    before, after = (edgerun.compare(model, path, new).outputs[0].sqnr_db for path in (small, tmp_path / "kept.onnx"))
    assert found.keep_float_gain_db is not None and found.keep_float_gain_db.value == pytest.approx(
        after - before, abs=3
    )
    ran = cli("why-wrong", model, small, "--data", data)
    assert ran.code == 0 and found.command in ran.out and "with h in float: gains about" in ran.out


def test_what_is_kept_surely_gains_on_new_samples(tmp_path: Path) -> None:
    """Ranges from other data: what is kept holds on samples nobody has seen."""
    model = network(tmp_path / "float.onnx")
    draw = np.random.default_rng(2)
    narrow, data, new = (draw.standard_normal((count, 16)).astype(np.float32) for count in (64, 96, 512))
    edgerun.compress(model, calibration={"x": 0.3 * narrow}, placement="rules", output=tmp_path / "small.onnx")
    found = why_wrong(model, tmp_path / "small.onnx", {"x": data}, fix=tmp_path / "fixed.onnx")
    assert found.fixes and found.unfixed is None and found.apart and found.fix_samples == 32
    assert found.fixed_gain_db is not None and found.fixed_gain_db.interval.low > 3
    before, after = (edgerun.compare(model, tmp_path / f"{name}.onnx", {"x": new}).outputs[0].sqnr_db
                     for name in ("small", "fixed"))  # fmt: skip
    assert found.fixed_gain_db.value == pytest.approx(after - before, abs=5)


def test_a_feed_without_a_batch_axis_is_one_sample(tmp_path: Path) -> None:
    """64 frames a feed, beside a state of one row: `limit` counts feeds, and so do the intervals."""
    model = network(tmp_path / "float.onnx", BLOCKS)
    draw = np.random.default_rng(3)
    data = {name: draw.standard_normal(shape).astype(np.float32)
            for name, shape in (("x", (24, 64, 16)), ("state", (24, 1, 32)))}  # fmt: skip
    edgerun.compress(model, calibration=data, placement="rules", output=tmp_path / "small.onnx")
    for limit, judging in ((2, 8), (12, 12)):
        found = why_wrong(model, tmp_path / "small.onnx", data, limit=limit, top=2)
        assert (found.samples, found.fix_samples) == (limit, judging)


def test_labels_that_do_not_fit_are_told(healthy: Path, cli: Any) -> None:
    arguments = [
        "why-wrong",
        healthy / "float.onnx",
        healthy / "small.onnx",
        "--data",
        healthy / "data.npz",
        "--top",
        1,
    ]
    ran = cli(*arguments)
    assert "the labels are not used: they need 9 scores for each sample, and y has 6" in ran.err
    ran = cli(*arguments, "--scores", "z")
    assert ran.code == 2 and "unknown float output 'z'" in ran.err


@pytest.mark.parametrize("name", ["small.xml", "small.recipe"])
def test_what_was_compiled_is_no_onnx(healthy: Path, cli: Any, name: str) -> None:
    (healthy / name).write_bytes(b'<?xml version="1.0"?><net/>')
    runs = [cli("why-wrong", healthy / "float.onnx", healthy / name, "--data", healthy / "data.npz"),
            cli("check", healthy / name)]  # fmt: skip
    for ran in runs:
        assert ran.code == 2 and "this reads ONNX" in ran.err and "give the .onnx that it was made from" in ran.err
        assert "edgerun compress" in ran.err and "wire type" not in ran.err


def test_a_device_says_whether_its_sums_saturate(tmp_path: Path, cli: Any) -> None:
    """Weights of 127 in both of a pair: on a Xeon without VNNI that is the cause, on one with it nothing is."""
    x = np.random.default_rng(1).uniform(0, 1, (64, 16)).astype(np.float32)
    model, small = network(tmp_path / "float.onnx"), tmp_path / "small.onnx"
    proto = onnx.load(model)
    weights = next(t for t in proto.graph.initializer if t.name == "w1")
    weights.CopyFrom(numpy_helper.from_array(np.ones((16, 32), np.float32), "w1"))
    onnx.save(proto, model)
    edgerun.compress(model, calibration={"x": x}, placement="rules", ranges="minmax", output=small, target="openvino")
    np.savez(tmp_path / "data.npz", x=x)

    def causes(*words: str) -> str:
        ran = cli("why-wrong", model, small, "--data", tmp_path / "data.npz", *words)
        assert ran.code == 0, ran.err
        return str(ran.out)

    assert causes("--device", "xeon-avx2") == causes("--saturating") != causes("--not-saturating")
    assert causes("--device", "xeon-avx512-vnni") == causes("--not-saturating")


ONE = """<ir_version: 8, opset_import: ["": 17]> net (float[n,16] x) => (float[n,32] y) { y = Gemm(x, w1, b1) }"""


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_dynamic"])
def test_no_command_leaves_nothing_quantized(tmp_path: Path, cli: Any, scheme: str) -> None:
    """One layer, which float would surely help: to keep it in float is the float model, and compress refuses that."""
    model = network(tmp_path / "float.onnx", ONE, differ=True)
    np.savez(tmp_path / "data.npz", x=samples(1, 128))
    small, data = tmp_path / "small.onnx", tmp_path / "data.npz"
    edgerun.compress(model, scheme=scheme, calibration=data, placement="rules", output=small)
    found = why_wrong(model, small, data)
    assert found.rows[0].trade and found.rows[0].gain_db is not None and found.rows[0].gain_db.interval.low > 10
    assert found.command is None and found.keep_float == ()
    assert found.unfixed is not None and found.unfixed.endswith("leaves nothing quantized: that is the float model")
    assert found.unfixed.startswith("no fix pays that leaves all on integers")
    ran = cli("why-wrong", model, small, "--data", data, "--fix", tmp_path / "fixed.onnx")
    assert ran.code == 1 and "--keep-float" not in ran.out + ran.err and found.unfixed in ran.out


def test_what_surely_gains_and_is_not_kept_says_why(tmp_path: Path) -> None:
    """Eight layers alike: two surely gain in float, by about 0.5 dB, and float must bring 1."""
    draw, names = np.random.default_rng(3), "abcdefgh"
    body = " ".join(
        f"{name} = MatMul({names[i - 1] + 'r' if i else 'x'}, w{name}) {name}r = Relu({name})"
        for i, name in enumerate(names)
    )
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> net (float[n,32] x) => (float[n,32] hr) {{ {body} }}'
    )
    for node in proto.graph.node:
        node.name = node.output[0]
    for name in names:
        weight = draw.standard_normal((32, 32)).astype(np.float32) / 4
        proto.graph.initializer.append(numpy_helper.from_array(weight, f"w{name}"))
    onnx.save(proto, tmp_path / "float.onnx")
    x = {"x": draw.standard_normal((256, 32)).astype(np.float32)}
    edgerun.compress(
        tmp_path / "float.onnx", calibration=x, placement="rules", ranges="minmax", output=tmp_path / "small.onnx"
    )
    found = why_wrong(tmp_path / "float.onnx", tmp_path / "small.onnx", x, limit=96)
    sure = [row.gain_db for row in found.rows if row.gain_db is not None and row.gain_db.interval.low > 0]
    assert sure and max(gain.value for gain in sure) < 1 and found.fixes == found.keep_float == ()
    assert found.unfixed is not None and found.unfixed.startswith("no fix pays that leaves all on integers")
    assert found.unfixed.endswith("dB on 96 other samples, but that is less than the 1 dB that float must bring")
