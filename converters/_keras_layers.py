"""Keras layers with weights and no window: dense, embedding, normalization; and those that work in training only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgerun.converters._keras_activations import activate
from edgerun.converters._keras_elementwise import apply
from edgerun.converters._keras_graph import Graph, layer, op, shape_after, weight
from edgerun.converters._keras_reductions import axes_of, contract, moments, reduce
from edgerun.converters._layout import Value
from edgerun.errors import Unsupported


@layer(
    "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianDropout", "GaussianNoise",
    "AlphaDropout", "ActivityRegularization", "Identity",
)  # fmt: skip
def _nothing(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    """Layers that work in training only."""
    return inputs[0]


@layer("SpectralNormalization")
def _wrapped(graph: Graph, operation: Any, inputs: list[Value]) -> Any:
    """Training normalizes the layer's kernel in place: what stands in it is what counts."""
    return graph.walk.layer(operation.layer, *inputs)


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


@layer("EinsumDense")
def _einsum_dense(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    """einsum(x, W) + b; where W's first axes are x's last ones, which are summed, one product of matrices."""
    value, kernel = graph.plain(inputs[0]), weight(operation.kernel)
    left, _, out = operation.equation.replace(" ", "").partition("->")
    terms, shape = left.split(","), shape_after(operation, inputs)
    terms = [term.replace("...", "") for term in terms]
    summed = [letter for letter in terms[1] if letter not in out]
    fresh = [letter for letter in terms[1] if letter in out]
    kept = terms[0][: len(terms[0]) - len(summed)]
    in_order = terms[1] == "".join(summed + fresh) and terms[0] == kept + "".join(summed)
    if in_order and summed and out.replace("...", "") == kept + "".join(fresh):
        rows = int(np.prod(kernel.shape[: len(summed)]))
        name = value.name
        if len(summed) > 1:
            name = _joined(graph, value, value.rank - len(summed), (rows,))
        name = graph.node("MatMul", [name, graph.const(kernel.reshape(rows, -1), "kernel")])
        made: Value = Value(name, (*value.shape[: value.rank - len(summed)], kernel.size // rows))
        bias = None if operation.bias is None else np.broadcast_to(weight(operation.bias), kernel.shape[len(summed) :])
        if bias is not None:
            made = apply(graph, "Add", made, np.ascontiguousarray(bias).reshape(-1))
        if len(fresh) != 1:
            made = replace(made, name=_joined(graph, made, made.rank - 1, kernel.shape[len(summed) :]), shape=shape)
        return activate(graph, operation.activation, made)
    found = contract(graph, operation.equation, [value, graph.value(operation.kernel)])
    made = Value(str(found), shape)
    return activate(
        graph, operation.activation, made if operation.bias is None else apply(graph, "Add", made, operation.bias)
    )


def _joined(graph: Graph, value: Value, front: int, sizes: tuple[int, ...]) -> str:
    """The value with the axes from `front` on taking these sizes."""
    before = [0 if size is None else size for size in value.shape[:front]]
    return graph.node("Reshape", [value.name, graph.ints([*before, *sizes], "shape")])


@layer("BatchNormalization")
def _batch_norm(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = inputs[0]
    mean, variance = weight(operation.moving_mean), weight(operation.moving_variance)
    scale = weight(operation.gamma) if operation.gamma is not None else np.ones_like(mean)
    shift = weight(operation.beta) if operation.beta is not None else np.zeros_like(mean)
    return _normalized(graph, value, operation.axis, (scale, shift, mean, variance), float(operation.epsilon))


@op("BatchNorm")
def _batch_norm_op(
    graph: Graph, operation: Any, x: Value, mean: Any, variance: Any, offset: Any = None, scale: Any = None
) -> Value:
    told = [mean, variance, offset, scale]
    if any(isinstance(item, Value) for item in told):
        raise Unsupported("keras.ops: batch_normalization with computed statistics is not supported")
    mean, variance, offset, scale = (None if item is None else weight(item) for item in told)
    scale = np.ones_like(mean) if scale is None else scale
    parts = (scale, np.zeros_like(mean) if offset is None else offset, mean, variance)
    return _normalized(graph, x, operation.axis, parts, float(operation.epsilon))


def _normalized(graph: Graph, value: Value, axis: int, parts: tuple[np.ndarray, ...], epsilon: float) -> Value:
    """One BatchNormalization where the axis is the last or the second one, else x·m + b."""
    axis %= value.rank
    if axis not in (1, value.rank - 1):
        scale, shift, mean, variance = parts
        column = [-1 if a == axis else 1 for a in range(value.rank)]
        factor = scale / np.sqrt(variance + np.float32(epsilon))
        found = apply(graph, "Mul", value, factor.reshape(column))
        return apply(graph, "Add", found, (shift - mean * factor).reshape(column))
    if axis == value.rank - 1:
        value = graph.first(value) if value.rank > 2 else value
    else:
        value = graph.plain(value)
    words = ("scale", "shift", "mean", "variance")
    order = slice(None) if value.order is None else value.order
    names = [graph.const(array[order], word) for array, word in zip(parts, words, strict=True)]
    return graph.like(value, "BatchNormalization", *names, epsilon=epsilon)


@layer("LayerNormalization")
def _layer_norm(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    if getattr(operation, "rms_scaling", False):
        value = inputs[0]
        axes = axes_of(operation.axis, value.rank)
        deviation = apply(graph, "Sqrt", apply(graph, "Add", moments(graph, value, axes, True)[1], operation.epsilon))
        return apply(graph, "Mul", apply(graph, "Div", value, deviation), _along(operation.gamma, axes, value.rank))
    return _over_axes(graph, inputs[0], operation.axis, operation.gamma, operation.beta, float(operation.epsilon))


@op("LayerNorm")
def _layer_norm_op(graph: Graph, operation: Any, x: Value, gamma: Any = None, beta: Any = None) -> Value:
    if operation.rms_scaling or any(isinstance(item, Value) for item in (gamma, beta)):
        raise Unsupported("keras.ops: layer_normalization with rms_scaling or computed weights is not supported")
    return _over_axes(graph, x, operation.axis, gamma, beta, float(operation.epsilon or 1e-7))


def _over_axes(graph: Graph, value: Value, axis: Any, gamma: Any, beta: Any, epsilon: float) -> Value:
    """LayerNormalization where the axes are the last ones, else by its formula."""
    axes = axes_of(axis, value.rank)
    if axes != list(range(axes[0], value.rank)):
        mean, variance = moments(graph, value, axes, True)
        deviation = apply(graph, "Sqrt", apply(graph, "Add", variance, epsilon))
        found = apply(graph, "Div", apply(graph, "Sub", value, mean), deviation)
        found = found if gamma is None else apply(graph, "Mul", found, _along(gamma, axes, value.rank))
        return found if beta is None else apply(graph, "Add", found, _along(beta, axes, value.rank))
    value = graph.plain(value)
    sizes = tuple(int(value.shape[axis] or 0) for axis in axes)
    scale = weight(gamma) if gamma is not None else np.ones(sizes, np.float32)
    names = [graph.const(scale, "scale")]
    if beta is not None:
        names.append(graph.const(weight(beta), "shift"))
    return graph.like(value, "LayerNormalization", *names, axis=axes[0], epsilon=epsilon)


def _along(variable: Any, axes: list[int], rank: int) -> np.ndarray:
    """A weight with one axis per normalized axis, in Keras's rank."""
    array = weight(variable)
    return array.reshape([array.shape[axes.index(a)] if a in axes else 1 for a in range(rank)])


@layer("RMSNormalization")
def _rms_norm(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    return _rms(graph, inputs[0], operation.axis, operation.scale, operation.epsilon)


@op("RMSNorm")
def _rms_norm_op(graph: Graph, operation: Any, x: Value, scale: Any = None) -> Value:
    return _rms(graph, x, operation.axis, scale, operation.epsilon)


def _rms(graph: Graph, value: Value, axis: Any, scale: Any, epsilon: Any) -> Value:
    """x / √(E[x²] + ε) · scale (Zhang and Sennrich 2019); one operator from opset 23 on, over last axes."""
    axes, epsilon = axes_of(axis, value.rank), float(np.finfo(np.float32).eps if epsilon is None else epsilon)
    last = axes == list(range(axes[0], value.rank))
    if graph.opset >= 23 and last and scale is not None and not isinstance(scale, Value):
        value = graph.plain(value)
        factor = graph.const(weight(scale), "scale")
        return graph.like(value, "RMSNormalization", factor, axis=axes[0], epsilon=epsilon)
    square = reduce(graph, "ReduceMean", apply(graph, "Mul", value, value), axes, True)
    found = apply(graph, "Div", value, apply(graph, "Sqrt", apply(graph, "Add", square, epsilon)))
    if scale is None:
        return found
    if isinstance(scale, Value):
        return apply(graph, "Mul", found, scale)
    array = weight(scale)
    return apply(graph, "Mul", found, _along(scale, axes, value.rank) if array.ndim == len(axes) else array)


@layer("UnitNormalization")
def _unit_norm(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    return unit(graph, inputs[0], axes_of(operation.axis, inputs[0].rank), 1e-12)


@op("Normalize")
def _normalize(graph: Graph, operation: Any, x: Value) -> Value:
    if operation.order != 2:
        raise Unsupported(f"keras.ops: normalize of order {operation.order} is not supported")
    epsilon = operation.epsilon
    return unit(graph, x, axes_of(operation.axis, x.rank), 1e-7**2 if epsilon is None else float(epsilon) ** 2)


def unit(graph: Graph, value: Value, axes: list[int], least: float) -> Value:
    """x / √max(Σ x², least)"""
    square = reduce(graph, "ReduceSum", apply(graph, "Mul", value, value), axes, True)
    return apply(graph, "Div", value, apply(graph, "Sqrt", apply(graph, "Max", square, least)))


@layer("GroupNormalization")
def _group_norm(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    """Over the axes but the batch and the groups: channels first, [N, G, -1] by InstanceNormalization, then back."""
    value, axis = inputs[0], operation.axis % inputs[0].rank
    if axis not in (1, value.rank - 1):
        raise Unsupported(f"GroupNormalization over axis {operation.axis} is not supported")
    last = axis == value.rank - 1 and value.rank > 2
    value = graph.first(value) if last else graph.plain(value)
    channels, groups = int(value.shape[axis] or 0), operation.groups
    if graph.opset >= 21:
        scale = np.ones(channels, np.float32) if operation.gamma is None else weight(operation.gamma)
        shift = np.zeros(channels, np.float32) if operation.beta is None else weight(operation.beta)
        names = [graph.const(scale, "scale"), graph.const(shift, "shift")]
        return graph.like(value, "GroupNormalization", *names, num_groups=groups, epsilon=float(operation.epsilon))
    flat = graph.node("Reshape", [value.name, graph.ints([0, groups, -1], "groups")])
    ones = [graph.const(np.full(groups, number, np.float32), "unit") for number in (1, 0)]
    made = graph.node("InstanceNormalization", [flat, *ones], epsilon=float(operation.epsilon))
    found = replace(value, name=graph.node("Reshape", [made, graph.node("Shape", [value.name])]), padded=None)
    column = (-1,) if last or value.rank == 2 else (-1, *[1] * (value.rank - 2))
    for name, variable in (("Mul", operation.gamma), ("Add", operation.beta)):
        found = found if variable is None else apply(graph, name, found, weight(variable).reshape(column))
    return found


@layer("Embedding")
def _embedding(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    return _looked_up(graph, operation, inputs[0], shape_after(operation, inputs))


def _looked_up(graph: Graph, operation: Any, value: Value, shape: tuple[int | None, ...]) -> Value:
    value = graph.plain(value)
    whole = value.dtype in ("int32", "int64")
    index = value.name if whole else graph.node("Cast", [value.name], to=6)  # int32, as Keras does
    table = weight(operation.embeddings)
    if getattr(operation, "lora_enabled", False):
        table = table + operation.lora_alpha / operation.lora_rank * (
            weight(operation.lora_embeddings_a) @ weight(operation.lora_embeddings_b)
        )
    return Value(graph.node("Gather", [graph.const(table, "table"), index], axis=0), shape)


@layer("ReversibleEmbedding")
def _reversible(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    """A table of rows, or the product with it turned over."""
    value = inputs[0]
    if not graph.arguments.get("reverse"):
        shape = tuple(operation.compute_output_shape(value.shape))
        found = _looked_up(graph, operation, value, shape)
        if operation.mask_zero:
            found = replace(found, mask=apply(graph, "Not", apply(graph, "Equal", graph.plain(value), 0)))
        return found
    table = weight(operation.embeddings).T if operation.tie_weights else weight(operation.reverse_embeddings)
    name = graph.node("MatMul", [graph.plain(value).name, graph.const(table, "table")])
    found, cap = Value(name, (*value.shape[:-1], table.shape[1])), operation.logit_soft_cap
    if cap is None:
        return found
    return apply(graph, "Mul", apply(graph, "Tanh", apply(graph, "Div", found, float(cap))), float(cap))
