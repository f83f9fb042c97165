"""Shapes that inference cannot tell come from runs of several sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgerun.verbs.compress import compress  # noqa: E402
from edgerun.verbs.convert import convert  # noqa: E402

RNG = np.random.default_rng(0)


def _net(last: onnx.NodeProto) -> onnx.ModelProto:
    """A Reshape to as many sizes as a sum says, which no inference follows, then a Conv."""
    node = helper.make_node
    nodes = [
        node("Shape", ["x"], ["sizes"]), node("ReduceSum", ["ones"], ["count"]),
        node("Slice", ["sizes", "zero", "count"], ["some"]), node("Reshape", ["x", "some"], ["again"]),
        node("Conv", ["again", "w"], ["h"], pads=[1, 1, 1, 1]), last,
    ]  # fmt: skip
    weights = {"ones": np.ones(4, np.int64), "zero": np.array([0]),
               "w": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)}  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "height", 8])]
    kind, rank = (TensorProto.FLOAT, 4) if last.op_type == "Relu" else (TensorProto.INT64, 2)
    outputs = [helper.make_tensor_value_info("y", kind, [None] * rank)]
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "net", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _shapes(path: Path) -> dict[str, list[int | str]]:
    graph = onnx.load(path).graph
    return {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim]
            for v in (*graph.value_info, *graph.output) if v.type.tensor_type.HasField("shape")}  # fmt: skip


def test_a_run_tells_what_inference_cannot(tmp_path: Path) -> None:
    onnx.save(_net(helper.make_node("Relu", ["h"], ["y"])), tmp_path / "net.onnx")
    convert(tmp_path / "net.onnx", output=tmp_path / "out.onnx", as_is=True)
    shape = _shapes(tmp_path / "out.onnx")["h"]
    assert shape[1] == 4 and shape[3] == 8  # the channels, and the width that the input fixes
    assert isinstance(shape[0], str) and isinstance(shape[2], str)


def test_as_much_as_the_numbers_have_gets_a_rank_alone(tmp_path: Path) -> None:
    onnx.save(_net(helper.make_node("NonZero", ["h"], ["y"])), tmp_path / "net.onnx")
    convert(tmp_path / "net.onnx", output=tmp_path / "out.onnx", as_is=True)
    shape = _shapes(tmp_path / "out.onnx")["h"]
    assert len(shape) == 4 and all(isinstance(size, str) for size in shape)


def test_such_a_model_is_compressed(tmp_path: Path) -> None:
    onnx.save(_net(helper.make_node("Relu", ["h"], ["y"])), tmp_path / "net.onnx")
    convert(tmp_path / "net.onnx", output=tmp_path / "out.onnx", as_is=True)
    data = {"x": RNG.standard_normal((16, 3, 8, 8)).astype(np.float32)}
    made = compress(tmp_path / "out.onnx", target="onnxruntime", calibration=data, placement="rules")
    assert made.history[-1].options["integer nodes"] == 1


def test_a_source_that_refuses_random_inputs_keeps_its_shapes(tmp_path: Path) -> None:
    """The numbers say which row is read: random ones lie outside, so that the data given decides alone."""
    net = _net(helper.make_node("Relu", ["h"], ["y"]))
    net.graph.node.insert(0, helper.make_node("Gather", ["x", "rows"], ["picked"]))
    net.graph.node[1].input[0] = net.graph.node[4].input[0] = "picked"
    net.graph.input.append(helper.make_tensor_value_info("rows", TensorProto.INT64, ["picks"]))
    net.graph.node.insert(0, helper.make_node("Sub", ["more", "many"], ["rows"]))
    net.graph.input[-1].name = "more"
    net.graph.initializer.append(numpy_helper.from_array(np.array(100_000), "many"))
    onnx.save(net, tmp_path / "net.onnx")
    data = {"x": RNG.standard_normal((4, 3, 8, 8)).astype(np.float32), "more": np.full(4, 100_000)}
    convert(tmp_path / "net.onnx", output=tmp_path / "out.onnx", data=data, as_is=True)
    assert (tmp_path / "out.onnx").is_file()
