"""Building an ONNX graph from operators that count axes channels-last, channels first inside.

A `Value` keeps the shape as the source sees it and says how the ONNX tensor lies: as is, with its channels moved to
axis 1 (`first`), or flattened from channels-first order (`order`). Transposes are written only where an operator needs
the other lie, which in a CNN is once, at the door.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.errors import Unsupported

if TYPE_CHECKING:
    import onnx

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Value:
    """One tensor: its ONNX name, its shape in the source's order (batch first, None unknown), dtype, and how it lies.

    `first`: the ONNX tensor is channels-first. `order` (rank 2): ONNX column p is the source's column order[p].
    `padded`: it is zero padding, (begin…, end…) per spatial axis, of another value; a convolution takes that in.
    `positive`: no element is below zero. `mask`: booleans [batch, steps] that go with the tensor, as Keras's do.
    """

    name: str
    shape: Shape
    dtype: str = "float32"
    first: bool = False
    order: np.ndarray | None = None
    padded: tuple[Value, tuple[int, ...]] | None = None
    positive: bool = False
    mask: Value | None = None

    @property
    def rank(self) -> int:
        """Number of axes, batch included."""
        return len(self.shape)

    @property
    def spatial(self) -> Shape:
        """Sizes between batch and channels, of a channels-last shape."""
        return self.shape[1:-1]

    def lying(self, array: np.ndarray) -> np.ndarray:
        """The source's array as the ONNX tensor lies."""
        if self.order is not None:
            return np.ascontiguousarray(array[:, self.order])
        return np.ascontiguousarray(np.moveaxis(array, -1, 1)) if self.first else array


class Graph:
    """Nodes and initializers under construction; `scope` prefixes their names with what is being written."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.scope = ""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._taken: set[str] = set()
        self._turned: dict[str, str] = {}
        self._ints: dict[tuple[int, ...], str] = {}

    def _name(self, word: str) -> str:
        name, count = f"{self.scope}/{word}", 1
        while name in self._taken:
            name, count = f"{self.scope}/{word}_{count}", count + 1
        self._taken.add(name)
        return name

    def const(self, array: np.ndarray | np.generic, word: str) -> str:
        """An initializer; its name."""
        from onnx import numpy_helper

        name = self._name(word)
        self.initializers[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def ints(self, values: Sequence[int], word: str) -> str:
        """An int64 initializer, one for the same numbers; its name."""
        key = tuple(int(value) for value in values)
        if key not in self._ints:
            self._ints[key] = self.const(np.asarray(key, np.int64), word)
        return self._ints[key]

    def cast(self, value: Value, dtype: str) -> Value:
        """The value in another dtype, lying as it does."""
        from onnx import helper

        if value.dtype == dtype:
            return value
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return replace(value, name=self.node("Cast", [value.name], to=kind), dtype=dtype, padded=None)

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node of one output; its name."""
        return self.several(op, inputs, 1, **attributes)[0]

    def several(self, op: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        """A node of `count` outputs; their names."""
        from onnx import defs, helper

        if not defs.has(op, self.opset):
            raise Unsupported(f"{op} is not in opset {self.opset}")
        name = self._name(op)
        results = [name] if count == 1 else [f"{name}:{index}" for index in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), results, name, **attributes))
        return results

    def first(self, value: Value) -> Value:
        """The value with its ONNX tensor channels-first."""
        if value.first or value.rank < 3:
            return self.plain(value) if value.rank < 3 else value
        channels = value.shape[-1]
        if all(size == 1 for size in value.spatial) and channels is not None:
            shape = self.ints([0, channels, *[1] * len(value.spatial)], "shape")
            return replace(value, name=self.node("Reshape", [value.name, shape]), first=True, padded=None)
        perm = [0, value.rank - 1, *range(1, value.rank - 1)]
        return replace(value, name=self._transpose(value.name, perm), first=True, padded=None)

    def plain(self, value: Value) -> Value:
        """The value with its ONNX tensor in the source's order."""
        if value.order is not None:
            back = self.ints(np.argsort(value.order).tolist(), "order")
            return replace(value, name=self.node("Gather", [value.name, back], axis=1), order=None)
        if not value.first:
            return value
        channels = value.shape[-1]
        if all(size == 1 for size in value.spatial) and channels is not None:
            shape = self.ints([0, *[1] * len(value.spatial), channels], "shape")
            return replace(value, name=self.node("Reshape", [value.name, shape]), first=False, padded=None)
        return replace(value, name=self._transpose(value.name, [0, *range(2, value.rank), 1]), first=False, padded=None)

    def _transpose(self, name: str, perm: list[int]) -> str:
        """One Transpose per value, however many layers ask for it; turning back gives the value that was turned."""
        if name not in self._turned:
            turned = self.node("Transpose", [name], perm=perm)
            self._turned |= {name: turned, turned: name}
        return self._turned[name]

    def like(self, value: Value, op: str, *more: str, **attributes: Any) -> Value:
        """An elementwise operator: same shape, same lie."""
        name = self.node(op, [value.name, *more], **attributes)
        return replace(value, name=name, padded=None, positive=op in ("Relu", "Sigmoid", "Exp"))

    def spread(self, array: np.ndarray, value: Value, word: str) -> str:
        """A constant of one number per channel, or of the source's shape without batch, lying as `value` does."""
        array = np.asarray(array, np.float32)
        if value.order is not None and array.size > 1:
            array = array.reshape(-1)[value.order]
        elif value.first and array.ndim <= 1:
            array = array.reshape(-1, *[1] * len(value.spatial))
        elif value.first:
            array = np.moveaxis(array, -1, 0)
        return self.const(array, word)


def alike(graph: Graph, inputs: list[Value]) -> list[Value]:
    """Values of one rank, brought to lie the same way."""
    if any(value.first for value in inputs):
        return [graph.first(value) for value in inputs]
    orders = [value.order for value in inputs if value.order is not None]
    same = len(orders) == len(inputs) and all(np.array_equal(order, orders[0]) for order in orders)
    return inputs if same else [graph.plain(value) for value in inputs]


def flat_order(shape: Shape) -> np.ndarray:
    """order[p] for `Value.order`: `shape` is channels-last without batch, p counts channels-first."""
    sizes = [int(size or 0) for size in shape]
    logical = np.arange(math.prod(sizes)).reshape(sizes)
    return np.moveaxis(logical, -1, 0).reshape(-1)


def same_pads(
    sizes: Shape, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int] | None:
    """ONNX pads (all begins, all ends) of "same" padding; None where a stride meets an unknown size.

    Input n, kernel k, stride s, dilation d: the output is ⌈n/s⌉ for (⌈n/s⌉ - 1)·s + d·(k - 1) + 1 - n of padding in
    all, the smaller half in front.
    """
    begins, ends = [], []
    for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        reach = d * (k - 1) + 1
        if n is None and s > 1:
            return None
        total = max(reach - s if n is None else (-(-n // s) - 1) * s + reach - n, 0)
        begins.append(total // 2)
        ends.append(total - total // 2)
    return begins + ends
