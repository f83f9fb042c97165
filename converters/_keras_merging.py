"""Keras layers that merge several values, or move their elements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgerun.converters._keras_graph import Graph, layer, shape_after
from edgerun.converters._keras_layers import unit
from edgerun.converters._layout import Value, alike, flat_order

_MERGES = {
    "Add": "Sum", "Subtract": "Sub", "Multiply": "Mul", "Average": "Mean", "Maximum": "Max",
    "Minimum": "Min",
}  # fmt: skip


@layer(*_MERGES)
def _merge(graph: Graph, operation: Any, inputs: list[Value]) -> Any:
    """Elementwise over several values, which are first brought to lie the same way."""
    kind = type(operation).__name__
    if kind in ("Multiply", "Maximum", "Minimum") and any(value.mask is not None for value in inputs):
        return graph.walk.trace(operation.call, inputs)  # masked elements do not count
    rank = max(value.rank for value in inputs)
    if any(value.rank != rank for value in inputs):
        inputs = [_raised(graph, value, rank) for value in inputs]
    inputs = [graph.cast(value, "float32") for value in alike(graph, inputs)]
    op = _MERGES[kind]
    shape = shape_after(operation, inputs)
    if kind == "Add" and len(inputs) == 2:
        op = "Add"
    names = [value.name for value in inputs]
    if op == "Mul":
        name = names[0]
        for other in names[1:]:
            name = graph.node(op, [name, other])
    else:
        name = graph.node(op, names)
    return replace(inputs[0], name=name, shape=shape, padded=None, positive=False)


def _raised(graph: Graph, value: Value, rank: int) -> Value:
    """Axes of one element behind the batch, until there are `rank` axes."""
    value, more = graph.plain(value), rank - value.rank
    if not more:
        return value
    name = graph.node("Unsqueeze", [value.name, graph.ints(range(1, 1 + more), "axes")])
    return replace(value, name=name, shape=(value.shape[0], *[1] * more, *value.shape[1:]))


@layer("Concatenate")
def _concatenate(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    shape = shape_after(operation, inputs)
    axis = operation.axis % len(shape)
    inputs = alike(graph, inputs) if len(shape) > 2 else [graph.plain(value) for value in inputs]
    if inputs[0].first:
        axis = 1 if axis == len(shape) - 1 else axis + (axis > 0)
    name = graph.node("Concat", [value.name for value in inputs], axis=axis)
    return replace(inputs[0], name=name, shape=shape, padded=None, positive=False)


@layer("Dot")
def _dot(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    """The product over one axis of each, batch by batch, of which "normalize" makes the cosine."""
    a, b = (graph.plain(value) for value in inputs)
    told = operation.axes
    axes = [told, told] if isinstance(told, int) else list(told)
    axes = [axis % value.rank for axis, value in zip(axes, (a, b), strict=True)]
    if operation.normalize:
        a, b = (unit(graph, value, [axis], 1e-7**2) for value, axis in zip((a, b), axes, strict=True))
    left, right = "abcdefgh"[: a.rank], "a" + "ijklmnop"[: b.rank - 1]
    right = right[: axes[1]] + left[axes[0]] + right[axes[1] + 1 :]
    out = "".join(letter for letter in left + right[1:] if letter != left[axes[0]])
    if len(out) == 1:
        product = graph.node("Mul", [a.name, b.name])
        return Value(graph.node("ReduceSum", [product, graph.ints([1], "axes")], keepdims=1), (a.shape[0], 1))
    name = graph.node("Einsum", [a.name, b.name], equation=f"{left},{right}->{out}")
    return Value(name, shape_after(operation, inputs))


@layer("Flatten")
def _flatten(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    """Channels-first pictures are flattened as they lie; `order` tells the next layer."""
    value = inputs[0]
    shape = shape_after(operation, inputs)
    if value.rank == 2:
        return value
    if operation.data_format == "channels_first" and value.rank > 2:
        value = replace(graph.plain(value), shape=(value.shape[0], *value.shape[2:], value.shape[1]), first=True)
    name = graph.node("Flatten", [value.name], axis=1)
    moved = value.first and any(size != 1 for size in value.spatial)
    if moved and any(size is None for size in value.shape[1:]):
        return Value(graph.node("Flatten", [graph.plain(value).name], axis=1), shape, value.dtype)
    return Value(name, shape, value.dtype, order=flat_order(value.shape[1:]) if moved else None)


@layer("Reshape")
def _reshape(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = graph.plain(inputs[0])
    target = [-1 if size is None else int(size) for size in operation.target_shape]
    name = graph.node("Reshape", [value.name, graph.ints([0, *target], "shape")])
    return Value(name, shape_after(operation, inputs), value.dtype)


@layer("Permute")
def _permute(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = graph.plain(inputs[0])
    name = graph.node("Transpose", [value.name], perm=[0, *operation.dims])
    return Value(name, shape_after(operation, inputs), value.dtype)


@layer("RepeatVector")
def _repeat(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = graph.plain(inputs[0])
    row = graph.node("Unsqueeze", [value.name, graph.ints([1], "axes")])
    name = graph.node("Expand", [row, graph.ints([1, operation.n, 1], "shape")])
    return Value(name, shape_after(operation, inputs), value.dtype)
