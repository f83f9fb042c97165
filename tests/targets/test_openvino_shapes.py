"""OpenVINO: kernels are ready for the shapes that most feeds have, and every other shape runs as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

import edgerun
from edgerun.errors import EdgerunError, GateFailed
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.targets import _openvino_ir as ir
from edgerun.targets import _openvino_shapes as known
from edgerun.targets import openvino as target
from edgerun.targets import reference
from edgerun.verbs.compress import compress

pytestmark = pytest.mark.skipif(target.available() is not None, reason=str(target.available()))
ONE = Options(1)
NET = """(float[n,3,h,h] x) => (float[n,4] y) {
  c = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(x, w)  r = Relu(c)  g = GlobalAveragePool(r)  y = Flatten(g) }"""
CELL = """(float[t,b,5] x, float[1,b,8] h, float[1,b,8] c) => (float[t,1,b,8] y, float[1,b,8] hn, float[1,b,8] cn) {
  y, hn, cn = LSTM<hidden_size = 8, direction = "DIRECTION">(x, w, r, bias, LENGTHS, h, c) }"""


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def parsed(text: str, **arrays: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> net {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    for node in proto.graph.node:
        node.name = node.output[0]
    return Model.from_proto(proto)


@pytest.fixture
def conv() -> Model:
    return parsed(NET, w=drawn(4, 3, 3, 3))


def cell(direction: str = "forward", lengths: str = "") -> Model:
    text = CELL.replace("DIRECTION", direction).replace("LENGTHS", lengths)
    if lengths:
        text = text.replace("(float[t,b,5] x,", f"(float[t,b,5] x, int32[b] {lengths},")
    return parsed(text, w=drawn(1, 32, 5), r=drawn(1, 32, 8, seed=1), bias=drawn(1, 64, seed=2))


def near(model: Model, session: edgerun.Session, feeds: dict[str, np.ndarray]) -> None:
    """Within 1e-5 of the ONNX reference evaluator."""
    with reference.load(reference.compile(model, ONE), ONE) as truth:
        want, got = truth.run(feeds), session.run(feeds)
    for name, array in want.items():
        assert got[name].shape == array.shape
        np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-5)


def kernels(model: Model, options: Options, feeds: dict[str, np.ndarray]) -> list[str]:
    return [time.op for time in target.profile(target.compile(model, ONE), [feeds] * 3, options)]


def test_usual_shapes_and_all_others_run(conv: Model, tmp_path: Path) -> None:
    """Both are compared with the reference; the file knows its usual shapes, and takes results in place."""
    engine = edgerun.compile(conv, "openvino", Options(1, usual={"x": (1, 3, 8, 8)}))
    assert engine.usual == {"x": (1, 3, 8, 8)} and engine.check is not None
    assert "x[1, 3, 8, 8]" in engine.check.shapes and len(engine.check.shapes) > 1
    target.save(engine, tmp_path / "net.xml")
    assert ir.told(ir.read(tmp_path / "net.xml"))["usual"] == {"x": (1, 3, 8, 8)}
    with edgerun.load(tmp_path / "net.xml", options=Options(1, streams=2)) as session:
        assert session.inputs[0].shape == ("n", 3, "h", "h")
        for shape in ((1, 3, 8, 8), (2, 3, 8, 8), (1, 3, 5, 5), (1, 3, 8, 8)):
            feeds = {"x": drawn(*shape)}
            near(conv, session, feeds)
            out = {"y": np.empty((shape[0], 4), np.float32)}
            session.run(feeds, out)
            assert np.array_equal(out["y"], session.run(feeds)["y"])
        with pytest.raises(EdgerunError, match="wrong shape"):
            session.run({"x": drawn(1, 2, 8, 8)})


def test_other_shapes_are_compared_when_the_first_of_them_comes(conv: Model) -> None:
    """By a thousandth in float, by 10 dB where steps may fall the other way; nothing wrong is given out."""
    usual = {"x": (1, 3, 8, 8)}
    nearly = parsed(NET, w=drawn(4, 3, 3, 3) * np.float32(1.01))
    other = parsed(NET, w=drawn(4, 3, 3, 3, seed=9))
    for general, rounds, agrees in (
        (conv, False, True), (nearly, False, False), (nearly, True, True), (other, True, False),
    ):  # fmt: skip
        fixed = target.load(target.compile(conv, ONE), ONE)
        opened: list[Any] = []

        def load(shapes: Any, of: Model = general, opened: list[Any] = opened) -> Any:
            opened.append(target.load(target.compile(of, ONE), ONE))
            return opened[-1]

        with known.ShapedSession(fixed, usual, load, rounds) as session:  # type: ignore[arg-type]
            for _ in range(2):
                session.run({"x": drawn(1, 3, 8, 8)})
            assert not opened
            for _ in range(2):
                if agrees:
                    assert session.run({"x": drawn(2, 3, 6, 6)})["y"].shape == (2, 4)
                else:
                    with pytest.raises(GateFailed, match="otherwise than the usual ones: output 'y'"):
                        session.run({"x": drawn(2, 3, 6, 6)})
            assert len(opened) == (1 if agrees else 2)


def test_feeds_are_compared_whole_or_cut_with_one_of_another_shape(conv: Model) -> None:
    options, feeds = Options(1, usual={"x": (1, 3, 8, 8)}), [{"x": drawn(2, 3, 8, 8, seed=i)} for i in range(2)]
    whole = edgerun.compile(conv, "openvino", options, feeds=feeds).check
    cut = edgerun.compile(conv, "openvino", options, feeds=feeds, whole=False).check
    assert whole is not None and set(whole.shapes) == {"x[1, 3, 8, 8]", "x[2, 3, 8, 8]"} and whole.runs == 6
    assert cut is not None and set(cut.shapes) == {"x[1, 3, 8, 8]", "x[2, 3, 8, 8]"} and cut.runs == 5


@pytest.mark.parametrize(("shapes", "other"), [
    ("[t,1,5]", "x[2, 1, 5]"),  # what the state beside it cannot follow
    ("[1,b,5]", "x[1, 1, 5]"),  # a dimension of several inputs, behind a fixed first one
    ("[t,b,5]", "x[2, 2, 5]"),
])  # fmt: skip
def test_another_shape_is_one_that_the_model_takes(shapes: str, other: str) -> None:
    batch = "b" if "b" in shapes else "1"
    text = CELL.replace("DIRECTION", "forward").replace("LENGTHS", "").replace("[t,b,5]", shapes)
    text = text.replace("[1,b,8]", f"[1,{batch},8]").replace("[t,1,b,8]", f"[{shapes[1]},1,{batch},8]")
    model = parsed(text, w=drawn(1, 32, 5), r=drawn(1, 32, 8, seed=1), bias=drawn(1, 64, seed=2))
    rows = 2 if batch == "b" else 1
    usual = {"x": (1, rows, 5), "h": (1, rows, 8), "c": (1, rows, 8)}
    feeds = [{name: drawn(*shape, seed=i) for i, (name, shape) in enumerate(usual.items())}]
    check = edgerun.compile(model, "openvino", Options(1, usual=usual), feeds=feeds, whole=False).check
    assert check is not None and any(shape.startswith(other) for shape in check.shapes) and len(check.shapes) == 2


def test_a_model_that_halves_alone_is_compared_at_half() -> None:
    """Positions end at 8: twice as many are refused."""
    text = """(float[1,s,4] x) => (float[1,s,4] y) {
      n = Shape<start = 1, end = 2>(x)  p = Slice(table, zero, n, zero)  y = Add(x, p) }"""
    model = parsed(text, table=drawn(8, 4), zero=np.zeros(1, np.int64))
    usual, feeds = {"x": (1, 8, 4)}, [{"x": drawn(1, 8, 4)}]
    check = edgerun.compile(model, "openvino", Options(1, usual=usual), feeds=feeds, whole=False).check
    assert check is not None and set(check.shapes) == {"x[1, 8, 4]", "x[1, 4, 4]"}


def test_compress_refuses_what_other_shapes_compute_otherwise(
    conv: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No engine is given out whose kernels for the usual shapes alone are right."""
    honest = target._compiled
    wrong = ir.read(parsed(NET, w=3 * drawn(4, 3, 3, 3)).to_bytes())

    def compiled(graph: Any, options: Options) -> Any:
        return honest(graph if graph.inputs[0].partial_shape.is_static else wrong, options)

    monkeypatch.setattr(target, "_compiled", compiled)
    with pytest.raises(GateFailed, match="otherwise than the usual ones"):
        compress(conv, target="openvino", calibration=sizes(8), placement="rules", output=tmp_path / "small.xml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("usual", [{"z": (1, 3, 8, 8)}, {"x": (1, 2, 8, 8)}, {"x": (1, 3, 8)}])
def test_shapes_that_do_not_fit_are_refused(conv: Model, usual: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(EdgerunError):
        target.compile(conv, Options(1, usual=usual))


def test_what_is_left_open_has_no_usual_shape(conv: Model) -> None:
    assert not target.compile(conv, ONE).usual
    fixed = parsed(NET.replace("[n,3,h,h]", "[2,3,8,8]").replace("[n,4]", "[2,4]"), w=drawn(4, 3, 3, 3))
    assert not target.compile(fixed, Options(1, usual={"x": (2, 3, 8, 8)})).usual


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_an_lstm_of_one_step_is_a_product(direction: str) -> None:
    model, usual = cell(direction), {"x": (1, 2, 5), "h": (1, 2, 8), "c": (1, 2, 8)}
    feeds = {"x": drawn(1, 2, 5), "h": drawn(1, 2, 8, seed=3), "c": drawn(1, 2, 8, seed=4)}
    assert "LSTMSequence" in kernels(model, ONE, feeds)
    found = kernels(model, Options(1, usual=usual), feeds)
    assert "FullyConnected" in found and "LSTMSequence" not in found
    with target.load(target.compile(model, Options(1, usual=usual)), ONE) as session:
        near(model, session, feeds)
        near(model, session, {**feeds, "x": drawn(4, 2, 5)})


def test_a_length_that_is_fed_keeps_its_lstm() -> None:
    """A sequence may be of length 0."""
    model, usual = cell(lengths="n"), {"x": (1, 2, 5), "n": (2,), "h": (1, 2, 8), "c": (1, 2, 8)}
    feeds = {"x": drawn(1, 2, 5), "n": np.array([1, 0], np.int32), "h": drawn(1, 2, 8), "c": drawn(1, 2, 8, seed=4)}
    assert "FullyConnected" not in kernels(model, Options(1, usual=usual), feeds)


def sizes(*given: int) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    return lambda: ({"x": drawn(1, 3, size, size, seed=i)} for i, size in enumerate(given * 10))


@pytest.mark.parametrize(("given", "told", "usual"), [
    ((8, 8), (), {"x": (1, 3, 8, 8)}),
    ((8, 6), (), None),
    ((8, 6), ("x:[1,3,12,12]",), {"x": (1, 3, 12, 12)}),
])  # fmt: skip
def test_compress_tells_what_all_samples_have_in_common(
    conv: Model, tmp_path: Path, given: Any, told: Any, usual: Any
) -> None:
    compress(conv, target="openvino", calibration=sizes(*given), shapes=told, output=tmp_path / "small.xml")
    assert ir.told(ir.read(tmp_path / "small.xml")).get("usual") in (usual, {} if usual is None else usual)
    with edgerun.load(tmp_path / "small.xml") as session:
        for size in (8, 6):
            assert session.run({"x": drawn(2, 3, size, size)})["y"].shape == (2, 4)


def test_a_product_of_what_shapes_alone_decide(tmp_path: Path) -> None:
    """A cell's first state, on integers: zeros for as many samples as there are. The shapes known, it is a constant."""
    text = """(float[n,16] x) => (float[n,8] y) { m = Shape<start=0, end=1>(x) s = Concat<axis=0>(m, width)
        h = ConstantOfShape(s) a = Gemm<transB=1>(x, wi, b) k = Gemm<transB=1>(h, wh, b) t = Add(a, k) g = Tanh(t)
        y = Gemm<transB=1>(g, wh, b) }"""
    weights = {"wi": drawn(8, 16) / 4, "wh": drawn(8, 8, seed=1) / 3, "b": drawn(8, seed=2)}
    model, x = parsed(text, **weights, width=np.array([8])), drawn(64, 16, seed=3)
    small = compress(model, target="openvino", calibration={"x": x}, output=tmp_path / "small.xml")
    assert small.history[-1].options["integer nodes"] == 3
    with edgerun.load(edgerun.compile(model, "onnxruntime", ONE), "onnxruntime") as session:
        wanted = session.run({"x": x})["y"]
    with edgerun.load(tmp_path / "small.xml", options=Options(1, usual={"x": (1, 16)})) as session:
        one = np.concatenate([session.run({"x": row[None]})["y"] for row in x])
        assert sqnr_db(wanted, one) > 30 and sqnr_db(wanted, session.run({"x": x})["y"]) > 30
