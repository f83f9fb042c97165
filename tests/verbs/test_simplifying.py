"""A foreign ONNX graph comes out with fewer nodes and the same numbers, or as it came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
import onnx  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgerun.errors import EdgerunError  # noqa: E402
from edgerun.quantize import fold  # noqa: E402
from edgerun.verbs.compress import compress  # noqa: E402
from edgerun.verbs.convert import Parity, convert  # noqa: E402

RNG = np.random.default_rng(0)
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def _model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], x: Sequence[Any], y: Sequence[Any],
           opset: int = 17) -> onnx.ModelProto:  # fmt: skip
    inputs, outputs = (helper.make_tensor_value_info(n, FLOAT, s) for n, s in (("x", x), ("y", y)))
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "net", [inputs], [outputs], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def _net(last: str = "Relu", gain: float = 1.0) -> onnx.ModelProto:
    """Conv, BatchNormalization, a bias by a reshaped constant, and two Reshapes whose sizes are computed."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["conv"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["conv", "scale", "shift", "mean", "variance"], ["normal"]),
        node("Reshape", ["row", "column"], ["bias"]),
        node("Add", ["normal", "bias"], ["sum"]),
        node("Relu", ["sum"], ["relu"]),
        node("Shape", ["relu"], ["sizes"]),
        node("Slice", ["sizes", "zero", "one"], ["batch"]),
        node("Concat", ["batch", "rest"], ["flat_sizes"], axis=0),
        node("Reshape", ["relu", "flat_sizes"], ["flat"]),
        node("Unsqueeze", ["flat", "one"], ["wide"]),
        node("Unsqueeze", ["wide", "one"], ["wider"]),
        node(last, ["wider"], ["y"]),
    ]
    weights = {
        "w": _floats(4, 3, 3, 3) * gain, "scale": _floats(4), "shift": _floats(4), "mean": _floats(4),
        "variance": np.abs(_floats(4)) + 0.5, "row": _floats(4), "column": np.array([1, 4, 1, 1]),
        "zero": np.array([0]), "one": np.array([1]), "rest": np.array([-1]),
    }  # fmt: skip
    return _model(nodes, weights, ["batch", 3, 8, 8], ["batch", 1, 1, 256])


def _saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


def _ops(path: Path) -> Counter[str]:
    def nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
        return [*graph.node, *(node for one in inner for node in nodes(one))]

    return Counter(node.op_type for node in nodes(onnx.load(path).graph))


def _run(path: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


def test_maps_go_into_layers_and_what_is_constant_is_computed(tmp_path: Path) -> None:
    source = _saved(_net(), tmp_path)
    model = convert(source, output=tmp_path / "out.onnx")
    assert set(_ops(tmp_path / "out.onnx")) <= {"Conv", "Relu", "Reshape", "Unsqueeze", "Shape", "Slice", "Concat"}
    assert _ops(tmp_path / "out.onnx")["Unsqueeze"] == 1
    told = model.history[-1].options["nodes"]
    assert told["before"] == 12 and told["after"] == _ops(tmp_path / "out.onnx").total() <= 8
    x = _floats(3, 3, 8, 8)
    np.testing.assert_allclose(_run(tmp_path / "out.onnx", x), _run(source, x), rtol=0, atol=1e-5)
    assert Parity.of(model).passed and Parity.of(model).outputs[0].relative_error < 1e-5


def test_as_is_leaves_the_graph(tmp_path: Path) -> None:
    source = _saved(_net(), tmp_path)
    model = convert(source, output=tmp_path / "out.onnx", as_is=True)
    assert _ops(tmp_path / "out.onnx") == _ops(source)
    assert "nodes" not in model.history[-1].options
    assert Parity.of(model).outputs[0].relative_error == 0


def test_as_is_is_for_onnx_files(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(EdgerunError, match="only an ONNX file's graph"):
        convert(torch.nn.Linear(3, 2), inputs=["x:float32[batch,3]"], as_is=True)


def test_saturated_outputs_are_proven_by_what_stands_before(tmp_path: Path) -> None:
    """y = sigmoid(d − 14), where d is what two orders of the same large sums differ by: some 1e-4, of 14 and of y."""
    node, gain, own = helper.make_node, np.array([0.7, 1.3, 0.9, 1.1], np.float32), np.random.default_rng(7)
    weights = {
        "w": own.standard_normal((4, 3, 3, 3)).astype(np.float32) * 200, "g": gain, "far": np.array(14, np.float32),
        "t": own.random(4, np.float32), "m": own.random(4, np.float32), "v": np.ones(4, np.float32),
    }  # fmt: skip
    weights["w2"] = weights["w"] * gain.reshape(4, 1, 1, 1)
    weights["b2"] = weights["t"] - weights["m"] * gain
    nodes = [
        node("Conv", ["x", "w"], ["conv"]),
        node("BatchNormalization", ["conv", "g", "t", "m", "v"], ["normal"], epsilon=0.0),
        node("Conv", ["x", "w2", "b2"], ["other"]),
        node("Sub", ["normal", "other"], ["difference"]),
        node("Sub", ["difference", "far"], ["low"]),
        node("Sigmoid", ["low"], ["y"]),
    ]
    source = _saved(_model(nodes, weights, ["batch", 3, 8, 8], ["batch", 4, 6, 6]), tmp_path)
    made = convert(source, output=tmp_path / "out.onnx")
    options = made.history[-1].options
    assert options["compared before"] == {"y": "Sigmoid"}
    assert _ops(tmp_path / "out.onnx")["BatchNormalization"] == 0
    assert Parity.of(made).passed and 1e-6 < Parity.of(made).outputs[0].relative_error < 1e-4


def test_the_command_says_so(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from edgerun.cli import edgerun

    source = _saved(_net(), tmp_path)
    told = CliRunner().invoke(edgerun, ["convert", str(source), "-o", str(tmp_path / "out.onnx")])
    assert told.exit_code == 0 and "nodes of 12" in told.output
    told = CliRunner().invoke(
        edgerun, ["convert", str(source), "-o", str(tmp_path / "as_is.onnx"), "--as-is", "--json"]
    )
    assert told.exit_code == 0 and '"nodes"' not in told.output
    assert _ops(tmp_path / "as_is.onnx") == _ops(source)


def test_a_simplified_graph_that_is_wrong_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgerun.verbs import convert as verb

    honest = fold.maps

    def wrong(model: object) -> None:
        honest(model)  # type: ignore[arg-type]
        for name, value in model.graph.initializers.items():  # type: ignore[attr-defined]
            if value.const_value.numpy().ndim == 4:
                model.graph.initializers[name].const_value = onnx_ir.tensor(value.const_value.numpy() * 1.01, name=name)  # type: ignore[attr-defined]

    onnx_ir = pytest.importorskip("onnx_ir")
    monkeypatch.setattr(fold, "maps", wrong)
    source = _saved(_net(), tmp_path)
    (tmp_path / "made").mkdir()
    verb.convert_here(str(source), str(tmp_path / "made"), "onnx", [], None, 21)
    assert _ops(tmp_path / "made" / "model.onnx") == _ops(source)


def test_quantized_models_stay_as_they_are(tmp_path: Path) -> None:
    model = _net()
    scale, zero = np.array(0.05, np.float32), np.array(128, np.uint8)
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
             helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]), *model.graph.node]  # fmt: skip
    nodes[2].input[0] = "d"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([numpy_helper.from_array(scale, "s"), numpy_helper.from_array(zero, "z")])
    source = _saved(model, tmp_path)
    convert(source, output=tmp_path / "out.onnx")
    assert _ops(tmp_path / "out.onnx") == _ops(source)


def test_sizes_that_a_file_declares_are_no_proof(tmp_path: Path) -> None:
    """value_info says that the Relu's batch is 1: a Reshape made constant by that would join samples."""
    model = _net()
    model.graph.value_info.append(helper.make_tensor_value_info("relu", FLOAT, [1, 4, 8, 8]))
    source = _saved(model, tmp_path)
    convert(source, output=tmp_path / "out.onnx")
    x = _floats(2, 3, 8, 8)
    assert _run(tmp_path / "out.onnx", x).shape == (2, 1, 1, 256)


def _branches() -> onnx.ModelProto:
    """An If that a constant decides, whose branch hands on a value from around it, and one that the input decides."""
    node = helper.make_node

    def body(name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, None)
        return helper.make_graph(nodes, name, [], [output])

    certain: dict[str, Any] = {"then_branch": body("a", [node("Identity", ["x"], ["kept"])]),
               "else_branch": body("b", [node("Neg", ["x"], ["turned"])])}  # fmt: skip
    open_: dict[str, Any] = {
        "then_branch": body("c", [node("Mul", ["half", "half"], ["quarter"]), node("Add", ["h", "quarter"], ["then"])]),
        "else_branch": body("d", [node("Identity", ["h"], ["else"])]),
    }
    nodes = [
        node("Cast", ["one"], ["sure"], to=TensorProto.BOOL), node("If", ["sure"], ["same"], **certain),
        node("MatMul", ["same", "w"], ["h"]), node("ReduceMax", ["x"], ["top"], keepdims=0),
        node("Greater", ["top", "half"], ["large"]), node("If", ["large"], ["y"], **open_),
    ]  # fmt: skip
    weights = {"one": np.array(1), "w": _floats(16, 4), "half": np.array(0.5, np.float32)}
    return _model(nodes, weights, ["batch", 16], ["batch", 4])


def test_a_branch_that_is_always_taken_takes_its_place(tmp_path: Path) -> None:
    source = _saved(_branches(), tmp_path)
    convert(source, output=tmp_path / "out.onnx")
    assert _ops(tmp_path / "out.onnx")["If"] == 1 and "Mul" not in _ops(tmp_path / "out.onnx")
    for x in (np.full((2, 16), 0.1, np.float32), np.full((2, 16), 0.9, np.float32)):  # both sides of the other
        np.testing.assert_allclose(_run(tmp_path / "out.onnx", x), _run(source, x), rtol=1e-6)


def test_a_weight_that_one_branch_reads_goes_into_it(tmp_path: Path) -> None:
    model = _branches()
    model.graph.initializer.append(numpy_helper.from_array(_floats(4, 4), "own"))
    branch = model.graph.node[-1].attribute[0].g
    branch.node.insert(0, helper.make_node("MatMul", ["h", "own"], ["turned"]))
    branch.node[-1].input[0] = "turned"
    source = _saved(model, tmp_path)
    convert(source, output=tmp_path / "out.onnx")
    graph = onnx.load(tmp_path / "out.onnx").graph
    inner = [tensor.name for a in graph.node[-1].attribute for tensor in a.g.initializer]
    assert "own" in inner and "own" not in {tensor.name for tensor in graph.initializer}
    for x in (np.full((2, 16), 0.1, np.float32), np.full((2, 16), 0.9, np.float32)):
        np.testing.assert_allclose(_run(tmp_path / "out.onnx", x), _run(source, x), rtol=1e-5)


def test_what_a_folded_constant_was_made_of_does_not_stay(tmp_path: Path) -> None:
    """In the branch that an input decides, a weight is turned before it is read: only the turned one is kept."""
    model = _branches()
    model.graph.initializer.append(numpy_helper.from_array(_floats(64, 4, 4), "tall"))
    branch = model.graph.node[-1].attribute[0].g
    branch.node.insert(0, helper.make_node("ReduceSum", ["tall", "axes"], ["own"], keepdims=0))
    branch.node.insert(1, helper.make_node("MatMul", ["h", "own"], ["turned"]))
    branch.node[-1].input[0] = "turned"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
    source = _saved(model, tmp_path)
    convert(source, output=tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size < source.stat().st_size - 64 * 4 * 4 * 4 / 2


def test_compress_takes_a_model_with_branches(tmp_path: Path) -> None:
    made = compress(_saved(_branches(), tmp_path), target="onnxruntime", scheme="w8a8_dynamic")
    x = _floats(2, 16)
    made.save(tmp_path / "made.onnx")
    wanted = _run(tmp_path / "net.onnx", x)
    error = np.abs(_run(tmp_path / "made.onnx", x) - wanted).max() / np.abs(wanted).max()
    assert error < 0.03  # 8-bit weights and inputs of 16 products


def test_a_large_tensor_of_one_number_stays_a_node(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [node("ConstantOfShape", ["sizes"], ["zeros"]), node("ConstantOfShape", ["few"], ["small"]),
             node("Add", ["x", "zeros"], ["sum"]), node("Add", ["sum", "small"], ["y"])]  # fmt: skip
    model = _model(
        nodes, {"sizes": np.array([512, 512]), "few": np.array([512])}, ["batch", 512, 512], ["batch", 512, 512]
    )
    convert(_saved(model, tmp_path), output=tmp_path / "out.onnx")
    assert _ops(tmp_path / "out.onnx")["ConstantOfShape"] == 1
    assert (tmp_path / "out.onnx").stat().st_size < 50_000


def test_older_softmax_along_the_last_axis_is_one_node(tmp_path: Path) -> None:
    model = _model([helper.make_node("Softmax", ["x"], ["y"], axis=2)], {}, ["batch", 5, 7], ["batch", 5, 7], opset=11)
    source = _saved(model, tmp_path)
    convert(source, output=tmp_path / "out.onnx")
    assert _ops(tmp_path / "out.onnx") == {"Softmax": 1}
    x = _floats(2, 5, 7)
    np.testing.assert_allclose(_run(tmp_path / "out.onnx", x), _run(source, x), rtol=1e-6)


@settings(deadline=None, max_examples=25)
@given(steps=st.lists(st.sampled_from(["Mul", "Add", "Sub", "Div", "Relu", "BatchNormalization", "Conv"]), max_size=7))
def test_any_chain_of_maps_and_layers_computes_the_same(
    steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from edgerun.model import Model
    from edgerun.verbs.simplifying import simplified

    folder, value, nodes, weights = tmp_path_factory.mktemp("chain"), "x", [], {}
    for i, op in enumerate([*steps, "Conv"]):
        out, names = f"v{i}", [f"v{i}_{k}" for k in range(4)]
        if op == "Conv":
            inputs, weights[names[0]] = [value, names[0]], _floats(3, 3, 3, 3)
        elif op == "BatchNormalization":
            inputs = [value, *names]
            weights |= {name: np.abs(_floats(3)) + 0.5 for name in names}
        else:
            inputs = [value] if op == "Relu" else [value, names[0]]
            weights |= {} if op == "Relu" else {names[0]: np.abs(_floats(3, 1, 1)) + 0.5}
        nodes.append(helper.make_node(op, inputs, [out]))
        if op == "Conv" and i % 2:
            nodes[-1].attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
        value = out
    nodes[-1].output[0] = "y"
    source = _saved(_model(nodes, weights, [1, 3, 20, 20], [None] * 4), folder)
    made = simplified(Model.load(source))
    made.save(folder / "out.onnx")
    assert len(made.ir.graph) <= len(nodes)
    x = _floats(1, 3, 20, 20)
    wanted = _run(source, x)
    np.testing.assert_allclose(_run(folder / "out.onnx", x), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
