"""Keras's pooling layers and operations: windows, whole pictures, and windows that adapt to the output's size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgerun.converters._keras_elementwise import apply
from edgerun.converters._keras_graph import Graph, layer, op, shape_after
from edgerun.converters._keras_reductions import reduce
from edgerun.converters._keras_walk import spec_after
from edgerun.converters._keras_windows import every, last, padding_of, result, window
from edgerun.converters._layout import Shape, Value
from edgerun.errors import Unsupported


@layer(*(f"{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)))
def _pool_layer(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    return _pool(graph, operation, inputs[0], shape_after(operation, inputs))


@op("MaxPool", "AveragePool")
def _pool_op(graph: Graph, operation: Any, inputs: Value) -> Value:
    return _pool(graph, operation, inputs, spec_after(operation, [inputs], {})[0].shape)


def _pool(graph: Graph, operation: Any, value: Value, shape: Shape) -> Value:
    value = window(operation, graph, value)
    kernel = every(operation.pool_size, value.rank - 2)
    strides = kernel if operation.strides is None else every(operation.strides, value.rank - 2)
    pads: dict[str, Any] = padding_of(operation.padding, value.spatial, kernel, strides, [1] * len(kernel))
    name = "MaxPool" if type(operation).__name__.startswith("Max") else "AveragePool"
    ends = pads.get("pads", [0, 1])
    if name == "AveragePool" and ends[: len(ends) // 2] != ends[len(ends) // 2 :]:
        value, pads = _uneven(graph, value, pads)
    if name == "MaxPool" and value.padded is not None and "pads" in pads:
        below, more = value.padded
        if below.positive and max(more) < min(kernel):  # beside a positive neighbour, zeros never are the maximum
            value, pads = below, {"pads": [a + b for a, b in zip(pads["pads"], more, strict=True)]}
    made = graph.node(name, [value.name], kernel_shape=kernel, strides=strides, **pads)
    return replace(result(operation, made, shape), positive=value.positive)


def _uneven(graph: Graph, value: Value, pads: dict[str, Any]) -> tuple[Value, dict[str, Any]]:
    """An average over uneven "same" padding: Keras on torch repeats the border, on others counts only the picture."""
    if not graph.backend:
        raise Unsupported(
            "AveragePooling whose 'same' padding is uneven is not supported: Keras's backends disagree; "
            "set KERAS_BACKEND to that which the model was trained on"
        )
    if graph.backend != "torch":
        return value, pads
    if "pads" not in pads:
        raise Unsupported("AveragePooling with 'same' padding of an unknown size is not supported")
    axes = len(pads["pads"]) // 2
    full = [0, 0, *pads["pads"][:axes], 0, 0, *pads["pads"][axes:]]
    name = graph.node("Pad", [value.name, graph.ints(full, "pads")], mode="edge")
    return replace(value, name=name, padded=None), {"pads": [0] * 2 * axes}


@layer(*(f"Global{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)))
def _global_pool(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    if (mask := graph.arguments.get("mask")) is not None and "Average" in type(operation).__name__:
        return _masked_mean(graph, operation, inputs[0], mask)
    value = window(operation, graph, inputs[0])
    name = "GlobalMaxPool" if "Max" in type(operation).__name__ else "GlobalAveragePool"
    made = graph.node(name, [value.name])
    if operation.keepdims:
        return result(operation, made, shape_after(operation, inputs))
    return Value(graph.node("Flatten", [made], axis=1), shape_after(operation, inputs), positive=value.positive)


def _masked_mean(graph: Graph, operation: Any, value: Value, mask: Value) -> Value:
    """The mean over the steps that the mask keeps."""
    axis = 1 if operation.data_format == "channels_last" else 2
    row = graph.node("Unsqueeze", [graph.plain(mask).name, graph.ints([3 - axis], "axes")])
    batch, steps = mask.shape
    held = Value(row, (batch, steps, 1) if axis == 1 else (batch, 1, steps), mask.dtype)
    shares = graph.cast(held, "float32")
    kept = apply(graph, "Mul", graph.plain(value), shares)
    sums = [reduce(graph, "ReduceSum", v, [axis], operation.keepdims) for v in (kept, shares)]
    return apply(graph, "Div", *sums)


@layer(*(f"Adaptive{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)))
def _adaptive_layer(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    return _adaptive(graph, operation, inputs[0])


@op("AdaptiveMaxPool", "AdaptiveAveragePool")
def _adaptive_op(graph: Graph, operation: Any, inputs: Value) -> Value:
    return _adaptive(graph, operation, inputs)


def _adaptive(graph: Graph, operation: Any, value: Value) -> Value:
    """Output i of m over n elements covers ⌊i·n/m⌋ … ⌈(i + 1)·n/m⌉ of them.

    One pooling where m divides n; else axis by axis a product with a matrix of shares, or the windows one by one.
    """
    value = window(operation, graph, value)
    wanted = every(operation.output_size, value.rank - 2)
    if None in value.spatial:
        raise Unsupported("adaptive pooling of an unknown size is not supported: fix it with --input")
    sizes = [int(size or 0) for size in value.spatial]
    largest = "Max" in type(operation).__name__
    ends = (value.shape[0], value.shape[-1])
    shape = (ends[0], *wanted, ends[1]) if last(operation) else (*ends, *wanted)
    if all(n % m == 0 for n, m in zip(sizes, wanted, strict=True)):
        kernel = [n // m for n, m in zip(sizes, wanted, strict=True)]
        made = graph.node("MaxPool" if largest else "AveragePool", [value.name], kernel_shape=kernel, strides=kernel)
        return result(operation, made, shape)
    name = value.name
    for axis, (n, m) in enumerate(zip(sizes, wanted, strict=True)):
        if n != m:
            edges = [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
            name = (_largest if largest else _shares)(graph, name, axis + 2, value.rank, n, edges)
    return result(operation, name, shape)


def _shares(graph: Graph, name: str, axis: int, rank: int, n: int, edges: list[tuple[int, int]]) -> str:
    matrix = np.zeros((n, len(edges)), np.float32)
    for column, (start, end) in enumerate(edges):
        matrix[start:end, column] = 1 / (end - start)
    letters = "abcde"[:rank]
    out = letters.replace(letters[axis], "z")
    if axis == rank - 1:
        return graph.node("MatMul", [name, graph.const(matrix, "shares")])
    equation = f"{letters},{letters[axis]}z->{out}"
    return graph.node("Einsum", [name, graph.const(matrix, "shares")], equation=equation)


def _largest(graph: Graph, name: str, axis: int, rank: int, n: int, edges: list[tuple[int, int]]) -> str:
    from edgerun.converters._keras_shapes import cut

    parts = []
    for start, end in edges:
        part = cut(graph, name, axis, start, end)
        shape: Shape = (None,) * rank
        parts.append(reduce(graph, "ReduceMax", Value(part, shape), [axis], True).name)
    return graph.node("Concat", parts, axis=axis)
