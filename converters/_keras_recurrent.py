"""Keras's recurrent layers as ONNX LSTM, GRU and RNN, which want time first: [time, batch, features]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgerun.converters._keras_graph import layer, shape_after, weight
from edgerun.converters._layout import Graph, Value
from edgerun.errors import Unsupported

# Keras's gate order, and where ONNX wants each: LSTM i f c o -> i o f c; GRU z r h stays.
_GATES: dict[str, tuple[str, tuple[int, ...]]] = {
    "LSTM": ("LSTM", (0, 3, 1, 2)),
    "GRU": ("GRU", (0, 1, 2)),
    "SimpleRNN": ("RNN", (0,)),
}
_ACTIVATIONS = {"tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu"}


def _gates(array: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """[…, gates·units] -> [gates·units, …] in ONNX's gate order."""
    parts = np.split(array, len(order), axis=-1)
    return np.concatenate([parts[gate] for gate in order], axis=-1).T


def _activations(operation: Any) -> list[str]:
    kind = type(operation).__name__
    functions = (
        [operation.activation] if kind == "SimpleRNN" else [operation.recurrent_activation, operation.activation]
    )
    if kind == "LSTM":
        functions.append(operation.activation)
    names = [function.__name__ for function in functions]
    if unknown := [name for name in names if name not in _ACTIVATIONS]:
        raise Unsupported(f"{kind} with the activation {unknown[0]} is not supported")
    return [_ACTIVATIONS[name] for name in names]


def _recur(graph: Graph, operation: Any, value: Value, direction: str) -> Value:
    kind = type(operation).__name__
    if kind not in _GATES:
        raise Unsupported(f"{kind} is not supported here")
    if operation.return_state or operation.stateful:
        raise Unsupported(f"{kind} with return_state or stateful is not supported")
    op, order = _GATES[kind]
    cell, units = operation.cell, operation.units
    extra: dict[str, Any] = {"hidden_size": units, "direction": direction, "activations": _activations(operation)}
    bias = np.zeros((2, len(order) * units), np.float32)
    if cell.use_bias:
        own = weight(cell.bias)
        bias[: own.shape[0] if own.ndim == 2 else 1] = own  # GRU's reset_after keeps one bias for each product
    if kind == "GRU":
        extra["linear_before_reset"] = int(cell.reset_after)
    names = [
        graph.node("Transpose", [graph.plain(value).name], perm=[1, 0, 2]),
        graph.const(_gates(weight(cell.kernel), order)[None], "kernel"),
        graph.const(_gates(weight(cell.recurrent_kernel), order)[None], "recurrent_kernel"),
        graph.const(np.concatenate([_gates(row, order) for row in bias])[None], "bias"),
    ]
    if operation.return_sequences:
        every = graph.node("Squeeze", [graph.node(op, names, **extra), graph.ints([1], "axes")])
        return Value(graph.node("Transpose", [every], perm=[1, 0, 2]), (*value.shape[:2], units))
    last = graph.node(op, names, outputs=2, **extra)
    return Value(graph.node("Squeeze", [last, graph.ints([0], "axes")]), (value.shape[0], units))


def _one_input(operation: Any, inputs: list[Value]) -> None:
    if len(inputs) > 1:
        raise Unsupported(f"{type(operation).__name__} with an initial state or a mask is not supported")


@layer(*_GATES)
def _recurrent(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    _one_input(operation, inputs)
    if operation.go_backwards and operation.return_sequences:
        raise Unsupported("a backward layer that returns sequences is not supported outside Bidirectional")
    return _recur(graph, operation, inputs[0], "reverse" if operation.go_backwards else "forward")


_MERGES: dict[str, Callable[[Graph, list[str]], str]] = {
    "concat": lambda graph, names: graph.node("Concat", names, axis=-1),
    "sum": lambda graph, names: graph.node("Add", names),
    "mul": lambda graph, names: graph.node("Mul", names),
    "ave": lambda graph, names: graph.node("Mean", names),
}


@layer("Bidirectional")
def _bidirectional(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    if operation.merge_mode not in _MERGES:
        raise Unsupported("Bidirectional without a merge is not supported")
    _one_input(operation, inputs)
    forward = _recur(graph, operation.forward_layer, inputs[0], "forward")
    backward = _recur(graph, operation.backward_layer, inputs[0], "reverse")
    name = _MERGES[operation.merge_mode](graph, [forward.name, backward.name])
    return Value(name, shape_after(operation, inputs))
