"""Keras in: `.keras`, `.h5` or a model object, written layer by layer with channels first; no TensorFlow needed."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.converters import (
    _door,
    _keras_fold,
    _keras_graph,
    _keras_import,
    _keras_taps,
    _keras_walk,
    _merges,
    _normalize,
)
from edgerun.converters._keras_graph import Emit, Graph
from edgerun.converters._layout import Value
from edgerun.converters._ort import first_line
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.passes import Conversion, Feeds, Runner
from edgerun.runtime import TensorSpec

if TYPE_CHECKING:
    import onnx

summary = "Keras: .keras and .h5 files, model objects"
requires: tuple[str, ...] = ("keras", "h5py", "torch", "onnx", "onnx_ir", "onnxruntime")
extra = "keras"
newest_opset = _normalize.PREFERRED_OPSET
log = logging.getLogger("edgerun")
_RULES = (
    "activations", "attention", "elementwise", "images", "layers", "merging", "pooling", "preprocessing", "recurrent",
    "reductions", "shapes", "windows",
)  # fmt: skip


def recognises(source: Any) -> bool:
    """A path that ends as Keras's files do, or a keras.Model object; a subclassed one on TensorFlow is for that."""
    if isinstance(source, (str, Path)):
        return Path(source).suffix.lower() in {".keras", ".h5", ".hdf5"}
    kinds = {f"{c.__module__}.{c.__qualname__}" for c in type(source).__mro__}
    layered = kinds & {"keras.src.models.functional.Functional", "keras.src.models.sequential.Sequential"}
    on_tensorflow = "keras.src.backend.tensorflow.layer.TFLayer" in kinds
    return "keras.src.models.model.Model" in kinds and bool(layered or not on_tensorflow)


def convert(source: Any, *, inputs: Sequence[TensorSpec], factory: str | None, opset: int) -> Conversion:
    """Write the model's layers as ONNX; the door keeps Keras's own layout (NHWC), one Transpose behind it.

    `inputs` may rename inputs and fix or name their free dimensions; a subclassed model needs them, in call order.
    `factory` is called without arguments and returns the model whose weights a file holds: for subclassed models,
    layers of one's own, Lambdas. Raises Unsupported with every layer that has no ONNX form here, and EdgerunError for a
    file that is damaged or asks for other inputs.
    """
    is_file = isinstance(source, (str, Path))
    if factory is not None and not is_file:
        raise EdgerunError("a model object needs no factory", got=factory, do="leave factory out")
    told = not is_file or "KERAS_BACKEND" in os.environ
    _keras_import.imported()
    for name in _RULES:  # importing one registers its layers and operations
        importlib.import_module(f"edgerun.converters._keras_{name}")
    from edgerun.converters import _keras_files, _keras_objects

    model = source
    if is_file:
        model = _keras_files.load(Path(source)) if factory is None else _keras_files.built(factory)
    if not _keras_objects.layered(model):
        specs = _keras_objects.specs(model, inputs)
        model = _keras_objects.Called(model, specs)
    else:
        model = model if getattr(model, "inputs", None) else _built(model, inputs)
        specs = _specs(model, inputs)
    if factory is not None:
        _keras_files.fill(getattr(model, "source", model), Path(source))
    try:
        walk = _keras_walk.Walk(Graph(opset, _backend(told)))
        made = _clean(_write(model, specs, walk), opset)
    except Unsupported as error:
        return _keras_objects.exported(model, specs, opset, error)
    return Conversion(
        made,
        _runner(model, specs, _output_names(model, specs)),
        _double(model, specs, Path(source) if is_file and factory is None else None),
        taps=[_keras_taps.of(model, walk.written, lambda inside, names: _runner(inside, specs, names))],
    )


def _built(model: Any, inputs: Sequence[TensorSpec]) -> Any:
    """A Sequential model without an input shape gets the one that the user names."""
    if not hasattr(model, "build") or len(inputs) != 1:
        raise EdgerunError("the model does not tell its input", do="give it: --input 'image:float32[batch,32,32,3]'")
    try:
        model.build(tuple(None if isinstance(dim, str) else dim for dim in inputs[0].shape))
    except Exception as error:  # whatever its layers raise
        raise EdgerunError("the model does not fit this input", got=f"{inputs[0]}: {first_line(error)}") from error
    return model


def _specs(model: Any, wanted: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The door: free dimensions are `batch` and `NAME_axis`, or what the user calls or sets them."""
    have = [_door.spec(tensor.name, str(tensor.dtype), tensor.shape) for tensor in model.inputs]
    return _door.matched(have, wanted)


def rule(kind: type) -> Callable[[Emit], Emit]:
    """Register the function that writes a layer class of your own: (graph, layer, its tensors) -> a Value or several.

    Without one a layer is written by the operations of its `call`. CONTRIBUTING.md has an example.
    """

    def register(emit: Emit) -> Emit:
        _keras_walk.RULES[kind] = emit
        return emit

    return register


def _backend(told: bool) -> str:
    """Keras's backend where that is the user's choice: some layers compute otherwise on another one. Else ""."""
    from keras import backend  # type: ignore[import-untyped]

    return str(backend.backend()) if told else ""


def _write(model: Any, specs: Sequence[TensorSpec], walk: _keras_walk.Walk) -> onnx.ModelProto:
    from onnx import helper

    graph, opset = walk.graph, walk.graph.opset
    values = [Value(s.name, tuple(d if isinstance(d, int) else None for d in s.shape), s.dtype) for s in specs]
    results = model.write(walk, values) if hasattr(model, "write") else walk.model(model, values)
    if walk.refused:
        raise Unsupported("the model has layers that cannot be converted", got="\n    " + "\n    ".join(walk.refused),
                          do="replace them by built-in layers")  # fmt: skip
    outputs, written = [], set[str]()
    names = _output_names(model, specs)
    for name, value in zip(names, results, strict=True):
        graph.scope = name
        value = graph.plain(value)
        again = value.name in written  # an Identity would be taken away, and with it one of the names
        told: dict[str, Any] = {"to": helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))} if again else {}
        graph.nodes.append(helper.make_node("Cast" if again else "Identity", [value.name], [name], **told))
        written.add(value.name)
        dims = [specs[0].shape[0] if axis == 0 and d is None else d for axis, d in enumerate(value.shape)]
        dtype = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
        outputs.append(helper.make_tensor_value_info(name, dtype, dims))
    _keras_fold.fold(graph, names)
    doors = [
        helper.make_tensor_value_info(s.name, helper.np_dtype_to_tensor_dtype(np.dtype(s.dtype)), s.shape)
        for s in specs
    ]
    body = helper.make_graph(graph.nodes, model.name, doors, outputs, list(graph.initializers.values()))
    return helper.make_model(
        body, opset_imports=[helper.make_opsetid("", opset)], ir_version=_normalize.ir_version(opset)
    )


def _output_names(model: Any, specs: Sequence[TensorSpec]) -> list[str]:
    """The names of the layers that end the model; each once, and none an input's."""
    names: list[str] = []
    for name in getattr(model, "names", None) or (getattr(model, "_functional", None) or model).output_names:
        while name in {*names, *(spec.name for spec in specs)}:
            name += "_out"
        names.append(name)
    return names


def _clean(proto: onnx.ModelProto, opset: int) -> Model:
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    graph = _normalize.normalize(ir.from_proto(proto))
    graph.ir_version = _normalize.ir_version(opset)
    common.CommonSubexpressionEliminationPass()(graph)  # layers that do the same to the same value
    _merges.merge(graph, {})
    return Model.of(_normalize.inferred(graph))


def _runner(model: Any, specs: Sequence[TensorSpec], names: Sequence[str], dtype: str = "") -> Runner:
    """The model as a function of feeds to outputs of these names; floating feeds are cast to `dtype` when given."""
    import contextlib

    from keras import backend, ops, tree

    if backend.backend() == "torch":
        import torch

        quiet: Any = torch.no_grad
    else:
        quiet = contextlib.nullcontext

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        arrays = [feeds[spec.name] for spec in specs]
        tensors = [ops.convert_to_tensor(a.astype(dtype) if dtype and a.dtype.kind == "f" else a) for a in arrays]
        structure = getattr(getattr(model, "_functional", None) or model, "_inputs_struct", None)
        with quiet():
            result = model(
                tree.pack_sequence_as(structure, tensors) if structure is not None else tensors, training=False
            )
        return {n: np.asarray(ops.convert_to_numpy(r)) for n, r in zip(names, tree.flatten(result), strict=True)}

    return run


def _double(model: Any, specs: Sequence[TensorSpec], path: Path | None) -> Runner | None:
    """A float64 twin of the model: the same configuration with another dtype policy, the same weights.

    The configuration is the file's, where there is one: to write one down again Keras would import TensorFlow.
    """
    from edgerun import draws
    from edgerun.converters import _keras_files

    try:
        told = None if path is None else _keras_files.structure(path)
        twin = type(model).from_config(_policy(model.get_config())) if told is None else _keras_files.of(_policy(told))
        twin.build(model.input_shape) if not twin.built else None
        for variable, known in zip(twin.weights, model.weights, strict=True):
            variable.assign(_keras_graph.weight(known))
        run = _runner(twin, specs, _output_names(model, specs), "float64")
        tried = draws.feeds(specs, draws.sizes(specs, 1, 64), seed=0)
        results = run(tried)
    except Exception as error:  # a layer that fixes float32 somewhere
        log.info("the source does not run in float64: %s", first_line(error))
        return None
    if any(a.dtype.kind == "f" and a.dtype.itemsize < 8 for a in results.values()):
        log.info("the source does not stay in float64: compared in its own precision")
        return None

    def run64(feeds: Feeds) -> dict[str, np.ndarray]:  # the first feeds of a comparison are those, mostly
        return results if all(np.array_equal(feeds[name], tried[name]) for name in tried) else run(feeds)

    return run64


def _policy(config: Any) -> Any:
    """The configuration with every float32 dtype policy made float64."""
    if isinstance(config, dict):
        return {key: "float64" if item == "float32" else _policy(item) for key, item in config.items()}
    return [_policy(item) for item in config] if isinstance(config, (list, tuple)) else config
