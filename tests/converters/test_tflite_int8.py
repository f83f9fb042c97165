"""TFLite models that compute on codes: every family of operators within its steps, and what the runtimes make of it."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("ai_edge_litert", reason="pip install 'edgerun[tflite]'")

import edgerun  # noqa: E402
from edgerun import parity  # noqa: E402
from edgerun.converters import _ort, _tflite_graph, tflite  # noqa: E402
from edgerun.converters._tflite_files import Quant, load  # noqa: E402
from edgerun.errors import GateFailed, Unsupported  # noqa: E402
from tests.converters.conftest import judged, ran_on  # noqa: E402
from tests.converters.tflite_cases import CASES, weight  # noqa: E402

Lite = Callable[..., Path]
# Of the codes that an operator makes, how many may be off at all (by one step; a bilinear resize by two). TFLite rounds
# halves away from zero, and some of its tables are coarser than the float function.
OFF = {
    "ADD": 0.01, "AVERAGE_POOL_2D": 0.10, "BATCH_MATMUL": 0.02, "CONV_2D": 0.02, "DEPTHWISE_CONV_2D": 0.02,
    "FULLY_CONNECTED": 0.02, "LEAKY_RELU": 0.10, "MEAN": 0.35, "MUL": 0.02, "PRELU": 0.02, "QUANTIZE": 0.03,
    "REDUCE_PROD": 0.60, "RESIZE_BILINEAR": 0.15, "SOFTMAX": 0.01, "SQRT": 0.60, "SQUARED_DIFFERENCE": 0.02,
    "SUB": 0.01, "SUM": 0.02, "TRANSPOSE_CONV": 0.02,
}  # fmt: skip
REFUSED = {"ONE_HOT": "in codes"}


@pytest.mark.parametrize("name", CASES)
def test_operators_make_the_same_codes(name: str, lite: Lite, tf: Any) -> None:
    """Each on the source's own codes: within the rule's steps, most operators bit for bit."""
    shape, function = CASES[name]
    path = lite(lambda x: function(tf, x), shape, kind="int8")
    if name in REFUSED:
        with pytest.raises(Unsupported, match=REFUSED[name]):
            tflite.convert(path, inputs=[], factory=None, opset=20)
        return
    _, result = judged(path)
    assert result.codes and all(output.bound is None for output in result.outputs)
    for kind in result.codes:
        assert kind.steps <= _tflite_graph.RULES[kind.kind].steps <= 2
        share = OFF.get(kind.kind, 0)
        assert kind.differing <= share * kind.elements + (3 if share else 0), kind
        assert kind.relative_error <= 1e-5


def _net(tf: Any, x: Any) -> Any:
    """Convolutions with padding, a residual and a dense head."""
    x = tf.nn.relu6(tf.nn.conv2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), weight(3, 3, 3, 8), 2, "VALID"))
    y = tf.nn.relu6(tf.nn.depthwise_conv2d(x, weight(3, 3, 8, 1), [1] * 4, "SAME") + weight(8))
    x = x + tf.nn.conv2d(y, weight(1, 1, 8, 8), 1, "SAME") + weight(8)
    x = tf.nn.max_pool2d(x, 2, 2, "SAME")
    return tf.nn.softmax(tf.reshape(x, [-1, 4 * 4 * 8]) @ weight(128, 5) + weight(5))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int8f"])
def test_the_door_keeps_its_codes(kind: str, lite: Lite, tf: Any) -> None:
    """int8, uint8 and float doors; what codes stand for is in the metadata, and is the file's own."""
    path = lite(lambda x: _net(tf, x), (None, 16, 16, 3), kind=kind)
    found, _ = judged(path)
    dtype = "float32" if kind == "int8f" else kind
    assert [str(s) for s in found.model.inputs] == [f"a:{dtype}[batch,16,16,3]"]
    assert found.model.outputs[0].dtype == dtype
    told = importlib.import_module("json").loads(found.model.ir.metadata_props.get("quantization", "{}"))
    interpreter = importlib.import_module("ai_edge_litert.interpreter").Interpreter(model_path=str(path))
    own = interpreter.get_input_details()[0]["quantization"]
    if kind != "int8f":
        assert (told["a"]["scale"], told["a"]["zero_point"]) == own


def test_scales_are_the_files_own(lite: Lite, tf: Any) -> None:
    """Every scale of the file stands in the model, weights per channel; biases are s_x·s_w."""
    path = lite(lambda x: _net(tf, x), (None, 16, 16, 3), kind="int8")
    proto = judged(path)[0].model.to_proto()
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    scales = {node.input[1] for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    have = {constants[name].tobytes() for name in scales}
    net = load(path)
    read = {index for operator in net.operators for index in (*operator.inputs, *operator.outputs) if index >= 0}
    quants = [net.tensors[index].quant for index in read if net.tensors[index].dtype == "int8"]
    wanted = {quant.scale.tobytes() for quant in quants if quant is not None}
    assert len(wanted) > 6 and wanted <= have
    assert any(constants[name].size > 1 for name in scales)
    biases = [node for node in proto.graph.node if node.op_type == "DequantizeLinear"
              and constants.get(node.input[0], np.zeros(0)).dtype == np.int32]  # fmt: skip
    assert len(biases) == 4 and all(not constants[node.input[2]].any() for node in biases)


def test_convolutions_become_integer_kernels(lite: Lite, tf: Any, tmp_path: Path) -> None:
    """ONNX Runtime fuses every convolution, sum and product of matrices; none stays in float."""
    import onnxruntime as ort  # type: ignore[import-untyped]

    model = judged(lite(lambda x: _net(tf, x), (None, 16, 16, 3), kind="int8"))[0].model
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    ops = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert ops["QLinearConv"] == 3 and ops["QLinearAdd"] >= 1 and ops["QGemm"] == 1
    assert not ops["Conv"] and not ops["Gemm"] and not ops["Add"] and ops["Transpose"] == 1


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_targets_run_the_result(target: str, lite: Lite, tf: Any, tmp_path: Path) -> None:
    """Whole, with the targets' own kernels: 3 layers of one step each are at most 6 of 255 steps at the end."""
    found, _ = judged(lite(lambda x: _net(tf, x), (None, 16, 16, 3), kind="int8"))
    x = np.random.default_rng(0).integers(-128, 128, (2, 16, 16, 3), np.int8)
    got = ran_on(target, found.model, {"a": x}, tmp_path)
    for name, want in found.run({"a": x}).items():
        assert np.abs(got[name].astype(int) - want.astype(int)).max() <= 6


def test_a_wrong_scale_fails_the_gate(lite: Lite, tf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One convolution's output scale off by 3 %: the outputs would hardly tell, the piece does."""
    path = lite(lambda x: _net(tf, x), (None, 16, 16, 3), kind="int8")
    coded = _tflite_graph.Graph.coded

    def off(self: Any, value: Any, quant: Quant) -> Any:
        named = "Relu6" in self.scope or "depthwise" in self.scope.lower()
        return coded(self, value, replace(quant, scale=quant.scale * np.float32(1.03)) if named else quant)

    monkeypatch.setattr(_tflite_graph.Graph, "coded", off)
    found = tflite.convert(path, inputs=[], factory=None, opset=20)
    result = parity.check(found.model, _ort.runner(found.model.to_bytes()), found.run, feeds=found.feeds,
                          source64=None, parts=found.parts)  # fmt: skip
    assert not result.passed and any(not kind.passed for kind in result.codes)
    verb = importlib.import_module("edgerun.verbs.convert")
    with pytest.raises(GateFailed, match="steps, allowed 1.*value .* the source has"):
        verb.convert_here(str(path), str(tmp_path), "tflite", [], None, 20)


def test_the_report_tells_steps_and_shares(lite: Lite, tf: Any, tmp_path: Path) -> None:
    cli = importlib.import_module("click.testing").CliRunner()
    command = importlib.import_module("edgerun.cli").edgerun
    path = lite(lambda x: _net(tf, x), (None, 16, 16, 3), kind="int8")
    done = cli.invoke(command, ["convert", str(path), "-o", str(tmp_path / "net.onnx")])
    assert done.exit_code == 0, done.output
    assert "judged piece by piece" in done.output and "CONV_2D" in done.output
    told = parity.Parity.of(edgerun.Model.load(tmp_path / "net.onnx"))
    assert told.passed and {kind.kind for kind in told.codes} >= {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["int8", "uint8"]), st.booleans())
def test_codes_are_the_numbers_that_onnx_says(seed: int, dtype: str, channels: bool) -> None:
    """Quant.real against ONNX's reference DequantizeLinear, bit for bit."""
    rng = np.random.default_rng(seed)
    count, ends = (5 if channels else 1), np.iinfo(dtype)
    scale = np.exp(rng.uniform(-12, 3, count)).astype(np.float32)
    zero = rng.integers(ends.min, ends.max, count, dtype, endpoint=True)
    codes = rng.integers(ends.min, ends.max, (3, 5, 2), dtype, endpoint=True)
    parts = [scale, zero] if channels else [scale[0], zero[0]]
    node = onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"], axis=1)
    kinds = [onnx.helper.np_dtype_to_tensor_dtype(np.dtype(d)) for d in (dtype, "float32", dtype)]
    doors = [onnx.helper.make_tensor_value_info(n, k, None) for n, k in zip("qsz", kinds, strict=True)]
    graph = onnx.helper.make_graph([node], "g", doors, [onnx.helper.make_tensor_value_info("x", 1, None)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(model)
    (want,) = evaluator.run(None, {"q": codes, "s": np.asarray(parts[0]), "z": np.asarray(parts[1])})
    np.testing.assert_array_equal(Quant(scale, zero, 1).real(codes), want)
