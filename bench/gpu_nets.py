"""Networks with random weights, each in three number formats: what a GPU's provider is timed and tested on.

`fp32`; `fp16`, which computes in float16 between a Cast at either end; `int8`, with Q/DQ pairs at the inputs of
products: symmetric int8, one scale per output channel of a weight, activations cut off at 8. Weights are drawn so that
activations stay near unit variance; the draws are the same in every format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgerun.model import Model

PRECISIONS = ("fp32", "fp16", "int8")
STEP = 8 / 127  # of an activation
OPSET, IR_VERSION = 17, 8


class Net:
    """Nodes as they are added; a value is its name."""

    def __init__(self, precision: str, seed: int = 0) -> None:
        self.precision, self.rng = precision, np.random.default_rng(seed)
        self.real = np.float16 if precision == "fp16" else np.float32
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The output of a new node."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def constant(self, array: np.ndarray) -> str:
        """An initializer; what is float takes the net's own precision."""
        name = f"w_{len(self.weights)}"
        self.weights[name] = array.astype(self.real) if array.dtype.kind == "f" else array
        return name

    def weight(self, shape: tuple[int, ...], fan_in: int, axis: int, gain: float) -> str:
        """Normal weights of variance gain²/fan_in, in int8 behind a DequantizeLinear in an int8 net."""
        drawn = self.rng.standard_normal(shape) * (gain / np.sqrt(fan_in))
        if self.precision != "int8":
            return self.constant(drawn)
        others = tuple(i for i in range(drawn.ndim) if i != axis)
        scale = np.maximum(np.abs(drawn).max(others), 1e-8) / 127
        wide = np.expand_dims(scale, others)
        integers, zeros = np.rint(drawn / wide).astype(np.int8), np.zeros(len(scale), np.int8)
        names = (self.constant(integers), self.constant(scale), self.constant(zeros))
        return self.op("DequantizeLinear", *names, axis=axis)

    def rounded(self, x: str) -> str:
        """x behind a Q/DQ pair in an int8 net."""
        if self.precision != "int8":
            return x
        scale, zero = self.constant(np.array(STEP)), self.constant(np.array(0, np.int8))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, scale, zero), scale, zero)

    def conv(self, x: str, fed: int, made: int, size: int, stride: int = 1, groups: int = 1, gain: float = 1.0) -> str:
        """A convolution with a bias that keeps or halves the picture."""
        fan_in = fed // groups * size * size
        weight = self.weight((made, fed // groups, size, size), fan_in, 0, gain)
        bias = self.constant(self.rng.standard_normal(made) * 0.1)
        around = {"strides": [stride] * 2, "pads": [size // 2] * 4, "group": groups}
        return self.op("Conv", self.rounded(x), weight, bias, **around)

    def dense(self, x: str, fed: int, made: int, gain: float = 1.0) -> str:
        """x·W + b over the last axis."""
        weight = self.weight((fed, made), fed, 1, gain)
        bias = self.constant(self.rng.standard_normal(made) * 0.1)
        return self.op("Add", self.op("MatMul", self.rounded(x), weight), bias)

    def model(self, x: str, y: str, shape: Sequence[int], made: Sequence[int]) -> Model:
        """The model between float32 `x` [batch, *shape] and float32 `y` [batch, *made]."""
        nodes = list(self.nodes)
        if self.precision == "fp16":  # `x` and `y` are float16 inside
            half = [n for n in nodes if x in n.input]
            for node in half:
                node.input[list(node.input).index(x)] = "x_half"
            nodes.insert(0, helper.make_node("Cast", [x], ["x_half"], "halve", to=TensorProto.FLOAT16))
        nodes.append(helper.make_node("Cast", [y], ["y"], "widen", to=TensorProto.FLOAT))
        door = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims])
            for name, dims in ((x, shape), ("y", made))
        ]
        tensors = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(nodes, "net", door[:1], door[1:], tensors)
        opset = [helper.make_opsetid("", OPSET)]
        return Model.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION))


RELU = float(np.sqrt(2))  # the gain that a ReLU behind takes back


def mobilenet(precision: str, size: int = 224) -> Model:
    """Inverted residuals with depthwise convolutions and ReLU6, 38 convolutions, 1,000 classes."""
    net = Net(precision)

    def relu6(x: str) -> str:
        return net.op("Clip", x, net.constant(np.array(0.0)), net.constant(np.array(6.0)))

    x, channels = relu6(net.conv("x", 3, 32, 3, 2, gain=RELU)), 32
    for made, stride in ((16, 1), (24, 2), (24, 1), (32, 2), (32, 1), (64, 2), (64, 1), (96, 1), (160, 2), (160, 1),
                         (160, 1), (320, 1)):  # fmt: skip
        wide = 6 * channels
        inner = relu6(net.conv(x, channels, wide, 1, gain=RELU))
        inner = net.conv(relu6(net.conv(inner, wide, wide, 3, stride, wide, RELU)), wide, made, 1, gain=RELU / 2)
        x = net.op("Add", x, inner) if stride == 1 and made == channels else inner
        channels = made
    x = net.op("GlobalAveragePool", relu6(net.conv(x, channels, 1280, 1, gain=RELU)))
    y = net.dense(net.op("Flatten", x), 1280, 1000)
    return net.model("x", y, (3, size, size), (1000,))


def resnet(precision: str, size: int = 224) -> Model:
    """Basic residual blocks, 20 convolutions, 1,000 classes: the size of ResNet-18."""
    net = Net(precision)
    x = net.op("Relu", net.conv("x", 3, 64, 7, 2, gain=RELU))
    x, channels = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 64
    for made, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        inner = net.op("Relu", net.conv(x, channels, made, 3, stride, gain=RELU))
        inner = net.conv(inner, made, made, 3, gain=RELU / 2)
        around = x if stride == 1 and made == channels else net.conv(x, channels, made, 1, stride)
        x, channels = net.op("Relu", net.op("Add", around, inner)), made
    y = net.dense(net.op("Flatten", net.op("GlobalAveragePool", x)), 512, 1000)
    return net.model("x", y, (3, size, size), (1000,))


def transformer(precision: str, tokens: int = 128, width: int = 384, layers: int = 6, heads: int = 12) -> Model:
    """Encoder layers of MiniLM's size over embeddings [batch, tokens, width]: attention, GELU, LayerNormalization."""
    net, x = Net(precision), "x"

    def split(value: str, order: list[int]) -> str:
        shape = net.constant(np.array([0, 0, heads, width // heads], np.int64))
        return net.op("Transpose", net.op("Reshape", value, shape), perm=order)

    def normal(value: str) -> str:
        parameters = net.constant(np.ones(width)), net.constant(np.zeros(width))
        return net.op("LayerNormalization", value, *parameters, axis=-1)

    def gelu(value: str) -> str:
        inner = net.op("Erf", net.op("Div", value, net.constant(np.array(np.sqrt(2.0)))))
        half = net.op("Mul", value, net.op("Add", inner, net.constant(np.array(1.0))))
        return net.op("Mul", half, net.constant(np.array(0.5)))

    for _ in range(layers):
        q, k, v = (split(net.dense(x, width, width), order) for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
        scores = net.op("Div", net.op("MatMul", q, k), net.constant(np.array(np.sqrt(width / heads))))
        mixed = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
        mixed = net.op("Reshape", mixed, net.constant(np.array([0, 0, width], np.int64)))
        x = normal(net.op("Add", x, net.dense(mixed, width, width)))
        x = normal(net.op("Add", x, net.dense(gelu(net.dense(x, width, 4 * width)), 4 * width, width)))
    return net.model("x", x, (tokens, width), (tokens, width))


NETS: dict[str, Callable[[str], Model]] = {"mobilenet": mobilenet, "resnet": resnet, "transformer": transformer}
