"""keras.ops that fold axes: sums and means, extremes, sorting, products of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgerun.converters._keras_elementwise import apply, truth
from edgerun.converters._keras_graph import Graph, op
from edgerun.converters._keras_walk import spec_after
from edgerun.converters._layout import Value
from edgerun.errors import Unsupported

_REDUCTIONS = {
    "Mean": "ReduceMean", "Sum": "ReduceSum", "Max": "ReduceMax", "Min": "ReduceMin", "Amax": "ReduceMax",
    "Amin": "ReduceMin", "Prod": "ReduceProd", "Logsumexp": "ReduceLogSumExp",
}  # fmt: skip


def axes_of(axis: Any, rank: int) -> list[int]:
    """Axes as Keras is given them (None: all, one, several, negative) as numbers in order."""
    if axis is None:
        return list(range(rank))
    return sorted(int(a) % rank for a in np.atleast_1d(axis).tolist())


def reduce(graph: Graph, name: str, value: Value, axes: Sequence[int], keepdims: bool) -> Value:
    """An ONNX Reduce operator over `axes` of Keras's shape; channels stay first where nothing in between is lost."""
    whole = set(range(1, value.rank - 1)) <= set(axes) and 0 not in axes and value.rank - 1 not in axes
    if not (value.first and (keepdims or whole)):
        value = graph.plain(value)
    there = [_lie(axis, value) for axis in axes]
    extra: dict[str, Any] = {"keepdims": int(keepdims)}
    inputs = [value.name]
    if name == "ReduceSum" or graph.opset >= 18:
        inputs.append(graph.ints(there, "axes"))
    else:
        extra["axes"] = there
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(value.shape))
    shape = kept if keepdims else tuple(size for axis, size in enumerate(value.shape) if axis not in axes)
    made = graph.node(name, inputs, **extra)
    return replace(value, name=made, shape=shape, first=value.first and keepdims, padded=None, mask=None)


def _lie(axis: int, value: Value) -> int:
    """Where an axis of Keras's shape lies in the ONNX tensor."""
    if not value.first or axis == 0:
        return axis
    return 1 if axis == value.rank - 1 else axis + 1


@op(*_REDUCTIONS)
def _reduce(graph: Graph, operation: Any, x: Value) -> Value:
    kind = type(operation).__name__
    if getattr(operation, "initial", None) is not None:
        raise Unsupported(f"keras.ops: {kind} with an initial value is not supported")
    x = graph.cast(x, spec_after(operation, [x], {})[0].dtype)
    return reduce(graph, _REDUCTIONS[kind], x, axes_of(operation.axis, x.rank), operation.keepdims)


@op("Any", "All", "CountNonzero")
def _truths(graph: Graph, operation: Any, x: Value) -> Value:
    kind = type(operation).__name__
    ones = graph.cast(truth(graph, x), "int32")
    name = {"Any": "ReduceMax", "All": "ReduceMin", "CountNonzero": "ReduceSum"}[kind]
    keepdims = getattr(operation, "keepdims", False)
    found = reduce(graph, name, ones, axes_of(operation.axis, x.rank), keepdims)
    return found if kind == "CountNonzero" else graph.cast(found, "bool")


def moments(graph: Graph, x: Value, axes: Sequence[int], keepdims: bool) -> tuple[Value, Value]:
    """Mean and variance, E[(x − E x)²], over `axes`."""
    mean = reduce(graph, "ReduceMean", x, axes, True)
    gap = apply(graph, "Sub", x, mean)
    variance = reduce(graph, "ReduceMean", apply(graph, "Mul", gap, gap), axes, keepdims)
    return (mean if keepdims else reduce(graph, "ReduceMean", x, axes, False)), variance


@op("Var", "Std")
def _variance(graph: Graph, operation: Any, x: Value) -> Value:
    x = graph.cast(x, "float32")
    found = moments(graph, x, axes_of(operation.axis, x.rank), operation.keepdims)[1]
    return found if type(operation).__name__ == "Var" else apply(graph, "Sqrt", found)


@op("Moments")
def _moments(graph: Graph, operation: Any, x: Value) -> list[Value]:
    return list(moments(graph, x, axes_of(operation.axes, x.rank), operation.keepdims))


@op("Ptp")
def _range(graph: Graph, operation: Any, x: Value) -> Value:
    axes = axes_of(operation.axis, x.rank)
    ends = [reduce(graph, name, x, axes, operation.keepdims) for name in ("ReduceMax", "ReduceMin")]
    return apply(graph, "Sub", *ends)


@op("Average")
def _average(graph: Graph, operation: Any, x: Value, weights: Any = None) -> Value:
    axes = axes_of(operation.axis, x.rank)
    if weights is None:
        return reduce(graph, "ReduceMean", graph.cast(x, "float32"), axes, False)
    shares = graph.cast(graph.value(weights), "float32")
    if shares.rank != x.rank and len(axes) == 1:
        shape = [1] * x.rank
        shape[axes[0]] = -1
        name = graph.node("Reshape", [shares.name, graph.ints(shape, "shape")])
        shares = replace(shares, name=name, shape=tuple(x.shape[axes[0]] if a in axes else 1 for a in range(x.rank)))
    sums = [reduce(graph, "ReduceSum", v, axes, False) for v in (apply(graph, "Mul", x, shares), shares)]
    return apply(graph, "Div", *sums)


@op("Argmax", "Argmin")
def _argument(graph: Graph, operation: Any, x: Value) -> str:
    name = {"Argmax": "ArgMax", "Argmin": "ArgMin"}[type(operation).__name__]
    x = graph.plain(x)
    where, axis = x.name, operation.axis
    if axis is None:
        where, axis = graph.node("Reshape", [where, graph.ints([-1], "shape")]), 0
    keepdims = int(bool(operation.keepdims) and operation.axis is not None)
    return graph.node("Cast", [graph.node(name, [where], axis=axis, keepdims=keepdims)], to=6)


@op("Cumsum")
def _cumulative(graph: Graph, operation: Any, x: Value) -> str:
    x = graph.cast(graph.plain(x), spec_after(operation, [x], {})[0].dtype)
    if operation.axis is None:
        flat = graph.node("Reshape", [x.name, graph.ints([-1], "shape")])
        return graph.node("CumSum", [flat, graph.const(np.int64(0), "axis")])
    return graph.node("CumSum", [x.name, graph.const(np.int64(operation.axis % x.rank), "axis")])


def top(graph: Graph, x: Value, count: int, axis: int, largest: bool = True) -> list[str]:
    """The `count` largest (or smallest) of an axis in order, and where they stood (int64)."""
    inputs = [graph.plain(x).name, graph.ints([count], "k")]
    return graph.several("TopK", inputs, 2, axis=axis, largest=int(largest), sorted=1)


@op("TopK")
def _top(graph: Graph, operation: Any, x: Value) -> list[str]:
    values, places = top(graph, x, operation.k, -1)
    return [values, graph.node("Cast", [places], to=6)]


@op("Sort", "Argsort")
def _sort(graph: Graph, operation: Any, x: Value) -> str:
    axis = operation.axis
    size = None if axis is None else x.shape[axis]
    if axis is None or size is None:
        raise Unsupported(f"keras.ops: {type(operation).__name__} over an unknown size is not supported")
    values, places = top(graph, x, size, axis, largest=False)
    return values if type(operation).__name__ == "Sort" else graph.node("Cast", [places], to=6)


@op("Matmul")
def _matmul(graph: Graph, operation: Any, x1: Any, x2: Any) -> str:
    dtype = spec_after(operation, [x1, x2], {})[0].dtype
    sides = [graph.cast(graph.value(item), dtype).name for item in (x1, x2)]
    return graph.node("MatMul", sides)


@op("Dot", "Inner", "Vdot", "Outer", "Tensordot")
def _products(graph: Graph, operation: Any, x1: Any, x2: Any) -> str:
    """Products over axes that are written as one Einsum."""
    a, b = graph.value(x1), graph.value(x2)
    kind, left, right = type(operation).__name__, _letters(0, a.rank), _letters(a.rank, b.rank)
    pairs: list[tuple[int, int]] = []
    if kind in ("Dot", "Inner") and a.rank and b.rank:
        pairs = [(a.rank - 1, b.rank - 1 if kind == "Inner" else max(b.rank - 2, 0))]
    elif kind == "Tensordot":
        axes = operation.axes
        told = axes if not isinstance(axes, int) else [range(a.rank - axes, a.rank), range(axes)]
        pairs = list(zip(axes_in_order(told[0], a.rank), axes_in_order(told[1], b.rank), strict=True))
    elif kind == "Vdot":
        pairs = [(axis, axis) for axis in range(a.rank)]
    elif kind == "Outer":
        a, b = (replace(v, name=graph.node("Reshape", [v.name, graph.ints([-1], "shape")])) for v in (a, b))
        left, right = "a", "b"
    for here, there in pairs:
        right = right[:there] + left[here] + right[there + 1 :]
    shared = {left[here] for here, _ in pairs}
    out = "".join(letter for letter in left + right if letter not in shared)
    return graph.node("Einsum", [a.name, b.name], equation=f"{left},{right}->{out}")


def axes_in_order(axes: Any, rank: int) -> list[int]:
    """One axis or several as counted from the front, in the order given."""
    return [int(axis) % rank for axis in np.atleast_1d(list(axes) if not isinstance(axes, int) else axes).tolist()]


def _letters(start: int, count: int) -> str:
    return "".join(chr(ord("a") + start + index) for index in range(count))


@op("Einsum")
def _einsum(graph: Graph, operation: Any, *operands: Any) -> Value | str:
    dtype = spec_after(operation, list(operands), {})[0].dtype
    values = [graph.cast(graph.value(item), dtype) for item in operands]
    return contract(graph, operation.subscripts, values)


def contract(graph: Graph, equation: str, values: Sequence[Value]) -> Value | str:
    """An Einsum; as MatMul where it is a product of matrices, which runtimes have fast and integer kernels for.

    That is: the first operand ends with the letters that the second begins with, which are summed; or both begin with
    the same letters, which stay. Neither repeats a letter.
    """
    equation = equation.replace(" ", "")
    left, _, out = equation.partition("->")
    terms = left.split(",")
    if len(terms) == 2 and "." not in equation and out == terms[0][:-1] + terms[1][1:] and len(terms[1]) == 2:
        if terms[0][-1] == terms[1][0] and terms[1][1] not in terms[0]:
            return graph.node("MatMul", [value.name for value in values])
    return graph.node("Einsum", [value.name for value in values], equation=equation)


@op("Norm")
def _norm(graph: Graph, operation: Any, x: Value) -> Value:
    order, axes = operation.ord, axes_of(operation.axis, x.rank)
    x = graph.cast(x, "float32")
    size = apply(graph, "Abs", x)
    if order in (None, "fro") or (order == 2 and len(axes) == 1):
        return reduce(graph, "ReduceL2", x, axes, operation.keepdims)
    if order == 1 and len(axes) == 1:
        return reduce(graph, "ReduceL1", x, axes, operation.keepdims)
    if order in (np.inf, -np.inf) and len(axes) == 1:
        return reduce(graph, "ReduceMax" if order > 0 else "ReduceMin", size, axes, operation.keepdims)
    raise Unsupported(f"keras.ops: Norm of order {order} over {len(axes)} axes is not supported")


@op("Digitize", "SearchSorted")
def _digitize(graph: Graph, operation: Any, first: Any, second: Any) -> Value:
    """How many of the sorted bounds are not above the value (below it, for searchsorted's left side)."""
    kind = type(operation).__name__
    x, bounds = (first, second) if kind == "Digitize" else (second, first)
    return count_below(graph, graph.value(x), bounds, "Less" if getattr(operation, "side", "") == "left" else "")


def count_below(graph: Graph, x: Value, bounds: Any, name: str = "") -> Value:
    """For every element, how many of the constant bounds are ≤ it; with "Less", are < it. int32."""
    x = graph.plain(graph.cast(x, "float32"))
    row = graph.node("Unsqueeze", [x.name, graph.ints([x.rank], "axes")])
    edges = graph.const(np.asarray(graph_free(bounds), np.float32).reshape(-1), "bounds")
    sides = [edges, row] if name else [row, edges]
    reached = graph.node(name or "GreaterOrEqual", sides)
    ones = graph.node("Cast", [reached], to=6)
    total = graph.node("ReduceSum", [ones, graph.ints([x.rank], "axes")], keepdims=0)
    return Value(total, x.shape, "int32")


def graph_free(item: Any) -> np.ndarray:
    """A constant of a call as an array. Raises Unsupported for what is computed."""
    from edgerun.converters._keras_graph import weight

    if isinstance(item, Value):
        raise Unsupported("bounds that are computed are not supported")
    return np.asarray(item) if not hasattr(item, "shape") else weight(item)
