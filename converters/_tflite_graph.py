"""TFLite operators as ONNX: which function writes which, and how codes become numbers.

A rule is written once, on real numbers. Where TFLite computes on codes, what a rule reads stands behind a
DequantizeLinear and what it makes before a QuantizeLinear, with the file's own scales and zero points; Transposes move
codes. int8 is written as uint8, 128 higher, which stands for the same numbers: what runtimes have kernels for. Weights
stay int8. Constants keep the form in which the file stores them: codes behind DequantizeLinear, float16 behind Cast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.converters import _layout
from edgerun.converters._layout import Shape
from edgerun.converters._tflite_files import Quant, Tensor, shifted
from edgerun.errors import Unsupported

if TYPE_CHECKING:
    import onnx

_LEAST = 256  # elements of a float16 constant that is worth a Cast


@dataclass(frozen=True)
class Value(_layout.Value):
    """A tensor under construction. `data`: it is constant, as the file stores it, and has no ONNX name until it lies
    somewhere. `quant`: what `data`, or the ONNX tensor called `codes`, stands for; `name` is then the real tensor.
    `imaginary`: the tensor is the real part of complex numbers, whose other part this is."""

    data: np.ndarray | None = None
    quant: Quant | None = None
    codes: str = ""
    imaginary: Value | None = None

    @property
    def real(self) -> np.ndarray | None:
        """The constant's content as numbers of `dtype`."""
        if self.data is None or self.quant is None:
            return None if self.data is None else self.data.astype(self.dtype)
        return self.quant.real(self.data)


@dataclass(frozen=True)
class Call:
    """One operator with what it reads (None where an input is left out) and the tensors that it makes.

    `parts` are those of its complex numbers that anything reads (`_tflite_spectra.read`).
    """

    kind: str
    options: Any
    inputs: Sequence[Value | None]
    outputs: Sequence[Tensor]
    parts: frozenset[str] = frozenset()

    def value(self, index: int = 0) -> Value:
        """An input that must be there."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise Unsupported(f"input {index} is missing")
        return found

    def given(self, index: int) -> Value | None:
        """An input that may be left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def constant(self, index: int) -> np.ndarray:
        """The content of an input that must be constant."""
        found = self.value(index).real
        if found is None:
            raise Unsupported(f"input {index} is computed while running, wanted a constant")
        return found

    def made(self, name: str, index: int = 0, *, first: bool = False) -> Value:
        """Output `index`, as the file declares it, being the ONNX tensor `name`."""
        tensor = self.outputs[index]
        return Value(name, tensor.shape, "float32" if tensor.quant else tensor.dtype, first)


Emit = Callable[["Graph", Call], "Value | Sequence[Value]"]


@dataclass(frozen=True)
class Rule:
    """How operators are written: `to` names the ONNX operators of each, `limits` what they must be.

    Its codes are within `steps` of TFLite's own on the same codes.
    """

    emit: Emit
    to: Mapping[str, str]
    limits: str
    steps: int


RULES: dict[str, Rule] = {}


def rule(*kinds: str, to: str | Mapping[str, str], limits: str = "", steps: int = 1) -> Callable[[Emit], Emit]:
    """Register the function that writes these operators."""

    def register(emit: Emit) -> Emit:
        names = {kind: to if isinstance(to, str) else to[kind] for kind in kinds}
        RULES.update({kind: Rule(emit, names, limits, steps) for kind in kinds})
        return emit

    return register


class Graph(_layout.Graph):
    """Nodes under construction for a TFLite net; see the module."""

    def __init__(self, opset: int) -> None:
        super().__init__(opset)
        self._shared: dict[Any, str] = {}
        self._numbers: dict[str, str] = {}  # codes -> the real tensor

    @contextmanager
    def inside(self) -> Iterator[list[onnx.NodeProto]]:
        """The nodes of a graph inside this one: what they make is not seen outside."""
        outer = self.nodes, dict(self._turned), dict(self._numbers)
        self.nodes = []
        try:
            yield self.nodes
        finally:
            self.nodes, self._turned, self._numbers = outer

    def first(self, value: Value) -> Value:  # type: ignore[override]
        """The value, constants and codes too, with its ONNX tensor channels-first."""
        return self._lying(value, value.rank >= 3)

    def plain(self, value: Value) -> Value:  # type: ignore[override]
        """The value, constants and codes too, with its ONNX tensor in the source's order."""
        return self._lying(value, False)

    def _lying(self, value: Value, first: bool) -> Value:
        if value.data is not None:
            if value.quant is not None and value.quant.unsigned is not value.quant:
                value = replace(value, data=shifted(value.data), quant=value.quant.unsigned)
            perm = [0, value.rank - 1, *range(1, value.rank - 1)] if first else list(range(value.rank))
            return replace(self.placed(value, perm), first=first)
        if value.first == first and value.order is None:
            return value
        base = replace(value, name=value.codes or value.name)
        moved = super().first(base) if first else super().plain(base)
        found = Value(moved.name, moved.shape, value.dtype, moved.first, quant=value.quant)
        return self.number(replace(found, codes=found.name)) if value.codes else found

    def placed(self, value: Value, perm: Sequence[int], word: str = "constant") -> Value:
        """A weight with its axes in the order `perm`, as it is stored if it is constant."""
        shape = tuple(value.shape[axis] for axis in perm)
        if value.data is None:
            value = self.plain(value)
            return value if list(perm) == sorted(perm) else self.moved(value, shape, "Transpose", perm=list(perm))
        data = np.transpose(value.data, perm)
        quant = value.quant
        if quant is None:
            half = data.dtype == np.float16 and value.dtype == "float32"
            if half and data.size < _LEAST:
                data, half = data.astype(np.float32), False
            name = self.const(data, word)
            return Value(self.node("Cast", [name], to=1) if half else name, shape, value.dtype)
        if quant.scale.size > 1:
            quant = replace(quant, axis=list(perm).index(quant.axis))
        return Value(self._dequantize(self.const(data, word), quant), shape, "float32")

    def alike(self, values: Sequence[Value]) -> list[Value]:
        """Values that are computed together element by element, brought to lie the same way."""
        rank = max(value.rank for value in values)
        moving = [value for value in values if value.data is None]
        first = any(value.first for value in moving) and all(value.rank == rank for value in moving)
        orders = [value.order for value in moving]
        order = orders[0] if orders and orders[0] is not None else None
        if order is not None and all(o is not None and np.array_equal(o, order) for o in orders) and rank == 2:
            return [value if value.data is None else self._ordered(value, order) for value in values]
        return [self._broadcast(value, rank, first) for value in values]

    def _broadcast(self, value: Value, rank: int, first: bool) -> Value:
        if value.data is None or not first:
            return self._lying(value, first)
        if value.data.size == 1:
            return self.plain(replace(value, data=value.data.reshape(()), shape=()))
        missing = rank - value.rank
        quant = value.quant and replace(value.quant, axis=value.quant.axis + missing)
        data = value.data.reshape([1] * missing + list(value.data.shape))
        return self.first(replace(value, data=data, shape=data.shape, quant=quant))

    def _ordered(self, value: Value, order: np.ndarray) -> Value:
        data = value.data
        if data is None or data.ndim == 0 or data.shape[-1] != len(order):
            return self.plain(value)
        return self.plain(replace(value, data=data[..., order]))

    def moved(self, value: Value, shape: Shape, op: str, *more: str, first: bool = False, **attributes: Any) -> Value:
        """What an operator that moves elements makes of a value; of one that stands for codes it moves these."""
        found = Value("", shape, value.dtype, first, quant=value.quant)
        if value.codes:
            return self.number(replace(found, codes=self.node(op, [value.codes, *more], **attributes)))
        return replace(found, name=self.node(op, [value.name, *more], **attributes))

    def settled(self, value: Value) -> Value:
        """The value as it lies, with a name: constants lie plainly."""
        return self.plain(value) if value.data is not None else value

    def made_like(self, value: Value, op: str, *more: str, **attributes: Any) -> Value:
        """An elementwise operator on real numbers: same shape, same lie."""
        name = self.node(op, [value.name, *more], **attributes)
        return Value(name, value.shape, value.dtype, value.first, value.order, positive=op in ("Relu", "Sigmoid"))

    def beside(self, call: Call, name: str, *values: Value) -> Value:
        """What is made of values that were brought to lie alike."""
        like = next((v for v in values if v.first or v.order is not None), values[0])
        return replace(call.made(name, first=like.first), order=like.order)

    def axis(self, value: Value, axis: int) -> int:
        """The ONNX axis of the source's axis `axis`, as the value lies."""
        axis = axis % max(value.rank, 1)
        if not value.first or axis == 0:
            return axis
        return 1 if axis == value.rank - 1 else axis + 1

    def shared(self, array: np.ndarray | np.generic, word: str) -> str:
        """An initializer of which one is enough however often the same content is asked for."""
        key = (word, array.dtype.str, array.shape, array.tobytes())
        if key not in self._shared:
            scope, self.scope = self.scope, "shared"
            self._shared[key] = self.const(array, word)
            self.scope = scope
        return self._shared[key]

    def _quantizer(self, quant: Quant) -> tuple[list[str], dict[str, int]]:
        """Names of scale and zero point, and the attributes, of QuantizeLinear and DequantizeLinear."""
        one = quant.scale.size == 1
        parts = [array.reshape(()) if one else array for array in (quant.scale, quant.zero)]
        return [self.shared(parts[0], "scale"), self.shared(parts[1], "zero")], {} if one else {"axis": quant.axis}

    def _dequantize(self, name: str, quant: Quant) -> str:
        names, attributes = self._quantizer(quant)
        return self.node("DequantizeLinear", [name, *names], **attributes)

    def number(self, value: Value) -> Value:
        """The real tensor of a value of codes, written once however many ask for it."""
        assert value.quant is not None
        if value.codes not in self._numbers:
            self._numbers[value.codes] = self._dequantize(value.codes, value.quant)
        return replace(value, name=self._numbers[value.codes])

    def coded(self, value: Value, quant: Quant) -> Value:
        """A real value rounded to codes; one that comes from the same codes stays what it was."""
        have = value.quant
        if value.codes and have and np.array_equal(have.scale, quant.scale) and np.array_equal(have.zero, quant.zero):
            if have.zero.dtype == quant.zero.dtype:
                return value
        name = self.plain(value).name if value.data is not None else value.name
        names, attributes = self._quantizer(quant)
        return replace(value, name="", codes=self.node("QuantizeLinear", [name, *names], **attributes), quant=quant,
                       data=None)  # fmt: skip
