"""What TensorRT's parser and builder refuse, and what is refused before them: by node, operator and reason."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgerun.errors import Unsupported
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.targets import tensorrt as target

pytestmark = pytest.mark.skipif(target.available() is not None, reason=str(target.available()))


def test_refused_nodes_are_named_with_reasons(build: Callable[..., Model]) -> None:
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["a"], "unknown"),
        helper.make_node("Relu", ["x"], ["b"], "fine"),
        helper.make_node("Det", ["x"], ["c"], "absent"),
    ]
    shape: list[int | str] = [2, 2]
    issues = target.check(build(nodes, {"x": shape}, {"a": shape, "b": shape, "c": []}))
    told = {issue.node: issue.reason for issue in issues}
    assert set(told) == {"unknown", "absent"} and all("no translation" in reason for reason in told.values())


@pytest.mark.parametrize("dtype", [np.float64, np.int16, np.uint64])
def test_types_that_no_feed_may_have_are_refused(build: Callable[..., Model], dtype: type) -> None:
    """Its parser takes float64 for float32, so that a feed of eight bytes a number would be read as twice as many."""
    kind = np.dtype(dtype).name
    proto = build([helper.make_node("Max", ["x", "x"], ["y"], "larger")], {"x": [4]}, {"y": [4]}).to_proto()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = Model.from_proto(proto)
    (first, *_) = target.check(model)
    assert (first.node, first.op) == ("larger", "Max") and f"no {kind}" in first.reason
    with pytest.raises(Unsupported, match=r"misread larger \(Max\)"):
        target.compile(model, Options())


def test_an_input_that_decides_on_shapes_is_named(build: Callable[..., Model]) -> None:
    proto = build([helper.make_node("Reshape", ["x", "shape"], ["y"], "formed")], {"x": [2, 3], "shape": [1]},
                  {"y": ["n"]}).to_proto()  # fmt: skip
    proto.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    (issue,) = target.check(Model.from_proto(proto))
    assert (issue.node, issue.op) == ("formed", "Reshape") and "'shape' decides on shapes" in issue.reason


def test_what_the_builder_refuses_is_a_node_too(build: Callable[..., Model]) -> None:
    """The parser takes a NonMaxSuppression, the builder of tensorrt_rtx has no kernel for it."""
    if tensorrt.chosen() != "tensorrt_rtx":
        pytest.skip("tensorrt has that kernel")
    node = helper.make_node("NonMaxSuppression", ["x", "scores", "most", "overlap"], ["y"], "kept")
    weights = {"most": np.array([3]), "overlap": np.array([0.5], np.float32)}
    proto = build([node], {"x": [1, 6, 4], "scores": [1, 1, 6]}, {"y": ["n", 3]}, weights).to_proto()
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    model = Model.from_proto(proto)
    assert target.check(model) == []
    with pytest.raises(Unsupported, match="cannot build the model") as error:
        target.compile(model, Options())
    assert str(error.value.got).startswith("kept (NonMaxSuppression): ")


def test_who_listened_once_is_kept() -> None:
    """The library may write to an ILogger of the past: it is there, and what it hears goes nowhere."""
    heard = tensorrt.Log(trt := tensorrt.library())
    sink = heard.sink
    sink.log(trt.ILogger.Severity.ERROR, "one")
    assert heard.errors == ["one"]
    del heard
    assert any(kept is sink for kept in tensorrt._KEPT)
    sink.log(trt.ILogger.Severity.ERROR, "two")
