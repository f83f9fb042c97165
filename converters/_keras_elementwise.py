"""keras.ops that work element by element: functions of one tensor, arithmetic and comparisons of several."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from edgerun.converters._keras_graph import Graph, op
from edgerun.converters._keras_walk import spec_after
from edgerun.converters._layout import Shape, Value, alike
from edgerun.errors import Unsupported

Operand = Any  # a Value, or what stands beside one: a number, an array, a variable


def apply(graph: Graph, name: str, *operands: Operand, **attributes: Any) -> Value:
    """An elementwise ONNX operator over Values and constants, which take the first Value's dtype; shapes broadcast.

    Values of one rank keep channels first where one of them lies so. Comparisons give booleans.
    """
    tensors = [item for item in operands if isinstance(item, Value)]
    dtype = next((t.dtype for t in tensors if not (name == "Where" and t is operands[0])), tensors[0].dtype)
    ranked = [value for value in tensors if value.rank]
    rank = max((value.rank for value in ranked), default=0)
    if all(value.rank == rank for value in ranked) and all(_fits(item, rank) for item in operands):
        lying = iter(alike(graph, ranked))
        tensors = [next(lying) if value.rank else value for value in tensors]
    else:
        tensors = [graph.plain(value) for value in tensors]
    like = next((value for value in tensors if value.rank), tensors[0])
    waiting, names, shapes = iter(tensors), [], []
    for item in operands:
        if isinstance(item, Value):
            value = next(waiting)
            names.append(value.name)
            shapes.append(value.shape)
        else:
            constant = graph.value(item, dtype)
            names.append(_spread(graph, item, like, dtype) if constant.rank else constant.name)
            shapes.append(constant.shape)
    result = "bool" if name in _COMPARISONS.values() or name in ("Not", "And", "Or", "Xor", "IsNaN", "IsInf") else dtype
    shape = broadcast(shapes)
    made = graph.node(name, names, **attributes)
    return replace(like, name=made, shape=shape, dtype=result, padded=None, positive=False, mask=None)


def _fits(item: Operand, rank: int) -> bool:
    """May this stand beside values of this rank whatever way they lie: a number, one number per channel, same rank?"""
    if isinstance(item, Value):
        return True
    size = len(getattr(item, "shape", np.shape(item) if not hasattr(item, "shape") else ()))
    return size <= 1 or size == rank


def _spread(graph: Graph, item: Operand, like: Value, dtype: str) -> str:
    """A constant with axes, lying as `like` does."""
    from edgerun.converters._keras_graph import weight

    array = (np.asarray(item) if not hasattr(item, "shape") else weight(item)).astype(dtype)
    if like.first and array.ndim == like.rank:
        array = np.moveaxis(array, -1, 1)
    elif like.first and array.size > 1:
        array = array.reshape(-1, *[1] * len(like.spatial))
    elif like.order is not None and array.size > 1:
        array = array[..., like.order]
    return graph.const(array, "constant")


def broadcast(shapes: list[Shape]) -> Shape:
    """The shape that these spread to; None where it is not known."""
    rank = max(map(len, shapes), default=0)
    columns = zip(*[(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes], strict=True)
    return tuple(_wider(column) for column in columns)


def _wider(sizes: tuple[int | None, ...]) -> int | None:
    others = [size for size in sizes if size != 1]
    known = [size for size in others if size is not None]
    return known[0] if known else (None if others else 1)


_UNARY = {
    "Absolute": "Abs", "Fabs": "Abs", "Negative": "Neg", "Exp": "Exp", "Log": "Log", "Sqrt": "Sqrt", "Sin": "Sin",
    "Cos": "Cos", "Tan": "Tan", "Sinh": "Sinh", "Cosh": "Cosh", "Tanh": "Tanh", "Arcsin": "Asin", "Arccos": "Acos",
    "Arctan": "Atan", "Arcsinh": "Asinh", "Arccosh": "Acosh", "Arctanh": "Atanh", "Floor": "Floor", "Ceil": "Ceil",
    "Sign": "Sign", "Reciprocal": "Reciprocal", "Erf": "Erf", "Isnan": "IsNaN", "Isinf": "IsInf",
    "LogicalNot": "Not", "BitwiseInvert": "BitwiseNot", "BitwiseNot": "BitwiseNot",
}  # fmt: skip
_BINARY = {
    "Add": "Add", "Subtract": "Sub", "Multiply": "Mul", "Divide": "Div", "TrueDivide": "Div", "Power": "Pow",
    "Maximum": "Max", "Minimum": "Min", "Fmax": "Max", "Fmin": "Min", "BitwiseAnd": "BitwiseAnd",
    "BitwiseOr": "BitwiseOr", "BitwiseXor": "BitwiseXor",
}  # fmt: skip
_COMPARISONS = {
    "Greater": "Greater", "GreaterEqual": "GreaterOrEqual", "Less": "Less", "LessEqual": "LessOrEqual",
    "Equal": "Equal",
}  # fmt: skip
_LOGIC = {"LogicalAnd": "And", "LogicalOr": "Or", "LogicalXor": "Xor"}


@op(*_UNARY)
def _unary(graph: Graph, operation: Any, x: Value) -> Value:
    kind = type(operation).__name__
    dtype = spec_after(operation, [x], {})[0].dtype
    if kind == "LogicalNot":
        x = truth(graph, x)
    return apply(graph, _UNARY[kind], graph.cast(x, dtype) if dtype != "bool" else x)


@op(*_BINARY)
def _binary(graph: Graph, operation: Any, x1: Operand, x2: Operand) -> Value:
    dtype = spec_after(operation, [x1, x2], {})[0].dtype
    kind = type(operation).__name__
    if dtype == "bool":
        name = {"Add": "Or", "Multiply": "And", "BitwiseAnd": "And", "BitwiseOr": "Or", "BitwiseXor": "Xor"}.get(kind)
        if name is None:
            raise Unsupported(f"keras.ops: {kind} of booleans is not supported")
        return apply(graph, name, x1, x2)
    return apply(graph, _BINARY[kind], *(_as(graph, item, dtype) for item in (x1, x2)))


def _as(graph: Graph, item: Operand, dtype: str) -> Operand:
    return graph.cast(item, dtype) if isinstance(item, Value) else item


@op("Greater", "GreaterEqual", "Less", "LessEqual", "Equal", "NotEqual")
def _compare(graph: Graph, operation: Any, x1: Operand, x2: Operand) -> Value:
    from keras import backend  # type: ignore[import-untyped]

    kind = type(operation).__name__
    dtype = backend.result_type(*(getattr(item, "dtype", type(item)) for item in (x1, x2)))
    if dtype == "bool" and kind not in ("Equal", "NotEqual"):
        dtype = "int32"
    found = apply(graph, _COMPARISONS.get(kind, "Equal"), *(_as(graph, item, dtype) for item in (x1, x2)))
    return apply(graph, "Not", found) if kind == "NotEqual" else found


@op(*_LOGIC)
def _logic(graph: Graph, operation: Any, x1: Operand, x2: Operand) -> Value:
    sides = [truth(graph, item) if isinstance(item, Value) else item for item in (x1, x2)]
    return apply(graph, _LOGIC[type(operation).__name__], *sides)


def truth(graph: Graph, value: Value) -> Value:
    """Booleans: what is not zero."""
    return graph.cast(value, "bool")


@op("Where")
def _where(graph: Graph, operation: Any, condition: Operand, x1: Operand, x2: Operand) -> Value:
    dtype = spec_after(operation, [condition, x1, x2], {})[0].dtype
    condition = truth(graph, graph.value(condition))
    sides = [_as(graph, item, dtype) for item in (x1, x2)]
    if not any(isinstance(item, Value) for item in sides):
        sides = [graph.value(item, dtype) for item in sides]
    return apply(graph, "Where", condition, *sides)


@op("Round")
def _round(graph: Graph, operation: Any, x: Value) -> Value:
    factor = 10.0**operation.decimals
    return (
        apply(graph, "Round", x) if factor == 1 else _over(graph, apply(graph, "Round", _by(graph, x, factor)), factor)
    )


def _by(graph: Graph, x: Operand, y: Operand) -> Value:
    return apply(graph, "Mul", x, y)


def _over(graph: Graph, x: Operand, y: Operand) -> Value:
    return apply(graph, "Div", x, y)


def _plus(graph: Graph, x: Operand, y: Operand) -> Value:
    return apply(graph, "Add", x, y)


def _minus(graph: Graph, x: Operand, y: Operand) -> Value:
    return apply(graph, "Sub", x, y)


Formula = Callable[[Graph, Value], Value]
_FORMULAS: dict[str, Formula] = {
    "Square": lambda g, x: _by(g, x, x),
    "Rsqrt": lambda g, x: apply(g, "Reciprocal", apply(g, "Sqrt", x)),
    "Expm1": lambda g, x: _minus(g, apply(g, "Exp", x), 1.0),
    "Exp2": lambda g, x: apply(g, "Exp", _by(g, x, math.log(2))),
    "Log1p": lambda g, x: apply(g, "Log", _plus(g, x, 1.0)),
    "Log2": lambda g, x: _by(g, apply(g, "Log", x), 1 / math.log(2)),
    "Log10": lambda g, x: _by(g, apply(g, "Log", x), 1 / math.log(10)),
    "Cbrt": lambda g, x: _by(g, apply(g, "Sign", x), apply(g, "Pow", apply(g, "Abs", x), 1 / 3)),
    "Deg2rad": lambda g, x: _by(g, x, math.pi / 180),
    "Rad2deg": lambda g, x: _by(g, x, 180 / math.pi),
    "Trunc": lambda g, x: _by(g, apply(g, "Sign", x), apply(g, "Floor", apply(g, "Abs", x))),
    "Erfc": lambda g, x: apply(g, "Sub", g.value(1.0), apply(g, "Erf", x)),
    "Signbit": lambda g, x: apply(g, "Less", x, 0.0),
    "Isfinite": lambda g, x: apply(g, "Not", apply(g, "Or", apply(g, "IsNaN", x), apply(g, "IsInf", x))),
    "Isposinf": lambda g, x: apply(g, "IsInf", x, detect_negative=0),
    "Isneginf": lambda g, x: apply(g, "IsInf", x, detect_positive=0),
    "Sinc": lambda g, x: apply(
        g, "Where", apply(g, "Equal", x, 0.0), 1.0,
        _over(g, apply(g, "Sin", _by(g, x, math.pi)), _by(g, x, math.pi)),
    ),
}  # fmt: skip


@op(*_FORMULAS)
def _formula(graph: Graph, operation: Any, x: Value) -> Value:
    kind = type(operation).__name__
    whole = kind in ("Square", "Trunc")
    return _FORMULAS[kind](graph, x if whole or x.dtype.startswith("float") else graph.cast(x, "float32"))


@op("FloorDivide", "Mod", "Fmod")
def _whole_division(graph: Graph, operation: Any, x1: Operand, x2: Operand) -> Value:
    """⌊a/b⌋, and a − ⌊a/b⌋·b with the sign of b; Fmod's has that of a."""
    kind, dtype = type(operation).__name__, spec_after(operation, [x1, x2], {})[0].dtype
    a, b = (_as(graph, item, dtype) if isinstance(item, Value) else graph.value(item, dtype) for item in (x1, x2))
    if kind == "Fmod":
        return apply(graph, "Mod", a, b, fmod=1)
    if kind == "Mod" and not dtype.startswith("float"):
        return apply(graph, "Mod", a, b)
    if not dtype.startswith("float"):
        rest = apply(graph, "Mod", a, b)
        return apply(graph, "Div", apply(graph, "Sub", a, rest), b)
    whole = apply(graph, "Floor", _over(graph, a, b))
    return whole if kind == "FloorDivide" else _minus(graph, a, _by(graph, whole, b))


@op("DivideNoNan")
def _divide_no_nan(graph: Graph, operation: Any, x1: Operand, x2: Operand) -> Value:
    a, b = (graph.cast(graph.value(item), "float32") for item in (x1, x2))
    zero = apply(graph, "Equal", b, 0.0)
    return apply(graph, "Where", zero, 0.0, _over(graph, a, apply(graph, "Where", zero, 1.0, b)))


@op("Logaddexp", "Logaddexp2")
def _logaddexp(graph: Graph, operation: Any, x1: Operand, x2: Operand) -> Value:
    """max(a, b) + log(1 + exp(−|a − b|)), which does not overflow."""
    base = 2.0 if type(operation).__name__ == "Logaddexp2" else math.e
    a, b = (_by(graph, graph.value(item), math.log(base)) for item in (x1, x2))
    gap = apply(graph, "Neg", apply(graph, "Abs", _minus(graph, a, b)))
    more = apply(graph, "Log", _plus(graph, apply(graph, "Exp", gap), 1.0))
    return _over(graph, _plus(graph, apply(graph, "Max", a, b), more), math.log(base))


@op("Hypot")
def _hypot(graph: Graph, operation: Any, x1: Operand, x2: Operand) -> Value:
    a, b = graph.value(x1), graph.value(x2)
    return apply(graph, "Sqrt", _plus(graph, _by(graph, a, a), _by(graph, b, b)))


@op("Arctan2")
def _arctan2(graph: Graph, operation: Any, x1: Operand, x2: Operand) -> Value:
    """atan(y/x), half a turn further where x is negative, ±π/2 where it is zero."""
    y, x = (graph.cast(graph.value(item), "float32") for item in (x1, x2))
    plain = apply(graph, "Atan", _over(graph, y, apply(graph, "Where", apply(graph, "Equal", x, 0.0), 1.0, x)))
    turn = apply(graph, "Where", apply(graph, "Less", y, 0.0), graph.value(-math.pi), graph.value(math.pi))
    left = apply(graph, "Where", apply(graph, "Less", x, 0.0), _plus(graph, plain, turn), plain)
    up = _by(graph, apply(graph, "Sign", y), math.pi / 2)
    return apply(graph, "Where", apply(graph, "Equal", x, 0.0), up, left)


@op("Clip")
def _clip(graph: Graph, operation: Any, x: Value) -> Value:
    return apply(graph, "Clip", x, operation.x_min, operation.x_max)


@op("NanToNum")
def _nan_to_num(graph: Graph, operation: Any, x: Value) -> Value:
    top = float(np.finfo(np.float32).max)
    found = apply(graph, "Where", apply(graph, "IsNaN", x), float(operation.nan), x)
    high = top if operation.posinf is None else float(operation.posinf)
    low = -top if operation.neginf is None else float(operation.neginf)
    found = apply(graph, "Where", apply(graph, "IsInf", found, detect_negative=0), high, found)
    return apply(graph, "Where", apply(graph, "IsInf", found, detect_positive=0), low, found)


@op("Cast", "SaturateCast")
def _cast(graph: Graph, operation: Any, x: Value) -> Value:
    dtype = operation.dtype
    if type(operation).__name__ == "SaturateCast" and not dtype.startswith(("float", "bool")):
        limits = np.iinfo(dtype)
        x = apply(graph, "Min", apply(graph, "Max", x, float(limits.min)), float(limits.max))
    return graph.cast(x, dtype)


@op("Copy", "StopGradient", "ConvertToTensor", "Real", "Conjugate", "Array")
def _same(graph: Graph, operation: Any, x: Value) -> Value:
    dtype = getattr(operation, "dtype", None)
    return graph.cast(graph.value(x) if not isinstance(x, Value) else x, dtype) if dtype else x
