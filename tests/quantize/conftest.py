"""Small networks written as text, and a runner that is not ours."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import numpy_helper

from edgerun import registry
from edgerun.model import Model
from edgerun.passes import Request
from edgerun.runtime import Engine, Options, Session

Net = Callable[..., Model]
Evaluate = Callable[..., list[np.ndarray]]


def _net(text: str, *, opset: int = 17, **weights: np.ndarray) -> Model:
    """`(float[n,8] x) => (float[n,4] y) { y = Gemm(x, w) }` with its weights; a node is named after its output."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> net {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    for node in proto.graph.node:
        node.name = node.name or node.output[0]
    onnx.checker.check_model(proto)
    return Model.from_proto(proto)


def _evaluate(model: Model, feeds: Mapping[str, np.ndarray], *, optimized: bool = False) -> list[np.ndarray]:
    """All outputs by ONNX Runtime on one thread, node by node unless `optimized`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session: Any = onnxruntime.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, dict(feeds))
    return found


def _ops(model: Model) -> dict[str, int]:
    return dict(collections.Counter(node.op_type for node in model.ir.graph))


def _fused(model: Model, folder: Path) -> dict[str, int]:
    """Op types after ONNX Runtime's extended optimizations: where integer kernels took over."""
    options, path = onnxruntime.SessionOptions(), folder / "optimized.onnx"
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return dict(collections.Counter(node.op_type for node in onnx.load(path).graph.node))


def _weights(seed: int, *shape: int) -> np.ndarray:
    """He-initialised float32 weights; a vector is a bias of σ = 0.3."""
    generator = np.random.default_rng(seed)
    spread = 0.3 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[1:]))
    return (generator.standard_normal(shape) * spread).astype(np.float32)


def _norm(seed: int, channels: int, *, negative: bool = False) -> dict[str, np.ndarray]:
    """γ, β, μ, σ² of a BatchNormalization as `g`, `o`, `m`, `v`."""
    generator = np.random.default_rng(seed)
    found = {key: generator.uniform(0.5, 2.0, channels).astype(np.float32) for key in "gomv"}
    if negative:
        found["g"][0] *= -1
    return found


def _request(target: str = "onnxruntime", calibration: object = None, **more: object) -> Request:
    """A request for `target`'s rules that measures on ONNX Runtime."""
    import onnx_ir as ir

    def opened(graph: ir.Model, *, emulated: bool = False, lanes: int = 1) -> Session:
        engine = Engine("onnxruntime", ir.to_proto(graph).SerializeToString())
        extra = {"session.disable_quant_qdq": "1"} if emulated else {}
        return registry.target("onnxruntime").load(engine, Options(threads=1, extra=extra))

    return Request(registry.target(target).quantization(), opened, calibration, **more)  # type: ignore[arg-type]


@pytest.fixture
def net() -> Net:
    """Models from text."""
    return _net


@pytest.fixture
def evaluate() -> Evaluate:
    """Outputs of a Model on feeds, without graph optimizations."""
    return _evaluate


@pytest.fixture
def ops() -> Callable[[Model], dict[str, int]]:
    """How many nodes there are of each op."""
    return _ops


@pytest.fixture
def fused(tmp_path: Path) -> Callable[[Model], dict[str, int]]:
    """How many nodes of each op ONNX Runtime makes of a model."""
    return lambda model: _fused(model, tmp_path)


@pytest.fixture
def weights() -> Callable[..., np.ndarray]:
    """Random weights by seed and shape."""
    return _weights


@pytest.fixture
def norm() -> Callable[..., dict[str, np.ndarray]]:
    """Random BatchNormalization parameters by seed and number of channels."""
    return _norm


@pytest.fixture
def request_for() -> Callable[..., Request]:
    """Requests for a target's rules."""
    return _request
