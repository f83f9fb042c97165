"""TensorFlow in, through tf2onnx: SavedModel folders, functions, tf.Modules, subclassed Keras models on TensorFlow."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import guard_source, sandbox
from edgerun.converters import _door, _normalize
from edgerun.errors import EdgerunError
from edgerun.model import Model
from edgerun.passes import Conversion, Feeds
from edgerun.runtime import TensorSpec

summary = "TensorFlow: SavedModel folders; tf.function, tf.Module, subclassed keras.Model"
requires: tuple[str, ...] = ("tensorflow", "tf2onnx", "onnx", "onnx_ir", "onnxruntime")
extra = "tensorflow"
newest_opset = 18  # tf2onnx's; a newer one is reached from there
_KINDS = {
    "tensorflow.python.trackable.autotrackable.AutoTrackable",  # tf.Module, loaded SavedModels, Keras on TensorFlow
    "tensorflow.python.eager.polymorphic_function.polymorphic_function.Function",
    "tensorflow.python.eager.polymorphic_function.concrete_function.ConcreteFunction",
}
_LAYERED = {"keras.src.models.functional.Functional", "keras.src.models.sequential.Sequential"}


def recognises(source: Any) -> bool:
    """A folder that holds saved_model.pb, or an object of TensorFlow's; Keras models with a layer graph are not."""
    if isinstance(source, (str, Path)):
        return (Path(source) / guard_source.SAVED_MODEL).is_file()
    kinds = {f"{c.__module__}.{c.__qualname__}" for c in type(source).__mro__}
    return bool(kinds & _KINDS) and not kinds & _LAYERED


def convert(source: Any, *, inputs: Sequence[TensorSpec], factory: str | None, opset: int) -> Conversion:
    """One signature, its variables as constants; the door keeps its layout (NHWC) and its names.

    `inputs` may rename inputs and fix or name their free dimensions; a function without an input_signature and a
    subclassed Keras model need them, in call order. Raises EdgerunError for a damaged folder or a graph that asks for
    more than to compute, Unsupported naming every operator without an ONNX form.
    """
    return _converted(source, "", inputs, factory, opset)


def convert_signature(
    source: Any, *, signature: str, inputs: Sequence[TensorSpec], factory: str | None, opset: int
) -> Conversion:
    """The same for the signature of a SavedModel that is called so. Raises EdgerunError where there is none."""
    return _converted(source, signature, inputs, factory, opset)


def _converted(
    source: Any, signature: str, inputs: Sequence[TensorSpec], factory: str | None, opset: int
) -> Conversion:
    if factory is not None:
        raise EdgerunError("a TensorFlow model needs no factory", got=factory, do="leave --factory out")
    _quiet()
    from edgerun.converters import _tensorflow_double, _tensorflow_files, _tensorflow_graph, _tensorflow_objects

    if isinstance(source, (str, Path)):
        found = _tensorflow_files.load(Path(source), signature)
    else:
        found = _tensorflow_objects.source(source, inputs)
    specs = _specs(found.inputs, inputs)
    renamed = _unlike({spec.name for spec in specs}, [entry.name for entry in found.outputs])
    outputs = [replace(entry, name=renamed[entry.name]) for entry in found.outputs]
    flat = _tensorflow_graph.flat(replace(found, outputs=outputs), specs)
    written = min(opset, newest_opset)
    proto = _tensorflow_graph.to_onnx(flat, specs, written)
    back = {spec.name: entry.name for spec, entry in zip(specs, found.inputs, strict=True)}

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        results = found.run({back[name]: array for name, array in feeds.items()})
        return {renamed[name]: np.asarray(array) for name, array in results.items()}

    given = sandbox.ending(run) if _tensorflow_graph.loops(flat.graph) else run
    run64 = _tensorflow_double.twin(flat.graph, flat.inputs, flat.outputs, specs, given)
    return Conversion(Model.from_proto(_clean(proto, written, opset)), given, run64)


def _quiet() -> None:
    """TensorFlow's notes to its own authors, and ten seconds' wait whenever there is too little memory."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
    warnings.filterwarnings("ignore", module="tensorflow|tf2onnx|keras")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def _specs(have: Sequence[Any], wanted: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The door; an input of unknown rank must be told."""
    told = dict(zip((entry.name for entry in have), wanted, strict=False)) | {spec.name: spec for spec in wanted}
    specs = []
    for entry in have:
        shape = entry.shape
        if shape is None:
            if entry.name not in told:
                raise EdgerunError(f"the signature does not tell the shape of {entry.name!r}",
                                   do=f"give it: --input '{entry.name}:{entry.dtype}[batch,…]'")  # fmt: skip
            shape = (None,) * len(told[entry.name].shape)
        specs.append(_door.spec(entry.name, entry.dtype, shape))
    return _door.matched(specs, wanted)


def _unlike(taken: Iterable[str], names: Sequence[str]) -> dict[str, str]:
    """A name for every output that is none of the inputs'."""
    used, found = set(taken), dict[str, str]()
    for name in names:
        found[name] = name
        while found[name] in used:
            found[name] += "_out"
        used.add(found[name])
    return found


def _clean(proto: Any, written: int, opset: int) -> Any:
    import onnx_ir as ir

    proto.ir_version = _normalize.ir_version(written)
    graph = _normalize.normalize(ir.from_proto(proto))
    clean = _normalize.to_opset(_normalize.infer_shapes(ir.to_proto(graph)), opset)
    clean.ir_version = _normalize.ir_version(opset)
    known = {dim.dim_param for value in clean.graph.input for dim in value.type.tensor_type.shape.dim}
    for dim in [dim for value in clean.graph.output for dim in value.type.tensor_type.shape.dim]:
        if dim.dim_param not in known:  # a name that shape inference made up
            dim.ClearField("value")
    return clean
