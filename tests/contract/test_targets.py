"""What every registered target must do; a new file in targets/ is tested the moment it exists."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun import registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.passes import Target
from edgerun.runtime import Engine, Options, Session

ONE = Options(threads=1)
RNG = np.random.default_rng(7)
WEIGHT = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
BIAS = RNG.normal(size=4).astype(np.float32)
DENSE = RNG.normal(size=(4, 5)).astype(np.float32)
OFFSET = RNG.normal(size=5).astype(np.float32)


@pytest.fixture
def runner(target: Target, name: str) -> Target:
    """A target that runs here what it compiles."""
    if reason := target.runnable():
        pytest.skip(f"{name}: {reason}")
    return target


@pytest.fixture
def model() -> Model:
    """Conv, Relu, GlobalAveragePool, Flatten, Gemm with a dynamic batch."""
    nodes = [
        helper.make_node("Conv", ["image", "weight", "bias"], ["conv"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"], "relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"], "pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "dense", "offset"], ["logits"], "gemm"),
    ]
    weights = {"weight": WEIGHT, "bias": BIAS, "dense": DENSE, "offset": OFFSET}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return _model(graph)


def _model(graph: onnx.GraphProto, opset: int = 17) -> Model:
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(proto)
    return Model.from_proto(proto)


def _expected(image: np.ndarray) -> np.ndarray:
    padded = np.pad(image.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    conv = np.einsum("bchwij,ocij->bohw", windows, WEIGHT) + BIAS[:, None, None]
    result: np.ndarray = np.maximum(conv, 0).mean(axis=(2, 3)) @ DENSE + OFFSET
    return result


@pytest.fixture
def session(runner: Target, model: Model) -> Iterator[Session]:
    with runner.load(runner.compile(model, ONE), ONE) as running:
        yield running


def test_protocol(name: str) -> None:
    target = registry.target(name, usable=False)
    wanted = [n for n, member in vars(Target).items() if inspect.isfunction(member) and not n.startswith("_")]
    assert {
        "available",
        "runnable",
        "device",
        "limits",
        "quantization",
        "check",
        "compile",
        "save",
        "load",
        "profile",
    } <= set(wanted)
    for function in wanted:
        theirs = inspect.signature(getattr(target, function)).parameters
        assert list(theirs) == list(inspect.signature(getattr(Target, function)).parameters)[1:], function
        assert getattr(target, function).__doc__, function
    assert target.summary and all(suffix.startswith(".") for suffix in target.suffixes)


def test_a_missing_runtime_is_a_visible_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = registry.target(name, usable=False)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: find(name) if name.startswith("edgerun") else None)
    reason = target.available()
    assert reason is not None and "pip install" in reason and target.requires[0] in reason
    with pytest.raises(Unsupported, match="pip install"):
        registry.target(name)


def test_limits_and_facts(target: Target) -> None:
    limits = target.limits()
    assert 10 <= limits.ir_version <= 40 and 20 <= limits.opset <= 80
    device = target.device()
    assert {"runtime", "version", "arch"} <= set(device) and all(isinstance(v, str) for v in device.values())
    told = target.quantization()
    assert told.schemes and told.compute and not told.compute & told.through


@pytest.mark.parametrize("batch", [1, 4])
def test_computes_what_numpy_computes(session: Session, batch: int) -> None:
    image = np.random.default_rng(batch).normal(size=(batch, 3, 8, 8)).astype(np.float32)
    logits = session.run({"image": image})["logits"]
    assert logits.dtype == np.float32 and logits.shape == (batch, 5)
    np.testing.assert_allclose(logits, _expected(image), atol=1e-5, rtol=1e-5)


def test_the_door_keeps_its_names(session: Session, model: Model) -> None:
    assert session.inputs == model.inputs and session.outputs == model.outputs


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "missing"),
        ({"image": np.zeros((1, 3, 8, 8))}, "dtype"),
        ({"image": np.zeros((1, 3, 8, 8), ">f4")}, "byte order"),
        ({"image": np.zeros((1, 3, 8), np.float32)}, "shape"),
        ({"image": np.zeros((1, 3, 9, 8), np.float32)}, "shape"),
        ({"image": np.zeros((1, 3, 8, 8), np.float32), "z": np.zeros(1)}, "unknown input 'z'"),
    ],
)
def test_wrong_feeds(session: Session, feeds: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(EdgerunError, match=message):
        session.run(feeds)


def test_any_memory_layout_is_taken(session: Session) -> None:
    image = np.random.default_rng(3).normal(size=(2, 8, 8, 3)).astype(np.float32)
    view = image.transpose(0, 3, 1, 2)[:, :, ::-1]
    view.flags.writeable = False
    np.testing.assert_allclose(session.run({"image": view})["logits"], _expected(view), atol=1e-5, rtol=1e-5)


def test_outputs_belong_to_the_caller(session: Session) -> None:
    image = np.ones((2, 3, 8, 8), np.float32)
    first = session.run({"image": image})["logits"]
    kept = first.copy()
    session.run({"image": image * 5})
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    np.testing.assert_array_equal(session.run({"image": image})["logits"], kept)


def test_closing(runner: Target, model: Model) -> None:
    with runner.load(runner.compile(model, ONE), ONE) as running:
        running.run({"image": np.zeros((1, 3, 8, 8), np.float32)})
    with pytest.raises(EdgerunError, match="closed"):
        running.run({"image": np.zeros((1, 3, 8, 8), np.float32)})
    running.close()


def test_save_and_load(runner: Target, model: Model, name: str, tmp_path: Path, session: Session) -> None:
    path = tmp_path / f"small{runner.suffixes[0]}"
    engine = runner.compile(model, ONE)
    assert engine.digest == model.digest() and engine.target == name
    runner.save(engine, path)
    image = np.random.default_rng(5).normal(size=(2, 3, 8, 8)).astype(np.float32)
    with edgerun.load(path, name, ONE) as loaded:
        assert loaded.inputs == model.inputs and loaded.outputs == model.outputs
        np.testing.assert_array_equal(loaded.run({"image": image})["logits"], session.run({"image": image})["logits"])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    runner.save(runner.compile(model, ONE), path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before, "the same model, the same bytes"
    with pytest.raises(EdgerunError, match="wanted"):
        runner.save(engine, tmp_path / "small.txt")


def test_profile_lists_kernels(runner: Target, model: Model) -> None:
    feeds = [{"image": np.ones((2, 3, 8, 8), np.float32)}] * 3
    try:
        kernels = runner.profile(runner.compile(model, ONE), feeds, ONE)
    except Unsupported as error:
        assert error.do
        return
    # Not of each: what a profiler adds is taken off, which may be all that it told of a kernel.
    assert sum(kernel.seconds for kernel in kernels) > 0 and all(kernel.node and kernel.op for kernel in kernels)
    assert [kernel.seconds for kernel in kernels] == sorted((k.seconds for k in kernels), reverse=True)
    with pytest.raises(EdgerunError, match="nothing to profile"):
        runner.profile(runner.compile(model, ONE), [], ONE)


def test_every_dtype_passes_the_door(runner: Target) -> None:
    """Scalars, integers, booleans, an input that nothing uses, a weight as an output, an input as an output."""
    inputs: dict[str, np.ndarray | np.generic] = {
        "f": np.float32(2.5),
        "i": np.int64(3),
        "b": np.array([True, False]),
        "unused": np.zeros(2, np.int32),
    }
    kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT64, "b": TensorProto.BOOL, "unused": TensorProto.INT32}
    nodes = [
        helper.make_node("Identity", ["f"], ["same"], "same"),
        helper.make_node("Mul", ["i", "i"], ["square"], "square"),
        helper.make_node("Not", ["b"], ["opposite"], "opposite"),
        helper.make_node("Identity", ["weight"], ["constant"], "constant"),
    ]
    out = {"same": ("f", []), "square": ("i", []), "opposite": ("b", [2]), "constant": ("f", [5])}
    graph = helper.make_graph(
        nodes,
        "types",
        [helper.make_tensor_value_info(n, kinds[n], v.shape) for n, v in inputs.items()],
        [helper.make_tensor_value_info(n, kinds[kind], shape) for n, (kind, shape) in out.items()],
        [numpy_helper.from_array(OFFSET, "weight")],
    )
    model = _model(graph)
    wanted: dict[str, np.ndarray | np.generic] = {
        "same": np.float32(2.5),
        "square": np.int64(9),
        "opposite": np.array([False, True]),
        "constant": OFFSET,
    }
    with runner.load(runner.compile(model, ONE), ONE) as session:
        for _ in range(2):
            got = session.run(inputs)
            assert list(got) == list(wanted)
            for name, value in wanted.items():
                assert got[name].dtype == value.dtype and isinstance(got[name], np.ndarray), name
                np.testing.assert_array_equal(got[name], value)
                got[name][...] = 0  # ours to write: the next run must not notice


def test_unsupported_nodes_are_named(target: Target) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"], "fine"), helper.make_node("Frobnicate", ["r"], ["y"], "odd")],
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    issues = target.check(Model.from_proto(proto))
    assert issues and all(issue.reason for issue in issues)
    told = " ".join(f"{issue.node} {issue.op} {issue.reason}" for issue in issues)
    assert "Frobnicate" in told and "fine" not in told


def test_a_model_from_the_future_is_refused(target: Target, model: Model) -> None:
    limits = target.limits()
    for ir_version, opset in ((limits.ir_version + 1, 17), (8, limits.opset + 1)):
        proto = model.to_proto()
        proto.ir_version = ir_version
        proto.opset_import[0].version = opset
        assert any("newer" in issue.reason for issue in target.check(Model.from_proto(proto)))


def test_a_supported_model_has_no_issues(target: Target, model: Model) -> None:
    assert target.check(model) == []


def test_compile_checks_itself(runner: Target, model: Model, name: str) -> None:
    engine = edgerun.compile(model, name, ONE)
    assert engine.check is not None
    assert engine.check.runs == 4 and len(engine.check.shapes) == 2
    assert engine.check.relative_error <= 1e-5 and engine.check.sqnr_db >= 90
    assert engine.check.reference.split()[0] in registry.names("target") and engine.check.worst == "logits"


def test_damaged_bytes_are_refused(target: Target, model: Model, name: str) -> None:
    payload = target.compile(model, ONE).payload
    assert isinstance(payload, bytes)
    for broken in (b"", b"nonsense", payload[: len(payload) // 2]):
        with pytest.raises(EdgerunError):
            target.load(Engine(name, broken), ONE)
