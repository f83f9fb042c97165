"""TFLite operators that take tensors apart and put them together: concatenation, splits, slices, gathers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgerun.converters._tflite_elementwise import activate
from edgerun.converters._tflite_graph import Call, Graph, Value, rule
from edgerun.errors import Unsupported

FAR = np.iinfo(np.int64).max
_WHOLE = np.iinfo(np.int32).max  # an end that no axis reaches


def _together(graph: Graph, values: Sequence[Value | None]) -> list[Value]:
    """Values that lie the same way: channels-first if one does."""
    present = [value for value in values if value is not None]
    first = any(value.first for value in present)
    return [graph.first(value) if first else graph.plain(value) for value in present]


@rule("CONCATENATION", to="Concat")
def _concatenation(graph: Graph, call: Call) -> Value:
    values = _together(graph, call.inputs)
    axis = graph.axis(values[0], int(call.options.axis))
    name = graph.node("Concat", [value.name for value in values], axis=axis)
    return activate(graph, call, call.made(name, first=values[0].first))


@rule("PACK", to="Unsqueeze, Concat")
def _pack(graph: Graph, call: Call) -> Value:
    axis = int(call.options.axis) % len(call.outputs[0].shape)
    axes = graph.ints([axis], "axes")
    values = [graph.plain(value) for value in call.inputs if value is not None]
    return call.made(graph.node("Concat", [graph.node("Unsqueeze", [v.name, axes]) for v in values], axis=axis))


@rule("UNPACK", to="Split, Squeeze")
def _unpack(graph: Graph, call: Call) -> list[Value]:
    value = graph.plain(call.value())
    axis, count = int(call.options.axis) % value.rank, len(call.outputs)
    axes = graph.ints([axis], "axes")
    parts = _split(graph, value.name, [1] * count, axis)
    return [call.made(graph.node("Squeeze", [part, axes]), index) for index, part in enumerate(parts)]


def _split(graph: Graph, name: str, sizes: Sequence[int], axis: int) -> list[str]:
    if len(sizes) == 1:
        return [name]
    return graph.several("Split", [name, graph.ints(sizes, "sizes")], len(sizes), axis=axis)


@rule("SPLIT", "SPLIT_V", to="Split", limits="an axis whose size is known")
def _splits(graph: Graph, call: Call) -> list[Value]:
    even = call.kind == "SPLIT"
    value = graph.settled(call.value(1 if even else 0))
    value = graph.plain(value) if value.order is not None else value
    axis, count = int(call.constant(0 if even else 2).reshape(-1)[0]), len(call.outputs)
    size = value.shape[axis % value.rank]
    if size is None:
        raise Unsupported("along an axis of open size is not supported")
    sizes = [size // count] * count if even else [int(part) for part in call.constant(1)]
    sizes = [size - sum(s for s in sizes if s >= 0) if part < 0 else part for part in sizes]
    parts = _split(graph, value.name, sizes, graph.axis(value, axis))
    return [call.made(part, index, first=value.first) for index, part in enumerate(parts)]


def _sliced(graph: Graph, value: Value, cuts: Sequence[tuple[int, int, int, int]]) -> str:
    """The value without what is outside (axis, begin, end, step) of the source's axes."""
    cuts = [cut for cut in cuts if cut[1:] not in ((0, FAR, 1), (0, value.shape[cut[0]], 1))]
    if not cuts:
        return value.name
    columns = list(zip(*cuts, strict=True))
    axes = graph.ints([graph.axis(value, axis) for axis in columns[0]], "axes")
    starts, ends, steps = (
        graph.ints(column, w) for column, w in zip(columns[1:], ("starts", "ends", "steps"), strict=True)
    )
    return graph.node("Slice", [value.name, starts, ends, axes, steps])


@rule("SLICE", to="Slice")
def _slice(graph: Graph, call: Call) -> Value:
    value, begins, sizes = graph.settled(call.value()), call.value(1).real, call.value(2).real
    value = graph.plain(value) if value.order is not None else value
    if begins is None or sizes is None:
        value = graph.plain(value)
        start, size = (graph.node("Cast", [graph.plain(call.value(index)).name], to=7) for index in (1, 2))
        if sizes is not None and (sizes < 0).any():
            raise Unsupported("to the end from a place that is computed is not supported")
        return call.made(graph.node("Slice", [value.name, start, graph.node("Add", [start, size])]))
    ends = [FAR if size < 0 else int(begin + size) for begin, size in zip(begins, sizes, strict=True)]
    cuts = [(axis, int(begin), end, 1) for axis, (begin, end) in enumerate(zip(begins, ends, strict=True))]
    return call.made(_sliced(graph, value, cuts), first=value.first)


@rule(
    "STRIDED_SLICE",
    to="Slice, Squeeze, Unsqueeze",
    limits="constant strides; ends that are computed: no axis goes or comes",
)
def _strided(graph: Graph, call: Call) -> Value:
    """Bit i of a mask is about entry i of begins, ends and strides: left open, one place, a new axis, or "…"."""
    value = graph.settled(call.value())
    if call.value(1).real is None or call.value(2).real is None:
        return _computed(graph, call)
    begins, ends, strides = (call.constant(index).tolist() for index in (1, 2, 3))
    cuts, gone, new = entries(call.options, begins, ends, strides, value.rank)
    if gone or new or value.order is not None:
        value = graph.plain(value)
    name = _sliced(graph, value, cuts)
    if gone:
        name = graph.node("Squeeze", [name, graph.ints(gone, "gone")])
    if new:
        name = graph.node("Unsqueeze", [name, graph.ints(new, "new")])
    return call.made(name, first=value.first)


def _computed(graph: Graph, call: Call) -> Value:
    """A Slice from and to places that are computed, where a mask does not leave them open."""
    options, strides = call.options, call.constant(3)
    if options.ellipsisMask or options.newAxisMask or options.shrinkAxisMask or options.offset:
        raise Unsupported("between places that are computed, with axes that go or come, is not supported")
    ends = []
    for index, mask, far in ((1, options.beginMask, strides < 0), (2, options.endMask, strides > 0)):
        place = graph.node("Cast", [graph.plain(call.value(index)).name], to=7)
        flags = np.array([mask >> i & 1 == 1 for i in range(strides.size)])
        if flags.any():
            limits = graph.ints([FAR if wide else 0 if index == 1 else -FAR for wide in far], "limits")
            place = graph.node("Where", [graph.shared(flags, "open"), limits, place])
        ends.append(place)
    axes, steps = graph.ints(range(strides.size), "axes"), graph.ints(strides.tolist(), "steps")
    return call.made(graph.node("Slice", [graph.plain(call.value()).name, *ends, axes, steps]))


def entries(
    options: Any, begins: Sequence[int], ends: Sequence[int], strides: Sequence[int], rank: int
) -> tuple[list[tuple[int, int, int, int]], list[int], list[int]]:
    """(axis, begin, end, step) of what is cut, the axes that go, and the places of new axes in the result."""
    cuts, gone, new = [], list[int](), list[int]()
    axis = place = 0
    fresh = sum(bool(options.newAxisMask >> i & 1) for i in range(len(begins)))
    for i, (begin, end, step) in enumerate(zip(begins, ends, strides, strict=True)):
        if options.ellipsisMask >> i & 1:
            rest = rank - (len(begins) - 1 - fresh)
            axis, place = axis + rest, place + rest
            continue
        if options.newAxisMask >> i & 1:
            new.append(place)
            place += 1
            continue
        if options.shrinkAxisMask >> i & 1:
            cuts.append((axis, begin, FAR if begin == -1 else begin + 1, 1))
            gone.append(axis)
        else:
            if options.offset:
                end += begin
            low, high = (0, FAR) if step > 0 else (FAR, -FAR)
            begin = low if options.beginMask >> i & 1 else begin
            whole = options.endMask >> i & 1 or (step > 0 and end == _WHOLE)
            cuts.append((axis, begin, high if whole else end, step))
            place += 1
        axis += 1
    return cuts, gone, new


@rule("REVERSE_V2", to="Slice")
def _reverse(graph: Graph, call: Call) -> Value:
    value = graph.settled(call.value())
    value = graph.plain(value) if value.order is not None else value
    cuts = [(int(axis) % value.rank, -1, -FAR, -1) for axis in call.constant(1).reshape(-1)]
    return call.made(_sliced(graph, value, cuts), first=value.first)


@rule("GATHER", "EMBEDDING_LOOKUP", to="Gather", limits="no batch dimensions")
def _gather(graph: Graph, call: Call) -> Value:
    if call.kind == "EMBEDDING_LOOKUP":
        indices, table = graph.plain(call.value(0)), graph.plain(call.value(1))
        return call.made(graph.node("Gather", [table.name, indices.name], axis=0))
    if call.options.batchDims:
        raise Unsupported("with batch dimensions is not supported")
    value, indices = graph.settled(call.value(0)), graph.plain(call.value(1))
    if indices.rank != 1 or value.order is not None:
        value = graph.plain(value)
    name = graph.node("Gather", [value.name, indices.name], axis=graph.axis(value, int(call.options.axis)))
    return call.made(name, first=value.first)


@rule("GATHER_ND", to="GatherND")
def _gather_nd(graph: Graph, call: Call) -> Value:
    indices = graph.node("Cast", [graph.plain(call.value(1)).name], to=7)
    return call.made(graph.node("GatherND", [graph.plain(call.value(0)).name, indices]))
