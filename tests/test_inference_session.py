"""InferenceSession beside onnxruntime's own, call by call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper

from edgerun import registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import InferenceSession

CPU = ["CPUExecutionProvider"]
FEEDS = {"a": np.ones((2, 3), np.float32), "s": np.array(["x", "ü"], object)}


@pytest.fixture(scope="module")
def model() -> bytes:
    """d = 2·a, t = s with s: float32, float64, strings, open dimensions."""
    nodes = [
        helper.make_node("Add", ["a", "a"], ["b"]),
        helper.make_node("Cast", ["b"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("StringConcat", ["s", "s"], ["t"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("a", TensorProto.FLOAT, ["batch", 3]), value("s", TensorProto.STRING, ["words"])],
        [value("d", TensorProto.DOUBLE, ["batch", 3]), value("t", TensorProto.STRING, ["words"])],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(proto.SerializeToString())


def test_it_answers_as_the_original(model: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(model)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    theirs = onnxruntime.InferenceSession(model, settings, providers=CPU)
    for source in (model, tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        ours = InferenceSession(source, settings, providers=["CUDAExecutionProvider", *CPU])
        assert ours.get_providers() == theirs.get_providers()
        for own, other in zip(
            (*ours.get_inputs(), *ours.get_outputs()), (*theirs.get_inputs(), *theirs.get_outputs()), strict=True
        ):
            assert (own.name, own.type, own.shape) == (other.name, other.type, other.shape)
        for names in (None, ["t"], ["t", "d"]):
            original: Any = theirs.run(names, FEEDS)
            for own, other in zip(ours.run(names, FEEDS), original, strict=True):
                assert own.dtype == other.dtype
                np.testing.assert_array_equal(own, other)


def test_what_it_does_not_do_is_refused(model: bytes) -> None:
    session = InferenceSession(model)
    with pytest.raises(EdgerunError, match="unknown output 'dd'.*"):
        session.run(["dd"], FEEDS)
    with pytest.raises(Unsupported, match="run_options"):
        session.run(None, FEEDS, onnxruntime.RunOptions())
    with pytest.raises(Unsupported, match="provider_options"):
        InferenceSession(model, None, CPU, [{}])
    with pytest.raises(EdgerunError, match="unknown execution provider 'QNNExecutionProvider'"):
        InferenceSession(model, providers=["QNNExecutionProvider"])
    parallel = onnxruntime.SessionOptions()
    parallel.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    with pytest.raises(EdgerunError, match="one after the other"):
        InferenceSession(model, parallel)


@pytest.mark.skipif(registry.target("openvino", usable=False).available() is not None, reason="no openvino")
def test_openvino_by_its_provider() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])], "g", [value], [helper.make_tensor_value_info("y", 1, [2])]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = InferenceSession(proto.SerializeToString(), providers=["OpenVINOExecutionProvider", *CPU])
    assert session.get_providers() == ["OpenVINOExecutionProvider"]
    assert session.run(None, {"x": np.ones(2, np.float32)})[0].tolist() == [-1, -1]
