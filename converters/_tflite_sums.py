"""TFLite operators that sum up: products of matrices, reductions, softmax, norms, the largest."""

from __future__ import annotations

import numpy as np

from edgerun.converters._tflite_elementwise import activate
from edgerun.converters._tflite_graph import Call, Graph, Value, rule
from edgerun.converters._tflite_shapes import reshaped
from edgerun.converters._tflite_windows import bias_of, unmixed
from edgerun.errors import Unsupported


@rule("FULLY_CONNECTED", to="Gemm", limits="weights in the default order")
def _dense(graph: Graph, call: Call) -> Value:
    """y = x·Wᵀ + b over rows of x; behind a flattened picture the columns of W move instead of the picture."""
    kernel, value = call.value(1), call.value(0)
    unmixed(call, kernel)
    if getattr(call.options, "weightsFormat", 0):
        raise Unsupported("weights in shuffled order are not supported")
    width = kernel.shape[1]
    if value.rank != 2 or value.shape[-1] != width:
        batch = value.shape[0] if value.rank and _rest(value) == width else None
        value = reshaped(graph, value, (batch, width))
    if value.order is not None and kernel.data is not None:
        kernel = Value("", kernel.shape, kernel.dtype, data=kernel.data[:, value.order], quant=kernel.quant)
    elif value.order is not None:
        value = graph.plain(value)
    value = graph.settled(value)
    weights = graph.placed(kernel, (1, 0), "kernel").name
    made = call.made(graph.node("Gemm", [value.name, weights, *bias_of(graph, call, 2, kernel)]))
    if len(made.shape) != 2:
        target = [-1 if size is None else size for size in made.shape]
        if target.count(-1) > 1:
            raise Unsupported("to a shape with several open sizes is not supported")
        made = call.made(graph.node("Reshape", [made.name, graph.ints(target, "shape")]))
    return activate(graph, call, made)


def _rest(value: Value) -> int | None:
    sizes = value.shape[1:]
    return None if None in sizes else int(np.prod(np.asarray(sizes, np.int64)))


@rule("BATCH_MATMUL", to="MatMul")
def _matmul(graph: Graph, call: Call) -> Value:
    names = []
    for index, flipped in enumerate((call.options.adjX, call.options.adjY)):
        value = call.value(index)
        order = list(range(value.rank))
        if flipped:
            order[-2:] = order[-1], order[-2]
        unmixed(call, value)
        names.append(graph.placed(value, order, "matrix").name)
    return call.made(graph.node("MatMul", names))


_REDUCED = {
    "MEAN": "ReduceMean", "SUM": "ReduceSum", "REDUCE_MAX": "ReduceMax", "REDUCE_MIN": "ReduceMin",
    "REDUCE_PROD": "ReduceProd",
}  # fmt: skip
_OF_BOOLS = {"REDUCE_ANY": "ReduceMax", "REDUCE_ALL": "ReduceMin"}


def _lying(graph: Graph, value: Value, axes: list[int], keep: bool) -> tuple[Value, bool]:
    """The value so that its axes can be reduced, and whether what is left lies channels-first."""
    value = graph.plain(value) if value.order is not None or value.data is not None else value
    if not value.first or keep:
        return value, value.first
    rest = [axis for axis in range(value.rank) if axis not in axes]
    if len(rest) >= 3 and rest[0] == 0 and rest[-1] == value.rank - 1:
        return value, True
    if value.rank - 1 in axes or len([axis for axis in rest if axis]) < 2:
        return value, False
    return graph.plain(value), False


@rule(*_REDUCED, *_OF_BOOLS, to=_REDUCED | _OF_BOOLS, limits="constant axes")
def _reduce(graph: Graph, call: Call) -> Value:
    axes = sorted({int(axis) % max(call.value().rank, 1) for axis in call.constant(1).reshape(-1)})
    keep = bool(call.options.keepDims)
    value, first = _lying(graph, call.value(), axes, keep)
    if call.kind == "MEAN" and value.first and axes == list(range(1, value.rank - 1)):
        name = graph.node("GlobalAveragePool", [value.name])
        return call.made(name if keep else graph.node("Flatten", [name], axis=1), first=keep)
    places = sorted(graph.axis(value, axis) for axis in axes)
    name, boolean = value.name, call.kind in _OF_BOOLS
    name = graph.node("Cast", [name], to=6) if boolean else name
    op = _OF_BOOLS.get(call.kind) or _REDUCED[call.kind]
    # since opset 18 the axes of every reduction are an input, before that of ReduceSum alone
    if graph.opset >= 18 or op == "ReduceSum":
        name = graph.node(op, [name, graph.ints(places, "axes")], keepdims=int(keep))
    else:
        name = graph.node(op, [name], axes=places, keepdims=int(keep))
    return call.made(graph.node("Cast", [name], to=9) if boolean else name, first=first)


_ARGS = {"ARG_MAX": "ArgMax", "ARG_MIN": "ArgMin"}


@rule(*_ARGS, to=_ARGS, limits="a constant axis")
def _arg(graph: Graph, call: Call) -> Value:
    axis = int(call.constant(1).reshape(-1)[0]) % max(call.value().rank, 1)
    value, first = _lying(graph, call.value(), [axis], False)
    name = graph.node(_ARGS[call.kind], [value.name], axis=graph.axis(value, axis), keepdims=0)
    return call.made(name if call.outputs[0].dtype == "int64" else graph.node("Cast", [name], to=6), first=first)


@rule("TOPK_V2", to="TopK")
def _topk(graph: Graph, call: Call) -> list[Value]:
    value, count = graph.plain(call.value(0)), graph.plain(call.value(1))
    whole = graph.node("Reshape", [graph.node("Cast", [count.name], to=7), graph.ints([1], "one")])
    values, indices = graph.several("TopK", [value.name, whole], 2, axis=-1)
    narrow = call.outputs[1].dtype != "int64"
    return [call.made(values), call.made(graph.node("Cast", [indices], to=6) if narrow else indices, 1)]


_SOFTMAX = {"SOFTMAX": "Softmax", "LOG_SOFTMAX": "LogSoftmax"}


@rule(*_SOFTMAX, to=_SOFTMAX)
def _softmax(graph: Graph, call: Call) -> Value:
    value = call.value() if call.value().order is None else graph.plain(call.value())
    value, beta = graph.settled(value), float(getattr(call.options, "beta", 1.0))
    if beta != 1 and call.kind == "SOFTMAX":
        value = graph.made_like(value, "Mul", graph.shared(np.float32(beta), "beta"))
    return graph.made_like(value, _SOFTMAX[call.kind], axis=graph.axis(value, -1))


@rule("L2_NORMALIZATION", to="ReduceL2, Max, Div")
def _l2_norm(graph: Graph, call: Call) -> Value:
    """x / max(‖x‖, 10⁻⁶) over the last axis."""
    value = call.value() if call.value().order is None else graph.plain(call.value())
    value = graph.settled(value)
    axis = graph.axis(value, -1)
    if graph.opset >= 18:
        norm = graph.node("ReduceL2", [value.name, graph.ints([axis], "axes")], keepdims=1)
    else:
        norm = graph.node("ReduceL2", [value.name], axes=[axis], keepdims=1)
    norm = graph.node("Max", [norm, graph.shared(np.float32(1e-6), "least")])
    return activate(graph, call, graph.made_like(value, "Div", norm))


@rule("CUMSUM", to="CumSum", limits="a constant axis")
def _cumsum(graph: Graph, call: Call) -> Value:
    value = graph.plain(call.value())
    axis = graph.ints([int(call.constant(1).reshape(-1)[0])], "axis")
    flags = {"exclusive": int(call.options.exclusive), "reverse": int(call.options.reverse)}
    return call.made(graph.node("CumSum", [value.name, axis], **flags))
