"""Branches of a foreign ONNX graph: those that are always taken, their weights, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgerun.verbs.compress import compress  # noqa: E402
from edgerun.verbs.convert import convert  # noqa: E402
from tests.verbs.simplified import FLOAT, floats, network, ops, run, saved  # noqa: E402


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
    weights = {"one": np.array(1), "w": floats(16, 4), "half": np.array(0.5, np.float32)}
    return network(nodes, weights, ["batch", 16], ["batch", 4])


def test_a_branch_that_is_always_taken_takes_its_place(tmp_path: Path) -> None:
    source = saved(_branches(), tmp_path)
    convert(source, output=tmp_path / "out.onnx")
    assert ops(tmp_path / "out.onnx")["If"] == 1 and "Mul" not in ops(tmp_path / "out.onnx")
    for x in (np.full((2, 16), 0.1, np.float32), np.full((2, 16), 0.9, np.float32)):  # both sides of the other
        np.testing.assert_allclose(run(tmp_path / "out.onnx", x), run(source, x), rtol=1e-6)


def test_a_weight_that_one_branch_reads_goes_into_it(tmp_path: Path) -> None:
    net = _branches()
    net.graph.initializer.append(numpy_helper.from_array(floats(4, 4), "own"))
    branch = net.graph.node[-1].attribute[0].g
    branch.node.insert(0, helper.make_node("MatMul", ["h", "own"], ["turned"]))
    branch.node[-1].input[0] = "turned"
    source = saved(net, tmp_path)
    convert(source, output=tmp_path / "out.onnx")
    graph = onnx.load(tmp_path / "out.onnx").graph
    inner = [tensor.name for a in graph.node[-1].attribute for tensor in a.g.initializer]
    assert "own" in inner and "own" not in {tensor.name for tensor in graph.initializer}
    for x in (np.full((2, 16), 0.1, np.float32), np.full((2, 16), 0.9, np.float32)):
        np.testing.assert_allclose(run(tmp_path / "out.onnx", x), run(source, x), rtol=1e-5)


def test_what_a_folded_constant_was_made_of_does_not_stay(tmp_path: Path) -> None:
    """In the branch that an input decides, a weight is turned before it is read: only the turned one is kept."""
    net = _branches()
    net.graph.initializer.append(numpy_helper.from_array(floats(64, 4, 4), "tall"))
    branch = net.graph.node[-1].attribute[0].g
    branch.node.insert(0, helper.make_node("ReduceSum", ["tall", "axes"], ["own"], keepdims=0))
    branch.node.insert(1, helper.make_node("MatMul", ["h", "own"], ["turned"]))
    branch.node[-1].input[0] = "turned"
    net.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
    source = saved(net, tmp_path)
    convert(source, output=tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size < source.stat().st_size - 64 * 4 * 4 * 4 / 2


def test_compress_takes_a_model_with_branches(tmp_path: Path) -> None:
    made = compress(saved(_branches(), tmp_path), target="onnxruntime", scheme="w8a8_dynamic")
    x = floats(2, 16)
    made.save(tmp_path / "made.onnx")
    wanted = run(tmp_path / "net.onnx", x)
    error = np.abs(run(tmp_path / "made.onnx", x) - wanted).max() / np.abs(wanted).max()
    assert error < 0.03  # 8-bit weights and inputs of 16 products
