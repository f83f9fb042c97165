"""bfloat16 arithmetic on CPUs with AMX, through the CLI: against numpy, which rounds where the scheme says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun import devices, quantize, registry
from edgerun.errors import GateFailed, Unsupported
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.passes import Request
from edgerun.runtime import Engine, Options, Session
from edgerun.targets import _openvino_ir as ir
from edgerun.verbs import work

TARGET = registry.target("openvino", usable=False)
ABLE = TARGET.available() is None and "w16a16" in TARGET.quantization().schemes
tiles = pytest.mark.skipif(not ABLE, reason="needs OpenVINO on a CPU with AMX in bfloat16")
pytestmark = pytest.mark.skipif(TARGET.available() is not None, reason=str(TARGET.available()))
RNG = np.random.default_rng(4)
F32 = {"INFERENCE_PRECISION_HINT": "f32"}


def dense(*shape: int) -> np.ndarray:
    drawn: np.ndarray = (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    return drawn


def half(array: np.ndarray) -> np.ndarray:
    """`array` (float32) rounded to bfloat16, the nearest, ties to even."""
    rounded: np.ndarray = array.astype(ml_dtypes.bfloat16).astype(np.float32)
    return rounded


def saved(path: Path, nodes: list[onnx.NodeProto], x: list[Any], y: list[Any], **weights: np.ndarray) -> Path:
    """A float model at `path`, nodes named after their first outputs."""
    for node in nodes:
        node.name = node.output[0]
    door = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in (("x", x), ("y", y))]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "net", door[:1], door[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def products(path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """x [n, 64] -> MatMul, Add, Relu, MatMul -> y [n, 64]."""
    weights = {"w": dense(64, 64), "b": dense(64), "v": dense(64, 64)}
    make = helper.make_node
    nodes = [
        make("MatMul", ["x", "w"], ["a"]), make("Add", ["a", "b"], ["s"]), make("Relu", ["s"], ["r"]),
        make("MatMul", ["r", "v"], ["y"]),
    ]  # fmt: skip
    return saved(path, nodes, ["n", 64], ["n", 64], **weights), weights


def conv(path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """x [n, 16, 3, 3] -> Conv 3x3, Relu, Mul and Add per channel -> [n, 16, 1, 1] -> Flatten, MatMul -> y [n, 10].

    Fused into the convolution, the Mul and the Add give 2 dB at batch 1 (OpenVINO 2026.4)."""
    weights = {"w": dense(16, 16, 3, 3), "b": dense(16) + 1, "m": np.abs(dense(1, 16, 1, 1)) + np.float32(0.5),
               "a": dense(1, 16, 1, 1), "v": dense(16, 10)}  # fmt: skip
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w", "b"], ["c"]), make("Relu", ["c"], ["r"]), make("Mul", ["r", "m"], ["s"]),
        make("Add", ["s", "a"], ["t"]), make("Flatten", ["t"], ["f"]), make("MatMul", ["f", "v"], ["y"]),
    ]  # fmt: skip
    return saved(path, nodes, ["n", 16, 3, 3], ["n", 10], **weights), weights


def truth(name: str, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """What the net computes in bfloat16: sums are exact, and every node's inputs and result are rounded."""
    w = {key: half(array) for key, array in weights.items()}
    if name == "products":
        s = half(half(half(x) @ w["w"]) + w["b"])
        return half(np.maximum(s, 0) @ w["v"])
    c = half(np.einsum("nihw,oihw->no", half(x), w["w"]) + w["b"])
    t = half(half(np.maximum(c, 0) * w["m"].ravel()) + w["a"].ravel())
    return half(t @ w["v"])


NETS: dict[str, Callable[[Path], tuple[Path, dict[str, np.ndarray]]]] = {"products": products, "conv": conv}
SHAPES = {"products": (64,), "conv": (16, 3, 3)}


def run(path: Path, x: np.ndarray, **extra: str) -> np.ndarray:
    with edgerun.load(path, target="openvino", options=Options(1, extra)) as session:
        found: np.ndarray = np.array(session.run({"x": x})["y"])
    return found


@tiles
@pytest.mark.parametrize("name", NETS)
def test_a_net_in_bfloat16(cli: Callable[..., Any], tmp_path: Path, name: str) -> None:
    """ONNX and IR: half the bytes of weights, and 42 dB from numpy, which rounds more often than fused kernels do,
    at batch 1 and 3."""
    model, weights = NETS[name](tmp_path / "m.onnx")
    x = RNG.standard_normal((3, *SHAPES[name])).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=RNG.standard_normal((8, *SHAPES[name])).astype(np.float32))
    ran = cli("compress", model, "--scheme", "w16a16", "--target", "openvino", "--calibration", tmp_path / "x.npz",
              "-o", tmp_path / "half.onnx", "--placement", "rules", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    made = Model.load(tmp_path / "half.onnx")
    assert (made.inputs, made.outputs) == (Model.load(model).inputs, Model.load(model).outputs)
    told = made.history[-1].options
    assert told["nodes in bfloat16"] == told["nodes"] and told["overflowing"] == []
    kinds = {t.data_type for t in onnx.load(tmp_path / "half.onnx").graph.initializer}
    assert kinds == {TensorProto.BFLOAT16}
    for source, out in ((model, "float.xml"), (tmp_path / "half.onnx", "half.xml")):
        ran = cli("compile", source, "--target", "openvino", "-o", tmp_path / out)
        assert ran.code == 0, ran.err
    sizes = [(tmp_path / f"{kind}.bin").stat().st_size for kind in ("float", "half")]
    assert sizes[1] <= 0.5 * sizes[0] + 128
    want = truth(name, weights, x)
    for file in ("half.onnx", "half.xml"):
        for batch in (1, 3):
            got = np.concatenate([run(tmp_path / file, x[i : i + batch]) for i in range(0, 3, batch)])
            assert sqnr_db(want, got) > 42
    assert 35 < sqnr_db(run(model, x), want) < 60, "and float is something else"
    with edgerun.load(tmp_path / "half.onnx", target="onnxruntime", options=Options(1)) as session:
        assert sqnr_db(want, session.run({"x": x})["y"]) > 42


@tiles
def test_the_file_alone_says_that_it_is_bfloat16(tmp_path: Path) -> None:
    """A float model runs in f32 beside it, and a bfloat16 one where that is said."""
    model, weights = products(tmp_path / "m.onnx")
    made = edgerun.compress(model, scheme="w16a16", target="openvino", placement="rules", output=tmp_path / "h.onnx")
    assert edgerun.compile(Model.load(model), "openvino").device["precision"] == "f32"
    assert edgerun.compile(made, "openvino", output=tmp_path / "h.xml").device["precision"] == "bf16"
    x = RNG.standard_normal((4, 64)).astype(np.float32)
    exact = np.maximum(x @ weights["w"] + weights["b"], 0) @ weights["v"]
    assert sqnr_db(exact, run(model, x)) > 100
    stored = {key: half(array) for key, array in weights.items()}
    plain = np.maximum(x @ stored["w"] + stored["b"], 0) @ stored["v"]
    assert sqnr_db(plain, run(tmp_path / "h.xml", x, **F32)) > 100, "float32 with the weights that are stored"
    assert sqnr_db(plain, run(tmp_path / "h.xml", x)) < 60


@tiles
def test_values_that_only_look_like_rounding_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine at 20 dB from its reference: enough for integers, and no rounding to bfloat16."""
    model, _ = products(tmp_path / "m.onnx")
    made = edgerun.compress(model, scheme="w16a16", target="openvino", placement="rules")
    wrong = made.to_proto()
    for tensor in wrong.graph.initializer:
        if tensor.name == "v/half":
            values = half(np.frombuffer(tensor.raw_data, ml_dtypes.bfloat16).astype(np.float32))
            off: np.ndarray = values * (1 + 0.1 * RNG.standard_normal(values.shape))
            tensor.raw_data = off.astype(ml_dtypes.bfloat16).tobytes()
    other = Model.from_proto(wrong)
    compiled = TARGET.compile

    def compile_wrong(model: Model, options: Options) -> Engine:
        return compiled(other, options)

    monkeypatch.setattr(TARGET, "compile", compile_wrong)
    with pytest.raises(GateFailed, match="does not compute what the model says") as error:
        edgerun.compile(made, "openvino")
    assert "SQNR of 30.7 dB" in str(error.value)  # seven nodes, each off by a step


def test_the_judge_has_the_weights_and_no_rounding(tmp_path: Path) -> None:
    """It is known of every such model; of a float one there is none."""
    model, weights = products(tmp_path / "m.onnx")
    made = _for_tiles(Model.load(model))
    plain = work.unrounded(made)
    assert plain is not None and work.unrounded(Model.load(model)) is None
    x = RNG.standard_normal((4, 64)).astype(np.float32)
    stored = {key: half(array) for key, array in weights.items()}
    with edgerun.load(plain.to_bytes(), options=Options(1)) as session:
        got = session.run({"x": x})["y"]
    assert sqnr_db(np.maximum(x @ stored["w"] + stored["b"], 0) @ stored["v"], got) > 100


def _for_tiles(model: Model) -> Model:
    def opened(graph: Any, *, emulated: bool = False, lanes: int = 1) -> Session:
        raise AssertionError("nothing is run without data")

    rules = TARGET.quantization(devices.find("xeon-amx"))
    made = quantize.apply("half_precision", model, Request(rules, opened, None))
    onnx.checker.check_model(made.to_proto(), full_check=True)
    return made


def test_devices_without_tiles_are_refused(cli: Callable[..., Any], tmp_path: Path) -> None:
    model, _ = products(tmp_path / "m.onnx")
    words = ("compress", model, "--scheme", "w16a16", "--target", "openvino", "-o", tmp_path / "h.onnx")
    for device in ("intel-n100", "xeon-avx2", "xeon-avx512-vnni"):
        ran = cli(*words, "--device", device)
        assert ran.code == 3 and "no kernels for w16a16" in ran.err and not (tmp_path / "h.onnx").exists()


class Plain:
    """OpenVINO's Core on a CPU that does not tell of bfloat16."""

    def __init__(self, core: Any) -> None:
        self._core = core

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def get_property(self, device: str, name: str) -> Any:
        found = self._core.get_property(device, name)
        return [kind for kind in found if kind != "BF16"] if name == "OPTIMIZATION_CAPABILITIES" else found


@tiles
def test_a_machine_without_bfloat16_refuses_the_file(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says how it runs there all the same: in float32."""
    model, weights = products(tmp_path / "m.onnx")
    made = edgerun.compress(model, scheme="w16a16", target="openvino", placement="rules")
    edgerun.compile(made, "openvino", output=tmp_path / "h.xml")
    x = RNG.standard_normal((2, 64)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    core = Plain(ir.core())
    monkeypatch.setattr(ir, "core", lambda: core)
    words = ("run", tmp_path / "h.xml", "--feeds", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    ran = cli(*words)
    assert ran.code == 3 and not (tmp_path / "y.npz").exists()
    assert "CPU does not compute in bf16 here" in ran.err and "say INFERENCE_PRECISION_HINT=f32" in ran.err
    assert cli(*words, "--option", "INFERENCE_PRECISION_HINT=f32").code == 0
    stored = {key: half(array) for key, array in weights.items()}
    plain = np.maximum(x @ stored["w"] + stored["b"], 0) @ stored["v"]
    assert sqnr_db(plain, np.load(tmp_path / "y.npz")["y"]) > 100


@tiles
def test_compress_times_it_against_float(cli: Callable[..., Any], tmp_path: Path) -> None:
    """As the schemes on integers; without a product there is nothing to do."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = saved(tmp_path / "m.onnx", nodes, ["n", 4], ["n", 4], w=dense(4, 4))
    words = ("compress", model, "--scheme", "w16a16", "--target", "openvino", "-o", tmp_path / "h.onnx", "--json")
    ran = cli(*words, "--placement", "clock", "--allow-slower")
    assert ran.code == 0, ran.err
    assert "speed" in json.loads(ran.out)
    with pytest.raises(Unsupported, match="finds nothing to store smaller"):
        edgerun.compress(saved(tmp_path / "r.onnx", [helper.make_node("Relu", ["x"], ["y"])], ["n", 4], ["n", 4]),
                         scheme="w16a16", target="openvino")  # fmt: skip
