"""Small ONNX graphs for the tests of what `convert` simplifies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)
FLOAT = TensorProto.FLOAT


def network(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], x: Sequence[Any], y: Sequence[Any],
           opset: int = 17) -> onnx.ModelProto:  # fmt: skip
    inputs, outputs = (helper.make_tensor_value_info(n, FLOAT, s) for n, s in (("x", x), ("y", y)))
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "net", [inputs], [outputs], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


def ops(path: Path) -> Counter[str]:
    def nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
        return [*graph.node, *(node for one in inner for node in nodes(one))]

    return Counter(node.op_type for node in nodes(onnx.load(path).graph))


def run(path: Path, x: np.ndarray) -> np.ndarray:
    """The first output on ONNX Runtime's CPU."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])
