"""Keras's recurrent layers: as ONNX LSTM, GRU and RNN where those say the same, else as a Scan over steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgerun.converters._keras_elementwise import apply
from edgerun.converters._keras_graph import Graph, layer, shape_after, weight
from edgerun.converters._keras_scan import scan
from edgerun.converters._layout import Value
from edgerun.errors import Unsupported

# Keras's gate order, and where ONNX wants each: LSTM i f c o -> i o f c; GRU z r h stays.
_GATES: dict[str, tuple[str, tuple[int, ...]]] = {
    "LSTMCell": ("LSTM", (0, 3, 1, 2)),
    "GRUCell": ("GRU", (0, 1, 2)),
    "SimpleRNNCell": ("RNN", (0,)),
}
_ACTIVATIONS = {"tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu"}


def _gates(array: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """[…, gates·units] -> [gates·units, …] in ONNX's gate order."""
    parts = np.split(array, len(order), axis=-1)
    return np.concatenate([parts[gate] for gate in order], axis=-1).T


def _activations(cell: Any) -> list[str] | None:
    """The names that ONNX has for the cell's activations; None where it has none."""
    functions = [cell.activation]
    if type(cell).__name__ != "SimpleRNNCell":
        functions = [cell.recurrent_activation, cell.activation]
    if type(cell).__name__ == "LSTMCell":
        functions.append(cell.activation)
    names = [_ACTIVATIONS.get(getattr(function, "__name__", ""), "") for function in functions]
    return names if all(names) else None


def _known(cell: Any) -> bool:
    """Is this one of the cells that ONNX has an operator for?"""
    return type(cell).__module__.startswith("keras.") and type(cell).__name__ in _GATES and bool(_activations(cell))


def run(
    graph: Graph, operation: Any, value: Value, states: Sequence[Value], mask: Value | None, in_order: bool = False
) -> list[Value]:
    """What an RNN layer makes of [batch, steps, …]: its output, and the states at the end.

    A sequence comes in the order of the work, or where `in_order` in that of time.
    """
    if operation.stateful:
        raise Unsupported(f"{type(operation).__name__} is stateful: it keeps what it saw between calls")
    cell, backwards = operation.cell, bool(operation.go_backwards)
    cells = list(cell.cells) if type(cell).__name__ == "StackedRNNCells" else [cell]
    if mask is not None or not all(_known(one) for one in cells):
        return scan(graph, operation, value, states, mask, backwards and in_order)
    ends: list[Value] = []
    for index, one in enumerate(cells):
        count = 2 if type(one).__name__ == "LSTMCell" else 1
        begins = states[len(ends) : len(ends) + count]
        sequence = operation.return_sequences or index + 1 < len(cells)
        value, last = _fused(graph, one, value, begins, backwards, sequence)
        ends += last
    if backwards and not in_order and operation.return_sequences:
        words = (([-1], "starts"), ([-(2**62)], "ends"), ([1], "axes"), ([-1], "steps"))
        name = graph.node("Slice", [value.name, *(graph.ints(numbers, word) for numbers, word in words)])
        value = replace(value, name=name)
    return [value, *ends]


def _fused(
    graph: Graph, cell: Any, value: Value, begins: Sequence[Value], backwards: bool, sequence: bool
) -> tuple[Value, list[Value]]:
    """One LSTM, GRU or RNN, which wants time first: [steps, batch, features]. A sequence comes in the order of time."""
    name, order = _GATES[type(cell).__name__]
    extra: dict[str, Any] = {"hidden_size": cell.units, "direction": "reverse" if backwards else "forward"}
    extra["activations"] = _activations(cell)
    bias = np.zeros((2, len(order) * cell.units), np.float32)
    if cell.use_bias:
        own = weight(cell.bias)
        bias[: own.shape[0] if own.ndim == 2 else 1] = own  # GRU's reset_after keeps one bias for each product
    if name == "GRU":
        extra["linear_before_reset"] = int(cell.reset_after)
    inputs = [
        graph.node("Transpose", [graph.plain(graph.cast(value, "float32")).name], perm=[1, 0, 2]),
        graph.const(_gates(weight(cell.kernel), order)[None], "kernel"),
        graph.const(_gates(weight(cell.recurrent_kernel), order)[None], "recurrent_kernel"),
        graph.const(np.concatenate([_gates(row, order) for row in bias])[None], "bias"),
    ]
    if begins:
        axes = graph.ints([0], "axes")
        inputs += ["", *(graph.node("Unsqueeze", [graph.plain(state).name, axes]) for state in begins)]
    outputs = graph.several(name, inputs, 3 if name == "LSTM" else 2, **extra)
    ends = [_without(graph, end, 0, (value.shape[0], cell.units)) for end in outputs[1:]]
    if not sequence:
        return ends[0], ends
    every = graph.node("Squeeze", [outputs[0], graph.ints([1], "axes")])
    whole = Value(graph.node("Transpose", [every], perm=[1, 0, 2]), (*value.shape[:2], cell.units))
    return whole, ends


def _without(graph: Graph, name: str, axis: int, shape: tuple[int | None, ...]) -> Value:
    return Value(graph.node("Squeeze", [name, graph.ints([axis], "axes")]), shape)


def _flat(item: Any) -> list[Value]:
    if isinstance(item, (list, tuple)):
        return [value for part in item for value in _flat(part)]
    return [] if item is None else [item]


@layer("LSTM", "GRU", "SimpleRNN", "RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
def _recurrent(graph: Graph, operation: Any, inputs: list[Value]) -> list[Value]:
    told = graph.arguments
    mask = told.get("mask")
    mask = _flat(mask)[0] if mask is not None and _flat(mask) else None
    found = run(graph, operation, inputs[0], _flat(told.get("initial_state")), mask)
    return found if operation.return_state else found[:1]


_MERGES = {"sum": "Add", "mul": "Mul", "ave": "Mean"}


@layer("Bidirectional")
def _bidirectional(graph: Graph, operation: Any, inputs: list[Value]) -> list[Value]:
    told = graph.arguments
    mask = _flat(told.get("mask"))
    states = _flat(told.get("initial_state"))
    half = len(states) // 2
    ways = ((operation.forward_layer, states[:half]), (operation.backward_layer, states[half:]))
    both = [run(graph, one, inputs[0], begins, mask[0] if mask else None, in_order=True) for one, begins in ways]
    outputs = [found[0] for found in both]
    if operation.merge_mode == "concat":
        outputs = [graph.plain(value) for value in outputs]
        name = graph.node("Concat", [value.name for value in outputs], axis=outputs[0].rank - 1)
        size = sum(int(value.shape[-1] or 0) for value in outputs)
        outputs = [replace(outputs[0], name=name, shape=(*outputs[0].shape[:-1], size))]
    elif operation.merge_mode in _MERGES:
        outputs = [apply(graph, _MERGES[operation.merge_mode], *outputs)]
    ends = [state for found in both for state in found[1:]] if operation.return_state else []
    return outputs + ends


# Layers that work along the last axis, or on every element alone: steps need not be told apart.
_BY_ELEMENT = {"Dense", "Activation", "Dropout", "ReLU", "LeakyReLU", "ELU", "Rescaling", "Identity", "GaussianNoise"}


@layer("TimeDistributed")
def _time_distributed(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    """The inner layer on every step: steps become part of the batch, and go back."""
    value, inner = inputs[0], operation.layer
    if graph.arguments.get("mask") is not None and getattr(inner, "_call_has_mask_arg", False):
        raise Unsupported(f"TimeDistributed over {type(inner).__name__} with a mask is not supported")
    if type(inner).__name__ in _BY_ELEMENT:
        found: Value = graph.walk.layer(inner, value)[0]
        return found
    value, rest = graph.plain(value), inputs[0].shape[2:]
    if None in rest:
        raise Unsupported("TimeDistributed over steps of unknown size is not supported: fix it with --input")
    name = graph.node("Reshape", [value.name, graph.ints([-1, *(int(size or 0) for size in rest)], "steps")])
    found = graph.plain(graph.walk.layer(inner, Value(name, (None, *rest), value.dtype))[0])
    after = [int(size or 0) for size in found.shape[1:]]
    if value.shape[1] is not None:
        target = graph.ints([-1, value.shape[1], *after], "shape")
    else:
        sizes = graph.node("Gather", [graph.node("Shape", [value.name]), graph.ints([0, 1], "axes")], axis=0)
        target = graph.node("Concat", [sizes, graph.ints(after, "shape")], axis=0)
    shape = shape_after(operation, inputs)
    return replace(found, name=graph.node("Reshape", [found.name, target]), shape=shape)
