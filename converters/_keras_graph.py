"""Keras layers as ONNX: which function writes which class, and the walk over a model's layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgerun.converters._layout import Graph, Shape, Value
from edgerun.errors import Unsupported

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


def number(graph: Graph, item: Any) -> Value:
    """A plain number beside a tensor, as `x + 3` has it."""
    if not isinstance(item, (int, float)):
        raise Unsupported(f"an operator with {type(item).__name__} beside a tensor is not supported")
    return Value(graph.const(np.float32(item), "number"), ())


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
                inputs = [item if isinstance(item, Value) else number(graph, item) for item in args]
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
