"""TensorRT without a GPU: what the parser takes, what the builder makes of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper, parser

import edgerun
from edgerun.compat.inference_session import InferenceSession
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.runtime import Engine, Options
from edgerun.targets import _cuda as cuda
from edgerun.targets import _tensorrt_build as build
from edgerun.targets import _tensorrt_file as file
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.targets import tensorrt as target
from edgerun.verbs.targets import targets

pytestmark = pytest.mark.skipif(target.available() is not None, reason=str(target.available()))
rtx_only = pytest.mark.skipif(
    target.available() is not None or tensorrt.name_of(tensorrt.library()) != "tensorrt_rtx",
    reason="tensorrt builds for the GPU that is there",
)
idle = pytest.mark.skipif(target.runnable() is None, reason="a GPU answers here")
RNG = np.random.default_rng(3)


@rtx_only
@pytest.mark.parametrize("capability", ["portable", "SM80", "SM86", "SM89", "SM120", "SM121"])
def test_engines_for_other_gpus(dense: Model, capability: str) -> None:
    engine = target.compile(dense, Options(extra={build.CAPABILITY: capability}))
    number = capability.removeprefix("SM")
    assert engine.device["capability"] == (number if number == "portable" else f"{number[:-1]}.{number[-1]}")
    header, plan = file.unpack(engine.payload)
    assert (
        header["device"] == engine.device and header["digest"] == engine.digest == dense.digest() and len(plan) > 1000
    )
    assert file.door(header) == (dense.inputs, dense.outputs)


@rtx_only
def test_turing_takes_convolutions_and_no_float_products(dense: Model, residual: Model) -> None:
    turing = Options(extra={build.CAPABILITY: "SM75"})
    assert target.compile(residual, turing).device["capability"] == "7.5"
    with pytest.raises(EdgerunError, match="FP32 GEMM is not supported") as error:
        target.compile(dense, turing)
    assert "(MatMul): Cannot compile operation" in str(error.value.got) and error.value.do == build.FLOAT16
    half = edgerun.compress(dense, scheme="w16a16", target="tensorrt")  # as it says
    assert target.compile(half, turing).device["capability"] == "7.5"


@rtx_only
@pytest.mark.parametrize("capability", ["SM70", "SM72", "SM87", "SM90", "SM100", "SM110", "current", "87"])
def test_a_gpu_that_is_not_built_for_is_refused(dense: Model, capability: str) -> None:
    with pytest.raises(Unsupported, match="SM89") as error:
        target.compile(dense, Options(extra={build.CAPABILITY: capability}))
    assert error.value.got == capability


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"COMPUTE": "SM89"}, "COMPUTE_CAPABILITY"),
        ({build.LEVEL: "6"}, "0 to 5"),
        ({build.TF32: "yes"}, "0 or 1"),
    ],
)
def test_misused_options(dense: Model, extra: dict[str, str], message: str) -> None:
    with pytest.raises(EdgerunError, match=message):
        target.compile(dense, Options(extra=extra))


@rtx_only
def test_a_timing_cache_that_would_hold_nothing_is_refused(dense: Model, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="timing cache"):
        target.compile(dense, Options(extra={build.CACHE: str(tmp_path / "cache")}))


def test_options_make_other_engines(dense: Model) -> None:
    told = [target.compile(dense, Options(extra=extra)).device["flags"] for extra in ({}, {build.TF32: "1"})]
    assert told == ["tf32=0 level=default", "tf32=1 level=default"]


def test_the_same_float_model_gives_the_same_bytes(dense: Model, tmp_path: Path) -> None:
    once = target.compile(dense, Options())
    assert once.payload == target.compile(dense, Options()).payload
    target.save(once, tmp_path / "dense.engine")
    assert (tmp_path / "dense.engine").read_bytes() == once.payload


def test_an_open_dimension_needs_sizes(build_sequence: Model) -> None:
    with pytest.raises(EdgerunError, match="'length' has none") as error:
        target.compile(build_sequence, Options())
    assert "sizes={'length': (least, usual, most)}" in str(error.value.do)
    engine = target.compile(build_sequence, Options(sizes={"length": (1, 16, 64), "batch": (1, 2, 4)}))
    assert engine.inputs == build_sequence.inputs
    with pytest.raises(EdgerunError, match="width"):
        target.compile(build_sequence, Options(sizes={"length": (1, 16, 64), "width": (1, 1, 1)}))


@pytest.mark.parametrize("size", [(0, 1, 2), (2, 1, 3), (1, 3, 2), (1, 2), (), 5, (1, 2, 3, 4), (1, 2, 3, 4, 6, 5)])
def test_sizes_that_are_no_range(size: Any) -> None:
    with pytest.raises(EdgerunError, match="least, usual, most"):
        Options(sizes={"length": size})


@pytest.fixture
def build_sequence(build: Callable[..., Model]) -> Model:
    weights = {"w": np.ones((6, 4), np.float32)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "dense")
    return build([node], {"x": ["batch", "length", 6]}, {"y": ["batch", "length", 4]}, weights)


@pytest.fixture
def residual(build: Callable[..., Model]) -> Model:
    """Conv, Relu, Conv, a sum of both, Relu, Conv."""
    weights = {"w": (RNG.standard_normal((8, 8, 1, 1)) / 2).astype(np.float32), "b": np.ones(8, np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], "a"),
        helper.make_node("Relu", ["a"], ["r"], "r"),
        helper.make_node("Conv", ["r", "w"], ["c"], "c"),
        helper.make_node("Add", ["r", "c"], ["s"], "s"),
        helper.make_node("Relu", ["s"], ["t"], "t"),
        helper.make_node("Conv", ["t", "w"], ["y"], "y"),
    ]
    return build(nodes, {"x": ["n", 8, 8, 8]}, {"y": ["n", 8, 8, 8]}, weights)


def _quantizer(dtype: type, point: int) -> Model:
    text = "a = QuantizeLinear(x, s, z) y = DequantizeLinear(a, s, z)"
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> net (float[4] x) => (float[4] y) {{ {text} }}')
    arrays = {"s": np.array(0.1, np.float32), "z": np.array(point, dtype)}
    proto.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items())
    return Model.from_proto(proto)


@pytest.mark.parametrize(("dtype", "point"), [(np.uint8, 0), (np.uint8, 128), (np.int8, 3)])
def test_quantizers_that_it_would_misread_are_refused(dtype: type, point: int) -> None:
    """The parser takes uint8 with zero point 0 and computes int8 without a word."""
    model = _quantizer(dtype, point)
    issues = target.check(model)
    assert issues and all(issue.op.endswith("Linear") for issue in issues)
    with pytest.raises(EdgerunError):
        target.compile(model, Options())
    assert target.check(_quantizer(np.int8, 0)) == []


def test_models_made_for_a_cpu_are_refused(residual: Model) -> None:
    made = edgerun.compress(residual, calibration={"x": RNG.standard_normal((16, 8, 8, 8)).astype(np.float32)})
    assert any("uint8" in issue.reason for issue in target.check(made))


@idle
def test_compress_says_that_the_engine_was_not_run(residual: Model, tmp_path: Path) -> None:
    data = {"x": RNG.standard_normal((16, 8, 8, 8)).astype(np.float32)}
    made = edgerun.compress(residual, target="tensorrt", calibration=data, output=tmp_path / "small.onnx")
    assert made.history[-1].options["engine"] == f"compiled, not run: {target.runnable()}"
    assert Model.load(tmp_path / "small.onnx").history == made.history


@idle
@pytest.mark.parametrize("more", [{"output": "small.engine"}, {"max_drop": 1.0, "labelled": "labelled.npz"}])
def test_what_would_have_to_run_is_refused_at_once(residual: Model, more: dict[str, Any], tmp_path: Path) -> None:
    if "output" in more:
        more = {"output": tmp_path / more["output"]}
    with pytest.raises(Unsupported) as error:
        edgerun.compress(residual, target="tensorrt", calibration="random", **more)
    assert error.value.got == target.runnable() and not list(tmp_path.iterdir())


@idle
def test_the_list_of_targets_says_it() -> None:
    told = {facts.name: facts for facts in targets()}
    assert told["tensorrt"].reason is None and told["tensorrt"].only_compiles == target.runnable()
    assert told["onnxruntime"].only_compiles is None


@idle
def test_bytes_of_a_model_are_no_damaged_engine(dense: Model, tmp_path: Path) -> None:
    """As its file is, they would be built for the GPU."""
    (tmp_path / "m.onnx").write_bytes(data := dense.to_bytes())
    for source in (data, tmp_path / "m.onnx"):
        with pytest.raises(Unsupported, match="does not run here"):
            edgerun.load(source, "tensorrt")
        with pytest.raises(Unsupported, match="does not run here"), pytest.warns(UserWarning):
            InferenceSession(source, providers=["TensorrtExecutionProvider"])


def test_damaged_engines_are_refused(dense: Model) -> None:
    payload = target.compile(dense, Options()).payload
    assert isinstance(payload, bytes)
    start = len(file.MAGIC) + 8
    for broken in (b"", payload[:20], payload[:-1], payload[:start] + b"x" + payload[start + 1 :], payload + b"x"):
        with pytest.raises(EdgerunError, match="no engine"):
            target.load(Engine("tensorrt", broken), Options())


HERE = {
    "runtime": "tensorrt",
    "version": "10.3.0",
    "arch": "aarch64",
    "gpu": "Orin",
    "capability": "8.7",
    "cuda": "12.6",
}


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({}, None),
        ({"gpu": "Orin NX"}, None),
        ({"cuda": "12.4"}, None),
        ({"cuda": "12.9"}, "cuda 12.9"),
        ({"version": "10.13.3"}, "version 10.13.3"),
        ({"capability": "8.6"}, "capability 8.6"),
        ({"capability": "portable"}, None),
        ({"runtime": "tensorrt_rtx", "version": "1.7.1"}, "runtime tensorrt_rtx, version 1.7.1"),
        ({"arch": "x86_64"}, "arch x86_64"),
    ],
)
def test_an_engine_of_another_device_is_named(other: dict[str, str], named: str | None) -> None:
    if named is None:
        file.check_key({**HERE, **other}, HERE)
        return
    with pytest.raises(Unsupported, match="another device") as error:
        file.check_key({**HERE, **other}, HERE)
    assert error.value.got == named


RTX = {"7.5": False, "8.0": True, "8.6": True, "8.7": False, "8.9": True, "9.0": False, "10.0": False, "10.3": False,
       "11.0": False, "12.0": True, "12.1": True, "13.0": True}  # fmt: skip


@pytest.mark.parametrize(("capability", "runs"), RTX.items())
def test_where_portable_engines_of_rtx_run(capability: str, runs: bool) -> None:
    here = {**HERE, "runtime": "tensorrt_rtx", "capability": capability}
    if runs:
        file.check_key({**here, "capability": "portable"}, here)
    else:
        with pytest.raises(Unsupported, match="another device"):
            file.check_key({**here, "capability": "portable"}, here)


@pytest.mark.parametrize(("capability", "runs"), {**RTX, "7.0": False, "7.5": True}.items())
def test_gpus_that_rtx_does_not_run_on_are_named(capability: str, runs: bool) -> None:
    """The library builds there and then refuses its own engine: the reason has to come before."""
    major, minor = map(int, capability.split("."))
    told = tensorrt.refused("tensorrt_rtx", (major, minor))
    assert (told is None) == runs
    if told:
        assert f"capability {capability};" in told and "7.5, 8.0, 8.6, 8.9, and from 12.0 on" in told
    assert tensorrt.refused("tensorrt", (major, minor)) is None


@rtx_only
def test_a_gpu_that_rtx_does_not_run_on_is_as_none(dense: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a driver that answers for a Hopper GPU, engines are compiled, kept from running, and never called proven."""
    hopper = cuda.Gpu("H200", (9, 0), 140 << 30, (13, 0))
    monkeypatch.setattr(cuda, "missing", lambda: None)
    monkeypatch.setattr(cuda, "gpu", lambda: hopper)
    engine = target.compile(dense, Options())
    assert target.available() is None and "compute capability 9.0" in str(target.runnable())
    assert engine.device["gpu"] == "" and engine.device["capability"] == "portable"
    for refused in (lambda: target.load(engine, Options()), lambda: edgerun.compile(dense, "tensorrt")):
        with pytest.raises(Unsupported) as error:
            refused()
        assert error.value.got == target.runnable() and error.value.do
    told = {facts.name: facts for facts in targets()}["tensorrt"]
    assert told.only_compiles == target.runnable() and told.device and told.device["gpu"] == "H200"


def test_a_missing_driver_and_a_library_too_old_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        __name__, __version__ = "tensorrt_rtx", "1.2.0.54"

    monkeypatch.setattr(tensorrt, "library", Old)
    assert "needs tensorrt_rtx>=1.7" in str(target.available())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "tensorrt" else None)
    monkeypatch.setattr("edgerun.targets._cuda.missing", lambda: "no NVIDIA driver answers")
    assert target.available() == "tensorrt builds engines only where a GPU is: no NVIDIA driver answers"
