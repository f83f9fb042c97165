"""What no comparison can judge is refused by its operator, and so is what fails in a run, or is too new."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import parser

import edgerun
from edgerun import registry
from edgerun.errors import GateFailed, Unsupported
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.verbs import undecided
from edgerun.verbs.compile import built

ONE = Options(1)
TARGETS = [n for n in ("onnxruntime", "openvino") if registry.target(n, usable=False).available() is None]
X = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
DROPOUT = "net (float[2,8] x, float r, bool t) => (float[2,8] y) { y = Dropout(x, r, t) }"
NOISE = "net (float[2,8] x, float scale) => (float[2,8] y) { z = RandomNormalLike(x) s = Mul(z, scale) y = Add(x, s) }"


def _model(text: str, opset: int = 17) -> Model:
    return Model.from_proto(parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}'))


@pytest.mark.parametrize("target", [*TARGETS, "auto"])
@pytest.mark.parametrize(("body", "op"), [
    ("p = Sigmoid(x) y = Bernoulli(p)", "Bernoulli"), ("z = Dropout(x, half, yes) y = Relu(z)", "Dropout"),
    ("m = Multinomial(x) y = Cast<to = 1>(m)", "Multinomial"),
])  # fmt: skip
def test_what_draws_is_refused_before_it_is_compiled(cli: Any, tmp_path: Path, target: str, body: str, op: str) -> None:
    text = f"net (float[2,8] x) => (float[2,n] y) <float half = {{0.5}}, bool yes = {{1}}> {{ {body} }}"
    onnx.save(_model(text).to_proto(), tmp_path / "m.onnx")
    out = tmp_path / ("out.xml" if target == "openvino" else "out.onnx")
    ran = cli("compile", tmp_path / "m.onnx", "--target", target, "-o", out)
    assert ran.code == 3 and f"({op}): draws its own random numbers" in ran.err
    assert ("model.eval()" in ran.err) == (op == "Dropout" and target != "auto")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("body", ["Dropout(x)", "Dropout(x, half)", "Dropout(x, half, no)", "Dropout(x, none, yes)"])
def test_what_drops_nothing_is_compiled(body: str) -> None:
    text = "<float half = {0.5}, float none = {0.0}, bool yes = {1}, bool no = {0}>"
    engine = edgerun.compile(
        _model(f"net (float[2,8] x) => (float[2,8] y) {text} {{ y = {body} }}"), "onnxruntime", ONE
    )
    assert engine.check is not None and engine.check.relative_error == 0


@pytest.mark.parametrize(("text", "silent", "loud", "op"), [
    (DROPOUT, {"r": np.float32(0), "t": np.array(True)}, {"r": np.float32(0.5), "t": np.array(True)}, "Dropout"),
    (DROPOUT, {"r": np.float32(0.5), "t": np.array(False)}, {"r": np.float32(0.5), "t": np.array(True)}, "Dropout"),
    (NOISE, {"scale": np.float32(0)}, {"scale": np.float32(1)}, "RandomNormalLike"),
])  # fmt: skip
def test_feeds_may_silence_it(text: str, silent: Any, loud: Any, op: str) -> None:
    model = _model(text)
    assert edgerun.compile(model, "onnxruntime", ONE, feeds=[{"x": X, **silent}]).check is not None
    with pytest.raises(Unsupported, match=rf"\({op}\): draws its own random numbers"):
        edgerun.compile(model, "onnxruntime", ONE, feeds=[{"x": X, **loud}])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("scales", "length"), [("1.0, 0.7", 5), ("1.0, 0.5", 4), ("1.0, 2.0", 16)])
def test_lengths_that_onnx_is_of_two_minds_about(target: str, scales: str, length: int) -> None:
    """8·0.7 ends between two samples: the text divides by 5 - 1, the evaluator by 5.6 - 1. Numpy says what the text
    does, and that is what sizes in place of scales give."""
    how = 'Resize<mode = "linear", coordinate_transformation_mode = "align_corners">'
    text = f"net (float[2,8] x) => (float[2,{length}] y) <float[2] s = {{{scales}}}> {{ y = {how}(x, , s) }}"
    if length != 5:
        assert edgerun.compile(_model(text), target, ONE).check is not None
        return
    with pytest.raises(Unsupported, match=r"y \(Resize\): with align_corners.*give sizes in place of scales"):
        edgerun.compile(_model(text), target, ONE)
    sized = f"net (float[2,8] x) => (float[2,5] y) <int64[2] s = {{2, 5}}> {{ y = {how}(x, , , s) }}"
    with edgerun.load(edgerun.compile(_model(sized), target, ONE), options=ONE) as session:
        got = session.run({"x": X})["y"]
    want = np.stack([np.interp(np.arange(5) * 7 / 4, np.arange(8), row) for row in X])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_what_is_checked_where_it_is_opened_is_told_the_same() -> None:
    drawing = _model("net (float[2,8] x) => (float[2,8] y) { p = Sigmoid(x) y = Bernoulli(p) }")
    with pytest.raises(Unsupported, match=r"y \(Bernoulli\): draws its own random numbers"):
        edgerun.load(drawing.to_bytes(), "onnxruntime", checked=True)
    noisy, silent, loud = _model(NOISE).to_bytes(), *({"x": X, "scale": cast(Any, np.float32(n))} for n in (0, 1))
    edgerun.load(noisy, "onnxruntime", checked=[silent]).close()
    with pytest.raises(GateFailed, match=r"z \(RandomNormalLike\): draws its own random numbers"):
        edgerun.load(noisy, "onnxruntime", checked=[loud])


def test_a_wrong_engine_of_such_a_model_is_still_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsupported in place of a failed gate: no engine either way, and what differed is told."""
    module, model = registry.target("onnxruntime"), _model(NOISE)
    honest, other = module.compile, _model(NOISE.replace("Add(x, s)", "Sub(s, x)"))
    monkeypatch.setattr(module, "compile", lambda model, options: honest(other, options))
    with pytest.raises(Unsupported, match=r"RandomNormalLike.*SQNR"):
        edgerun.compile(model, "onnxruntime", ONE, feeds=[{"x": X, "scale": np.array(0, np.float32)}])


def test_a_run_that_fails_names_its_operator() -> None:
    text = """net (uint8[1,1,3,3] x, uint8[2,1,2,2] w, uint8 a, uint8[2] b) => (int32[1,2,2,2] y) {
        y = ConvInteger(x, w, a, b) }"""
    feeds = {"x": np.ones((1, 1, 3, 3), np.uint8), "w": np.ones((2, 1, 2, 2), np.uint8), "a": np.array(1, np.uint8),
             "b": np.array([0, 1], np.uint8)}  # fmt: skip
    with pytest.raises(Unsupported, match=r"y \(ConvInteger\): "):
        edgerun.compile(_model(text), "onnxruntime", ONE, feeds=[feeds])


@pytest.mark.skipif(registry.target("tensorrt", usable=False).available() is not None, reason="needs tensorrt")
def test_what_is_too_new_is_named() -> None:
    model = _model("net (float[2,8] x) => (int32[2,8] y) { r = Relu(x) y = BitCast<to = 6>(r) }", opset=26)
    with pytest.raises(Unsupported, match=r"opset 26 is newer than 24.*y \(BitCast\): newer than opset 24") as refusal:
        built(model, "tensorrt", ONE)
    assert "Relu" not in str(refusal.value)


def test_other_refusals_stay_as_they_are() -> None:
    model = _model("net (float[2,8] x) => (float[2,8] y) { y = Relu(x) }")
    for refusal in (
        GateFailed("it differs", got="SQNR 3 dB"),
        Unsupported("no", got="y (Relu): no"),
        Unsupported("no"),
    ):
        assert undecided.told(refusal, model) is refusal
