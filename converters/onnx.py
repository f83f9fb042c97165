"""ONNX in: validate, normalize, and bring to the IR version and opset that the target reads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun import guard
from edgerun.converters import _normalize, _ort, _repairs, _zipmap
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.passes import Conversion
from edgerun.runtime import TensorSpec

if TYPE_CHECKING:
    import onnx

log = logging.getLogger("edgerun")
summary = "ONNX files: checked, normalized, in the opset of the target"
requires: tuple[str, ...] = ("onnx", "onnx_ir", "onnxruntime")
extra = "compress"
newest_opset = guard.NEWEST_OPSET  # a model's own opset stays while the target reads it


def recognises(source: Any) -> bool:
    """A path that ends in .onnx."""
    return isinstance(source, (str, Path)) and Path(source).suffix.lower() == ".onnx"


def convert(source: Any, *, inputs: Sequence[TensorSpec], factory: str | None, opset: int) -> Conversion:
    """Read an ONNX file; `inputs` may fix or name dimensions of its inputs. Dictionaries (ZipMap) become tables.

    The opset stays when it lies between 13 and `opset`. Raises EdgerunError for a file that onnx.checker, strict shape
    inference or ONNX Runtime refuses, and Unsupported for one that cannot be brought to an opset that the target reads.
    """
    if factory is not None:
        raise EdgerunError("an ONNX file needs no factory", got=factory, do="leave --factory out")
    import onnx
    import onnx_ir as ir

    path = Path(source)
    guard.check_onnx(path)
    proto, given = _read(path, inputs)
    run, maps = _ort.runner(given), _zipmap.classes(proto.graph)
    if maps:
        run = _zipmap.runner(run, maps)
        _zipmap.as_tables(proto, maps)
        given = onnx.ModelProto()
        given.CopyFrom(proto)
        for name, keys in maps.items():
            log.info("%s is a table, its columns in this order: %s", name, ", ".join(map(str, keys[:20])))
    for value in (*proto.graph.input, *proto.graph.output):
        if not value.type.HasField("tensor_type"):
            raise Unsupported(f"{value.name!r} is no tensor", got=value.type.WhichOneof("value"),
                              do="export the model with tensors at its door")  # fmt: skip
    if not _normalize.opset_of(proto):  # operators of other domains alone, as trees of XGBoost
        proto.opset_import.add(version=opset)
    if _normalize.opset_of(proto) != (wish := _normalize.fitting_opset(_normalize.opset_of(proto), opset)):
        proto = _normalize.to_opset(proto, wish)
    _set_inputs(proto, inputs)
    graph = _normalize.normalize(ir.from_proto(proto))
    graph.ir_version = _normalize.ir_version(wish)
    clean = ir.to_proto(graph)
    if proto.ByteSize() < onnx.checker.MAXIMUM_PROTOBUF:
        clean = _normalize.infer_shapes(clean)
    return Conversion(Model.from_proto(clean), run, taps=[_ort.inside(given)], foreign=given)


def _read(path: Path, inputs: Sequence[TensorSpec]) -> tuple[onnx.ModelProto, Path | onnx.ModelProto]:
    """The model, and what ONNX Runtime runs of it. Only one that the checker refuses is repaired for the checker, and
    then checked again; ONNX Runtime runs the file itself wherever it can."""
    import onnx

    from edgerun import external

    refused = _refusal(str(path))
    try:
        proto = external.read(path)
    except Exception:  # what the checker has refused may not be readable at all
        if refused is None:
            raise
        raise refused from refused.__cause__
    given: Path | onnx.ModelProto = path
    if any([_repairs.names(proto.graph), _repairs.dims(proto.graph)]):
        given = onnx.ModelProto()
        given.CopyFrom(proto)
    if refused is not None:
        _repairs.order(proto.graph.node)
        _repairs.ranks(proto.graph, inputs)
        _set_inputs(proto, inputs)
        _repairs.outputs(proto, given)
        whole = not external.beside(proto) and proto.ByteSize() < onnx.checker.MAXIMUM_PROTOBUF
        if refused := _refusal(proto if whole else _repairs.weightless(proto)):
            raise refused
        log.info("onnx.checker refuses the file as it is; repaired, it takes it")
    return proto, given


def _refusal(model: str | onnx.ModelProto) -> EdgerunError | None:
    """Why onnx.checker or strict inference does not take the model, of a path or in memory."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # checker and inference raise classes of their own and bare RuntimeError
        found = EdgerunError("onnx.checker refuses the model", got=_ort.first_line(error), do="export the model again")
        found.__cause__ = error
        return found
    return None


def _set_inputs(proto: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> None:
    """Write the dimensions that the user asked for; a fixed dimension cannot become another one."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    values = {value.name: value for value in proto.graph.input if value.name not in weights}
    for spec in inputs:
        name = spec.name or (next(iter(values)) if len(values) == 1 else "")
        if name not in values:
            raise EdgerunError(f"the model has no input {name!r}", got=str(spec), wanted=f"one of {', '.join(values)}")
        tensor = values[name].type.tensor_type
        if (dtype := _repairs.dtype(tensor)) != spec.dtype:
            raise EdgerunError(f"input {name!r} has another dtype", got=spec.dtype, wanted=dtype or "no tensor")
        have = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
        fits = len(have) == len(spec.shape) and all(
            not isinstance(h, int) or h == want for h, want in zip(have, spec.shape, strict=True)
        )
        if not fits:
            raise EdgerunError(f"input {name!r} has another shape", got=list(spec.shape), wanted=str(have))
        for dim, want in zip(tensor.shape.dim, spec.shape, strict=True):
            if isinstance(want, int):
                dim.dim_value = want
            else:
                dim.dim_param = want
