"""Random feeds have to show something; where they do not, it is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import edgerun
from edgerun import draws, input_ranges, parity, registry
from edgerun.errors import EdgerunError, GateFailed
from edgerun.model import Model
from edgerun.parity import Parity

RUNNERS = [n for n in ("onnxruntime", "openvino") if not registry.target(n, usable=False).available()]
# Every element that the model gives is one of nothing, on any input.
EMPTY = "none (float[batch, 4] x) => (int64[2, found] y) { a = Abs(x)  b = Neg(a)  c = Relu(b)  y = NonZero(c) }"
BROKEN = "nan (float[batch, 4] x) => (float[batch, 4] y) { a = Abs(x)  b = Neg(a)  y = Log(b) }"
TILE = "tile (float[2, 3] x, int64[2] repeats) => (float[r, s] y) { y = Tile(x, repeats) }"


def _model(text: str, opset: int = 17) -> Model:
    return Model.from_proto(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}'))


@pytest.mark.parametrize(
    ("text", "name", "low", "high"),
    [
        (TILE, "repeats", 1, 3),
        ("t (float[9] x, int64[1] k) => (float[n] y, int64[n] i) { y, i = TopK(x, k) }", "k", 1, 2),
        ("c (int64[2] s) => (float[a, b] y) { y = ConstantOfShape(s) }", "s", 1, 4),
        ("s (float[9] x, int64[1] b, int64[1] e) => (float[n] y) { y = Slice(x, b, e) }", "e", 1, 3),
        ("i (float[9] x, int32[1] k) => (float[n] y, int64[n] j) { l = Cast<to=7>(k) y, j = TopK(x, l) }", "k", 1, 2),
        ("o (int64[9] k) => (float[9, 5] y) <int64 d = {5}, float[2] v = {0, 1}> { y = OneHot(k, d, v) }", "k", 0, 4),
        ("e (int32[9] k) => (bool[9, 4] y) <int64[1] a = {-1}, int32[1, 4] t = {2, 3, 4, 5}>"
         " { u = Unsqueeze(k, a) y = Equal(u, t) }", "k", 2, 5),
        ("d (int32[9] x, int32[9] k) => (int32[9] y) { y = Div(x, k) }", "k", 1, 2),
        ("m (uint8[9] x, uint8[9] k) => (uint8[9] y) { y = Mod(x, k) }", "k", 1, 2),
        ("p (int32[9] k) => (bool[9] y) <int32[1] t = {7}> { y = Equal(k, t) }", "k", 0, 1),
    ],
)  # fmt: skip
def test_what_says_a_size_or_one_of_many_is_drawn_from_these(text: str, name: str, low: int, high: int) -> None:
    model = _model(text)
    ranges = input_ranges.ranges(model.ir)
    seen = {int(v) for seed in range(40) for v in draws.feeds(model.inputs, {}, seed, ranges)[name]}
    assert (min(seen), max(seen)) == (low, high)


@pytest.mark.parametrize("target", RUNNERS)
@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_no_integer_is_divided_by_a_drawn_zero(target: str, op: str) -> None:
    """ONNX Runtime refuses to, and was called a target that fails on what the reference takes."""
    model = _model(f"by (int32[n, 4] a, int32[n, 4] b) => (int32[n, 4] y) {{ y = {op}(a, b) }}")
    check = edgerun.compile(model, target, edgerun.Options(threads=1)).check
    assert check is not None and check.runs


def test_a_float_divisor_is_drawn_as_any_float() -> None:
    model = _model("by (float[n, 4] a, float[n, 4] b) => (float[n, 4] y) { y = Div(a, b) }")
    assert input_ranges.ranges(model.ir) == {}


@pytest.mark.parametrize("target", RUNNERS)
def test_tile_is_compared_on_outputs_that_are_there(target: str) -> None:
    """OpenVINO gave zeros or garbage, and drawn repeats of 0 hid it: "relative error 0, SQNR inf dB"."""
    model, x = _model(TILE), np.arange(6, dtype=np.float32).reshape(2, 3)
    try:
        engine = edgerun.compile(model, target, edgerun.Options(threads=1))
    except GateFailed:
        assert target == "openvino"
        return
    assert engine.check is not None and engine.check.runs == 4
    with edgerun.load(engine, options=edgerun.Options(threads=1)) as session:
        for repeats in ([2, 1], [1, 3], [2, 2]):
            got = session.run({"x": x, "repeats": np.array(repeats)})["y"]
            np.testing.assert_array_equal(got, np.tile(x, repeats))


@pytest.mark.parametrize("target", RUNNERS)
@pytest.mark.parametrize("text", [EMPTY, BROKEN], ids=["empty", "nan"])
def test_a_check_that_compared_nothing_says_so(text: str, target: str, tmp_path: Path, cli: Callable[..., Any]) -> None:
    model, one = _model(text), edgerun.Options(threads=1)
    with pytest.raises(EdgerunError, match="nothing was compared") as told:
        edgerun.compile(model, target, one)
    assert "--data" in str(told.value.do)
    engine = edgerun.compile(model, target, one, feeds=[{"x": np.ones((2, 4), np.float32)}])
    assert engine.check is not None and engine.check.runs == 0
    source, suffix = tmp_path / "m.onnx", {"onnxruntime": "ort", "openvino": "xml"}[target]
    onnx.save(model.to_proto(), source)
    ran = cli("compile", source, "-o", tmp_path / f"a.{suffix}")
    assert ran.code == 2 and "nothing was compared" in ran.err and not (tmp_path / f"a.{suffix}").exists()
    np.savez(tmp_path / "x.npz", x=np.ones((4, 4), np.float32))
    ran = cli("compile", source, "-o", tmp_path / f"a.{suffix}", "--data", tmp_path / "x.npz")
    assert ran.code == 0 and "nothing was compared with" in ran.out and "SQNR" not in ran.out


def test_a_mask_that_hides_a_row_is_among_the_draws() -> None:
    given = {"mask": np.ones((2, 3, 4), bool), "flag": np.ones(3, bool), "x": np.ones((2, 2), np.float32)}
    found = input_ranges.masked(given)
    assert not found["mask"][0, 0].any() and found["mask"].sum() == 20
    assert found["flag"].all() and found["x"] is given["x"] and given["mask"].all()


def test_a_conversion_says_that_nothing_was_compared(tmp_path: Path, cli: Callable[..., Any]) -> None:
    onnx.save(_model(EMPTY).to_proto(), tmp_path / "m.onnx")
    ran = cli("convert", tmp_path / "m.onnx", "-o", tmp_path / "c.onnx")
    assert ran.code == 0 and "nothing was compared: every output is empty" in ran.out
    assert "nothing was compared" in Parity.of(Model.load(tmp_path / "c.onnx")).data


def _cast(source: str, to: str, number: int, more: str = "") -> str:
    return f"cast ({source}[5] x) => ({to}[5] y{more}) {{ a = Identity(x)  y = Cast<to={number}>(a) }}"


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        (_cast("float", "double", 11), {"x"}),
        ("l (float16[5] x, double[1] like) => (double[5] y) { y = CastLike(x, like) }", {"x"}),
        (_cast("float", "int64", 7), set()),
        ("r (float[5] x) => (double[5] y) { a = Relu(x)  y = Cast<to=11>(a) }", set()),
        ("b (float[5] x) => (double[5] y, float[5] z) { y = Cast<to=11>(x)  z = Relu(x) }", set()),
        ("h (float[5] x) => (float[5] y) { a = Cast<to=10>(x)  b = Exp(a)  y = Cast<to=1>(b) }", set()),
        ("p (float[5] x, float[5] s) => (float[5] y, float[5] t) { y = Relu(x)  t = Identity(s) }", {"s"}),
    ],
)  # fmt: skip
def test_infinities_stand_where_nothing_is_computed(text: str, moved: set[str]) -> None:
    model = _model(text, 19)
    assert input_ranges.moved(model.ir) == moved
    feeds = input_ranges.extreme(draws.feeds(model.inputs, {}, 0), moved)
    for name, array in feeds.items():
        assert np.isfinite(array[3:]).all() and np.isfinite(array[:3]).any() == (name not in moved)


@pytest.mark.parametrize("target", RUNNERS)
@pytest.mark.parametrize(("source", "to", "number"), [("float", "double", 11), ("double", "float", 1)])
def test_no_cast_clamps_infinities(target: str, source: str, to: str, number: int) -> None:
    """OpenVINO 2026.4 makes 3.4e38 of an infinity wherever a double goes in or comes out: those are float32 there."""
    model = _model(_cast(source, to, number), 19)
    check = edgerun.compile(model, target, edgerun.Options(threads=1)).check
    assert check is not None and check.runs == 4 and check.relative_error < 1e-6


TEXT = onnx.TensorProto.STRING
ENCODED: dict[str, Any] = {"keys_strings": ["zebra", "yak", "ant"], "default_float": -1.0}


def of_text(path: Path, kind: str, **changed: Any) -> Path:
    """Strings in, of the `kind`: encoded, one-hot, joined (strings out as well), parsed as numbers, compared."""
    node, float_ = onnx.helper.make_node, onnx.TensorProto.FLOAT
    inputs, output = ["s"], float_
    shape: list[str | int | None] = ["n", 1]
    ml = {"domain": "ai.onnx.ml"}
    if kind == "encoded":
        nodes = [node("LabelEncoder", ["s"], ["y"], **ml, **ENCODED, **{"values_floats": [1.0, 2.0, 3.0], **changed})]
    elif kind == "one-hot":  # which refuses words that it does not know
        nodes, shape = [node("OneHotEncoder", ["s"], ["y"], **ml, cats_strings=["zebra", "yak"], zeros=0)], ["n", 1, 2]
    elif kind == "joined":
        inputs, output = ["s", "t"], TEXT
        nodes = [node("StringConcat", changed.get("order", ["s", "t"]), ["y"])]
    elif kind == "parsed":
        nodes = [node("Cast", ["s"], ["y"], to=float_)]
    else:
        nodes = [node("Equal", ["s", "known"], ["e"]), node("Cast", ["e"], ["y"], to=float_)]
    known = [onnx.numpy_helper.from_array(np.array(["zebra"], object), "known")] if kind == "compared" else []
    graph = onnx.helper.make_graph(
        nodes, kind, [onnx.helper.make_tensor_value_info(name, TEXT, ["n", 1]) for name in inputs],
        [onnx.helper.make_tensor_value_info("y", output, shape)], known,
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


@pytest.mark.parametrize("kind", ["encoded", "one-hot", "joined", "parsed", "compared"])
def test_inputs_of_text_are_drawn_and_proven(tmp_path: Path, cli: Any, kind: str) -> None:
    """convert and compile run them without --data, with words that the model knows among them."""
    path = of_text(tmp_path / "m.onnx", kind)
    converted = cli("convert", path, "-o", tmp_path / "converted.onnx")
    assert converted.code == 0 and "3 draws" in converted.out and "words that the model knows" in converted.out
    compiled = cli("compile", path, "-o", tmp_path / "compiled.onnx", "--target", "onnxruntime")
    assert compiled.code == 0 and "on 4 feeds: relative error 0" in compiled.out, compiled.err
    model = Model.load(path)
    drawn = draws.feeds(model.inputs, {"n": 64}, 0, input_ranges.ranges(model.ir))["s"]
    known = {"encoded": {"zebra", "yak", "ant"}, "one-hot": {"zebra", "yak"}, "compared": {"zebra"}}.get(kind, set())
    assert drawn.dtype == object and known <= set(drawn.flat) and all(isinstance(word, str) for word in drawn.flat)


def test_a_conversion_that_takes_one_word_for_another_fails(tmp_path: Path) -> None:
    """Drawn words are what finds it: `ant` means 3 in the source, and 4 in what is said to be its conversion."""
    right = of_text(tmp_path / "right.onnx", "encoded")
    wrong = of_text(tmp_path / "wrong.onnx", "encoded", values_floats=[1.0, 2.0, 4.0])
    with edgerun.load(right) as source, edgerun.load(wrong) as converted:
        judged = parity.check(Model.load(right), converted.run, source.run, None)
        assert not judged.passed and judged.outputs[0].max_abs_error == 1
        assert parity.check(Model.load(right), source.run, source.run, None).passed


def test_texts_that_come_out_are_compared(tmp_path: Path, cli: Any) -> None:
    """Joined the other way around: of four rows two differ, which is 10·log10(4 / 2) dB."""
    a = of_text(tmp_path / "a.onnx", "joined")
    b = of_text(tmp_path / "b.onnx", "joined", order=["t", "s"])
    s, t = (np.array(column)[:, None] for column in (["a", "b", "ab", ""], ["a", "c", "a", "x"]))
    np.savez(tmp_path / "d.npz", s=s, t=t)
    found = edgerun.compare(a, b, {"s": s.astype(object), "t": t.astype(object)}).outputs[0]
    assert found.sqnr_db == pytest.approx(10 * np.log10(4 / 2)) and found.max_abs_error == 1
    same = cli("compare", a, a, "--data", tmp_path / "d.npz")
    assert same.code == 0 and "inf" in same.out
    apart = cli("compare", a, b, "--data", tmp_path / "d.npz", "--min-sqnr", "20")
    assert apart.code == 1 and "3.01 dB" in apart.err
