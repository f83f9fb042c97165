"""Following a Keras graph: every layer and operation by its rule, what has none by the operations of its own `call`.

A layer, model or function without a rule is called with symbolic tensors: then every `keras.ops` in it leaves a node
that is written like those of a functional model. Masks go along as Layer.__call__ hands them on.
"""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from edgerun.converters._keras_graph import LAYERS, OPS, Emit, Graph
from edgerun.converters._keras_taps import Written
from edgerun.converters._layout import Value
from edgerun.converters._ort import first_line
from edgerun.errors import Unsupported

RULES: dict[type, Emit] = {}  # of layer classes that are not Keras's own, subclasses included
_MAKES_MASKS = ("Embedding", "Masking", "ReversibleEmbedding")
_OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "pow": "power", "matmul": "matmul",
}  # fmt: skip


class Walk:
    """One conversion: the graph being written, a line in `refused` for everything that cannot be, and what is `written`
    for the results of the model's own graph, nested ones left out."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.refused: list[str] = []
        self.written: list[Written] = []
        graph.walk = self

    def model(self, model: Any, values: Sequence[Value], prefix: str = "") -> list[Value]:
        """Write a functional or sequential model; its outputs, one Value each.

        What cannot be written adds its line to `refused` and the walk goes on, so that one run names everything.
        """
        model = getattr(model, "_functional", None) or model
        known: dict[int, Any] = {id(tensor): value for tensor, value in zip(model.inputs, values, strict=True)}
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if not node.is_input and all(id(tensor) in known for tensor in node.input_tensors):
                    self._node(node, known, prefix)
        return [known[id(tensor)] for tensor in model.outputs]

    def _node(self, node: Any, known: dict[int, Any], prefix: str) -> None:
        args, kwargs = node.arguments.fill_in(known)
        operation, name = node.operation, f"{prefix}{node.operation.name}"
        try:
            results = self._written(operation, args, kwargs, name)
        except Unsupported as error:
            line = f"{name}: {error.what}"
            self.refused += [] if line in self.refused else [line]
            results = [Value("", tuple(tensor.shape), tensor.dtype) for tensor in node.outputs]
        # A layer may return a structure of which the graph knows the tensors only.
        known.update({id(tensor): value for tensor, value in zip(node.outputs, results, strict=True)})
        if not prefix:
            pairs = zip(node.outputs, results, strict=True)
            self.written += [Written(tensor, operation, value) for tensor, value in pairs]

    def _written(self, operation: Any, args: Any, kwargs: Any, name: str) -> list[Value]:
        if hasattr(operation, "_nodes_by_depth") or hasattr(operation, "_functional"):
            return self.model(operation, _values([args, kwargs]), f"{name}/")
        scope, arguments = self.graph.scope, self.graph.arguments
        self.graph.scope = name
        try:
            if key(operation).startswith("ops."):
                return self._operation(operation, args, kwargs)
            return self._layer(operation, args, kwargs)
        finally:
            self.graph.scope, self.graph.arguments = scope, arguments

    def layer(self, operation: Any, *args: Any, **kwargs: Any) -> list[Value]:
        """Write a layer inside of another one: what it makes of these Values."""
        return self._written(operation, args, kwargs, f"{self.graph.scope}/{operation.name}")

    def _operation(self, operation: Any, args: Any, kwargs: Any) -> list[Value]:
        kind = type(operation).__name__
        if kind not in OPS:
            raise Unsupported(f"keras.ops: {kind} is not supported")
        found = OPS[kind](self.graph, operation, *args, **kwargs)
        found = list(found) if isinstance(found, (list, tuple)) else [found]
        if all(isinstance(item, Value) for item in found):
            return found
        specs = spec_after(operation, args, kwargs)
        return [Value(name, tuple(s.shape), s.dtype) for name, s in zip(found, specs, strict=True)]

    def _layer(self, operation: Any, args: Any, kwargs: Any) -> list[Value]:
        if (reason := refusal(operation)) is not None:
            raise Unsupported(reason)
        arguments = dict(inspect.signature(operation.call).bind_partial(*args, **kwargs).arguments)
        arguments |= arguments.pop("kwargs", {})
        tensors = {word: item for word, item in arguments.items() if _values(item)}
        _hand_masks(operation, arguments, tensors)
        first = next(iter(arguments.values()))
        previous = arguments.get("mask") or _map(lambda item: getattr(item, "mask", None), first)
        rule = rule_of(operation)
        if rule is None:
            return self._called(operation, arguments)
        self.graph.arguments = arguments
        found = rule(self.graph, operation, _values([args, kwargs]))
        results = list(found) if isinstance(found, (list, tuple)) else [found]
        return self._masked(operation, first, previous, results)

    def _called(self, operation: Any, arguments: dict[str, Any]) -> list[Value]:
        """A layer by its own `call`."""
        known = {word: item for word, item in arguments.items() if item is not None}
        if "training" in inspect.signature(operation.call).parameters:
            known["training"] = False
        first, previous = next(iter(arguments.values())), arguments.get("mask")
        previous = previous or _map(lambda item: getattr(item, "mask", None), first)
        return self._masked(operation, first, previous, self.trace(operation.call, **known))

    def _masked(self, operation: Any, first: Any, previous: Any, results: list[Value]) -> list[Value]:
        """The results with the masks that Layer.__call__ would set on them."""
        from keras import layers  # type: ignore[import-untyped]

        own = type(operation).compute_mask is not layers.Layer.compute_mask
        makes = type(operation).__name__ in _MAKES_MASKS and getattr(operation, "mask_zero", True)
        if not operation.supports_masking or not (_values(previous) or makes):
            return [replace(value, mask=None) for value in results]
        masks: list[Any] = _values(previous)[:1]
        if own:
            masks = self.trace(operation.compute_mask, first, previous, keep_none=True)
        masks += [None] * (len(results) - len(masks))
        return [replace(value, mask=mask) for value, mask in zip(results, masks, strict=False)]

    def trace(self, function: Callable[..., Any], *args: Any, keep_none: bool = False, **kwargs: Any) -> list[Any]:
        """What `function`, given symbolic tensors for the Values in its arguments, makes of them.

        Every Keras operation in it is written. Raises Unsupported where it asks for more than that.
        """
        from keras import tree

        known: dict[int, Any] = {}
        args, kwargs = _map(lambda item: _symbol(item, known), (args, kwargs))
        try:
            with _variables_as_tensors(), _operations_for_backend(getattr(function, "__self__", None)):
                found = tree.flatten(function(*args, **kwargs))
        except Unsupported:
            raise
        except Exception as error:  # whatever code raises that was not written for symbolic tensors
            owner = type(getattr(function, "__self__", function)).__name__
            raise Unsupported(
                f"{owner} is more than operations of keras.ops ({type(error).__name__}: {first_line(error, 160)})"
            ) from error
        found = [item for item in found if item is not None or keep_none]
        return [None if item is None else self._value_of(item, known) for item in found]

    def _value_of(self, item: Any, known: dict[int, Any]) -> Value:
        """A symbolic tensor's Value: the operations that lead to it are written first."""
        from keras import KerasTensor

        if not isinstance(item, KerasTensor):
            return self.graph.value(item)
        waiting = [item]
        while waiting:
            if id(tensor := waiting[-1]) in known:
                waiting.pop()
                continue
            history: Any = getattr(tensor, "_keras_history")  # noqa: B009  (not part of its type)
            node = history.operation._inbound_nodes[history.node_index]
            if before := [entry for entry in node.input_tensors if id(entry) not in known]:
                waiting += before
            else:
                args, kwargs = node.arguments.fill_in(known)
                results = self.layer(node.operation, *args, **kwargs)
                known.update({id(t): value for t, value in zip(node.outputs, results, strict=True)})
        mask = getattr(item, "_keras_mask", None)
        value: Value = known[id(item)]
        return value if mask is None or id(item) == id(mask) else replace(value, mask=self._value_of(mask, known))


def key(operation: Any) -> str:
    """A layer's class name, `ops.` and its class name for an operation on tensors, "" for a stranger's class."""
    return key_of(type(operation).__module__, type(operation).__name__)


def key_of(module: str, name: str) -> str:
    """The name under which a class of Keras is registered, from where it is defined or saved."""
    if module.startswith(("keras.src.ops.", "keras.src.activations.")):
        return f"ops.{name}"
    return name if module == "keras" or module.startswith(("keras.layers", "keras.src.layers.")) else ""


def rule_of(operation: Any) -> Emit | None:
    """The rule that writes this layer; a stranger's class may have one of its own."""
    for kind in type(operation).__mro__:
        if kind in RULES:
            return RULES[kind]
    return LAYERS.get(key(operation))


def refusal(operation: Any) -> str | None:
    """Why this layer cannot be written whatever it is called with, or None."""
    from edgerun.converters._keras_refused import REASONS

    kind = type(operation).__name__
    if key(operation) in REASONS:
        return f"{kind} is not supported: {REASONS[key(operation)]}"
    if getattr(operation, "quantization_mode", None):
        return f"{kind} is quantized ({operation.quantization_mode}): convert the float model, then compress it"
    if getattr(operation, "compute_dtype", "float32") not in ("float32", "int32", "int64", "string"):
        return f"{kind} computes in {operation.compute_dtype}, wanted float32"
    return None


def spec_after(operation: Any, args: Any, kwargs: Any) -> list[Any]:
    """The results of an operation on these Values as Keras tells them: symbolic tensors with shape and dtype."""
    from keras import tree

    known: dict[int, Any] = {}
    args, kwargs = _map(lambda item: _symbol(item, known), (args, kwargs))
    found: list[Any] = tree.flatten(operation.compute_output_spec(*args, **kwargs))
    return found


def _hand_masks(operation: Any, arguments: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Fill in the mask arguments that are left open from the masks of the tensors, as Layer.__call__ does."""
    parameters = inspect.signature(operation.call).parameters
    for word, item in tensors.items():
        name = "mask" if len(tensors) == 1 else f"{word}_mask"
        if name in parameters and arguments.get(name) is None and any(v.mask is not None for v in _values(item)):
            arguments[name] = _map(lambda entry: getattr(entry, "mask", None), item)


def _symbol(item: Any, known: dict[int, Any]) -> Any:
    """A symbolic tensor that stands for a Value; `known` keeps which."""
    import keras

    if not isinstance(item, Value):
        return item
    tensor: Any = keras.KerasTensor(item.shape, item.dtype)
    known[id(tensor)] = item
    known.setdefault(0, []).append(tensor)  # while it is alive, no other object takes its id
    if item.mask is not None:
        tensor._keras_mask = _symbol(item.mask, known)
    return tensor


def _map(function: Callable[[Any], Any], structure: Any) -> Any:
    """`function` of every leaf of lists, tuples and dicts."""
    if isinstance(structure, dict):
        return {word: _map(function, item) for word, item in structure.items()}
    if isinstance(structure, (list, tuple)) and not hasattr(structure, "_fields"):
        return type(structure)(_map(function, item) for item in structure)
    return function(structure)


def _values(structure: Any) -> list[Value]:
    found: list[Value] = []
    _map(lambda item: found.append(item) if isinstance(item, Value) else None, structure)
    return found


@contextlib.contextmanager
def _variables_as_tensors() -> Iterator[None]:
    """`variable * tensor` reaches keras.ops while this lasts, as `tensor * variable` always does."""
    import keras

    def through(name: str) -> Callable[[Any, Any], Any]:
        return lambda self, other: getattr(keras.ops, name)(self, other)

    words = {f"__{word}__": name for word, name in _OPERATORS.items()}
    kept = {word: vars(keras.Variable)[word] for word in words if word in vars(keras.Variable)}
    for word, name in words.items():
        setattr(keras.Variable, word, through(name))
    try:
        yield
    finally:
        for word in words:
            setattr(keras.Variable, word, kept[word]) if word in kept else delattr(keras.Variable, word)


@contextlib.contextmanager
def _operations_for_backend(layer: Any) -> Iterator[None]:
    """A preprocessing layer computes with `self.backend`: while this lasts, that is keras.ops."""
    from keras import ops

    kept = getattr(layer, "backend", None)
    if type(kept).__name__ != "DynamicBackend":
        yield
        return
    spaces = {"numpy": ops.numpy, "nn": ops.nn, "image": ops.image, "linalg": ops.linalg, "math": ops, "core": ops}
    flat = {word: getattr(ops, word) for word in dir(ops) if not word.startswith("_")}
    layer.backend = types.SimpleNamespace(**{**flat, **spaces, "__name__": "keras.ops", "name": "keras.ops"})
    try:
        yield
    finally:
        layer.backend = kept
