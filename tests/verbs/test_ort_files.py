"""Optimized models in ONNX Runtime's own format: made, compared, opened, and refused where they would be wrong."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun import devices, ort_file, registry
from edgerun.devices import Device, Fact
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model, Step
from edgerun.runtime import Engine, Options, machine
from edgerun.targets import _onnxruntime_optimized as optimized
from edgerun.targets import _onnxruntime_ort as ort
from edgerun.targets import onnxruntime as target
from edgerun.verbs.compiled import compiled

ONE = Options(1)
RNG = np.random.default_rng(3)
WEIGHT = RNG.normal(size=(16, 3, 3, 3)).astype(np.float32)
X = {"x": RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)}


def _model(nodes: list[onnx.NodeProto], shape: list[int | str], weights: dict[str, np.ndarray]) -> Model:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"y{axis}" for axis in range(len(shape))])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.fixture
def model() -> Model:
    """Conv and Relu over 16 channels, which ONNX Runtime lays out for the CPU, with a history."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    return _model(nodes, ["batch", 3, 8, 8], {"w": WEIGHT}).with_step(Step("a step", "1", {}, "before", "after"))


@pytest.fixture
def file(model: Model, tmp_path: Path) -> Path:
    """It, compiled for this machine."""
    edgerun.compile(model, "onnxruntime", ONE, output=tmp_path / "here.ort")
    return tmp_path / "here.ort"


def _device(arch: str, isa: list[str]) -> Device:
    facts = {"arch": arch, "isa": isa, "target": "onnxruntime", "schemes": ["w8a8"]}
    return Device("board", "A board", {key: Fact(value, "made up") for key, value in facts.items()})


def _about(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ort_file.metadata(path)[ort.KEY])
    return found


def test_it_computes_what_the_model_does_and_tells_its_life(model: Model, file: Path) -> None:
    with edgerun.load(target.compile(model, ONE), options=ONE) as plain, edgerun.load(file, options=ONE) as session:
        assert session.inputs == model.inputs and session.outputs == plain.outputs
        np.testing.assert_array_equal(session.run(X)["y"], plain.run(X)["y"])
    here = target.device()
    assert _about(file) == {"level": "all", "digest": model.digest(), **{key: here[key] for key in ort.HERE}}
    assert json.loads(ort_file.metadata(file)["edgerun.history"])[0]["name"] == "a step"


def test_bytes_are_opened_as_the_file_is(file: Path) -> None:
    with edgerun.load(file.read_bytes(), options=ONE) as one, edgerun.load(file, "onnxruntime", ONE) as other:
        np.testing.assert_array_equal(one.run(X)["y"], other.run(X)["y"])


def test_the_command(place: Any, cli: Any) -> None:
    output = place.folder / "made.ort"
    ran = cli("compile", place.a, "-o", output, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["check"]["relative_error"] < 1e-5 and json.loads(ran.out)["target"] == "onnxruntime"
    np.savez(place.folder / "feeds.npz", x=place.x)
    ran = cli("run", output, "--feeds", place.folder / "feeds.npz", "-o", place.folder / "y.npz")
    assert ran.code == 0, ran.err
    np.testing.assert_allclose(np.load(place.folder / "y.npz")["y"], place.x @ place.w, rtol=1e-4, atol=1e-5)
    assert cli("compile", place.a, "-o", output).code == 2, "it exists"


def test_a_file_for_another_cpu_holds_nothing_of_this_one(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save(tmp_path / "m.onnx")
    told = compiled(tmp_path / "m.onnx", tmp_path / "there.ort", device="raspberry-pi-5", options=ONE)
    assert told.for_device == "raspberry-pi-5" and told.check is not None and told.check.relative_error < 1e-5
    about = _about(tmp_path / "there.ort")
    assert about == {"level": "extended", "digest": model.digest(), "version": target.device()["version"]}
    assert not ort_file.blocked(tmp_path / "there.ort")
    monkeypatch.setattr(machine, "isa", lambda: ("asimd",))
    with edgerun.load(tmp_path / "there.ort", options=ONE) as session:  # wherever it is
        assert session.run(X)["y"].shape == (2, 16, 8, 8)


def test_what_would_be_wrong_there_is_not_made(place: Any, cli: Any) -> None:
    words = ["compile", place.a, "-o", place.folder / "made.ort", "--device", "raspberry-pi-5"]
    ran = cli(*words, "--option", "graph_optimization_level=all")
    assert ran.code == 3 and "raspberry-pi-5" in ran.err and "extended" in ran.err
    assert not (place.folder / "made.ort").exists()
    assert cli(*words, "--option", "graph_optimization_level=basic").code == 0


def test_a_device_like_this_machine_gets_all() -> None:
    same = _device(target.device()["arch"], list(machine.isa()))
    assert (
        dict(optimized.written(".ort", ONE, same).extra)
        == {"FORMAT": "ort"}
        == dict(optimized.written(".ort", ONE, None).extra)
    )
    other = optimized.written(".ort", ONE, _device("riscv64", ["rvv"])).extra
    assert other["graph_optimization_level"] == "extended" and other[optimized.INT8] == "0"
    assert optimized.written(".ort", ONE, devices.find("raspberry-pi-5")).extra[optimized.INT8] == "1"


@pytest.mark.parametrize("key", ["isa", "arch", "version"])
def test_a_file_of_another_cpu_or_version_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, cli: Any, tmp_path: Path, key: str
) -> None:
    here = {**target.device(), key: "another"}
    monkeypatch.setattr(registry.target("onnxruntime"), "device", lambda: here)
    np.savez(tmp_path / "feeds.npz", x=X["x"])
    ran = cli("run", file, "--feeds", tmp_path / "feeds.npz", "-o", tmp_path / "y.npz")
    assert ran.code == 3 and f"{key} " in ran.err and "here another" in ran.err and "compile it here" in ran.err


def test_a_layout_for_nobody_knows_which_cpu_is_refused(model: Model, tmp_path: Path) -> None:
    """Written by ONNX Runtime itself, as others do it: at level all it does not say where it is right."""
    runtime = target._runtime()
    for level, blocked in (("all", True), ("extended", False)):
        settings = target._settings(Options(1, {"graph_optimization_level": level}))
        settings.optimized_model_filepath = str(tmp_path / f"{level}.ort")
        runtime.InferenceSession(model.to_bytes(), settings, providers=["CPUExecutionProvider"])
        assert ort_file.blocked(tmp_path / f"{level}.ort") == blocked
    with pytest.raises(Unsupported, match="for one kind of CPU"):
        edgerun.load(tmp_path / "all.ort", options=ONE)
    with edgerun.load(tmp_path / "extended.ort", options=ONE) as session:
        assert session.run(X)["y"].shape == (2, 16, 8, 8)


def test_damage_is_one_error(file: Path, tmp_path: Path) -> None:
    """A cut is refused; a changed byte is refused, or changes a weight or a name, and is never another exception."""
    whole, path, draw = file.read_bytes(), tmp_path / "bad.ort", random.Random(0)
    for length in (1, 7, 8, 40, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(EdgerunError):
            ort_file.check(path)
    refused = 0
    for _ in range(150):
        changed = bytearray(whole)
        changed[draw.randrange(len(whole))] = draw.choice([0, 1, 128, 255])
        path.write_bytes(changed)
        try:
            ort_file.check(path)
            ort_file.metadata(path)
        except EdgerunError:
            refused += 1
    assert refused


def test_what_is_no_such_file(tmp_path: Path) -> None:
    for data, message in ((b"", "empty"), (b"12345678", "ORTM"), (b"\xff" * 4 + b"ORTM", "offset")):
        (tmp_path / "bad.ort").write_bytes(data)
        with pytest.raises(EdgerunError, match=message):
            edgerun.load(tmp_path / "bad.ort")
    with pytest.raises(EdgerunError, match="not exist"):
        edgerun.load(tmp_path / "no.ort")


def test_a_name_that_is_no_text_is_one_error(file: Path, tmp_path: Path) -> None:
    """ONNX Runtime's own message is none then either."""
    whole, name = file.read_bytes(), b"com.microsoft.nchwc:Conv"
    (tmp_path / "bad.ort").write_bytes(whole.replace(name, name[:-1] + b"\xff"))
    assert name in whole
    with pytest.raises(EdgerunError, match="refuses the model"):
        edgerun.load(tmp_path / "bad.ort", options=ONE)


def test_a_tensor_of_another_size_is_refused(file: Path) -> None:
    """The dims of the only weight, found by their bytes: one more channel than there is data for."""
    whole = file.read_bytes()
    dims = next(d for d in _all_dims(whole) if np.prod(d) * 4 >= WEIGHT.nbytes)
    packed = np.array(dims, "<i8").tobytes()
    with pytest.raises(EdgerunError, match="and declares"):
        ort_file.check(whole.replace(packed, np.array([dims[0] + 1, *dims[1:]], "<i8").tobytes()))


def _all_dims(data: bytes) -> list[list[int]]:
    from edgerun import _flat

    graph = _flat.root(memoryview(data), b"ORTM").table(ort_file.MODEL)
    assert graph is not None
    inner = graph.table(ort_file.GRAPH)
    assert inner is not None
    return [tensor.integers(ort_file.DIMS, "q") for tensor in inner.tables(ort_file.INITIALIZERS)]


def test_what_a_provider_compiled_lies_in_the_file(tmp_path: Path) -> None:
    """No provider that writes an EPContext node is here: another node's names are overwritten."""
    node = helper.make_node("GatherND", ["x", "i"], ["y"], "gather", batch_dims=0)
    model = _model([node], ["n", 4], {"i": np.array([[0, 1]])})
    path = tmp_path / "m.ort"
    edgerun.compile(model, "onnxruntime", ONE, output=path, feeds=[{"x": np.ones((2, 4), np.float32)}])
    data = path.read_bytes()
    ort_file.check(data)
    long, short = b"\x08\0\0\0GatherND\0\0\0\0", b"\x09\0\0\0EPContext\0\0\0"
    assert data.count(long) == 1 and data.count(b"batch_dims") == 1
    context = data.replace(long, short).replace(b"batch_dims", b"embed_mode")
    with pytest.raises(EdgerunError, match="damaged") as error:
        ort_file.check(context)
    assert error.value.got == "a node that a provider compiled names a file"
    ort_file.check(context.replace(b"embed_mode", b"main_mode_"))


def test_constants_in_subgraphs_are_seen(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "te"]
    one = numpy_helper.from_array(np.array([1], np.float64), "one")
    then = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["wide"], "wide", to=TensorProto.DOUBLE),
            helper.make_node("Add", ["wide", "one"], ["sum"], "add"),
            helper.make_node("Cast", ["sum"], ["t"], "narrow", to=TensorProto.FLOAT),
        ],
        "then", [], value[:1], [one],
    )  # fmt: skip
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"], "neg")], "other", [], value[1:])
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], "max", keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["b"], "positive"),
        helper.make_node("If", ["b"], ["y"], "choice", then_branch=then, else_branch=other),
    ]
    made = _model(nodes, ["n"], {"zero": np.array(0, np.float32)})
    feeds = [{"x": np.array(values, np.float32)} for values in ([1, 2], [-1, -2])]
    engine = edgerun.compile(made, "onnxruntime", Options(1, {"FORMAT": "ort"}), feeds=feeds)
    assert isinstance(engine.payload, bytes) and TensorProto.DOUBLE in ort_file.check(engine.payload)
    with edgerun.load(engine) as session:
        np.testing.assert_array_equal(session.run(feeds[0])["y"], [2, 3])
    with pytest.raises(EdgerunError, match=r"the engine is an \.ort file"):
        target.save(engine, tmp_path / "engine.onnx")


def test_an_option_that_crashes_is_refused(file: Path) -> None:
    with pytest.raises(Unsupported, match="not safe"):
        edgerun.load(file, options=Options(1, {"session.use_ort_model_bytes_directly": "1"}))


def test_kernels_are_timed_without_the_model(file: Path) -> None:
    kernels = target.profile(Engine("onnxruntime", file), [X] * 3, ONE)
    assert {kernel.op for kernel in kernels} >= {"Conv"} and all(not kernel.covers for kernel in kernels)


def test_options_of_the_runtime_reach_the_device(place: Any, cli: Any, file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "feeds.npz", x=X["x"])
    words = ["run", file, "--feeds", tmp_path / "feeds.npz", "-o"]
    assert cli(*words, tmp_path / "a.npz").code == 0
    assert cli(*words, tmp_path / "b.npz", "--option", "MEMORY=small").code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["y"], np.load(tmp_path / "b.npz")["y"])
    if machine.arch() != "aarch64":
        ran = cli(*words, tmp_path / "c.npz", "--option", "mlas.enable_gemm_fastmath_arm64_bfloat16=1")
        assert ran.code == 3 and "bfloat16" in ran.err and machine.arch() in ran.err


def test_compress_writes_models(place: Any, cli: Any) -> None:
    ran = cli("compress", place.a, "-o", place.folder / "small.ort", "--calibration", place.data)
    assert ran.code == 2 and "wanted: .onnx" in ran.err
