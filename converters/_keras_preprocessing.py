"""Keras's layers and operations for categories, numbers as they come, and sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgerun.converters._keras_elementwise import apply
from edgerun.converters._keras_graph import Graph, layer, op, weight
from edgerun.converters._keras_reductions import count_below, reduce
from edgerun.converters._keras_shapes import reshape
from edgerun.converters._keras_walk import spec_after
from edgerun.converters._layout import Value
from edgerun.errors import Unsupported

_LARGEST_TABLE = 1 << 22  # entries of a table by which whole numbers are looked up


@layer("Rescaling")
def _rescaling(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = graph.cast(inputs[0], "float32")
    scale, offset = np.asarray(operation.scale, np.float32), np.asarray(operation.offset, np.float32)
    value = apply(graph, "Mul", value, scale)
    return apply(graph, "Add", value, offset) if offset.any() else value


@layer("Normalization")
def _normalization(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    """(x - mean) / max(σ, 1e-7), or what undoes it."""
    value = graph.cast(inputs[0], "float32")
    mean, deviation = weight(operation.mean), np.maximum(np.sqrt(weight(operation.variance)), 1e-7)
    if mean.size in (1, value.shape[-1]) and all(size == 1 for size in mean.shape[:-1]):
        mean, deviation = mean.reshape(-1), deviation.reshape(-1)  # one number per channel, whatever way they lie
    if operation.invert:
        return apply(graph, "Add", apply(graph, "Mul", value, deviation), mean)
    return apply(graph, "Div", apply(graph, "Sub", value, mean), deviation)


def one_hot(graph: Graph, value: Value, depth: int, dtype: str) -> Value:
    """[…] -> […, depth]: 1 where the place is the number; what is outside of 0 … depth - 1 has no 1."""
    value = graph.cast(graph.plain(value), "int64")
    row = Value(graph.node("Unsqueeze", [value.name, graph.ints([value.rank], "axes")]), (*value.shape, 1), "int64")
    return graph.cast(apply(graph, "Equal", row, np.arange(depth)), dtype)


@op("OneHot")
def _one_hot(graph: Graph, operation: Any, x: Value) -> Any:
    found = one_hot(graph, x, operation.num_classes, operation.dtype or "float32")
    axis = operation.axis % found.rank
    if axis == found.rank - 1:
        return found
    order = list(range(found.rank - 1))
    order.insert(axis, found.rank - 1)
    return graph.node("Transpose", [found.name], perm=order)


@op("MultiHot")
def _multi_hot(graph: Graph, operation: Any, inputs: Value) -> Value:
    if operation.axis not in (-1, inputs.rank - 1):
        raise Unsupported("keras.ops: multi_hot along another axis than the last is not supported")
    found = one_hot(graph, inputs, operation.num_classes, operation.dtype or "float32")
    return reduce(graph, "ReduceMax", found, [max(found.rank - 2, 0)], False) if inputs.rank > 1 else found


def encoded(graph: Graph, places: Value, mode: str, depth: int, weights: Any = None) -> Value:
    """Category numbers as they are, as one-hot rows, or as one row per sample: which occurred, or how often."""
    if mode == "int":
        return places
    if mode == "one_hot":
        if places.rank > 1 and places.shape[-1] == 1:
            shape = places.shape[:-1]
            places = Value(reshape(graph, places, shape), shape, places.dtype)
        return one_hot(graph, places, depth, "float32")
    found, axis = one_hot(graph, places, depth, "float32"), 1 if places.rank > 1 else 0
    if mode == "multi_hot":
        return reduce(graph, "ReduceMax", found, [places.rank - 1], False)
    if weights is not None:
        factor = Value(reshape(graph, weights, (*weights.shape, 1)), (*weights.shape, 1), weights.dtype)
        found = apply(graph, "Mul", found, factor)
    return reduce(graph, "ReduceSum", found, [axis], False)


@layer("CategoryEncoding")
def _categories(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    weights = graph.arguments.get("count_weights")
    return encoded(graph, inputs[0], operation.output_mode, operation.num_tokens, weights)


@layer("Discretization")
def _discretization(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    places = count_below(graph, inputs[0], np.asarray(operation.bin_boundaries, np.float32))
    places = graph.cast(places, operation.output_dtype) if operation.output_mode == "int" else places
    return encoded(graph, places, operation.output_mode, len(operation.bin_boundaries) + 1)


@layer("IntegerLookup")
def _integers(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    """Whole numbers as their places in a vocabulary, by a table over its range; or places as numbers."""
    words = np.asarray(operation.get_vocabulary(include_special_tokens=True), np.int64)
    value = graph.cast(graph.plain(inputs[0]), "int64")
    if operation.invert:
        outside = np.append(words, np.int64(operation.oov_token))
        size = np.int64(len(words))
        inside = apply(
            graph, "And", apply(graph, "GreaterOrEqual", value, np.int64(0)), apply(graph, "Less", value, size)
        )
        place = apply(graph, "Where", inside, value, size)
        return Value(graph.node("Gather", [graph.ints(outside.tolist(), "words"), place.name]), value.shape, "int64")
    special = operation._oov_start_index() + operation.num_oov_indices
    known, first = words[special:], operation._oov_start_index()
    if operation.num_oov_indices == 0 or getattr(operation, "oov_method", None) == "farmhash":
        raise Unsupported("IntegerLookup without a place for unknown numbers, or with hashing, is not supported")
    low, high = int(known.min()), int(known.max())
    if high - low >= _LARGEST_TABLE:
        raise Unsupported(f"IntegerLookup over a range of {high - low + 1} numbers is not supported")
    table = np.full(high - low + 3, -1, np.int64)
    table[known - low + 1] = np.arange(special, special + len(known))
    place = apply(graph, "Sub", value, np.int64(low - 1))
    place = apply(graph, "Min", apply(graph, "Max", place, np.int64(0)), np.int64(high - low + 2))
    found = Value(graph.node("Gather", [graph.ints(table.tolist(), "places"), place.name]), value.shape, "int64")
    unknown = apply(graph, "Less", found, np.int64(0))
    other: Any = np.int64(first)
    if operation.num_oov_indices > 1:
        other = apply(graph, "Add", apply(graph, "Mod", value, np.int64(operation.num_oov_indices)), np.int64(first))
    found = apply(graph, "Where", unknown, other, found)
    if operation.mask_token is not None:
        masked = apply(graph, "Equal", value, np.int64(operation.mask_token))
        found = apply(graph, "Where", masked, np.int64(0), found)
    if operation.output_mode == "int":
        return found
    depth = operation.max_tokens if operation.pad_to_max_tokens else len(words)
    mode = "count" if operation.output_mode == "tf_idf" else operation.output_mode
    rows = encoded(graph, found, mode, depth)
    if operation.output_mode != "tf_idf":
        return rows
    return apply(graph, "Mul", rows, np.asarray(operation.idf_weights_const, np.float32))


@op("STFT")
def _stft(graph: Graph, operation: Any, x: Value) -> Sequence[Value]:
    """Real and imaginary part of windowed frames, [frames, bins], by two convolutions with the windowed waves."""
    specs = spec_after(operation, [x], {})
    n, length = operation.fft_length, operation.sequence_length
    window = _window(operation.window, length)
    front = (n - length) // 2
    window = np.pad(window, (front, n - length - front))
    value, samples = graph.plain(graph.cast(x, "float32")), x.shape[-1]
    row = reshape(graph, value, [-1, 1, samples])
    if operation.center:
        row = graph.node("Pad", [row, graph.ints([0, 0, n // 2, 0, 0, n // 2], "pads")], mode="reflect")
    angle = 2 * np.pi * np.arange(n // 2 + 1)[:, None] * np.arange(n)[None, :] / n
    found = []
    for spec, wave in zip(specs, (np.cos(angle), -np.sin(angle)), strict=True):
        kernel = graph.const((wave * window).astype(np.float32)[:, None, :], "waves")
        frames = graph.node("Conv", [row, kernel], strides=[operation.sequence_stride])
        turned = graph.node("Transpose", [frames], perm=[0, 2, 1])
        bins = [n // 2 + 1]
        shape = [
            *(-1 if size is None else size for size in x.shape[:-1]),
            -1 if None not in x.shape[:-1] else spec.shape[-2],
            *bins,
        ]
        name = turned if x.rank == 2 else graph.node("Reshape", [turned, graph.ints(shape, "shape")])
        found.append(Value(name, tuple(spec.shape)))
    return found


def _window(window: Any, length: int) -> np.ndarray:
    """hann or hamming over one period, an array, or nothing."""
    if window is None:
        return np.ones(length)
    if not isinstance(window, str):
        return np.asarray(window, np.float64)
    wave = np.cos(2 * np.pi * np.arange(length) / length)
    return 0.5 - 0.5 * wave if window == "hann" else 0.54 - 0.46 * wave
