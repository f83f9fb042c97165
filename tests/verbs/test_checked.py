"""A model that is opened `checked` was compared with the reference: once for its content, and never given out wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun import registry
from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.model import Model
from edgerun.runtime import Options, Session, progress

ONE = Options(1)
TARGETS = ("onnxruntime", "openvino")
COMPARING = "comparing with the reference"


def stages(call: Callable[[], Any]) -> list[str]:
    """The steps that `call` told of; a session that it gives is closed."""
    told: list[str] = []
    with progress.told(lambda stage, done, total: told.append(stage)):
        given = call()
    if isinstance(given, Session):
        given.close()
    return told


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """A Resize that both runtimes compute with another scale than the reference, and ONNX's own cases: 0.27 off."""
    node = helper.make_node(
        "Resize", ["x", "", "scales"], ["y"], "resize", mode="linear", coordinate_transformation_mode="align_corners"
    )
    graph = helper.make_graph(
        [node],
        "resize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 2])],
        [numpy_helper.from_array(np.array([1, 1, 0.6, 0.6], np.float32), "scales")],
    )
    path = tmp_path / "resize.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


@pytest.mark.parametrize("target", TARGETS)
def test_a_model_that_the_runtime_computes_wrongly(wrong: Path, target: str, cli: Any, tmp_path: Path) -> None:
    x = np.arange(1, 9, dtype=np.float32).reshape(1, 1, 2, 4)
    by_onnx = [1.0, 3.142857]  # test_resize_downsample_scales_linear_align_corners
    with edgerun.load(wrong, target, ONE) as session:
        assert abs(session.run({"x": x})["y"].ravel() - by_onnx).max() > 0.5
    for _ in range(2):  # a refusal is not kept: it is found again
        with pytest.raises(GateFailed, match="does not compute what the model says: output 'y'") as caught:
            edgerun.load(wrong, target, ONE, checked=True)
        assert caught.value.exit_code == 1
    with pytest.raises(GateFailed):
        edgerun.load(wrong.read_bytes(), target, ONE, checked=True)
    np.savez(tmp_path / "x.npz", x=x)
    arguments = ("run", wrong, "--target", target, "--feeds", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    ran = cli(*arguments, "--checked")
    assert ran.code == 1 and "does not compute what the model says" in ran.err and ran.out == ""
    assert not (tmp_path / "y.npz").exists()
    assert cli(*arguments).code == 0 and (tmp_path / "y.npz").exists()


def test_every_command_that_checks(wrong: Path, cli: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((1, 1, 2, 4), np.float32), labels=np.zeros(1, np.int64))
    data = ("--data", tmp_path / "x.npz")
    for command in (
        ("bench", wrong), ("bench", wrong, "--throughput"), ("eval", wrong, *data), ("compare", wrong, wrong, *data),
        ("compare", f"{wrong}@reference", f"{wrong}@openvino", *data),
    ):  # fmt: skip
        assert command[0] != "compare" or cli(*command).code == 0
        ran = cli(*command, "--checked")
        assert ran.code == 1 and "does not compute what the model says" in ran.err, command


def test_in_a_process_of_its_own(wrong: Path, place: Any) -> None:
    with pytest.raises(GateFailed, match="does not compute what the model says"):
        edgerun.load(wrong, "onnxruntime", ONE, isolated=True, checked=True)
    with edgerun.load(place.a, "onnxruntime", ONE, isolated=True, checked=True) as session:
        np.testing.assert_allclose(session.run({"x": place.x})["y"], place.x @ place.w, rtol=1e-4, atol=1e-5)


def test_what_passed_is_known_by_content(place: Any, _timings_of_its_own: Path) -> None:
    def load(path: Any = place.a, target: str = "onnxruntime", options: Options = ONE, **more: Any) -> list[str]:
        return stages(lambda: edgerun.load(path, target, options, checked=True, **more))

    assert stages(lambda: edgerun.load(place.a, "onnxruntime", ONE)) == [], "nobody asked"
    assert load() == [COMPARING] and load() == []
    (entry,) = (_timings_of_its_own / "checked").iterdir()
    kept = json.loads(entry.read_bytes().partition(b"{")[2].join([b"{", b""]))
    assert kept["runs"] == 4 and kept["relative_error"] < 1e-5 and kept["reference"].startswith("reference")
    copy = place.folder / "copy.onnx"
    copy.write_bytes(place.a.read_bytes())
    assert load(copy) == [] and load(copy.read_bytes()) == [], "the same bytes elsewhere"
    place.save(copy, place.w * 2)
    assert load(copy) == [COMPARING], "other bytes in the same place"
    assert load(options=Options(2)) == [COMPARING] and load(target="openvino") == [COMPARING]
    assert load(options=Options(1, {"graph_optimization_level": "basic"})) == [COMPARING]
    assert load(options=Options(1, max_rss=1 << 34)) == [], "a bound on memory changes no result"
    entry.write_bytes(entry.read_bytes()[:-1])
    assert load() == [COMPARING] and load() == []


def test_weights_beside_the_file_are_its_content(tmp_path: Path) -> None:
    def save(scale: float) -> None:
        weight = numpy_helper.from_array(np.full((64, 64), scale, np.float32), "w")
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "large",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
            [weight],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        (tmp_path / "weights").unlink(missing_ok=True)
        onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)

    def load() -> list[str]:
        return stages(lambda: edgerun.load(tmp_path / "m.onnx", "onnxruntime", ONE, checked=True))

    save(1)
    graph = (tmp_path / "m.onnx").read_bytes()
    assert load() == [COMPARING] and load() == []
    save(2)
    assert (tmp_path / "m.onnx").read_bytes() == graph, "the weights alone changed"
    assert load() == [COMPARING] and load() == []


def test_what_cannot_be_drawn_wants_feeds(tmp_path: Path) -> None:
    """A sequence, of which nothing says how long it is."""
    infos = [
        helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [2]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"]),
    ]
    graph = helper.make_graph(
        [helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0)], "seq", infos[:1], infos[1:]
    )
    path = tmp_path / "sequence.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(EdgerunError, match="no reference runs this model") as caught:
        edgerun.load(path, options=ONE, checked=True)
    assert "checked=[feeds" in str(caught.value) and caught.value.exit_code == 2


def test_strings_are_checked_on_drawn_feeds_and_on_those_given(tmp_path: Path) -> None:
    infos = [helper.make_tensor_value_info(name, TensorProto.STRING, [2]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("StringConcat", ["a", "b"], ["c"])], "text", infos[:2], infos[2:])
    path = tmp_path / "text.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    assert stages(lambda: edgerun.load(path, options=ONE, checked=True)) == [COMPARING]

    def load(*texts: str) -> list[str]:
        feeds = {"a": np.array(texts, object), "b": np.array(["ü", "y"], object)}
        return stages(lambda: edgerun.load(path, options=ONE, checked=[feeds]))

    assert load("a", "b") == [COMPARING] and load("a", "b") == [] and load("a", "c") == [COMPARING]
    with pytest.raises(EdgerunError, match="a list of feeds"):
        edgerun.load(path, options=ONE, checked={"a": np.array(["x", "y"], object)})  # type: ignore[arg-type]


def test_only_onnx_says_what_it_computes(place: Any, cli: Any) -> None:
    for name in ("m.ort", "m.xml"):
        path = place.folder / name
        assert cli("compile", place.a, "-o", path).code == 0
        edgerun.load(path, options=ONE).close()
        with pytest.raises(Unsupported, match="only an .onnx model says what it computes"):
            edgerun.load(path, options=ONE, checked=True)
    np.savez(place.folder / "x.npz", x=place.x)
    ran = cli("run", path, "--feeds", place.folder / "x.npz", "-o", place.folder / "y.npz", "--checked")
    assert ran.code == 3 and "compile the .onnx" in ran.err
    engine = edgerun.compile(place.a, "openvino", ONE)
    assert stages(lambda: edgerun.load(engine, checked=True)) == [], "compile has compared it"
    unproven = registry.target("openvino").compile(Model.load(place.a), ONE)
    with pytest.raises(Unsupported, match="got: an engine for openvino"):
        edgerun.load(unproven, checked=True)
    with edgerun.load(place.a) as session, pytest.raises(EdgerunError, match="an open session"):
        edgerun.evaluate(session, place.data, checked=True)


def test_what_is_refused_by_name(tmp_path: Path) -> None:
    """OpenVINO ignores an LSTM's peepholes without a word; drawn feeds need not be what tells."""
    weights = {"w": (1, 8, 3), "r": (1, 8, 2), "b": (1, 16), "h": (1, 1, 2), "c": (1, 1, 2), "p": (1, 6)}
    node = helper.make_node("LSTM", ["x", "w", "r", "b", "", "h", "c", "p"], ["y"], "lstm", hidden_size=2)
    graph = helper.make_graph(
        [node],
        "peepholes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 1, 1, 2])],
        [numpy_helper.from_array(np.full(shape, 0.1, np.float32), name) for name, shape in weights.items()],
    )
    path = tmp_path / "lstm.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    edgerun.load(path, "openvino", ONE).close()
    with pytest.raises(Unsupported, match="peepholes"):
        edgerun.load(path, "openvino", ONE, checked=True)
    edgerun.load(path, "onnxruntime", ONE, checked=True).close()


def test_a_device_without_onnx(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what is missing; what has passed there before needs none."""
    edgerun.load(place.a, options=ONE, checked=True).close()
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with edgerun.load(place.a, options=ONE, checked=True) as session:
        assert session.run({"x": place.x})["y"].shape == (300, 4)
    with pytest.raises(Unsupported, match="pip install"):
        edgerun.load(place.b, options=ONE, checked=True)


def test_a_cache_that_cannot_be_written_costs_time_alone(place: Any, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGERUN_CACHE", str(place.data / "inside"))
    np.savez(place.folder / "x.npz", x=place.x)
    arguments = ("run", place.a, "--feeds", place.folder / "x.npz", "-o", place.folder / "y.npz", "--force")
    for _ in range(2):
        ran = cli(*arguments, "--checked")
        assert ran.code == 0 and "compared with reference" in ran.err and "compared again the next time" in ran.err
    monkeypatch.setenv("EDGERUN_CACHE", str(place.folder / "cache"))
    assert "compared with reference" in cli(*arguments, "--checked").err
    assert cli(*arguments, "--checked").err == ""


def test_a_file_that_changes_meanwhile_is_not_given_out(place: Any, _timings_of_its_own: Path) -> None:
    def replaced(stage: str, done: int, total: int) -> None:
        place.save(place.folder / "new.onnx").replace(place.a)

    with progress.told(replaced), pytest.raises(EdgerunError, match="changed while it was compared"):
        edgerun.load(place.a, options=ONE, checked=True)
    assert not (_timings_of_its_own / "checked").exists()
