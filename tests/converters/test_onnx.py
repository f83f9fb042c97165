"""ONNX in: checked, normalized, in the opset that was asked for, with the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgerun import input_ranges, registry  # noqa: E402
from edgerun.errors import EdgerunError, Unsupported  # noqa: E402
from edgerun.passes import Conversion  # noqa: E402
from edgerun.runtime import TensorSpec  # noqa: E402
from edgerun.verbs.convert import Parity, convert  # noqa: E402

RNG = np.random.default_rng(0)


def _untidy(opset: int = 11) -> onnx.ModelProto:
    """Constants, an Identity, a dead branch, an unused weight, a weight among the inputs, twice-named nodes."""
    weight = numpy_helper.from_array(RNG.standard_normal((4, 3, 3, 3)).astype(np.float32), "w")
    unused = numpy_helper.from_array(np.zeros(5, np.float32), "unused")
    nodes = [
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.array([2.0], np.float32))),
        helper.make_node("Conv", ["x", "w"], ["conv"], "same"),
        helper.make_node("Identity", ["conv"], ["passed"], "same"),
        helper.make_node("Relu", ["passed"], ["relu"]),
        helper.make_node("Mul", ["relu", "two"], ["y"]),
        helper.make_node("Sigmoid", ["relu"], ["dead"]),
    ]
    graph = helper.make_graph(
        nodes,
        "untidy",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", 16]),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, 3, 3]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, "h2", 14])],
        [weight, unused],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)


def _convert(path: Path, *inputs: str, opset: int = 21) -> Conversion:
    specs = [TensorSpec.parse(text) for text in inputs]
    return registry.converter("onnx").convert(path, inputs=specs, factory=None, opset=opset)


@pytest.fixture
def untidy(tmp_path: Path) -> Path:
    onnx.save(_untidy(), tmp_path / "untidy.onnx")
    return tmp_path / "untidy.onnx"


def test_normalized_in_the_limited_child(untidy: Path) -> None:
    model = convert(untidy, opset=17)
    proto = model.to_proto()
    assert [(n.name, n.op_type) for n in proto.graph.node] == [("same", "Conv"), ("Relu", "Relu"), ("Mul", "Mul")]
    assert sorted(t.name for t in proto.graph.initializer) == ["two", "w"]
    assert [i.name for i in proto.graph.input] == ["x"]
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 17)]
    assert proto.ir_version == 8
    assert str(model.inputs[0]) == "x:float32[n,3,h,16]"
    parity = Parity.of(model)
    assert parity.outputs[0].max_abs_error <= 1e-6
    assert len(set(parity.shapes)) == 3
    onnx.checker.check_model(proto, full_check=True)


def test_the_reference_evaluator_agrees(untidy: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    feeds = {"x": RNG.standard_normal((2, 3, 20, 16)).astype(np.float32)}
    (want,) = ReferenceEvaluator(onnx.load(untidy)).run(None, feeds)
    (got,) = ReferenceEvaluator(_convert(untidy).model.to_proto()).run(None, feeds)
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=1e-5)


@pytest.mark.parametrize(
    ("have", "limit", "written"), [(11, 21, 21), (13, 21, 13), (17, 21, 17), (22, 21, 21), (22, 26, 22)]
)
def test_opset_stays_where_it_can(tmp_path: Path, have: int, limit: int, written: int) -> None:
    onnx.save(_untidy(have), tmp_path / "m.onnx")
    assert _convert(tmp_path / "m.onnx", opset=limit).model.ir.opset_imports[""] == written


def test_opset_that_cannot_be_reached(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gelu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [2])],
        [helper.make_tensor_value_info("y", 1, [2])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "m.onnx")
    with pytest.raises(Unsupported, match="(?s)cannot be brought.*opset 20.*opset 13"):
        _convert(tmp_path / "m.onnx", opset=13)


def test_inputs_fix_and_name_dimensions(untidy: Path) -> None:
    model = _convert(untidy, "x:float32[1,3,height,16]").model
    assert model.inputs[0].shape == (1, 3, "height", 16)
    assert model.outputs[0].shape[0] in (1, "n")
    for wrong, message in (
        ("image:float32[1,3,32,16]", "no input 'image'"),
        ("x:uint8[1,3,32,16]", "another dtype"),
        ("x:float32[1,4,32,16]", "another shape"),
        ("x:float32[1,3,32]", "another shape"),
    ):
        with pytest.raises(EdgerunError, match=message):
            _convert(untidy, wrong)


def test_external_data(tmp_path: Path) -> None:
    onnx.save_model(_untidy(17), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    model = convert(tmp_path / "m.onnx")
    assert model.ir.graph.initializers["w"].const_value is not None
    assert len(model.to_bytes()) > 4 * 3 * 3 * 3 * 4, "the weights came along"


def test_functions_are_inlined_and_branches_survive(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["": 17, "own": 1]>
    agraph (float[n] x, bool c) => (float[n] y) {
        d = own.double (x)
        y = If (c) <then_branch = then () => (float[n] t) { t = Identity (d) },
                    else_branch = other () => (float[n] e) { k = Constant <value = float[1] {3.0}> ()  e = Add (d, k) }>
    }
    <domain: "own", opset_import: ["": 17]>
    double (a) => (b) { b = Add (a, a) }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    found = convert(tmp_path / "m.onnx")
    assert not found.ir.functions
    assert {node.op_type for node in found.ir.graph.all_nodes()} == {"Add", "If", "Identity"}


def test_integer_inputs_reach_every_row_of_a_table(tmp_path: Path) -> None:
    table = numpy_helper.from_array(RNG.standard_normal((30, 4)).astype(np.float32), "table")
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("ReduceMax", ["rows"], ["y"], axes=[1], keepdims=0),
        ],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [table],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "m.onnx")
    from edgerun import draws

    model = _convert(tmp_path / "m.onnx").model
    bounds = input_ranges.ranges(model.ir)
    assert bounds == {"ids": draws.Range(0, 30)}
    ids = draws.feeds(model.inputs, {"batch": 3, "length": 200}, 0, bounds)["ids"]
    assert ids.min() == 0 and ids.max() == 29


def test_what_the_checker_refuses(tmp_path: Path) -> None:
    model = _untidy(17)
    model.graph.node[3].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(EdgerunError, match="(?s)onnx.checker refuses.*NoSuchOperator"):
        _convert(tmp_path / "m.onnx")
    model = _untidy(17)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(EdgerunError, match="refuses"):
        _convert(tmp_path / "m.onnx")


def test_no_tensor_at_the_door(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("SequenceAt", ["s", "i"], ["y"])],
        "g",
        [
            helper.make_tensor_sequence_value_info("s", 1, [2]),
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info("y", 1, [2])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(Unsupported, match="'s' is no tensor"):
        _convert(tmp_path / "m.onnx")


def test_open_sizes_that_are_numbers_or_question_marks(tmp_path: Path) -> None:
    """Paddle's exporter writes -1, others ?: such an axis is open, and two of them are two."""
    value = helper.make_tensor_value_info
    dims: list[str | int | None] = [-1, 3, "?", "?"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value("x", TensorProto.FLOAT, dims)],
                              [value("y", TensorProto.FLOAT, dims)])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "paddle.onnx").write_bytes(model.SerializeToString())
    found = convert(tmp_path / "paddle.onnx")
    assert len({dim for dim in found.inputs[0].shape if isinstance(dim, str)}) == 3
    assert Parity.of(found).passed
