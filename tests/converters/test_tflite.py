"""Float TFLite models: every family of operators, the layout, the door, float16 weights, what is refused."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("ai_edge_litert", reason="pip install 'edgerun[tflite]'")

import edgerun  # noqa: E402
from edgerun.converters import tflite  # noqa: E402
from edgerun.errors import EdgerunError, Unsupported  # noqa: E402
from edgerun.model import Model  # noqa: E402
from edgerun.parity import Parity  # noqa: E402
from tests.converters.conftest import judged, ops, packed, ran_on  # noqa: E402
from tests.converters.tflite_cases import CASES, weight  # noqa: E402

Lite = Callable[..., Path]
CPU = ["CPUExecutionProvider"]


@pytest.mark.parametrize("name", CASES)
def test_operators_compute_the_same(name: str, lite: Lite, tf: Any) -> None:
    """Within 1e-4 of the largest output on batches of 1, 3 and 2; at most one Transpose each way."""
    shape, function = CASES[name]
    found, result = judged(lite(lambda x: function(tf, x), shape))
    assert len(result.shapes) == 3 and all(o.relative_error <= 1e-4 for o in result.outputs)
    assert ops(found.model)["Transpose"] <= 2
    onnx.checker.check_model(found.model.to_proto(), full_check=True)


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize(
    "name", ["HARD_SWISH", "GELU", "GELU-tanh", "MEAN-channels", "SUM", "L2_NORMALIZATION", "SPLIT"]
)
def test_older_opsets_are_written(name: str, opset: int, lite: Lite, tf: Any) -> None:
    shape, function = CASES[name]
    found, _ = judged(lite(lambda x: function(tf, x), shape), opset)
    assert found.model.ir.opset_imports[""] == opset


def _net(tf: Any, x: Any) -> Any:
    """A small CNN: padded stem, separable block with a residual, a gate, pooling, two heads."""
    w = weight
    x = tf.nn.relu6(tf.nn.conv2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), w(3, 3, 3, 16), 2, "VALID") + w(16))
    y = tf.nn.relu6(tf.nn.depthwise_conv2d(x, w(3, 3, 16, 1), [1] * 4, "SAME") + w(16))
    x = x + tf.nn.conv2d(y, w(1, 1, 16, 16), 1, "SAME")
    gate = tf.nn.conv2d(tf.reduce_mean(x, [1, 2], keepdims=True), w(1, 1, 16, 16), 1, "SAME")
    x = tf.nn.max_pool2d(x * tf.sigmoid(gate), 2, 2, "SAME")
    x = tf.image.resize(tf.concat([x, tf.nn.relu(x)], 3), [16, 16])
    flat = tf.reshape(x, [-1, 16 * 16 * 32]) @ w(16 * 16 * 32, 5)
    return {"scores": tf.nn.softmax(flat), "mean": tf.reduce_mean(x, [1, 2])}


def test_one_transpose_behind_the_door(lite: Lite, tf: Any) -> None:
    """A whole CNN: the padding joins the convolution, no Transpose but the door's, flattening moves weights instead."""
    found, result = judged(lite(lambda x: _net(tf, x), (None, 32, 32, 3)))
    assert [str(s) for s in found.model.inputs] == ["a:float32[batch,32,32,3]"]
    assert sorted(s.name for s in found.model.outputs) == ["mean", "scores"]
    count = ops(found.model)
    assert count["Transpose"] == 1 and not count["Pad"] and count["Conv"] == 4
    assert all(o.relative_error <= 1e-5 for o in result.outputs)


def test_float16_weights_stay_float16(lite: Lite, tf: Any) -> None:
    path = lite(lambda x: _net(tf, x), (None, 32, 32, 3), kind="float16")
    found, result = judged(path)
    stored = {v.name: v.const_value for v in found.model.ir.graph.initializers.values() if v.const_value is not None}
    halves = [t for t in stored.values() if t.dtype.numpy() == np.float16]
    assert halves and all(t.dtype.numpy() != np.float32 or t.size < 256 for t in stored.values())
    assert ops(found.model)["Cast"] == len(halves) and all(o.relative_error <= 1e-5 for o in result.outputs)
    assert found.model.weight_bytes() < path.stat().st_size


def test_names_come_from_the_signature(tf: Any, saved: Callable[..., Path], tmp_path: Path) -> None:
    """With a signature its names; without one the tensors' own, which end in ":0"."""
    folder = saved(tmp_path / "net", lambda self, picture: {"answer": picture * self.w},
                   tf.TensorSpec([None, 4], tf.float32, name="picture"))  # fmt: skip
    path = tmp_path / "net.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(folder)).convert())
    model = tflite.convert(path, inputs=[], factory=None, opset=20).model
    assert [str(s) for s in (*model.inputs, *model.outputs)] == ["picture:float32[batch,4]", "answer:float32[batch,4]"]
    spec = edgerun.TensorSpec.parse("image:float32[2,4]")
    renamed = tflite.convert(path, inputs=[spec], factory=None, opset=20).model
    assert [str(s) for s in (*renamed.inputs, *renamed.outputs)] == ["image:float32[2,4]", "answer:float32[2,4]"]
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    without = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    without.signatureDefs = None
    path.write_bytes(packed(without))
    model = tflite.convert(path, inputs=[], factory=None, opset=20).model
    assert [s.name for s in (*model.inputs, *model.outputs)] == ["serving_default_picture", "StatefulPartitionedCall"]


def test_the_command_line(lite: Lite, tf: Any, tmp_path: Path) -> None:
    cli = importlib.import_module("click.testing").CliRunner()
    command = importlib.import_module("edgerun.cli").edgerun
    path = lite(lambda x: _net(tf, x), (None, 32, 32, 3))
    done = cli.invoke(command, ["convert", str(path), "-o", str(tmp_path / "net.onnx")])
    assert done.exit_code == 0, done.output
    assert "a:float32[batch,32,32,3]" in done.output and "3 draws" in done.output
    history = Model.load(tmp_path / "net.onnx").history
    assert [step.name for step in history] == ["converters/tflite"] and history[0].options["source"] == "net.tflite"


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_targets_run_the_result(target: str, lite: Lite, tf: Any, tmp_path: Path) -> None:
    found, _ = judged(lite(lambda x: _net(tf, x), (None, 32, 32, 3)))
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    got = ran_on(target, found.model, {"a": x}, tmp_path)
    for name, want in found.run({"a": x}).items():
        np.testing.assert_allclose(got[name], want, atol=1e-4 * np.abs(want).max())


def test_what_has_no_form_is_named_at_once(tf: Any, tmp_path: Path) -> None:
    """Every operator that is not covered, with its count, in one message."""
    serve = tf.function(lambda x: (tf.where(x > 0), tf.unique(x[0, 0])[0], tf.math.atan2(x, x)),
                        input_signature=[tf.TensorSpec([2, 8, 8], tf.float32)], autograph=False)  # fmt: skip
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], tf.Module())
    path = tmp_path / "net.tflite"
    path.write_bytes(converter.convert())
    with pytest.raises(Unsupported) as refused:
        edgerun.convert(path, output=tmp_path / "out.onnx")
    assert all(f"{kind} (1)" in str(refused.value) for kind in ("WHERE", "UNIQUE", "ATAN2"))
    assert refused.value.exit_code == 3 and not (tmp_path / "out.onnx").exists()


def test_states_are_refused_by_name(tf: Any, tmp_path: Path) -> None:
    class Total(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            self.total = tf.Variable(tf.zeros([4]))

        def serve(self, x: Any) -> Any:
            self.total.assign_add(x[0])
            return self.total[None] + x

    net = Total()
    serve = tf.function(net.serve, input_signature=[tf.TensorSpec([1, 4], tf.float32)], autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], net)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.experimental_enable_resource_variables = True
    path = tmp_path / "net.tflite"
    path.write_bytes(converter.convert())
    with pytest.raises(Unsupported) as refused:
        tflite.convert(path, inputs=[], factory=None, opset=20)
    text = str(refused.value)
    for part in ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "a state that lives from run to run"):
        assert part in text


def test_a_signature_is_chosen_by_name(tf: Any, tmp_path: Path) -> None:
    """Two functions in one file: each is a subgraph of its own, and computes what TFLite's runner of that name does."""

    class Net(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            self.w = tf.Variable(weight(4, 4))

        def encode(self, x: Any) -> Any:
            return {"code": tf.nn.relu(x @ self.w)}

        def decode(self, code: Any) -> Any:
            return {"x": tf.nn.tanh(code) - 1.0}

    net, signatures = Net(), dict[str, Any]()
    for name, door in (("encode", "x"), ("decode", "code")):
        wanted = [tf.TensorSpec([None, 4], tf.float32, name=door)]
        signatures[name] = tf.function(getattr(net, name), input_signature=wanted, autograph=False)
    tf.saved_model.save(net, str(tmp_path / "saved"), signatures=signatures)
    path = tmp_path / "two.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved")).convert())
    with pytest.raises(Unsupported, match="several signatures(.|\n)*decode, encode(.|\n)*--signature"):
        edgerun.convert(path)
    x = np.array([[0.5, -1.0, 2.0, 0.0]], np.float32)
    for name, want in (("encode", np.maximum(x @ weight(4, 4), 0)), ("decode", np.tanh(x) - 1)):
        model = edgerun.convert(path, signature=name, output=tmp_path / f"{name}.onnx")
        with edgerun.load(tmp_path / f"{name}.onnx") as session:
            (found,) = session.run({model.inputs[0].name: x}).values()
        assert found == pytest.approx(want, abs=1e-6)
    with pytest.raises(EdgerunError, match="unknown signature 'encoder'"):
        edgerun.convert(path, signature="encoder")


def test_only_what_has_signatures_takes_one() -> None:
    with pytest.raises(EdgerunError, match="no signatures to choose from"):
        edgerun.convert(object(), converter="tflite", signature="x")


def test_custom_operators_are_refused_by_name(lite: Lite, tf: Any) -> None:
    path = lite(lambda x: tf.nn.relu(x), (None, 4))
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = b"TFLite_PoolingWithArgmax"
    path.write_bytes(packed(model))
    with pytest.raises(Unsupported, match=r"CUSTOM:TFLite_PoolingWithArgmax \(1\): a custom operator"):
        tflite.convert(path, inputs=[], factory=None, opset=20)


def _classifier(tf: Any, x: Any) -> Any:
    y = tf.nn.relu(tf.nn.conv2d(x, weight(3, 3, 8, 32), 1, "SAME") + weight(32))
    y = tf.nn.depthwise_conv2d(y, weight(3, 3, 32, 1), [1] * 4, "SAME")
    return tf.reduce_mean(y, [1, 2]) @ weight(32, 64)


@pytest.mark.parametrize("name", ["dense", "convolutions"])
def test_weights_in_codes_stay_so_beside_values_in_float(name: str, lite: Lite, tf: Any, tmp_path: Path) -> None:
    """Dynamic range quantization: int8 weights, float products. Exact to TFLite's float kernels on those weights to
    1e-5; its hybrid kernels round values to 8 bits as they come, and lie within 3 % (rms)."""
    dense = name == "dense"
    shape = (None, 64) if dense else (None, 12, 12, 8)
    path = lite(lambda x: x @ weight(64, 64) if dense else _classifier(tf, x), shape, kind="dynamic")
    model = edgerun.convert(path, output=tmp_path / "net.onnx")
    told = model.history[-1].options["dynamic_range"]
    assert 0 < told["hybrid_kernels_differ"] <= 0.03
    assert all(o.relative_error <= 1e-5 for o in Parity.of(model).outputs)
    held = [onnx.numpy_helper.to_array(tensor) for tensor in model.to_proto().graph.initializer]
    codes = [array for array in held if array.dtype == np.int8 and array.ndim > 1]
    assert codes and len(codes) == ops(model)["DequantizeLinear"]
    assert (tmp_path / "net.onnx").stat().st_size < 1.6 * path.stat().st_size + 2000


def test_the_table_of_operators_is_current() -> None:
    make = importlib.import_module("importlib.util")
    folder = Path(__file__).parents[2] / "docs"
    spec = make.spec_from_file_location("make_tflite", folder / "make_tflite.py")
    page = make.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert (folder / "tflite.md").read_text() == page.page(), "run: make docs"
