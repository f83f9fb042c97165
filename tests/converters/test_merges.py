"""Fewer nodes, the same values: each rule on a graph of its own, judged by ONNX's reference evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from edgerun.converters._merges import merged  # noqa: E402

RNG = np.random.default_rng(1)
Nodes = Sequence[tuple[str, Sequence[str], str, Mapping[str, Any]]]


def _model(nodes: Nodes, shape: Sequence[int | str], constants: Mapping[str, Any], kind: int = 1) -> onnx.ModelProto:
    made = [helper.make_node(op, inputs, [output], output, **options) for op, inputs, output, options in nodes]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    door = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    graph = helper.make_graph(made, "g", [door], [helper.make_tensor_value_info("y", kind, None)], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def drawn(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def frames(count: int, hop: int, length: int) -> np.ndarray:
    return hop * np.arange(count)[:, None] + np.arange(length)


CASES: dict[str, tuple[Nodes, Sequence[int | str], Mapping[str, Any], list[str], float]] = {
    "reshapes": (
        [("Reshape", ["x", "a"], "r", {}), ("Reshape", ["r", "b"], "y", {})],
        ("n", 4, 6), {"a": ints(-1, 24), "b": ints(-1, 8, 3)}, ["Reshape"], 0,
    ),
    "a 0 is the size before": (
        [("Reshape", ["x", "a"], "r", {}), ("Reshape", ["r", "b"], "y", {})],
        ("n", 4, 6), {"a": ints(-1, 8, 3), "b": ints(-1, 0, 3)}, ["Reshape"], 0,
    ),
    "a view of unit axes": (
        [("Unsqueeze", ["x", "a"], "u", {}), ("Transpose", ["u"], "t", {"perm": [0, 2, 1, 3]}),
         ("Reshape", ["t", "b"], "y", {})],
        ("n", 4, 6), {"a": ints(1), "b": ints(-1, 12)}, ["Reshape"], 0,
    ),
    "unsqueezes": (
        [("Unsqueeze", ["x", "a"], "u", {}), ("Unsqueeze", ["u", "b"], "y", {})],
        ("n", 4), {"a": ints(0, 3), "b": ints(1, 4)}, ["Unsqueeze"], 0,
    ),
    "concats": (
        [("Concat", ["x", "c"], "i", {"axis": 1}), ("Concat", ["x", "i", "c"], "y", {"axis": 1})],
        (2, 4), {"c": np.ones((2, 3), np.float32)}, ["Concat"], 0,
    ),
    "concats along two axes": (
        [("Concat", ["x", "c"], "i", {"axis": 1}), ("Concat", ["i", "i"], "y", {"axis": 0})],
        (2, 4), {"c": np.ones((2, 3), np.float32)}, ["Concat", "Concat"], 0,
    ),
    "slices": (
        [("Slice", ["x", "a", "e", "one", "two"], "s", {}), ("Slice", ["s", "z", "e", "two", "two"], "y", {})],
        (2, 6, 7), {"a": ints(1), "z": ints(0), "e": ints(99), "one": ints(1), "two": ints(2)}, ["Slice"], 0,
    ),
    "slices along one axis": (
        [("Slice", ["x", "a", "e", "one", "two"], "s", {}), ("Slice", ["s", "a", "e", "one", "two"], "y", {})],
        (2, 9), {"a": ints(1), "e": ints(99), "one": ints(1), "two": ints(2)}, ["Slice", "Slice"], 0,
    ),
    "a cast that casts nothing": (
        [("Greater", ["x", "c"], "g", {}), ("Cast", ["g"], "b", {"to": TensorProto.BOOL}), ("Not", ["b"], "y", {})],
        (3,), {"c": np.float32(0)}, ["Greater", "Not"], 0,
    ),
    "a factor behind a product": (
        [("Gemm", ["x", "w", "b"], "g", {}), ("Reshape", ["g", "s"], "r", {}), ("Mul", ["r", "f"], "m", {}),
         ("Relu", ["m"], "y", {})],
        ("n", 4), {"w": RNG.normal(size=(4, 6)).astype(np.float32), "b": np.ones(6, np.float32), "s": ints(-1, 2, 3),
                   "f": np.float32(0.2)}, ["Gemm", "Reshape", "Relu"], 1e-6,
    ),
    "products": (
        [("Mul", ["x", "f"], "m", {}), ("MatMul", ["m", "v"], "p", {}), ("Reshape", ["p", "s"], "r", {}),
         ("Gemm", ["r", "w", "b"], "y", {})],
        ("n", 3, 4), {"f": drawn(4), "v": drawn(4, 5), "s": ints(-1, 5), "w": drawn(5, 2), "b": drawn(2)},
        ["Reshape", "Gemm"], 1e-5,
    ),
    "a factorized product": (
        [("MatMul", ["x", "v"], "p", {}), ("MatMul", ["p", "w"], "y", {})],
        ("n", 6), {"v": drawn(6, 1), "w": drawn(1, 6)}, ["MatMul", "MatMul"], 0,
    ),
    "factors that two products read": (
        [("Mul", ["f", "x"], "m", {}), ("MatMul", ["m", "v"], "p", {}), ("MatMul", ["m", "w"], "q", {}),
         ("Sub", ["p", "q"], "y", {})],
        ("n", 4), {"f": drawn(4), "v": drawn(4, 3), "w": drawn(4, 3)}, ["MatMul", "MatMul", "Sub"], 1e-5,
    ),
    "factors that something else reads": (
        [("Mul", ["x", "f"], "m", {}), ("MatMul", ["m", "v"], "p", {}), ("Add", ["p", "m"], "y", {})],
        ("n", 4), {"f": drawn(4), "v": drawn(4, 4)}, ["Mul", "MatMul", "Add"], 0,
    ),
    "a factor per row": (
        [("Mul", ["x", "f"], "m", {}), ("MatMul", ["m", "v"], "y", {})],
        ("n", 4, 4), {"f": drawn(4, 1), "v": drawn(4, 3)}, ["Mul", "MatMul"], 0,
    ),
    "factors of more axes": (
        [("Mul", ["x", "f"], "m", {}), ("MatMul", ["m", "v"], "y", {})],
        ("n", 4), {"f": drawn(1, 1, 4), "v": drawn(4, 3)}, ["Mul", "MatMul"], 0,
    ),
    "frames": (
        [("Gather", ["x", "i"], "g", {"axis": 1}), ("Reshape", ["g", "s"], "r", {}), ("Gemm", ["r", "w", "b"], "p", {}),
         ("Relu", ["p"], "y", {})],
        ("n", 20, 2), {"i": frames(5, 3, 4), "s": ints(-1, 8), "w": drawn(8, 3), "b": drawn(3)},
        ["Reshape", "Slice", "Conv", "Transpose", "Reshape", "Relu"], 1e-5,
    ),
    "frames up to the end": (
        [("Gather", ["x", "i"], "g", {"axis": 1}), ("Reshape", ["g", "s"], "r", {}), ("MatMul", ["r", "w"], "p", {}),
         ("Relu", ["p"], "y", {})],
        ("n", 17, 2), {"i": frames(5, 3, 4), "s": ints(-1, 5, 8), "w": drawn(8, 3)},
        ["Reshape", "Conv", "Transpose", "Reshape", "Relu"], 1e-5,
    ),
    "rows that are no frames": (
        [("Gather", ["x", "i"], "g", {"axis": 1}), ("Reshape", ["g", "s"], "r", {}), ("MatMul", ["r", "w"], "y", {})],
        ("n", 20, 2), {"i": frames(5, 3, 4)[:, ::-1].copy(), "s": ints(-1, 5, 8), "w": drawn(8, 3)},
        ["Gather", "Reshape", "MatMul"], 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_rules(name: str) -> None:
    nodes, shape, constants, wanted, error = CASES[name]
    model = _model(nodes, shape, constants, TensorProto.BOOL if "cast" in name else TensorProto.FLOAT)
    found = merged(model)
    onnx.checker.check_model(found)
    assert [node.op_type for node in found.graph.node] == wanted
    for batch in (1, 3):
        x = RNG.normal(size=[batch if isinstance(size, str) else size for size in shape]).astype(np.float32)
        before, after = (np.asarray(list(ReferenceEvaluator(m).run(None, {"x": x}))[0]) for m in (model, found))
        assert before.shape == after.shape
        assert np.abs(before.astype(np.float64) - after.astype(np.float64)).max() <= error


def test_a_value_that_leaves_the_graph_or_has_another_reader_stays() -> None:
    model = _model(
        [("Reshape", ["x", "a"], "r", {}), ("Reshape", ["r", "b"], "s", {}), ("Reshape", ["r", "c"], "t", {}),
         ("Concat", ["s", "t"], "y", {"axis": 0})],
        (4, 6), {"a": ints(-1), "b": ints(-1), "c": ints(-1)},
    )  # fmt: skip
    assert [node.op_type for node in merged(model).graph.node] == ["Reshape", "Concat"]  # to one axis, from one axis


def test_declared_sizes_are_no_proof() -> None:
    """An exporter that declares an axis of 1 where 2 come: the Transpose moves something and stays."""
    model = _model(
        [("Relu", ["x"], "r", {}), ("Transpose", ["r"], "t", {"perm": [1, 0, 2]}), ("Reshape", ["t", "b"], "y", {})],
        ("n", 4, 6), {"b": ints(-1, 6)},
    )  # fmt: skip
    (value,) = (value for value in model.graph.value_info if value.name == "r")
    value.CopyFrom(helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 4, 6]))
    assert [node.op_type for node in merged(model).graph.node] == ["Relu", "Transpose", "Reshape"]
