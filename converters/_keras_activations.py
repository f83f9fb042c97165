"""Keras's activations, as layers and as what a layer carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgerun.converters._keras_graph import layer, weight
from edgerun.converters._layout import Graph, Value
from edgerun.errors import Unsupported


def _composed(*ops: str) -> Callable[[Graph, Value], Value]:
    def write(graph: Graph, value: Value) -> Value:
        for op in ops:
            value = graph.like(value, op)
        return value

    return write


def _clip(graph: Graph, value: Value, low: float, high: float) -> Value:
    limits = [graph.const(np.float32(number), word) for number, word in ((low, "low"), (high, "high"))]
    return graph.like(value, "Clip", *limits)


def _silu(graph: Graph, value: Value) -> Value:
    return graph.like(value, "Mul", graph.like(value, "Sigmoid").name)


def _gelu(graph: Graph, value: Value) -> Value:
    if graph.opset >= 20:
        return graph.like(value, "Gelu")
    # x/2 · (1 + erf(x/√2)): Gelu as an operator came with opset 20
    half = graph.const(np.float32(0.5), "half")
    one = graph.const(np.float32(1), "one")
    inner = graph.like(graph.like(value, "Mul", graph.const(np.float32(0.5**0.5), "root_half")), "Erf")
    return graph.like(graph.like(graph.like(inner, "Add", one), "Mul", value.name), "Mul", half)


def _softmax(graph: Graph, value: Value, op: str = "Softmax", axis: int = -1) -> Value:
    value = graph.plain(value) if value.order is not None else value
    axis = axis % value.rank
    if value.first:
        axis = 1 if axis == value.rank - 1 else axis + (axis > 0)
    return graph.like(value, op, axis=axis)


ACTIVATIONS: dict[str, Callable[[Graph, Value], Value]] = {
    "linear": lambda graph, value: value,
    "relu": _composed("Relu"),
    "relu6": lambda graph, value: _clip(graph, value, 0, 6),
    "leaky_relu": lambda graph, value: graph.like(value, "LeakyRelu", alpha=0.2),
    "elu": _composed("Elu"),
    "selu": _composed("Selu"),
    "gelu": _gelu,
    "sigmoid": _composed("Sigmoid"),
    "tanh": _composed("Tanh"),
    "softplus": _composed("Softplus"),
    "softsign": _composed("Softsign"),
    "exponential": _composed("Exp"),
    "silu": _silu,
    "mish": lambda graph, value: graph.like(value, "Mul", _composed("Softplus", "Tanh")(graph, value).name),
    "hard_sigmoid": lambda graph, value: graph.like(value, "HardSigmoid", alpha=1 / 6, beta=0.5),
    "hard_silu": lambda graph, value: graph.like(value, "HardSwish"),
    "softmax": _softmax,
    "log_softmax": lambda graph, value: _softmax(graph, value, "LogSoftmax"),
}


def activate(graph: Graph, function: Any, value: Value) -> Value:
    """Write an activation that a layer carries: a function of keras.activations, or None."""
    if function is None:
        return value
    name = getattr(function, "__name__", type(function).__name__)
    known = getattr(function, "__module__", "").startswith("keras.src.activations")
    if not known or name not in ACTIVATIONS:
        raise Unsupported(f"the activation {name} is not supported")
    return ACTIVATIONS[name](graph, value)


@layer("Activation")
def _activation(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    return activate(graph, operation.activation, inputs[0])


@layer("ReLU")
def _relu(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    if operation.threshold:
        raise Unsupported("ReLU with a threshold is not supported")
    if operation.negative_slope:
        value = graph.like(inputs[0], "LeakyRelu", alpha=float(operation.negative_slope))
        top = operation.max_value
        return value if top is None else graph.like(value, "Min", graph.const(np.float32(top), "high"))
    if operation.max_value is None:
        return graph.like(inputs[0], "Relu")
    return _clip(graph, inputs[0], 0, float(operation.max_value))


@layer("LeakyReLU")
def _leaky(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    return graph.like(inputs[0], "LeakyRelu", alpha=float(operation.negative_slope))


@layer("ELU")
def _elu(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    return graph.like(inputs[0], "Elu", alpha=float(operation.alpha))


@layer("PReLU")
def _prelu(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = inputs[0]
    return graph.like(value, "PRelu", graph.spread(weight(operation.alpha), value, "alpha"))


@layer("Softmax")
def _softmax_layer(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    if not isinstance(operation.axis, int) or len(inputs) > 1:
        raise Unsupported("Softmax over several axes or with a mask is not supported")
    return _softmax(graph, inputs[0], axis=operation.axis)
