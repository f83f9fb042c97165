"""Rules for Keras's layers and operations, and the graph that they write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgerun.converters import _layout
from edgerun.converters._layout import Shape, Value

Emit = Callable[["Graph", Any, list[Value]], Any]
Rule = Callable[..., Any]
LAYERS: dict[str, Emit] = {}
OPS: dict[str, Rule] = {}


def layer(*names: str) -> Callable[[Emit], Emit]:
    """Register the function that writes these layer classes: (graph, layer, its tensors) -> a Value or several.

    The layer's other arguments, a mask among them, are in `graph.arguments`.
    """

    def register(emit: Emit) -> Emit:
        LAYERS.update(dict.fromkeys(names, emit))
        return emit

    return register


def op(*names: str) -> Callable[[Rule], Rule]:
    """Register the function that writes these operations of keras.ops: (graph, operation, *arguments as called).

    It returns the ONNX names of the results, whose tensors lie in Keras's order, or Values.
    """

    def register(rule: Rule) -> Rule:
        OPS.update(dict.fromkeys(names, rule))
        return rule

    return register


def weight(variable: Any) -> np.ndarray:
    """A Keras variable as a numpy array, from any backend."""
    from keras import ops  # type: ignore[import-untyped]

    array = np.asarray(ops.convert_to_numpy(variable))
    return array.astype(np.float32) if array.dtype == np.float64 else array


class Graph(_layout.Graph):
    """The graph, and what a rule asks about the layer or call that it writes."""

    def __init__(self, opset: int, backend: str = "") -> None:
        super().__init__(opset)
        self.arguments: dict[str, Any] = {}  # of the layer being written, by the names of its call
        self.backend = backend  # that the model is known to be meant for, or ""
        self.walk: Any = None  # the Walk that drives this: rules write inner layers and calls through it

    def value(self, item: Any, dtype: str = "") -> Value:
        """What stands in a call as a Value lying in Keras's order: a Value, a number, an array or a variable."""
        if isinstance(item, Value):
            return self.plain(item)
        array = np.asarray(item if isinstance(item, (bool, int, float, np.generic)) else weight(item))
        if isinstance(item, float) or array.dtype == np.float64:
            array = array.astype(np.float32)
        elif isinstance(item, int) and not isinstance(item, bool):
            array = array.astype(np.int32)
        array = array.astype(dtype) if dtype else array
        return Value(self.const(array, "constant"), array.shape, str(array.dtype))


def shape_after(operation: Any, inputs: Sequence[Value]) -> Shape:
    """The output shape that Keras computes for these input shapes."""
    shapes = [value.shape for value in inputs]
    return tuple(operation.compute_output_shape(shapes[0] if len(shapes) == 1 else shapes))
