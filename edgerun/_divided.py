"""Divisions of constants whose result their type cannot hold: the least int32 or int64 by -1, where processors trap."""

# Runtimes compute what is constant while they open a model: the process dies there, with no word. (Shorter integers are
# divided as int32, and integers by 0 are refused by the runtimes.)

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from edgerun import _passed, _wire

if TYPE_CHECKING:
    from edgerun.guard import _Model

Integers = tuple[int, Sequence[int]]  # the least number of their type, and they themselves
Constants = Mapping[str, Callable[[], Integers]]
# int32 and int64, as onnx.TensorProto.DataType numbers them: for memoryview.cast, and their least.
TYPES: dict[int, tuple[Literal["i", "q"], int]] = {6: ("i", -(1 << 31)), 7: ("q", -(1 << 63))}


def check(model: _Model, data: memoryview) -> None:
    """Raise for the first division that traps, in a model whose structure the guard has seen. Of several elements any
    two count, wherever they stand."""
    for graph in _parts(data, 7):
        _walk(model, _parts(graph, 1), _parts(graph, 5), {})
    for function in _parts(data, 25):
        _walk(model, _parts(function, 7), (), {})


def _walk(model: _Model, nodes: Sequence[memoryview], stored: Sequence[memoryview], around: Constants) -> None:
    """The nodes of a graph with the initializers `stored`, inside of one that has the constants `around`."""
    constants: dict[str, Callable[[], Integers]] = dict(around)
    constants |= {name: partial(_stored, model, part) for part in stored for name in _texts(part, 8)}
    for node in nodes:
        parts: dict[int, list[memoryview]] = {1: [], 2: [], 4: [], 5: []}  # inputs, outputs, op, attributes
        for number, value in _wire.fields(node):
            if number in parts:
                parts[number].append(_wire.message(value))
        op, names = bytes(parts[4][-1] if parts[4] else b""), [_wire.text(part) for part in parts[1]]
        if op == b"Constant":
            constants |= {_wire.text(name): partial(_attributed, model, parts[5]) for name in parts[2]}
        elif op in (b"Div", b"Mod") and len(names) == 2 and all(name in constants for name in names):
            (least, dividend), (_, divisor) = (constants[name]() for name in names)
            if -1 in divisor and least in dividend:
                what = f"a constant's {op.decode()} by -1 overflows, which ends the process"
                raise model.refuse(what, got="".join(map(_wire.text, parts[2])))
        for attribute in parts[5]:
            if bytes(attribute[:99]) in model.plain:  # short ones, without a graph
                continue
            for number, value in _wire.fields(attribute):
                if number in (6, 11):
                    graph = _wire.message(value)
                    _walk(model, _parts(graph, 1), _parts(graph, 5), constants)


def _attributed(model: _Model, attributes: Sequence[memoryview]) -> Integers:
    """What a node Constant holds in `value`, `value_int` or `value_ints`."""
    numbers = list[int]()
    for attribute in attributes:
        if tensors := _parts(attribute, 5):
            return _stored(model, tensors[-1])
        numbers += (n for number, value in _wire.fields(attribute) if number in (3, 8) for n in _wire.integers(value))
    return TYPES[7][1], numbers


def _stored(model: _Model, tensor: memoryview) -> Integers:
    """A TensorProto's integers, wherever they lie; none of another type."""
    told = list(_wire.fields(tensor))
    kind = [_wire.signed(value) for number, value in told if number == 2][-1:]
    if not kind or kind[0] not in TYPES:
        return 0, ()
    form, least = TYPES[kind[0]]
    size = memoryview(bytes(8)).cast(form).itemsize
    raw = _parts(tensor, 9)[-1:]
    if outside := _parts(tensor, 13):  # read as the guard does, which has seen that such a file is there
        pairs = [{n: _wire.text(value) for n, value in _wire.fields(pair)} for pair in outside]
        entries = {pair.get(1, ""): pair.get(2, "") for pair in pairs}
        dims = [n for number, value in told if number == 1 for n in _wire.integers(value)]
        start, length = int(entries.get("offset") or 0), math.prod(dims) * size
        assert model.folder is not None  # or the guard had refused it
        raw = [_wire.view(model.folder / entries["location"])[start : start + length]] if length else [memoryview(b"")]
    if not raw:
        numbers = [n for number, value in told if number in (5, 7) for n in _wire.integers(value)]
        return least, [(n - least) % (-2 * least) + least for n in numbers]  # as wide as the type, whatever was written
    model.alone &= len(raw[0]) < _passed.SHORT  # these weights decide, and a model is known again without its weights
    return least, raw[0][: len(raw[0]) // size * size].cast(form)


def _parts(data: memoryview, field: int) -> list[memoryview]:
    return [_wire.message(value) for number, value in _wire.fields(data) if number == field]


def _texts(data: memoryview, field: int) -> list[str]:
    return [_wire.text(part) for part in _parts(data, field)]
