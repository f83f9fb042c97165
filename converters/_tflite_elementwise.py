"""TFLite operators that compute element by element, and the activations that others carry."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from edgerun.converters._tflite_graph import Call, Graph, Value, rule
from edgerun.errors import Unsupported

_FUSED = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")  # ActivationFunctionType
_RANGES = {"RELU": (0.0, math.inf), "RELU_N1_TO_1": (-1.0, 1.0), "RELU6": (0.0, 6.0), "RELU_0_TO_1": (0.0, 1.0)}


def activate(graph: Graph, call: Call, value: Value) -> Value:
    """The activation that an operator carries; a limit that the output's codes cannot pass is not written."""
    kind = _FUSED[getattr(call.options, "fusedActivationFunction", 0)]
    if kind == "NONE":
        return value
    if kind == "TANH":
        return graph.made_like(value, "Tanh")
    if kind not in _RANGES:
        raise Unsupported(f"the fused activation {kind} is not supported")
    return limited(graph, call, value, *_RANGES[kind])


def limited(graph: Graph, call: Call, value: Value, low: float, high: float) -> Value:
    """min(max(x, low), high) as far as the output's codes do not do it by themselves."""
    quant, positive = call.outputs[0].quant, low == 0
    if quant is not None:
        ends, scale, zero = np.iinfo(quant.zero.dtype), float(quant.scale[0]), int(quant.zero[0])
        low = -math.inf if round(low / scale) + zero <= ends.min else low
        high = math.inf if high == math.inf or round(high / scale) + zero >= ends.max else high
    if low == 0 and high == math.inf:
        value = graph.made_like(value, "Relu")
    elif low > -math.inf or high < math.inf:
        names = ["" if math.isinf(end) else graph.shared(np.float32(end), "limit") for end in (low, high)]
        value = graph.made_like(value, "Clip", *names)
    return replace(value, positive=positive)


_BINARY = {"ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div", "MAXIMUM": "Max", "MINIMUM": "Min", "POW": "Pow"}


@rule(*_BINARY, to=_BINARY)
def _binary(graph: Graph, call: Call) -> Value:
    if call.kind == "ADD" and (name := _biased(graph, call.value(0), call.value(1))):
        return activate(graph, call, call.made(name))
    left, right = graph.alike([call.value(0), call.value(1)])
    if call.kind == "DIV" and left.dtype.startswith("int"):
        raise Unsupported("a division of integers is not supported")  # rounds to 0 there, undefined by 0 here
    name = graph.node(_BINARY[call.kind], [left.name, right.name])
    return activate(graph, call, graph.beside(call, name, left, right))


def _biased(graph: Graph, value: Value, row: Value) -> str:
    """The product right before, with a constant row as its bias; "" for other sums. Where an IF hands weights in, the
    exporter does not see that they are constant. The product without it goes, unless something else reads it."""
    last = graph.nodes[-1] if graph.nodes else None
    if last is None or last.op_type != "Gemm" or len(last.input) != 2 or last.output[0] != value.name:
        return ""
    if row.data is None or row.quant is not None or row.dtype != "float32" or row.shape != value.shape[-1:]:
        return ""
    return graph.node("Gemm", [*last.input, graph.plain(row).name])


@rule("ADD_N", to="Sum")
def _add_n(graph: Graph, call: Call) -> Value:
    values = graph.alike([value for value in call.inputs if value is not None])
    if values[0].dtype == "float32":
        return graph.beside(call, graph.node("Sum", [value.name for value in values]), *values)
    name = values[0].name
    for value in values[1:]:
        name = graph.node("Add", [name, value.name])
    return graph.beside(call, name, *values)


@rule("SQUARED_DIFFERENCE", to="Sub, Mul")
def _squared_difference(graph: Graph, call: Call) -> Value:
    left, right = graph.alike([call.value(0), call.value(1)])
    difference = graph.node("Sub", [left.name, right.name])
    return graph.beside(call, graph.node("Mul", [difference, difference]), left, right)


@rule("FLOOR_DIV", to="Div, Floor; Mod, Sub, Div for whole numbers")
def _floor_div(graph: Graph, call: Call) -> Value:
    """⌊x/y⌋; of whole numbers (x - x mod y)/y, for ONNX's division of them rounds to 0."""
    left, right = graph.alike([call.value(0), call.value(1)])
    if left.dtype != "float32":
        rest = graph.node("Sub", [left.name, graph.node("Mod", [left.name, right.name])])
        return graph.beside(call, graph.node("Div", [rest, right.name]), left, right)
    return graph.beside(call, graph.node("Floor", [graph.node("Div", [left.name, right.name])]), left, right)


@rule("FLOOR_MOD", to="Mod; Div, Floor, Mul, Sub for floats")
def _floor_mod(graph: Graph, call: Call) -> Value:
    """x - ⌊x/y⌋·y, which is ONNX's integer Mod."""
    left, right = graph.alike([call.value(0), call.value(1)])
    if left.dtype != "float32":
        return graph.beside(call, graph.node("Mod", [left.name, right.name]), left, right)
    whole = graph.node("Floor", [graph.node("Div", [left.name, right.name])])
    name = graph.node("Sub", [left.name, graph.node("Mul", [whole, right.name])])
    return graph.beside(call, name, left, right)


_COMPARED = {
    "EQUAL": "Equal", "LESS": "Less", "LESS_EQUAL": "LessOrEqual", "GREATER": "Greater",
    "GREATER_EQUAL": "GreaterOrEqual", "LOGICAL_AND": "And", "LOGICAL_OR": "Or",
}  # fmt: skip


def _sides(graph: Graph, call: Call) -> list[Value]:
    """What is compared. TFLite compares codes as multiples of 1/256, whatever their scales."""
    sides = graph.alike([call.value(0), call.value(1)])
    if all(value.quant is not None for value in (call.value(0), call.value(1))):
        fine = graph.shared(np.float32(256), "fine")
        sides = [graph.made_like(graph.made_like(side, "Mul", fine), "Round") for side in sides]
    return sides


@rule(*_COMPARED, to=_COMPARED)
def _compared(graph: Graph, call: Call) -> Value:
    left, right = _sides(graph, call)
    return graph.beside(call, graph.node(_COMPARED[call.kind], [left.name, right.name]), left, right)


@rule("NOT_EQUAL", to="Equal, Not")
def _not_equal(graph: Graph, call: Call) -> Value:
    left, right = _sides(graph, call)
    return graph.beside(call, graph.node("Not", [graph.node("Equal", [left.name, right.name])]), left, right)


@rule("SELECT", "SELECT_V2", to="Where", limits="SELECT: a condition of the values' rank, or one value")
def _select(graph: Graph, call: Call) -> Value:
    condition, rank = call.value(0), len(call.outputs[0].shape)
    if call.kind == "SELECT" and condition.rank not in (0, rank):
        raise Unsupported("a condition that chooses whole rows is not supported")
    values = graph.alike([call.value(index) for index in range(3)])
    return graph.beside(call, graph.node("Where", [value.name for value in values]), *values)


_UNARY = {
    "ABS": "Abs", "NEG": "Neg", "EXP": "Exp", "LOG": "Log", "SQRT": "Sqrt", "SIN": "Sin", "COS": "Cos",
    "FLOOR": "Floor", "CEIL": "Ceil", "ROUND": "Round", "SIGN": "Sign", "LOGICAL_NOT": "Not", "LOGISTIC": "Sigmoid",
    "TANH": "Tanh",
}  # fmt: skip


@rule(*_UNARY, to=_UNARY)
def _unary(graph: Graph, call: Call) -> Value:
    return graph.made_like(graph.settled(call.value()), _UNARY[call.kind])


@rule("RSQRT", to="Sqrt, Reciprocal")
def _rsqrt(graph: Graph, call: Call) -> Value:
    return graph.made_like(graph.made_like(graph.settled(call.value()), "Sqrt"), "Reciprocal")


@rule("SQUARE", to="Mul")
def _square(graph: Graph, call: Call) -> Value:
    value = graph.settled(call.value())
    return graph.made_like(value, "Mul", value.name)


@rule(*_RANGES, to="Relu, Clip; nothing where the output's codes end there")
def _relu(graph: Graph, call: Call) -> Value:
    return limited(graph, call, graph.settled(call.value()), *_RANGES[call.kind])


@rule("LEAKY_RELU", to="LeakyRelu")
def _leaky(graph: Graph, call: Call) -> Value:
    return graph.made_like(graph.settled(call.value()), "LeakyRelu", alpha=float(call.options.alpha))


@rule("ELU", to="Elu")
def _elu(graph: Graph, call: Call) -> Value:
    return graph.made_like(graph.settled(call.value()), "Elu")


@rule("HARD_SWISH", to="HardSwish; HardSigmoid, Mul below opset 14")
def _hard_swish(graph: Graph, call: Call) -> Value:
    value = graph.settled(call.value())
    if graph.opset >= 14:
        return graph.made_like(value, "HardSwish")
    return graph.made_like(graph.made_like(value, "HardSigmoid", alpha=1 / 6, beta=0.5), "Mul", value.name)


@rule("GELU", to="Gelu; Erf, Mul and Add below opset 20")
def _gelu(graph: Graph, call: Call) -> Value:
    """x/2·(1 + erf(x/√2)), or its approximation x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""
    value = graph.settled(call.value())
    if graph.opset >= 20:
        return graph.made_like(value, "Gelu", approximate="tanh" if call.options.approximate else "none")
    half, one = (graph.shared(np.float32(number), "number") for number in (0.5, 1))
    if call.options.approximate:
        cube = graph.made_like(graph.made_like(value, "Mul", value.name), "Mul", value.name)
        inner = graph.made_like(cube, "Mul", graph.shared(np.float32(0.044715), "number"))
        inner = graph.made_like(inner, "Add", value.name)
        inner = graph.made_like(inner, "Mul", graph.shared(np.float32(math.sqrt(2 / math.pi)), "number"))
        inner = graph.made_like(inner, "Tanh")
    else:
        inner = graph.made_like(value, "Mul", graph.shared(np.float32(math.sqrt(0.5)), "number"))
        inner = graph.made_like(inner, "Erf")
    inner = graph.made_like(graph.made_like(inner, "Add", one), "Mul", value.name)
    return graph.made_like(inner, "Mul", half)


@rule("PRELU", to="PRelu", limits="constant slopes")
def _prelu(graph: Graph, call: Call) -> Value:
    value, slope = graph.alike([call.value(0), call.value(1)])
    if call.value(1).data is None:
        raise Unsupported("slopes that are computed while running are not supported")
    return graph.made_like(value, "PRelu", slope.name)


@rule("CAST", to="Cast")
def _cast(graph: Graph, call: Call) -> Value:
    from onnx import helper

    dtype = call.outputs[0].dtype
    if dtype not in ("float32", "float16", "int32", "int64", "int8", "uint8", "int16", "bool"):
        raise Unsupported(f"to {dtype} is not supported")
    made = graph.made_like(graph.settled(call.value()), "Cast", to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    return replace(made, dtype=dtype)


@rule("QUANTIZE", to="QuantizeLinear")
def _quantize(graph: Graph, call: Call) -> Value:
    """What is made of codes gets its rounding from the walk, which is all that this does."""
    return call.value()


_STORED = {"DEQUANTIZE": "DequantizeLinear; Cast for float16", "DENSIFY": "a constant without its gaps"}


@rule(*_STORED, to=_STORED)
def _dequantize(graph: Graph, call: Call) -> Value:
    """The real tensor, which every rule reads anyway; a constant stays one, in the form in which it is stored."""
    return replace(call.value(), dtype=call.outputs[0].dtype) if call.value().data is not None else call.value()
