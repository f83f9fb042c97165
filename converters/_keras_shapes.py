"""keras.ops that move elements: reshaping, joining, cutting, indexing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgerun.converters._keras_elementwise import apply
from edgerun.converters._keras_graph import Graph, op
from edgerun.converters._keras_reductions import axes_in_order, graph_free
from edgerun.converters._keras_walk import spec_after
from edgerun.converters._layout import Shape, Value
from edgerun.errors import Unsupported

_END = int(np.iinfo(np.int64).max)


def reshape(graph: Graph, value: Value, shape: Sequence[int | None]) -> str:
    """Reshape to Keras's shape; one size may be unknown (None or -1), and a leading one beside it is the batch."""
    value = graph.plain(value)
    sizes = [-1 if size is None else int(size) for size in shape]
    if sizes.count(-1) > 1 and sizes[0] == -1 and value.shape[0] is None:
        sizes[0] = 0
    if sizes.count(-1) > 1:
        raise Unsupported("a reshape with several unknown sizes is not supported")
    return graph.node("Reshape", [value.name, graph.ints(sizes, "shape")])


@op("Reshape")
def _reshape(graph: Graph, operation: Any, x: Value) -> str:
    shape = operation.newshape
    told = [shape] if isinstance(shape, int) else list(shape)
    if any(size is not None and not isinstance(size, (int, np.integer)) for size in told):
        raise Unsupported("keras.ops: Reshape to a computed shape is not supported")
    known = spec_after(operation, [x], {})[0].shape
    if sum(size in (None, -1) for size in told) > 1 or None in told:
        told = list(known)
    return reshape(graph, x, told)


@op("Ravel")
def _ravel(graph: Graph, operation: Any, x: Value) -> str:
    return reshape(graph, x, [-1])


@op("Transpose", "Swapaxes", "Moveaxis")
def _transpose(graph: Graph, operation: Any, x: Value) -> str:
    x, order = graph.plain(x), list(range(x.rank))
    kind = type(operation).__name__
    if kind == "Transpose":
        order = order[::-1] if operation.axes is None else axes_in_order(operation.axes, x.rank)
    elif kind == "Swapaxes":
        a, b = operation.axis1 % x.rank, operation.axis2 % x.rank
        order[a], order[b] = b, a
    else:
        sources, targets = (axes_in_order(a, x.rank) for a in (operation.source, operation.destination))
        order = [axis for axis in order if axis not in sources]
        for target, source in sorted(zip(targets, sources, strict=True)):
            order.insert(target, source)
    return graph.node("Transpose", [x.name], perm=order)


@op("ExpandDims")
def _expand_dims(graph: Graph, operation: Any, x: Value) -> str:
    x = graph.plain(x)
    count = len(np.atleast_1d(operation.axis))
    return graph.node("Unsqueeze", [x.name, graph.ints(axes_in_order(operation.axis, x.rank + count), "axes")])


@op("Squeeze")
def _squeeze(graph: Graph, operation: Any, x: Value) -> str:
    x = graph.plain(x)
    axes = [a for a, size in enumerate(x.shape) if size == 1]
    axes = axes if operation.axis is None else axes_in_order(operation.axis, x.rank)
    return graph.node("Squeeze", [x.name, graph.ints(axes, "axes")])


@op("Concatenate", "Hstack", "Vstack", "Dstack", "Stack", "Append")
def _join(graph: Graph, operation: Any, xs: Any, other: Any = None) -> str:
    kind = type(operation).__name__
    xs = [xs, other] if kind == "Append" else list(xs)
    dtype = spec_after(operation, [xs] if kind != "Append" else xs, {})[0].dtype
    values = [graph.cast(graph.value(item), dtype) for item in xs]
    rank = values[0].rank
    axis = getattr(operation, "axis", 0)
    if kind == "Append" and axis is None:
        return graph.node("Concat", [reshape(graph, value, [-1]) for value in values], axis=0)
    if kind == "Stack":
        names = [graph.node("Unsqueeze", [v.name, graph.ints([axis % (rank + 1)], "axes")]) for v in values]
        return graph.node("Concat", names, axis=axis % (rank + 1))
    if kind in ("Vstack", "Dstack") and rank < (least := 2 if kind == "Vstack" else 3):
        raise Unsupported(f"keras.ops: {kind} of less than {least} axes is not supported")
    axis = {"Hstack": min(rank - 1, 1), "Vstack": 0, "Dstack": 2}.get(kind, axis)
    return graph.node("Concat", [value.name for value in values], axis=axis % rank)


@op("Split", "ArraySplit", "Hsplit", "Vsplit", "Dsplit")
def _split(graph: Graph, operation: Any, x: Value) -> list[str]:
    x, specs = graph.plain(x), spec_after(operation, [x], {})
    axis = {"Hsplit": 1, "Vsplit": 0, "Dsplit": 2}.get(type(operation).__name__, getattr(operation, "axis", 0)) % x.rank
    sizes = [spec.shape[axis] for spec in specs]
    if None in sizes:
        raise Unsupported("keras.ops: splitting an unknown size is not supported")
    return graph.several("Split", [x.name, graph.ints(sizes, "sizes")], len(sizes), axis=axis)


@op("Unstack")
def _unstack(graph: Graph, operation: Any, x: Value) -> list[str]:
    x = graph.plain(x)
    count = operation.num or x.shape[operation.axis]
    axis = operation.axis % x.rank
    return [graph.node("Gather", [x.name, graph.const(np.int64(index), "index")], axis=axis) for index in range(count)]


@op("Tile")
def _tile(graph: Graph, operation: Any, x: Value) -> str:
    x, repeats = graph.plain(x), [int(r) for r in np.atleast_1d(operation.repeats)]
    rank = max(x.rank, len(repeats))
    name = x.name
    if rank > x.rank:
        name = graph.node("Unsqueeze", [name, graph.ints(range(rank - x.rank), "axes")])
    return graph.node("Tile", [name, graph.ints([1] * (rank - len(repeats)) + repeats, "repeats")])


@op("Repeat")
def _repeat(graph: Graph, operation: Any, x: Value) -> str:
    x, axis = graph.plain(x), operation.axis
    if axis is None:
        x, axis = Value(reshape(graph, x, [-1]), (_count(x.shape),), x.dtype), 0
    size = x.shape[axis % x.rank]
    if size is None:
        raise Unsupported("keras.ops: Repeat along an unknown size is not supported")
    places = np.repeat(np.arange(size), np.asarray(graph_free(operation.repeats)))
    return graph.node("Gather", [x.name, graph.ints(places.tolist(), "places")], axis=axis % x.rank)


def _count(shape: Shape) -> int | None:
    return None if None in shape else math.prod(size or 0 for size in shape)


@op("BroadcastTo")
def _broadcast_to(graph: Graph, operation: Any, x: Value) -> str:
    shape = [1 if size is None else int(size) for size in operation.shape]  # an unknown size keeps that of x
    return graph.node("Expand", [graph.plain(x).name, graph.ints(shape, "shape")])


def cut(graph: Graph, name: str, axis: int, start: int, end: int = _END, step: int = 1) -> str:
    """One axis from `start` to `end`."""
    words = (([start], "starts"), ([end], "ends"), ([axis], "axes"), ([step], "steps"))
    return graph.node("Slice", [name, *(graph.ints(numbers, word) for numbers, word in words)])


@op("Flip", "Fliplr", "Flipud")
def _flip(graph: Graph, operation: Any, x: Value) -> str:
    x = graph.plain(x)
    axis = {"Fliplr": 1, "Flipud": 0}.get(type(operation).__name__, getattr(operation, "axis", None))
    axes = list(range(x.rank)) if axis is None else axes_in_order(axis, x.rank)
    count = len(axes)
    words = (([-1] * count, "starts"), ([-_END] * count, "ends"), (axes, "axes"), ([-1] * count, "steps"))
    return graph.node("Slice", [x.name, *(graph.ints(numbers, word) for numbers, word in words)])


@op("Roll")
def _roll(graph: Graph, operation: Any, x: Value) -> str:
    x = graph.plain(x)
    if operation.axis is None:
        raise Unsupported("keras.ops: Roll of all elements is not supported")
    name = x.name
    pairs = zip(np.atleast_1d(operation.shift).tolist(), axes_in_order(operation.axis, x.rank), strict=True)
    for shift, axis in pairs:
        if shift:
            parts = [cut(graph, name, axis, -shift), cut(graph, name, axis, 0, -shift)]
            name = graph.node("Concat", parts, axis=axis)
    return name


@op("Take")
def _take(graph: Graph, operation: Any, x: Any, indices: Any) -> str:
    table, where = graph.value(x), graph.value(indices)
    where = where if where.dtype in ("int32", "int64") else graph.cast(where, "int32")
    name, axis = (reshape(graph, table, [-1]), 0) if operation.axis is None else (table.name, operation.axis)
    return graph.node("Gather", [name, where.name], axis=axis)


@op("TakeAlongAxis")
def _take_along(graph: Graph, operation: Any, x: Any, indices: Any) -> str:
    table, where = graph.value(x), graph.cast(graph.value(indices), "int64")
    axis = operation.axis
    if axis is None or any(a != b and k != axis % table.rank for k, (a, b) in enumerate(
        zip(table.shape, where.shape, strict=True)
    )):  # fmt: skip
        raise Unsupported("keras.ops: TakeAlongAxis that spreads, or without an axis, is not supported")
    return graph.node("GatherElements", [table.name, where.name], axis=axis % table.rank)


@op("GetItem")
def _get_item(graph: Graph, operation: Any, x: Value, key: Any) -> str:
    """x[key] of numbers, slices, None and ...; one Slice, then the axes that go and come."""
    x = graph.plain(x)
    parts = list(key) if isinstance(key, tuple) else [key]
    if any(isinstance(part, (Value, list, np.ndarray)) or hasattr(part, "shape") for part in parts):
        raise Unsupported("keras.ops: indexing with a tensor is not supported")
    used = sum(part is not None and part is not Ellipsis for part in parts)
    where = next((index for index, part in enumerate(parts) if part is Ellipsis), len(parts))
    parts[where : where + 1] = [slice(None)] * (x.rank - used)
    slices: list[tuple[int, int, int, int]] = []
    gone: list[int] = []
    new: list[int] = []
    axis = place = 0
    for part in parts:
        if part is None:
            new.append(place)
            place += 1
            continue
        if isinstance(part, slice):
            step = part.step or 1
            start = part.start if part.start is not None else (0 if step > 0 else -1)
            stop = part.stop if part.stop is not None else (_END if step > 0 else -_END)
            if (start, stop, step) != (0, _END, 1):
                slices.append((axis, int(start), int(stop), int(step)))
            place += 1
        else:
            slices.append((axis, int(part), int(part) + 1 if int(part) != -1 else _END, 1))
            gone.append(axis)
        axis += 1
    name = x.name
    if slices:
        columns = [list(column) for column in zip(*slices, strict=True)]
        ordered = ((columns[1], "starts"), (columns[2], "ends"), (columns[0], "axes"), (columns[3], "steps"))
        name = graph.node("Slice", [name, *(graph.ints(numbers, word) for numbers, word in ordered)])
    if gone:
        name = graph.node("Squeeze", [name, graph.ints(gone, "axes")])
    return graph.node("Unsqueeze", [name, graph.ints(new, "axes")]) if new else graph.node("Identity", [name])


@op("Slice")
def _slice(graph: Graph, operation: Any, x: Value, start_indices: Any) -> str:
    starts = [int(n) for n in graph_free(start_indices)]
    ends = [start + int(size) if size != -1 else _END for start, size in zip(starts, operation.shape, strict=True)]
    ends = [_END if x.shape[axis] is None and start == 0 else end for axis, (start, end) in enumerate(
        zip(starts, ends, strict=True)
    )]  # fmt: skip
    words = ((starts, "starts"), (ends, "ends"), (range(x.rank), "axes"))
    return graph.node("Slice", [graph.plain(x).name, *(graph.ints(list(n), word) for n, word in words)])


@op("Pad")
def _pad(graph: Graph, operation: Any, x: Value, constant_values: Any = None) -> str:
    x = graph.plain(x)
    pairs = np.broadcast_to(np.asarray(operation.pad_width), (x.rank, 2))
    mode = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}.get(operation.mode)
    if mode is None or (mode == "wrap" and graph.opset < 19):
        raise Unsupported(f"keras.ops: Pad in mode {operation.mode} is not supported")
    names = [x.name, graph.ints([*pairs[:, 0].tolist(), *pairs[:, 1].tolist()], "pads")]
    if mode == "constant":
        names.append(graph.value(constant_values or 0, x.dtype).name)
    return graph.node("Pad", names, mode=mode)


@op("ZerosLike", "OnesLike", "FullLike")
def _filled(graph: Graph, operation: Any, x: Value, fill_value: Any = None) -> str:
    kind, dtype = type(operation).__name__, operation.dtype or x.dtype
    number = {"ZerosLike": 0, "OnesLike": 1}.get(kind, fill_value)
    shape = graph.node("Shape", [graph.plain(x).name])
    return graph.node("Expand", [graph.value(number, dtype).name, shape])


@op("Tril", "Triu")
def _triangle(graph: Graph, operation: Any, x: Value) -> str:
    upper = int(type(operation).__name__ == "Triu")
    return graph.node("Trilu", [graph.plain(x).name, graph.const(np.int64(operation.k), "k")], upper=upper)


@op("Diff")
def _diff(graph: Graph, operation: Any, a: Value) -> Value:
    value = graph.plain(a)
    axis = operation.axis % value.rank
    for _ in range(operation.n):
        later, sooner = cut(graph, value.name, axis, 1), cut(graph, value.name, axis, 0, -1)
        shape = tuple(s - 1 if k == axis and s is not None else s for k, s in enumerate(value.shape))
        value = apply(graph, "Sub", Value(later, shape, value.dtype), Value(sooner, shape, value.dtype))
    return value
