"""Small float networks for planting faults, written from seeds: a chain, two branches that join, a perceptron."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from edgerun.model import Model

CHAIN = """(float[n,3,16,16] image) => (float[n,10] scores) {
  c1 = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(image, w1, b1)  r1 = Relu(c1)
  c2 = Conv<kernel_shape = [3,3], pads = [1,1,1,1], strides = [2,2]>(r1, w2, b2)  r2 = Relu(c2)
  c3 = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(r2, w3, b3)  r3 = Relu(c3)
  c4 = Conv<kernel_shape = [1,1]>(r3, w4, b4)  r4 = Relu(c4)
  p = GlobalAveragePool(r4)  f = Flatten(p)  scores = Gemm(f, w5, b5)
}"""
BRANCHES = """(float[n,3,16,16] image) => (float[n,10] scores) {
  c1 = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(image, w1, b1)  r1 = Relu(c1)
  ca = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(r1, wa, ba)  ra = Relu(ca)
  cb = Conv<kernel_shape = [1,1]>(r1, wb, bb)  rb = Relu(cb)
  joined = Concat<axis = 1>(ra, rb)
  c2 = Conv<kernel_shape = [3,3], pads = [1,1,1,1], strides = [2,2]>(joined, w2, b2)  r2 = Relu(c2)
  c3 = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(r2, w3, b3)
  sum = Add(c3, r2)  r3 = Relu(sum)
  p = GlobalAveragePool(r3)  f = Flatten(p)  scores = Gemm(f, w5, b5)
}"""
PERCEPTRON = """(float[n,32] features) => (float[n,6] scores) {
  g1 = Gemm(features, w1, b1)  r1 = Relu(g1)
  g2 = Gemm(r1, w2, b2)  r2 = Relu(g2)
  g3 = Gemm(r2, w3, b3)  r3 = Relu(g3)
  scores = Gemm(r3, w4, b4)
}"""
COLOUR = np.array([1.6, 0.6, 0.15]), np.array([1.2, -0.3, 0.05])  # spread and mean of the channels: far from alike


def chain(seed: int) -> Model:
    """Four convolutions, 32 channels, ten scores."""
    draw = np.random.default_rng(seed)
    shapes = {"w1": (16, 3, 3, 3), "w2": (32, 16, 3, 3), "w3": (32, 32, 3, 3), "w4": (32, 32, 1, 1), "w5": (32, 10)}
    return _model(CHAIN, _weights(draw, shapes))


def branches(seed: int, mixed: float = 1.0) -> Model:
    """Two branches joined by a Concat, and a residual sum; the second branch is `mixed` times as small, and its
    readers' weights as large, which changes nothing in real arithmetic."""
    draw = np.random.default_rng(seed)
    shapes = {"w1": (16, 3, 3, 3), "wa": (16, 16, 3, 3), "wb": (16, 16, 1, 1), "w2": (32, 32, 3, 3),
              "w3": (32, 32, 3, 3), "w5": (32, 10)}  # fmt: skip
    arrays = _weights(draw, shapes)
    arrays["wb"], arrays["bb"] = arrays["wb"] / mixed, arrays["bb"] / mixed
    arrays["w2"][:, 16:] *= mixed
    return _model(BRANCHES, arrays)


def perceptron(seed: int) -> Model:
    """Three hidden layers of 48."""
    draw = np.random.default_rng(seed)
    return _model(PERCEPTRON, _weights(draw, {"w1": (32, 48), "w2": (48, 48), "w3": (48, 48), "w4": (48, 6)}))


def feeds(model: Model, seed: int, samples: int) -> dict[str, np.ndarray]:
    """Smooth pictures with unlike colour channels, or features."""
    draw = np.random.default_rng([seed, 7])
    (spec,) = model.inputs
    if len(spec.shape) == 2:
        return {spec.name: draw.standard_normal((samples, 32)).astype(np.float32)}
    coarse = draw.standard_normal((samples, 3, 4, 4)).repeat(4, axis=2).repeat(4, axis=3)
    fine = 0.3 * draw.standard_normal((samples, 3, 16, 16))
    spread, mean = (a.reshape(1, 3, 1, 1) for a in COLOUR)
    return {spec.name: ((coarse + fine) * spread + mean).astype(np.float32)}


def _weights(draw: np.random.Generator, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    arrays = {}
    for name, shape in shapes.items():
        inputs = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        arrays[name] = draw.standard_normal(shape) * np.sqrt(2 / inputs)
        outputs = shape[0] if len(shape) == 4 else shape[1]
        arrays[f"b{name[1:]}"] = 0.2 * draw.standard_normal(outputs)
    return arrays


def _model(text: str, arrays: dict[str, np.ndarray]) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> net {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items())
    for node in proto.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(proto)
    return Model.from_proto(proto)
