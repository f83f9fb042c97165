"""Small models that several files here share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgerun.model import Model

Build = Callable[..., Model]


def _build(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    weights: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    domains: tuple[str, ...] = (),
    dtype: int = TensorProto.FLOAT,
) -> Model:
    """A Model of these nodes; all inputs and outputs have one dtype."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, dtype, shape) for n, shape in inputs.items()],
        [helper.make_tensor_value_info(n, dtype, shape) for n, shape in outputs.items()],
        [numpy_helper.from_array(array, n) for n, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return Model.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


@pytest.fixture
def build() -> Build:
    """The builder of models, for tests that need their own."""
    return _build


@pytest.fixture
def dense() -> Model:
    """x [batch, 6] -> y = x @ w [batch, 4], named nodes, fixed weights."""
    weight = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "dense")
    return _build([node], {"x": ["batch", 6]}, {"y": ["batch", 4]}, {"w": weight})


@pytest.fixture
def rounded() -> Model:
    """The same with Q/DQ: 8-bit activations and weights."""
    weight = np.random.default_rng(1).integers(-127, 128, size=(6, 4)).astype(np.int8)
    weights: dict[str, np.ndarray] = {
        "w": weight,
        "w_scale": np.array(0.01, np.float32),
        "w_zero": np.array(0, np.int8),
        "scale": np.array(0.03, np.float32),
        "zero": np.array(128, np.uint8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"], "quantize"),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], "weights"),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], "dense"),
    ]
    return _build(nodes, {"x": ["batch", 6]}, {"y": ["batch", 4]}, weights, opset=21)


@pytest.fixture
def in_clean_home(tmp_path: Path) -> Callable[[str], list[Path]]:
    """Run Python code in a process whose home is empty; the files that it left there."""
    home = tmp_path / "home"
    home.mkdir()

    def run(code: str) -> list[Path]:
        environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
        return [path for path in home.rglob("*") if path.is_file()]

    return run
