"""Keras's activations, as layers and as what a layer carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgerun.converters._keras_elementwise import apply
from edgerun.converters._keras_graph import Graph, layer, op, weight
from edgerun.converters._keras_reductions import axes_of, reduce, top
from edgerun.converters._layout import Value
from edgerun.errors import Unsupported


def _composed(*ops: str) -> Callable[[Graph, Value], Value]:
    def write(graph: Graph, value: Value) -> Value:
        for name in ops:
            value = graph.like(value, name)
        return value

    return write


def _clip(graph: Graph, value: Value, low: float, high: float) -> Value:
    limits = [graph.const(np.float32(number), word) for number, word in ((low, "low"), (high, "high"))]
    return graph.like(value, "Clip", *limits)


def _silu(graph: Graph, value: Value) -> Value:
    return graph.like(value, "Mul", graph.like(value, "Sigmoid").name)


def _gelu(graph: Graph, value: Value, approximate: bool = False) -> Value:
    if graph.opset >= 20:
        return graph.like(value, "Gelu", approximate="tanh" if approximate else "none")
    if approximate:  # x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³)))
        cube = apply(graph, "Mul", apply(graph, "Mul", apply(graph, "Mul", value, value), value), 0.044715)
        inner = apply(graph, "Tanh", apply(graph, "Mul", apply(graph, "Add", value, cube), (2 / np.pi) ** 0.5))
        return apply(graph, "Mul", apply(graph, "Mul", apply(graph, "Add", inner, 1.0), value), 0.5)
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


def _shrunk(graph: Graph, value: Value, threshold: float, bias: float) -> Value:
    return graph.like(value, "Shrink", lambd=float(threshold), bias=float(bias))


def _squareplus(graph: Graph, value: Value, b: float = 4) -> Value:
    """(x + √(x² + b)) / 2"""
    root = apply(graph, "Sqrt", apply(graph, "Add", apply(graph, "Mul", value, value), float(b)))
    return apply(graph, "Mul", apply(graph, "Add", value, root), 0.5)


def _sparse_plus(graph: Graph, value: Value) -> Value:
    """0 up to -1, x from 1 on, (x + 1)²/4 between"""
    half = apply(graph, "Mul", apply(graph, "Add", value, 1.0), 0.5)
    curve = apply(graph, "Mul", half, half)
    low = apply(graph, "Where", apply(graph, "LessOrEqual", value, -1.0), 0.0, curve)
    return apply(graph, "Where", apply(graph, "GreaterOrEqual", value, 1.0), value, low)


def _sparse_sigmoid(graph: Graph, value: Value) -> Value:
    return _clip(graph, apply(graph, "Mul", apply(graph, "Add", value, 1.0), 0.5), 0, 1)


def _glu(graph: Graph, value: Value, axis: int = -1) -> Value:
    """The first half of an axis times the sigmoid of the second."""
    value = graph.plain(value)
    axis %= value.rank
    size = value.shape[axis]
    if size is None:
        raise Unsupported("glu over an unknown size is not supported")
    halves = graph.several("Split", [value.name, graph.ints([size // 2, size // 2], "sizes")], 2, axis=axis)
    shape = tuple(size // 2 if a == axis else n for a, n in enumerate(value.shape))
    left, right = (Value(name, shape, value.dtype) for name in halves)
    return apply(graph, "Mul", left, graph.like(right, "Sigmoid"))


def _sparsemax(graph: Graph, value: Value, axis: int = -1) -> Value:
    """max(x - τ, 0) with τ = (Σ S_j - 1)/k over the k sums S_j = x_1 + … + x_j of sorted x with j·x_j + 1 > S_j.

    Martins and Astudillo 2016, algorithm 1, but for τ, where they take the last S_j alone: so Keras computes it.
    """
    value = graph.plain(value)
    axis %= value.rank
    size = value.shape[axis]
    if size is None:
        raise Unsupported("sparsemax over an unknown size is not supported")
    column = [size if a == axis else 1 for a in range(value.rank)]
    ordered = Value(top(graph, value, size, axis)[0], value.shape)
    sums = Value(graph.node("CumSum", [ordered.name, graph.const(np.int64(axis), "axis")]), value.shape)
    ranks = np.arange(1, size + 1, dtype=np.float32).reshape(column)
    inside = apply(graph, "Greater", apply(graph, "Add", apply(graph, "Mul", ordered, ranks), 1.0), sums)
    count = reduce(graph, "ReduceSum", graph.cast(inside, "float32"), [axis], True)
    total = reduce(graph, "ReduceSum", apply(graph, "Where", inside, sums, 0.0), [axis], True)
    threshold = apply(graph, "Div", apply(graph, "Sub", total, 1.0), count)
    return graph.like(apply(graph, "Sub", value, threshold), "Relu")


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
    "celu": lambda graph, value: graph.like(value, "Celu", alpha=1.0),
    "glu": _glu,
    "hard_shrink": lambda graph, value: _shrunk(graph, value, 0.5, 0),
    "hard_tanh": lambda graph, value: _clip(graph, value, -1, 1),
    "log_sigmoid": _composed("Neg", "Softplus", "Neg"),
    "soft_shrink": lambda graph, value: _shrunk(graph, value, 0.5, 0.5),
    "sparse_plus": _sparse_plus,
    "sparse_sigmoid": _sparse_sigmoid,
    "sparsemax": _sparsemax,
    "squareplus": _squareplus,
    "tanh_shrink": lambda graph, value: apply(graph, "Sub", value, graph.like(value, "Tanh")),
}


def activate(graph: Graph, function: Any, value: Value) -> Value:
    """Write an activation that a layer carries: a function of keras.activations, one of your own, a layer, None."""
    if function is None:
        return value
    name = getattr(function, "__name__", type(function).__name__)
    if getattr(function, "__module__", "").startswith("keras.src.activations") and name in ACTIVATIONS:
        return ACTIVATIONS[name](graph, value)
    found: list[Value] = graph.walk.trace(function, value)
    return found[0]


@layer("Activation")
def _activation(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    return activate(graph, operation.activation, inputs[0])


@layer("ReLU")
def _relu_layer(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    return _relu(graph, inputs[0], operation)


@op("ReLU")
def _relu_op(graph: Graph, operation: Any, x: Value) -> Value:
    return _relu(graph, x, operation)


def _relu(graph: Graph, value: Value, told: Any) -> Value:
    """x from the threshold t on, at most max_value; below it, slope·(x - t)."""
    slope, high = float(told.negative_slope or 0), told.max_value
    low = float(told.threshold or 0)
    if low:
        below = apply(graph, "Mul", apply(graph, "Sub", value, low), slope) if slope else 0.0
        found = apply(graph, "Where", apply(graph, "GreaterOrEqual", value, low), value, below)
    elif slope:
        found = graph.like(value, "LeakyRelu", alpha=slope)
    else:
        return graph.like(value, "Relu") if high is None else _clip(graph, value, 0, float(high))
    return found if high is None else graph.like(found, "Min", graph.const(np.float32(high), "high"))


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
    """Softmax over one axis or several; where a mask says False, -1e9 is added, as Keras does."""
    value, mask = inputs[0], graph.arguments.get("mask")
    axes = axes_of(operation.axis, value.rank)
    if mask is None:
        return softmax_over(graph, value, axes)
    mask = mask if mask.dtype == "bool" else apply(graph, "Greater", mask, 0.5)
    found = softmax_over(graph, masked_scores(graph, value, mask), axes)
    return apply(graph, "Where", mask, found, 0.0)  # a row of which nothing is held


def softmax_over(graph: Graph, value: Value, axes: list[int]) -> Value:
    if len(axes) == 1:
        return _softmax(graph, value, axis=axes[0])
    high = reduce(graph, "ReduceMax", value, axes, True)
    parts = apply(graph, "Exp", apply(graph, "Sub", value, high))
    return apply(graph, "Div", parts, reduce(graph, "ReduceSum", parts, axes, True))


def masked_scores(graph: Graph, scores: Value, mask: Value) -> Value:
    """The scores where the mask holds, -1e9 elsewhere: nothing of those is left by a softmax."""
    return apply(graph, "Where", graph.cast(mask, "bool"), scores, -1e9)


_OPS: dict[str, Callable[[Graph, Value, Any], Value]] = {
    "LeakyRelu": lambda graph, value, told: graph.like(value, "LeakyRelu", alpha=float(told.negative_slope)),
    "Elu": lambda graph, value, told: graph.like(value, "Elu", alpha=float(told.alpha)),
    "Celu": lambda graph, value, told: graph.like(value, "Celu", alpha=float(told.alpha)),
    "Gelu": lambda graph, value, told: _gelu(graph, value, told.approximate),
    "Glu": lambda graph, value, told: _glu(graph, value, told.axis),
    "SoftShrink": lambda graph, value, told: _shrunk(graph, value, told.threshold, told.threshold),
    "HardShrink": lambda graph, value, told: _shrunk(graph, value, told.threshold, 0),
    "Squareplus": lambda graph, value, told: _squareplus(graph, value, told.b),
    "Sparsemax": lambda graph, value, told: _sparsemax(graph, value, told.axis),
    "Softmax": lambda graph, value, told: softmax_over(graph, value, axes_of(told.axis, value.rank)),
    "LogSoftmax": lambda graph, value, told: (
        graph.like(softmax_over(graph, value, axes_of(told.axis, value.rank)), "Log")
        if not isinstance(told.axis, int)
        else _softmax(graph, value, "LogSoftmax", told.axis)
    ),
    "Threshold": lambda graph, value, told: apply(
        graph, "Where", apply(graph, "Greater", value, float(told.threshold)), value, float(told.default_value)
    ),
}
_SAME = {
    "Relu": "relu", "Relu6": "relu6", "Sigmoid": "sigmoid", "SparseSigmoid": "sparse_sigmoid", "Softplus": "softplus",
    "Softsign": "softsign", "SparsePlus": "sparse_plus", "Silu": "silu", "LogSigmoid": "log_sigmoid",
    "HardSigmoid": "hard_sigmoid", "HardSilu": "hard_silu", "Selu": "selu", "TanhShrink": "tanh_shrink",
    "HardTanh": "hard_tanh", "Mish": "mish",
}  # fmt: skip


@op(*_OPS)
def _with_numbers(graph: Graph, operation: Any, x: Value) -> Value:
    return _OPS[type(operation).__name__](graph, x, operation)


@op(*_SAME)
def _without(graph: Graph, operation: Any, x: Value) -> Value:
    return ACTIVATIONS[_SAME[type(operation).__name__]](graph, graph.cast(x, "float32"))
