"""TensorFlow objects of the caller's own process as a Source: functions, modules, loaded SavedModels, Keras models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgerun.converters._ort import first_line
from edgerun.converters._tensorflow_graph import Source, tensor
from edgerun.converters._tensorflow_ops import reached, refuse
from edgerun.errors import EdgerunError, Unsupported
from edgerun.passes import Feeds
from edgerun.runtime import TensorSpec

_FIRST = ("serving_default", "serve", "__call__")  # which of several functions with a signature serves


def source(thing: Any, inputs: Sequence[TensorSpec]) -> Source:
    """What the object computes for `inputs`, which may be left out where a signature tells them."""
    import tensorflow as tf  # type: ignore[import-untyped]

    concrete = thing if isinstance(thing, tf.types.experimental.ConcreteFunction) else None
    if concrete is None:
        function = thing if isinstance(thing, tf.types.experimental.PolymorphicFunction) else _function(thing)
        concrete = _traced(function, inputs)
    return _of(concrete)


def _function(thing: Any) -> Any:
    if hasattr(thing, "call") and hasattr(thing, "get_config"):  # a Keras model or layer
        return _keras_function(thing)
    functions = getattr(thing, "signatures", None)
    if not isinstance(functions, Mapping) or not functions:
        names = {*dir(type(thing)), *vars(thing)}
        functions = {name: value for name in sorted(names) if _has_signature(value := getattr(thing, name, None))}
    name = next((name for name in _FIRST if name in functions), None)
    if name is None and len(functions) != 1:
        raise EdgerunError(
            "which function of the object is meant is not clear", got=", ".join(functions) or "no function to export",
            wanted="one tf.function with an input_signature", do="give that function itself to edgerun.convert",
        )  # fmt: skip
    return functions[name if name is not None else next(iter(functions))]


def _has_signature(value: Any) -> bool:
    return hasattr(value, "get_concrete_function") and getattr(value, "input_signature", None) is not None


def _keras_function(model: Any) -> Any:
    """A keras.Model as a tf.function: it takes its inputs one by one, or as the list that its `call` wants."""
    import tensorflow as tf
    from keras import tree  # type: ignore[import-untyped]

    layered = getattr(model, "_functional", None) or model
    structure = getattr(layered, "_inputs_struct", None)

    def call(*tensors: Any) -> Any:
        if structure is not None:
            return model(tree.pack_sequence_as(structure, list(tensors)), training=False)
        try:
            return model(*tensors, training=False)
        except TypeError:
            return model(list(tensors), training=False)

    signature = None
    if structure is not None:
        signature = [tf.TensorSpec(t.shape, t.dtype, name=t.name) for t in tree.flatten(structure)]
    return tf.function(call, input_signature=signature, autograph=False)


def _traced(function: Any, inputs: Sequence[TensorSpec]) -> Any:
    import tensorflow as tf

    if isinstance(function, tf.types.experimental.ConcreteFunction):
        return function
    specs = []
    if getattr(function, "input_signature", None) is None:
        if not inputs:
            raise EdgerunError("the function does not tell its inputs",
                               do="give them in call order: inputs=['image:float32[batch,32,32,3]']")  # fmt: skip
        specs = [
            tf.TensorSpec([d if isinstance(d, int) else None for d in s.shape], s.dtype, name=s.name or f"input_{i}")
            for i, s in enumerate(inputs)
        ]
    try:
        return function.get_concrete_function(*specs)
    except Exception as error:  # whatever the caller's code raises
        kind = type(error).__name__
        lines = [line.strip() for line in str(error).splitlines()]  # "in user code:", places, and then the error
        got = next((line for line in lines if line.startswith(kind)), f"{kind}: {first_line(error)}")
        wanted = ", ".join(map(str, inputs)) or None
        raise EdgerunError("the function does not take these inputs", got=got, wanted=wanted) from error


def _of(concrete: Any) -> Source:
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants  # type: ignore[import-untyped]

    whole = concrete.graph.as_graph_def()
    refuse(reached(whole, [node.name for node in whole.node]), "the function")
    leaves = [s for s in tf.nest.flatten(concrete.structured_input_signature) if isinstance(s, tf.TypeSpec)]
    captured = {id(placeholder) for _, placeholder in concrete.graph.captures}
    doors = [value for value in concrete.inputs if id(value) not in captured]
    if len(leaves) != len(doors):
        raise Unsupported("the function takes more than plain tensors", got=", ".join(map(str, leaves)),
                          do="wrap it in a tf.function that takes tensors")  # fmt: skip
    names = [getattr(leaf, "name", None) or value.op.name for leaf, value in zip(leaves, doors, strict=True)]
    inputs = [tensor(name, value.name, value.dtype, value.shape) for name, value in zip(names, doors, strict=True)]
    try:
        frozen = convert_to_constants.convert_variables_to_constants_v2(
            concrete, lower_control_flow=False, aggressive_inlining=True
        )
    except Exception as error:  # ValueError over 2 GiB or for a resource that is no variable
        raise Unsupported("the function's variables cannot be made constants", got=first_line(error)) from error
    keys = _output_names(concrete)
    outputs = [
        tensor(key, value.name, value.dtype, value.shape) for key, value in zip(keys, frozen.outputs, strict=True)
    ]
    graph = _with_constants(frozen.graph.as_graph_def(), concrete.graph.captures)
    return Source(graph, inputs, outputs, _runner(concrete, names, keys))


def _with_constants(graph: Any, captures: Any) -> Any:
    """Tensors that the function took from around it, written into the graph; freezing leaves them as inputs."""
    import tensorflow as tf

    values = {placeholder.op.name: value for value, placeholder in captures if hasattr(value, "numpy")}
    for node in graph.node:
        if node.op == "Placeholder" and node.name in values:
            value = values[node.name]
            node.op = "Const"
            node.attr.clear()
            node.attr["dtype"].type = value.dtype.as_datatype_enum
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value.numpy(), value.dtype))
    return graph


def _output_names(concrete: Any) -> list[str]:
    """The keys of a dict of tensors, in its order; else output_0, output_1 … as TensorFlow's own signatures."""
    structure = concrete.structured_outputs
    if isinstance(structure, Mapping) and len(structure) == len(concrete.outputs):
        return [str(key) for key in sorted(structure)]
    return [f"output_{index}" for index in range(len(concrete.outputs))]


def _runner(concrete: Any, names: Sequence[str], keys: Sequence[str]) -> Callable[[Feeds], dict[str, np.ndarray]]:
    import tensorflow as tf

    structure = concrete.structured_input_signature

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        waiting = iter([tf.constant(feeds[name]) for name in names])
        leaves = [next(waiting) if isinstance(s, tf.TypeSpec) else s for s in tf.nest.flatten(structure)]
        arguments, keywords = tf.nest.pack_sequence_as(structure, leaves)
        results = tf.nest.flatten(concrete(*arguments, **keywords))
        return {key: result.numpy() for key, result in zip(keys, results, strict=True)}

    return run
