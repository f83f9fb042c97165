"""Keras layers without a window: dense, normalization, merging, reshaping, embedding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgerun.converters._keras_activations import activate
from edgerun.converters._keras_graph import layer, shape_after, weight
from edgerun.converters._layout import Graph, Value, flat_order
from edgerun.errors import Unsupported


@layer(
    "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianDropout", "GaussianNoise",
    "AlphaDropout", "ActivityRegularization", "Identity", "RandomFlip", "RandomRotation", "RandomZoom",
    "RandomTranslation", "RandomContrast", "RandomBrightness",
)  # fmt: skip
def _nothing(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    """Layers that work in training only."""
    return inputs[0]


@layer("Dense")
def _dense(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    """y = x·W + b. Behind a flattened picture the rows of W move instead of the picture."""
    value, kernel = inputs[0], weight(operation.kernel)
    bias = weight(operation.bias) if operation.use_bias else None
    shape = (*value.shape[:-1], kernel.shape[1])
    if value.rank == 2:
        kernel = kernel if value.order is None else kernel[value.order]
        names = [graph.const(kernel, "kernel"), *([] if bias is None else [graph.const(bias, "bias")])]
        result = Value(graph.node("Gemm", [value.name, *names]), shape)
    elif value.first:  # a 1×1 convolution
        kernel = kernel.T.reshape(*kernel.T.shape, *[1] * (value.rank - 2))
        names = [graph.const(kernel, "kernel"), *([] if bias is None else [graph.const(bias, "bias")])]
        result = Value(graph.node("Conv", [value.name, *names]), shape, first=True)
    else:
        name = graph.node("MatMul", [value.name, graph.const(kernel, "kernel")])
        result = Value(name if bias is None else graph.node("Add", [name, graph.const(bias, "bias")]), shape)
    return activate(graph, operation.activation, result)


@layer("BatchNormalization")
def _batch_norm(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = inputs[0]
    mean, variance = weight(operation.moving_mean), weight(operation.moving_variance)
    scale = weight(operation.gamma) if operation.gamma is not None else np.ones_like(mean)
    shift = weight(operation.beta) if operation.beta is not None else np.zeros_like(mean)
    axis = operation.axis % value.rank
    if axis == value.rank - 1:
        value = graph.first(value) if value.rank > 2 else value
    elif axis == 1:
        value = graph.plain(value)
    else:
        raise Unsupported(f"BatchNormalization over axis {operation.axis} is not supported")
    parts = {"scale": scale, "shift": shift, "mean": mean, "variance": variance}
    order = slice(None) if value.order is None else value.order
    names = [graph.const(array[order], word) for word, array in parts.items()]
    return graph.like(value, "BatchNormalization", *names, epsilon=float(operation.epsilon))


@layer("LayerNormalization")
def _layer_norm(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = graph.plain(inputs[0])
    axes = sorted(a % value.rank for a in np.atleast_1d(operation.axis).tolist())
    if axes != list(range(axes[0], value.rank)) or getattr(operation, "rms_scaling", False):
        raise Unsupported("LayerNormalization over other than the last axes is not supported")
    sizes = tuple(int(value.shape[axis] or 0) for axis in axes)
    scale = weight(operation.gamma) if operation.gamma is not None else np.ones(sizes, np.float32)
    names = [graph.const(scale, "scale")]
    if operation.beta is not None:
        names.append(graph.const(weight(operation.beta), "shift"))
    return graph.like(value, "LayerNormalization", *names, axis=axes[0], epsilon=float(operation.epsilon))


@layer("Rescaling")
def _rescaling(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = _as_float(graph, inputs[0])
    scale, offset = np.asarray(operation.scale, np.float32), np.asarray(operation.offset, np.float32)
    value = graph.like(value, "Mul", graph.spread(scale, value, "scale"))
    return graph.like(value, "Add", graph.spread(offset, value, "offset")) if offset.any() else value


@layer("Normalization")
def _normalization(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    if getattr(operation, "invert", False):
        raise Unsupported("an inverted Normalization is not supported")
    value = _as_float(graph, inputs[0])
    mean, variance = weight(operation.mean), weight(operation.variance)
    value = graph.plain(value) if mean.ndim not in (0, value.rank) else value
    deviation = np.maximum(np.sqrt(variance), 1e-7)  # Keras's epsilon
    mean, deviation = (a[0] if a.ndim == value.rank else a for a in (mean, deviation))
    value = graph.like(value, "Sub", graph.spread(mean, value, "mean"))
    return graph.like(value, "Div", graph.spread(deviation, value, "deviation"))


def _as_float(graph: Graph, value: Value) -> Value:
    return value if value.dtype == "float32" else replace(graph.like(value, "Cast", to=1), dtype="float32")


_MERGES = {
    "Add": ("Sum",), "Subtract": ("Sub",), "Multiply": ("Mul",), "Average": ("Mean",), "Maximum": ("Max",),
    "Minimum": ("Min",),
}  # fmt: skip


@layer(*_MERGES)
def _merge(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    """Elementwise over several values, which are first brought to lie the same way."""
    if len({value.rank for value in inputs}) > 1:
        raise Unsupported("merging values of different rank is not supported")
    inputs = _alike(graph, inputs)
    op, kind = _MERGES[type(operation).__name__][0], type(operation).__name__
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


def _alike(graph: Graph, inputs: list[Value]) -> list[Value]:
    if any(value.first for value in inputs):
        return [graph.first(value) for value in inputs]
    orders = [value.order for value in inputs if value.order is not None]
    same = len(orders) == len(inputs) and all(np.array_equal(order, orders[0]) for order in orders)
    return inputs if same else [graph.plain(value) for value in inputs]


@layer("ops.Add", "ops.Subtract", "ops.Multiply", "ops.TrueDivide", "ops.Divide")
def _arithmetic(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    """`x + y` between layers, where one side may be a number."""
    tensors = [value for value in inputs if value.rank]
    if len({value.rank for value in tensors}) > 1 or any(value.dtype != "float32" for value in tensors):
        raise Unsupported("arithmetic on values of different rank or on integers is not supported")
    alike = iter(_alike(graph, tensors))
    sides = [next(alike) if value.rank else value for value in inputs]
    op = {"Add": "Add", "Subtract": "Sub", "Multiply": "Mul"}.get(type(operation).__name__, "Div")
    shape = tensors[0].shape if len(tensors) == 1 else np.broadcast_shapes(*_known(tensors))
    like = next(value for value in sides if value.rank)
    sizes = tuple(None if size == 0 else size for size in shape)
    return replace(like, name=graph.node(op, [v.name for v in sides]), shape=sizes, padded=None, positive=False)


def _known(values: list[Value]) -> list[tuple[int, ...]]:
    """Shapes with 0 for unknown sizes, which all values must have in the same places."""
    if len({tuple(size is None for size in value.shape) for value in values}) > 1:
        raise Unsupported("arithmetic that spreads over an unknown size is not supported")
    return [tuple(size or 0 for size in value.shape) for value in values]


@layer("Concatenate")
def _concatenate(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    shape = shape_after(operation, inputs)
    axis = operation.axis % len(shape)
    inputs = _alike(graph, inputs) if len(shape) > 2 else [graph.plain(value) for value in inputs]
    if inputs[0].first:
        axis = 1 if axis == len(shape) - 1 else axis + (axis > 0)
    name = graph.node("Concat", [value.name for value in inputs], axis=axis)
    return replace(inputs[0], name=name, shape=shape, padded=None, positive=False)


@layer("Dot")
def _dot(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    axes = np.atleast_1d(operation.axes).tolist()
    if any(value.rank != 2 for value in inputs) or any(a not in (1, -1) for a in axes) or operation.normalize:
        raise Unsupported("Dot of other than two rank-2 values over axis 1 is not supported")
    left, right = (graph.plain(value) for value in inputs)
    product = graph.node("Mul", [left.name, right.name])
    name = graph.node("ReduceSum", [product, graph.ints([1], "axes")], keepdims=1)
    return Value(name, (left.shape[0], 1))


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


@layer("Embedding")
def _embedding(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    if operation.mask_zero:
        raise Unsupported("Embedding with mask_zero is not supported: masks are not followed")
    value = graph.plain(inputs[0])
    whole = value.dtype in ("int32", "int64")
    index = value.name if whole else graph.node("Cast", [value.name], to=6)  # int32, as Keras does
    table = graph.const(weight(operation.embeddings), "table")
    return Value(graph.node("Gather", [table, index], axis=0), shape_after(operation, inputs))
