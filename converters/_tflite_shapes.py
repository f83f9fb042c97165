"""TFLite operators that move elements and compute none: reshape, transpose, padding, tiles, blocks, filling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgerun.converters._layout import Shape, flat_order
from edgerun.converters._tflite_graph import Call, Graph, Value, rule
from edgerun.errors import Unsupported


def reshaped(graph: Graph, value: Value, shape: Shape, wanted: Value | None = None) -> Value:
    """The value in another shape; pictures that lie channels-first keep lying so where no element has to move.

    `wanted` is the shape as a tensor, for where more than one size is open.
    """
    known = None not in (*value.shape[1:], *shape[1:]) and value.rank > 0 and len(shape) > 0
    batch = known and value.shape[:1] == shape[:1]
    flat = all(size == 1 for size in value.spatial)
    if value.first and batch and len(shape) == 2:
        made = _reshape_to(graph, value, shape, (0, *shape[1:]))
        return replace(made, order=None if flat else flat_order(value.shape[1:]))
    if batch and len(shape) >= 3 and value.order is None and value.data is None and value.shape[-1] == shape[-1]:
        if value.first or (len(shape) == 4 and set(shape[1:-1]) == {1}):
            return _reshape_to(graph, value, shape, (0, shape[-1], *shape[1:-1]), first=True)
    value = graph.plain(value)
    if value.shape == shape and None not in shape[1:]:
        return value
    if shape.count(None) <= 1:
        return _reshape_to(graph, value, shape, shape)
    if wanted is None:
        raise Unsupported("to a shape that is not known is not supported")
    target = graph.node("Cast", [graph.plain(wanted).name], to=7)
    return graph.moved(value, shape, "Reshape", target)


def _reshape_to(graph: Graph, value: Value, shape: Shape, lying: Shape, first: bool = False) -> Value:
    target = graph.ints([-1 if size is None else size for size in lying], "shape")
    return graph.moved(value, shape, "Reshape", target, first=first)


@rule("RESHAPE", to="Reshape")
def _reshape(graph: Graph, call: Call) -> Value:
    given, shape = call.given(1), call.outputs[0].shape
    if given is not None and given.real is not None and len(shape) != given.real.size:
        shape = tuple(None if size < 0 else int(size) for size in given.real.tolist())
    return reshaped(graph, call.value(), shape, given)


@rule("SQUEEZE", "EXPAND_DIMS", to="Reshape; Squeeze, Unsqueeze where sizes are open")
def _axes_of_one(graph: Graph, call: Call) -> Value:
    value, shape = call.value(), call.outputs[0].shape
    if shape.count(None) > 1:
        op, rank = ("Squeeze", value.rank) if call.kind == "SQUEEZE" else ("Unsqueeze", len(shape))
        given = call.options.squeezeDims if op == "Squeeze" else call.constant(1).reshape(-1)
        if given is None or not len(given):
            raise Unsupported("without its axes is not supported")
        axes = [int(axis) % rank for axis in given]
        if value.first and len(shape) >= 3 and all(0 < axis < rank - 1 for axis in axes):  # channels stay in front
            places = graph.ints([axis + 1 for axis in axes], "axes")
            return call.made(graph.node(op, [value.name, places]), first=True)
        return call.made(graph.node(op, [graph.plain(value).name, graph.ints(axes, "axes")]))
    return reshaped(graph, value, shape)


@rule("TRANSPOSE", to="Transpose", limits="a constant order")
def _transpose(graph: Graph, call: Call) -> Value:
    """Nothing is written where the result only lies otherwise than the value: that is what channels-first is."""
    value = call.value() if call.value().order is None else graph.plain(call.value())
    value, perm = graph.settled(value), [int(axis) for axis in call.constant(1)]
    rank = len(perm)
    where = [graph.axis(value, axis) for axis in perm]
    lying = [where[0], where[-1], *where[1:-1]]
    if where == list(range(rank)):
        return replace(value, shape=call.outputs[0].shape, first=False, padded=None)
    if rank >= 3 and lying == list(range(rank)):
        return replace(value, shape=call.outputs[0].shape, first=True, padded=None)
    return graph.moved(value, call.outputs[0].shape, "Transpose", perm=where)


@rule("PAD", "PADV2", to="Pad; zeros join the next convolution", limits="constant amounts")
def _pad(graph: Graph, call: Call) -> Value:
    amounts = [(int(begin), int(end)) for begin, end in call.constant(1)]
    value = call.value()
    value = graph.first(value) if value.rank == 4 and value.data is None else graph.settled(value)
    fill = call.given(2)
    zero = fill is None or (fill.real is not None and not fill.real.any())
    name = _padded(graph, value, amounts, [] if zero or fill is None else [graph.plain(fill).name])
    made = call.made(name, first=value.first)
    inside = not any(amounts[0]) and not any(amounts[-1])
    if not (zero and inside and value.first) or min(min(pair) for pair in amounts) < 0:
        return made
    spatial = amounts[1:-1]
    return replace(made, padded=(value, (*(begin for begin, _ in spatial), *(end for _, end in spatial))))


def _padded(graph: Graph, value: Value, amounts: Sequence[tuple[int, int]], more: Sequence[str], **how: Any) -> str:
    placed = [(0, 0)] * len(amounts)
    for axis, pair in enumerate(amounts):
        placed[graph.axis(value, axis)] = pair
    pads = graph.ints([*(begin for begin, _ in placed), *(end for _, end in placed)], "pads")
    return graph.node("Pad", [value.name, pads, *more], **how)


@rule("MIRROR_PAD", to="Pad", limits="constant amounts; SYMMETRIC by at most 1")
def _mirror(graph: Graph, call: Call) -> Value:
    amounts = [(int(begin), int(end)) for begin, end in call.constant(1)]
    value = graph.settled(call.value())
    mode = "reflect"
    if call.options.mode:
        if max(max(pair) for pair in amounts) > 1:
            raise Unsupported("SYMMETRIC by more than 1 is not supported")
        mode = "edge"  # the same, by one element
    return call.made(_padded(graph, value, amounts, [], mode=mode), first=value.first)


@rule("TILE", to="Tile")
def _tile(graph: Graph, call: Call) -> Value:
    value = graph.plain(call.value())
    times = graph.node("Cast", [graph.plain(call.value(1)).name], to=7)
    return call.made(graph.node("Tile", [value.name, times]))


@rule("BROADCAST_TO", to="Expand")
def _broadcast(graph: Graph, call: Call) -> Value:
    value = graph.plain(call.value())
    return call.made(graph.node("Expand", [value.name, graph.node("Cast", [graph.plain(call.value(1)).name], to=7)]))


@rule("FILL", to="Expand")
def _fill(graph: Graph, call: Call) -> Value:
    shape = graph.node("Cast", [graph.plain(call.value(0)).name], to=7)
    return call.made(graph.node("Expand", [graph.plain(call.value(1)).name, shape]))


@rule("ZEROS_LIKE", to="Sub")
def _zeros(graph: Graph, call: Call) -> Value:
    value = graph.settled(call.value())
    return graph.made_like(value, "Sub", value.name)


@rule("SHAPE", to="Shape")
def _shape(graph: Graph, call: Call) -> Value:
    size = graph.node("Shape", [graph.plain(call.value()).name])
    return call.made(size if call.outputs[0].dtype == "int64" else graph.node("Cast", [size], to=6))


@rule("RANK", to="a constant")
def _rank(graph: Graph, call: Call) -> Value:
    return Value("", (), "int32", data=np.asarray(call.value().rank, np.int32))


@rule("RANGE", to="Range")
def _range(graph: Graph, call: Call) -> Value:
    return call.made(graph.node("Range", [graph.plain(call.value(index)).name for index in range(3)]))


@rule("ONE_HOT", to="OneHot", limits="no codes")
def _one_hot(graph: Graph, call: Call) -> Value:
    if call.outputs[0].quant is not None:
        raise Unsupported("in codes, which TFLite fills without their scale, is not supported")
    indices, depth, on, off = (graph.plain(call.value(index)) for index in range(4))
    ends = graph.node("Concat", [graph.node("Reshape", [v.name, graph.ints([1], "one")]) for v in (off, on)], axis=0)
    depth_name = graph.node("Reshape", [depth.name, graph.ints([1], "one")])
    return call.made(graph.node("OneHot", [indices.name, depth_name, ends], axis=int(call.options.axis)))


_BATCHED = {"SPACE_TO_BATCH_ND": "Pad, Reshape, Transpose", "BATCH_TO_SPACE_ND": "Reshape, Transpose, Slice"}


@rule(*_BATCHED, to=_BATCHED, limits="sizes that are known")
def _space_batch(graph: Graph, call: Call) -> Value:
    """Blocks b₁×b₂… of the picture become pictures of their own, or come back; crops and paddings per spatial axis."""
    value, blocks = graph.plain(call.value()), [int(size) for size in call.constant(1)]
    ends, count = [(int(a), int(b)) for a, b in call.constant(2)], len(blocks)
    if None in value.shape:
        raise Unsupported("of an open size is not supported")
    shape = [int(size or 0) for size in value.shape]
    if call.kind == "SPACE_TO_BATCH_ND":
        pairs = [(0, 0), *ends, *[(0, 0)] * (len(shape) - 1 - count)]
        name = _padded(graph, value, pairs, []) if any(map(any, ends)) else value.name
        sizes = [size + sum(pair) for size, pair in zip(shape, pairs, strict=True)]
        split = [part for size, block in zip(sizes[1:], blocks, strict=False) for part in (size // block, block)]
        name = graph.node("Reshape", [name, graph.ints([sizes[0], *split, *sizes[1 + count :]], "split")])
        rest = list(range(1 + 2 * count, len(shape) + count))
        perm = [*range(2, 2 + 2 * count, 2), 0, *range(1, 1 + 2 * count, 2), *rest]
        name = graph.node("Transpose", [name], perm=perm)
        joined = [size // block for size, block in zip(sizes[1:], blocks, strict=False)]
        target = [sizes[0] * math.prod(blocks), *joined, *sizes[1 + count :]]
        return call.made(graph.node("Reshape", [name, graph.ints(target, "joined")]))
    batch = shape[0] // math.prod(blocks)
    name = graph.node("Reshape", [value.name, graph.ints([*blocks, batch, *shape[1:]], "split")])
    perm = [
        count,
        *(axis for i in range(count) for axis in (count + 1 + i, i)),
        *range(1 + 2 * count, len(shape) + count),
    ]
    name = graph.node("Transpose", [name], perm=perm)
    joined = [size * block for size, block in zip(shape[1:], blocks, strict=False)]
    name = graph.node("Reshape", [name, graph.ints([batch, *joined, *shape[1 + count :]], "joined")])
    if any(map(any, ends)):
        starts = graph.ints([begin for begin, _ in ends], "starts")
        stops = graph.ints([size - end for size, (_, end) in zip(joined, ends, strict=True)], "ends")
        name = graph.node("Slice", [name, starts, stops, graph.ints(range(1, 1 + count), "axes")])
    return call.made(name)
