"""What every registered pass must do; a new file in quantize/ is tested the moment it exists."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun import quantize, registry
from edgerun.data import Data, open_data
from edgerun.errors import EdgerunError
from edgerun.metrics import Difference
from edgerun.model import Model
from edgerun.passes import Pass, Request
from edgerun.runtime import Engine, Options, Session

NAMES = registry.names("pass")
ONE = Options(threads=1)
CONTRIB = {"MatMulNBits", "DynamicQuantizeLSTM"}
# Of what changes number formats, on the data it was calibrated with: 8 bits reach about 35 dB here, 4 bits 18.
SQNR_DB = {"w4a16_b32": 14.0, "w4a8": 14.0}
RELATIVE_ERROR = 1e-5  # of what does not: rounding of float32


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def step(name: str) -> Pass:
    return registry.quantizer(name)


@pytest.fixture(scope="module")
def model() -> Model:
    """Conv, BatchNormalization, Relu, Conv, Relu, GlobalAveragePool, Flatten, Gemm with a dynamic batch."""
    rng = np.random.default_rng(5)
    weights = {
        "w1": rng.normal(size=(8, 3, 3, 3)) * 0.3, "b1": rng.normal(size=8), "scale": rng.uniform(0.5, 2, 8),
        "shift": rng.normal(size=8), "mean": rng.normal(size=8), "variance": rng.uniform(0.5, 2, 8),
        "w2": rng.normal(size=(8, 8, 3, 3)) * 0.2, "b2": rng.normal(size=8), "w3": rng.normal(size=(8, 5)),
        "b3": rng.normal(size=5),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "scale", "shift", "mean", "variance"], ["n1"], "norm"),
        helper.make_node("Relu", ["n1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["pool"], "pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"], "gemm"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(proto)
    return Model.from_proto(proto)


def _data(model: Model) -> Data:
    image = np.random.default_rng(6).normal(size=(24, 3, 12, 12)).astype(np.float32)
    return open_data({"image": image}, model.inputs, batch=8)


def _open(graph: Any, *, emulated: bool = False, lanes: int = 1) -> Session:
    import onnx_ir as ir

    payload = ir.to_proto(graph).SerializeToString()
    return registry.target("onnxruntime").load(Engine("onnxruntime", payload), ONE)


def _applied(name: str, model: Model, told: list[tuple[str, int, int]] | None = None) -> Model:
    def progress(stage: str, done: int, total: int) -> None:
        if told is not None:
            told.append((stage, done, total))

    rules = registry.target("onnxruntime").quantization()
    return quantize.apply(name, model, Request(rules, _open, _data(model), progress=progress))


def _outputs(model: Model, feeds: Data) -> np.ndarray:
    with edgerun.load(edgerun.compile(model, "onnxruntime", ONE)) as session:
        return np.concatenate([session.run(feed)["logits"] for feed in feeds])


def test_protocol(name: str, step: Pass) -> None:
    assert re.fullmatch("[a-z][a-z0-9_]*", name)
    assert step.summary and "\n" not in step.summary
    assert isinstance(step.needs_calibration, bool) and isinstance(step.scheme, str)
    assert list(inspect.signature(step.apply).parameters) == list(inspect.signature(Pass.apply).parameters)[1:]
    assert step.apply.__doc__


def test_a_scheme_has_one_pass_and_a_target() -> None:
    made = [scheme for name in NAMES if (scheme := registry.quantizer(name).scheme)]
    assert len(made) == len(set(made)) and set(quantize.schemes()) == set(made)
    rules = [registry.target(target, usable=False).quantization() for target in registry.names("target")]
    assert set(made) <= {scheme for rule in rules for scheme in rule.schemes}


def test_an_unknown_scheme_names_the_known() -> None:
    with pytest.raises(EdgerunError, match="w8a8"):
        quantize.pass_for("w8a9")


def test_the_door_stays_and_one_step_is_added(name: str, step: Pass, model: Model) -> None:
    before = model.to_bytes()
    result = _applied(name, model)
    assert model.to_bytes() == before, "the pass changed the model that it was given"
    assert (result.inputs, result.outputs) == (model.inputs, model.outputs)
    assert result.preprocessing == model.preprocessing
    (made,) = result.history[len(model.history) :]
    assert made.name == f"quantize/{name}" and made.version == edgerun.__version__
    assert (made.before, made.after) == (model.digest(), result.digest()) and made.before != made.after
    assert made.data == (_data(model).digest if step.needs_calibration or step.scheme else "")
    assert Model.from_proto(onnx.ModelProto.FromString(result.to_bytes())).history == result.history


def test_the_result_is_valid_onnx(name: str, model: Model) -> None:
    result = _applied(name, model)
    onnx.checker.check_model(result.to_proto(), full_check=True)
    oldest = getattr(registry.quantizer(name), "OLDEST_OPSET", 0)  # that has the scheme's number format
    assert result.ir.opset_imports[""] == max(model.ir.opset_imports[""], oldest)
    assert oldest > model.ir.opset_imports[""] or result.ir.ir_version == model.ir.ir_version
    foreign = {node.op_type for node in result.ir.graph if node.domain}
    assert foreign <= CONTRIB, "only ai.onnx and what both runtimes read, or a target's rules ask for"


def test_the_result_computes_the_same(name: str, step: Pass, model: Model) -> None:
    """ONNX Runtime runs both, and `compile` has compared each with the reference."""
    feeds = _data(model)
    error = Difference.of(_outputs(model, feeds), _outputs(_applied(name, model), feeds))
    if step.scheme:
        assert error.sqnr_db >= SQNR_DB.get(step.scheme, 20.0)
    else:
        assert error.relative_error <= RELATIVE_ERROR


def test_the_same_input_gives_the_same_bytes(name: str, model: Model) -> None:
    assert _applied(name, model).to_bytes() == _applied(name, model).to_bytes()


def test_a_second_step_stands_behind_the_first(name: str, model: Model) -> None:
    folded = _applied("fold", model)
    twice = _applied(name, folded) if name != "fold" else folded
    assert [s.name for s in twice.history] == ["quantize/fold", *([f"quantize/{name}"] if name != "fold" else [])]


def test_calibration_is_asked_for(name: str, step: Pass, model: Model) -> None:
    request = Request(registry.target("onnxruntime").quantization(), _open)
    if step.needs_calibration:
        with pytest.raises(EdgerunError, match="--calibration"):
            quantize.apply(name, model, request)
    else:
        assert quantize.apply(name, model, request).history


def test_long_work_tells_how_far_it_is(name: str, step: Pass, model: Model) -> None:
    told: list[tuple[str, int, int]] = []
    _applied(name, model, told)
    assert bool(told) == (step.needs_calibration or bool(step.scheme)), "a scheme measures what it lost"
    assert all(stage and 0 <= done and (done <= total or total == 0) for stage, done, total in told)
