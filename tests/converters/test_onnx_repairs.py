"""ONNX files that ONNX Runtime runs and onnx.checker refuses: repaired, with the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx  # noqa: E402
import onnxruntime as ort  # type: ignore[import-untyped]  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgerun import external  # noqa: E402
from edgerun.converters import _repairs  # noqa: E402
from edgerun.converters import onnx as reader  # noqa: E402
from edgerun.errors import EdgerunError  # noqa: E402
from edgerun.model import Model  # noqa: E402
from edgerun.runtime import TensorSpec  # noqa: E402
from edgerun.verbs.convert import convert  # noqa: E402

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((3, 4)).astype(np.float32)
value = helper.make_tensor_value_info


def _model(text: str, opset: int = 17) -> onnx.ModelProto:
    header = f'<ir_version: 8, opset_import: ["": {opset}]> agraph '
    model = onnx.parser.parse_model(header + text)
    model.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    return model


def _saved(model: onnx.ModelProto, folder: Path) -> Path:
    """Written as it is: onnx.save would not mind, but this says so."""
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def _refused(path: Path, why: str) -> None:
    with pytest.raises(Exception, match=why):
        onnx.checker.check_model(str(path), full_check=True)


def _same(path: Path, found: Model, x: np.ndarray, **more: np.ndarray) -> None:
    """ONNX Runtime gives the same bits for both, under the same names, and the checker takes what was made."""
    onnx.checker.check_model(found.to_proto(), full_check=True)
    source = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    made = ort.InferenceSession(found.to_bytes(), providers=["CPUExecutionProvider"])
    names = [output.name for output in source.get_outputs()]
    assert [output.name for output in made.get_outputs()] == names
    feeds = {"x": x, **more}
    for want, got in zip(source.run(names, feeds), made.run(names, feeds), strict=True):
        np.testing.assert_array_equal(got, want)


def _x(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def _whole(*shape: int) -> np.ndarray:
    return RNG.integers(-3, 4, shape).astype(np.float32)


@pytest.mark.parametrize("typed", [True, False])
def test_outputs_without_a_shape(tmp_path: Path, typed: bool) -> None:
    model = _model("(float[n, 3] x) => (float[n, 4] y, float[n, 4] z) { y = MatMul (x, w)  z = Relu (y) }")
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape") if typed else output.ClearField("type")
    path = _saved(model, tmp_path)
    _refused(path, "required but missing")
    found = convert(path)
    assert [output.shape[1:] for output in found.outputs] == [(4,), (4,)]
    assert [output.dtype for output in found.outputs] == ["float32", "float32"]
    _same(path, found, _x(5, 3))


def test_an_output_of_an_operator_that_only_the_runtime_knows(tmp_path: Path) -> None:
    model = _model("(float[n, 3] x) => (float[n, 4] y) { y = com.microsoft.FusedMatMul (x, w) }")
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    path = _saved(model, tmp_path)
    found = convert(path)
    assert len(found.outputs[0].shape) == 2 and found.outputs[0].shape[1] == 4
    _same(path, found, _x(5, 3))


def test_an_output_whose_shape_nobody_knows(tmp_path: Path) -> None:
    model = _model("(float[n, 3] x, int64[k] s) => (float[n, 3] y) { y = Reshape (x, s) }")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    path = _saved(model, tmp_path)
    with pytest.raises(EdgerunError, match="(?s)output 'y' has no shape"):
        convert(path)
    found = convert(path, inputs=["s:int64[2]"], data={"x": _x(4, 3), "s": np.array([3, 4])})
    _same(path, found, _x(4, 3), s=np.array([2, 6]))


def test_fixed_sizes_help_inference(tmp_path: Path) -> None:
    """How many dimensions come out follows from the size of an input."""
    body = "i = Shape (s)  o = ConstantOfShape <value = int64[1] {1}> (i)  y = Expand (x, o)"
    model = _model(f"(float[n, 3] x, float[k] s) => (float[n, 3] y) {{ {body} }}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    path = _saved(model, tmp_path)
    with pytest.raises(EdgerunError, match="--input with fixed sizes"):
        convert(path)
    found = convert(path, inputs=["x:float32[2,3]", "s:float32[4]"])
    assert len(found.outputs[0].shape) == 4 and found.outputs[0].shape[2:] == (2, 3)
    _same(path, found, _x(2, 3), s=_x(4))


def test_an_input_without_a_shape(tmp_path: Path) -> None:
    model = _model("(float[n, 3] x, float[4] bias) => (float[n, 4] y) { p = MatMul (x, w)  y = Add (p, bias) }")
    for door in (model.graph.input[0], model.graph.output[0]):
        door.type.tensor_type.ClearField("shape")
    path = _saved(model, tmp_path)
    with pytest.raises(EdgerunError, match=r"(?s)input 'x' .*--input 'x:float32\[…\]'"):
        convert(path)
    found = convert(path, inputs=["x:float32[n,3]"])
    assert [str(spec) for spec in found.inputs] == ["x:float32[n,3]", "bias:float32[4]"]
    assert [str(spec) for spec in found.outputs] == ["y:float32[n,4]"]
    _same(path, found, _x(5, 3), bias=_x(4))
    with pytest.raises(EdgerunError, match="(?s)'x' has another dtype.*float32"):
        convert(path, inputs=["x:uint8[n,3]"])


def test_sizes_of_minus_one_that_inference_cannot_merge(tmp_path: Path) -> None:
    pool = "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)"
    model = _model(f"(float[n, 3, h, k] x) => (float[n, 3, i, j] y) {{ {pool}  y = Relu (p) }}")
    for door in (model.graph.input[0], model.graph.output[0]):
        for axis in (0, 2, 3):
            door.type.tensor_type.shape.dim[axis].dim_value = -1
    model.graph.value_info.append(value("p", TensorProto.FLOAT, [-1, 3, -1, -1]))
    path = _saved(model, tmp_path)
    _refused(path, r"differ in dimension 2: \(0\) vs \(-1\)")
    found = convert(path)
    for spec in (*found.inputs, *found.outputs):
        assert [size for size in spec.shape if isinstance(size, int)] == [3]
    _same(path, found, _x(2, 3, 8, 6))


def test_nodes_out_of_order(tmp_path: Path) -> None:
    text = """(float[n, 3] x, bool c) => (float[n, 4] y) {
        y = If (c) <then_branch = then () => (float[n, 4] t) { t = Neg (p) },
                    else_branch = other () => (float[n, 4] e) { e = Exp (p) }>
        p = MatMul (q, w)
        q = Abs (x)
    }"""
    path = _saved(_model(text), tmp_path)
    _refused(path, "topologically sorted")
    found = convert(path)
    for chosen in (True, False):
        _same(path, found, _x(5, 3), c=np.array(chosen))


def test_sorting_is_stable() -> None:
    body = "y = Neg (d)  a = Abs (x)  d = Exp (b)  b = Relu (x)  z = Sin (x)"
    model = _model(f"(float[n, 3] x) => (float[n, 3] a, float[n, 3] y) {{ {body} }}")
    _repairs.order(model.graph.node)
    assert [node.op_type for node in model.graph.node] == ["Abs", "Relu", "Exp", "Neg", "Sin"]
    before = model.SerializeToString()
    _repairs.order(model.graph.node)
    assert model.SerializeToString() == before


def test_nodes_that_wait_for_each_other(tmp_path: Path) -> None:
    path = _saved(_model("(float[n] x) => (float[n] y) { y = Add (x, a)  a = Neg (y) }"), tmp_path)
    with pytest.raises(EdgerunError, match="(?s)onnx.checker refuses.*topologically sorted"):
        convert(path)


@pytest.mark.parametrize("opset", [11, 17])
def test_an_input_that_is_an_output(tmp_path: Path, opset: int) -> None:
    text = "(float[n, 3] x) => (float[n, 3] x, float[n, 4] y, float[n, 3] z) { y = MatMul (x, w)  z = Identity (x) }"
    path = _saved(_model(text, opset), tmp_path)
    found = convert(path)
    assert [spec.name for spec in found.inputs] == ["x"]
    assert [spec.name for spec in found.outputs] == ["x", "y", "z"]
    _same(path, found, _x(5, 3))


def test_only_the_input_comes_out(tmp_path: Path) -> None:
    path = _saved(_model("(float[n, 3] x) => (float[n, 3] x) { y = Relu (x) }"), tmp_path)
    _same(path, convert(path), _x(2, 3))


def test_all_of_it_and_weights_in_a_file_too_large_for_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is lowered: 1 MB stands for 1.8 GB. Weights and feeds are whole numbers, so that sums are exact."""
    model = _model("(float[n, 3] x) => (float[n, 1000] y) { y = MatMul (p, v)  p = MatMul (x, u) }")
    for name, shape in (("u", (3, 1000)), ("v", (1000, 1000))):
        model.graph.initializer.append(numpy_helper.from_array(_whole(*shape), name))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="m.data", size_threshold=1024)
    monkeypatch.setattr(external, "ABOVE", 1_000_000)
    found = reader.convert(path, inputs=[], factory=None, opset=17)
    assert external.beside(external.read(path)) == 4_012_000
    x = _whole(5, 3)
    (want,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_array_equal(found.run({"x": x})["y"], want)
    assert [node.op_type for node in found.model.to_proto().graph.node] == ["MatMul", "MatMul"]


def test_a_file_without_fault_is_checked_once_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _saved(_model("(float[n, 3] x) => (float[n, 4] y) { y = MatMul (x, w) }"), tmp_path)
    seen: list[object] = []
    check = onnx.checker.check_model

    def watched(model: str, full_check: bool = False) -> None:
        seen.append(model)
        check(model, full_check=full_check)

    monkeypatch.setattr(onnx.checker, "check_model", watched)
    reader.convert(path, inputs=[TensorSpec.parse("x:float32[n,3]")], factory=None, opset=17)
    assert seen == [str(path)]
