"""Building an ONNX graph from Keras layers, channels first inside.

Keras counts axes channels-last. A `Value` keeps the shape as Keras sees it and says how the ONNX tensor lies: as is,
with its channels moved to axis 1 (`first`), or flattened from channels-first order (`order`). Transposes are written
only where an operator needs the other lie, which in a CNN is once, at the door.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.errors import Unsupported

if TYPE_CHECKING:
    import onnx

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Value:
    """One tensor: its ONNX name, its shape in Keras's order (batch first, None unknown), its dtype, and how it lies.

    `first`: the ONNX tensor is channels-first. `order` (rank 2): ONNX column p is Keras's column order[p].
    `padded`: it is zero padding, (begin…, end…) per spatial axis, of another value; a convolution takes that in.
    `positive`: no element is below zero.
    """

    name: str
    shape: Shape
    dtype: str = "float32"
    first: bool = False
    order: np.ndarray | None = None
    padded: tuple[Value, tuple[int, ...]] | None = None
    positive: bool = False

    @property
    def rank(self) -> int:
        """Number of axes, batch included."""
        return len(self.shape)

    @property
    def spatial(self) -> Shape:
        """Sizes between batch and channels, of a channels-last shape."""
        return self.shape[1:-1]


Emit = Callable[["Graph", Any, list[Value]], Value]
LAYERS: dict[str, Emit] = {}


def layer(*names: str) -> Callable[[Emit], Emit]:
    """Register the function that writes these layer classes of Keras."""

    def register(emit: Emit) -> Emit:
        LAYERS.update(dict.fromkeys(names, emit))
        return emit

    return register


def weight(variable: Any) -> np.ndarray:
    """A Keras variable as a numpy array, from any backend."""
    from keras import ops  # type: ignore[import-untyped]

    return np.asarray(ops.convert_to_numpy(variable))


class Graph:
    """Nodes and initializers under construction; `scope` prefixes their names with the layer being written."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.scope = ""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._taken: set[str] = set()
        self._turned: dict[str, str] = {}

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
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def ints(self, values: Sequence[int], word: str) -> str:
        """An int64 initializer; its name."""
        return self.const(np.asarray(values, np.int64), word)

    def number(self, item: Any) -> Value:
        """A plain number beside a tensor, as `x + 3` has it."""
        if not isinstance(item, (int, float)):
            raise Unsupported(f"an operator with {type(item).__name__} beside a tensor is not supported")
        return Value(self.const(np.float32(item), "number"), ())

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> str:
        """A node; the name of its first output, or with `outputs` > 1 of the last one, the others being unnamed."""
        from onnx import defs, helper

        if not defs.has(op, self.opset):
            raise Unsupported(f"{op} is not in opset {self.opset}")
        name = self._name(op)
        results = [""] * (outputs - 1) + [name]
        self.nodes.append(helper.make_node(op, list(inputs), results, name, **attributes))
        return results[-1]

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
        """The value with its ONNX tensor in Keras's order."""
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
        return replace(value, name=name, padded=None, positive=op == "Relu")

    def spread(self, array: np.ndarray, value: Value, word: str) -> str:
        """A constant of one number per channel, or of Keras's shape without batch, lying as `value` does."""
        array = np.asarray(array, np.float32)
        if value.order is not None and array.size > 1:
            array = array.reshape(-1)[value.order]
        elif value.first and array.ndim <= 1:
            array = array.reshape(-1, *[1] * len(value.spatial))
        elif value.first:
            array = np.moveaxis(array, -1, 0)
        return self.const(array, word)


def flat_order(shape: Shape) -> np.ndarray:
    """order[p] for `Value.order`: `shape` is channels-last without batch, p counts channels-first."""
    sizes = [int(size or 0) for size in shape]
    logical = np.arange(math.prod(sizes)).reshape(sizes)
    return np.moveaxis(logical, -1, 0).reshape(-1)


def walk(graph: Graph, model: Any, values: Sequence[Value], refused: list[str], prefix: str = "") -> list[Value]:
    """Write every layer of a functional or sequential model; its outputs, one Value each.

    A layer that cannot be written adds its line to `refused` and the walk goes on, so that one run names them all.
    """
    from keras import tree

    model = getattr(model, "_functional", None) or model
    known = {id(tensor): value for tensor, value in zip(model.inputs, values, strict=True)}
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input or any(id(tensor) not in known for tensor in node.input_tensors):
                continue
            args, kwargs = node.arguments.fill_in(known)
            inputs = [item for item in tree.flatten([args, kwargs]) if isinstance(item, Value)]
            if _key(node.operation).startswith("ops."):
                inputs = [item if isinstance(item, Value) else graph.number(item) for item in args]
            results = _one(graph, node.operation, inputs, node.outputs, refused, prefix)
            known.update({id(tensor): value for tensor, value in zip(node.outputs, results, strict=True)})
    return [known[id(tensor)] for tensor in model.outputs]


def _one(
    graph: Graph, operation: Any, inputs: list[Value], outputs: Sequence[Any], refused: list[str], prefix: str
) -> list[Value]:
    name = f"{prefix}{operation.name}"
    unknown = [Value("", tuple(tensor.shape), tensor.dtype) for tensor in outputs]
    if hasattr(operation, "_nodes_by_depth") or hasattr(operation, "_functional"):
        return walk(graph, operation, inputs, refused, f"{name}/")
    if (reason := refusal(operation)) is not None:
        refused.append(f"{name}: {reason}")
        return unknown
    graph.scope = name
    try:
        return [LAYERS[_key(operation)](graph, operation, inputs)]
    except Unsupported as error:
        refused.append(f"{name}: {error.what}")
        return unknown


def _key(operation: Any) -> str:
    """A layer's class name, `ops.` and its class name for an operator on tensors, "" for a stranger's class."""
    return key_of(type(operation).__module__, type(operation).__name__)


def key_of(module: str, name: str) -> str:
    """The name under which a class of Keras is registered in LAYERS, from where it is defined or saved."""
    if module.startswith("keras.src.ops."):
        return f"ops.{name}"
    return name if module == "keras" or module.startswith(("keras.layers", "keras.src.layers.")) else ""


def refusal(operation: Any) -> str | None:
    """Why this layer cannot be written, or None."""
    kind = type(operation)
    if _key(operation) not in LAYERS:
        return f"{kind.__name__} is not supported"
    if getattr(operation, "compute_dtype", "float32") not in ("float32", "int32", "int64"):
        return f"{kind.__name__} computes in {operation.compute_dtype}, wanted float32"
    return None


def shape_after(operation: Any, inputs: Sequence[Value]) -> Shape:
    """The output shape that Keras computes for these input shapes."""
    shapes = [value.shape for value in inputs]
    return tuple(operation.compute_output_shape(shapes[0] if len(shapes) == 1 else shapes))
