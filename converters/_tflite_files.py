"""Reading `.tflite` files: the schema's objects into one small record, after the static guard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import guard_tflite
from edgerun.converters._layout import Shape
from edgerun.converters._ort import first_line
from edgerun.converters._tflite_sparse import dense
from edgerun.errors import EdgerunError, Unsupported, unknown

DTYPES = {
    "FLOAT32": "float32", "FLOAT16": "float16", "FLOAT64": "float64", "INT8": "int8", "UINT8": "uint8",
    "INT16": "int16", "UINT16": "uint16", "INT32": "int32", "UINT32": "uint32", "INT64": "int64", "UINT64": "uint64",
    "BOOL": "bool",
}  # fmt: skip


def shifted(codes: np.ndarray) -> np.ndarray:
    """int8 codes as uint8, 128 higher."""
    return (codes.astype(np.int16) + 128).astype(np.uint8)


@dataclass(frozen=True)
class Quant:
    """real = scale·(code - zero): `scale` float32, `zero` of the codes' dtype, both [1] or one per index of `axis`."""

    scale: np.ndarray
    zero: np.ndarray
    axis: int = 0

    @property
    def unsigned(self) -> Quant:
        """The same numbers in uint8, q + 128 and z + 128, for one scale in int8; else this."""
        if self.zero.dtype != np.int8 or self.scale.size > 1:
            return self
        return Quant(self.scale, shifted(self.zero), self.axis)

    def real(self, codes: np.ndarray) -> np.ndarray:
        """float32 of the codes' shape."""
        shape = [-1 if axis == self.axis else 1 for axis in range(codes.ndim)] if self.scale.size > 1 else [1]
        scale, zero = (array.reshape(shape) for array in (self.scale, self.zero.astype(np.float32)))
        found: np.ndarray = ((codes.astype(np.float32) - zero) * scale).astype(np.float32)
        return found.reshape(codes.shape)


@dataclass(frozen=True)
class Tensor:
    """A tensor as the file declares it: None for open sizes; `data` where it is constant; `quant` where it is codes."""

    name: str
    shape: Shape
    dtype: str
    data: np.ndarray | None
    quant: Quant | None
    variable: bool


@dataclass(frozen=True)
class Operator:
    """`kind` is the schema's name, CUSTOM:NAME for custom ones; tensors by index into `Net.tensors`, -1 for none.

    `options` are the schema's; of an IF the nets of both ways.
    """

    kind: str
    options: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Net:
    """One signature of a file: its tensors, its operators in order, and its door as name -> tensor index."""

    tensors: Sequence[Tensor]
    operators: Sequence[Operator]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    subgraph: int = 0
    signature: str = ""


def load(path: Path, signature: str = "") -> Net:
    """The signature of that name; without one serving_default, or the only one.

    Raises EdgerunError for a damaged file or a name that is none, Unsupported where it is not clear which is meant.
    """
    guard_tflite.check(path)
    return parsed(path.read_bytes(), path.name, signature)


def parsed(data: bytes, place: str = "the file", signature: str = "") -> Net:
    """As `load`, for bytes that passed the guard."""
    from ai_edge_litert import schema_py_generated as schema  # type: ignore[import-untyped]

    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        return _net(model, data, schema, signature)
    except EdgerunError:
        raise
    except Exception as error:  # whatever damage that the guard does not look at makes flatbuffers and numpy raise
        raise EdgerunError(f"{place}: the file is damaged", got=first_line(error), do="export it again") from error


def _net(model: Any, data: bytes, schema: Any, wanted: str) -> Net:
    signature = _signature(model.signatureDefs or [], wanted)
    number = signature.subgraphIndex if signature else 0
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    builtins = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    return _subgraph(model, data, types, builtins, (number,), signature)


def _subgraph(
    model: Any, data: bytes, types: Mapping[int, str], builtins: Mapping[int, str], path: tuple[int, ...],
    signature: Any = None,
) -> Net:  # fmt: skip
    """The last subgraph of `path`, each of which is a way of an IF in the one before it."""
    if not 0 <= path[-1] < len(model.subgraphs) or path[-1] in path[:-1]:
        raise EdgerunError("the file is damaged: a way of an IF is no graph, or the one that it is in",
                           got=path[-1], do="export it again")  # fmt: skip
    graph, operators = model.subgraphs[path[-1]], []
    tensors = [_tensor(entry, model.buffers, data, types) for entry in graph.tensors]
    for entry in graph.operators or ():
        operator = _operator(entry, model.operatorCodes, builtins)
        if operator.kind == "IF":
            numbers = (operator.options.thenSubgraphIndex, operator.options.elseSubgraphIndex)
            ways = [_subgraph(model, data, types, builtins, (*path, number)) for number in numbers]
            operator = replace(operator, options=tuple(ways))
        operators.append(operator)
    doors = [_door(tensors, graph.inputs, signature.inputs if signature else None)]
    doors.append(_door(tensors, graph.outputs, signature.outputs if signature else None))
    return Net(tensors, operators, doors[0], doors[1], path[-1], _text(signature.signatureKey) if signature else "")


def _signature(found: Sequence[Any], wanted: str) -> Any:
    named = {_text(entry.signatureKey): entry for entry in found}
    if wanted and wanted not in named:
        raise unknown("signature", wanted, named)
    if not wanted and len(named) > 1 and "serving_default" not in named:
        raise Unsupported("the file has several signatures", got=", ".join(sorted(named)),
                          wanted="one, or one called serving_default", do="name one: --signature NAME")  # fmt: skip
    return named.get(wanted or "serving_default") or next(iter(named.values()), None)


def _door(tensors: Sequence[Tensor], order: Any, mapped: Any) -> dict[str, int]:
    """Name -> tensor in the graph's order; names are the signature's, else the tensors' without their ":0"."""
    told = {entry.tensorIndex: entry.name.decode(errors="replace") for entry in mapped or ()}
    door: dict[str, int] = {}
    for index in () if order is None else order.tolist():
        name = told.get(index) or tensors[index].name.rpartition(":")[0] or tensors[index].name or f"tensor_{index}"
        while name in door:
            name += "_again"
        door[name] = index
    return door


def _operator(entry: Any, codes: Sequence[Any], builtins: Mapping[int, str]) -> Operator:
    code = codes[entry.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    kind = builtins.get(number, f"BUILTIN_{number}")
    if kind == "CUSTOM":
        kind = f"CUSTOM:{(code.customCode or b'').decode(errors='replace')}"
    indices = [() if part is None else tuple(int(i) for i in part) for part in (entry.inputs, entry.outputs)]
    options = entry.customOptions if kind.startswith("CUSTOM") else entry.builtinOptions or entry.builtinOptions2
    return Operator(kind, options, indices[0], indices[1])


def _tensor(entry: Any, buffers: Sequence[Any], data: bytes, types: Mapping[int, str]) -> Tensor:
    shape = [] if entry.shape is None else entry.shape.tolist()
    open_ = shape if entry.shapeSignature is None else entry.shapeSignature.tolist()
    kind = types.get(entry.type, str(entry.type))
    dtype, buffer = DTYPES.get(kind, kind), buffers[entry.buffer]
    raw = np.frombuffer(data, np.uint8, buffer.size, buffer.offset) if buffer.offset > 1 else buffer.data
    content = None
    if raw is not None and len(raw) and entry.buffer:
        if dtype == kind:
            raise Unsupported(f"constants of type {kind} are not supported", got=_text(entry.name))
        stored = np.frombuffer(bytes(raw), dtype)
        content = stored.reshape(shape) if entry.sparsity is None else dense(stored, shape, entry.sparsity)
    elif 0 in shape and dtype != kind:
        content = np.zeros(shape, dtype)
    sizes = shape if content is not None or len(open_) != len(shape) else open_
    return Tensor(_text(entry.name), tuple(None if size < 0 else int(size) for size in sizes), dtype, content,
                  _quant(entry.quantization, dtype, sizes), bool(entry.isVariable))  # fmt: skip


def _quant(found: Any, dtype: str, shape: Sequence[int]) -> Quant | None:
    """The scales of a tensor of codes. Raises EdgerunError for scales that do not fit it."""
    if found is None or found.scale is None or not len(found.scale) or np.dtype(dtype).kind not in "iu":
        return None
    scale = np.asarray(found.scale, np.float32)
    zero = np.zeros(scale.shape, np.int64) if found.zeroPoint is None else np.asarray(found.zeroPoint)
    zero = np.broadcast_to(zero, scale.shape) if zero.size == 1 else zero
    axis, limits = found.quantizedDimension, np.iinfo(dtype)
    fits = scale.size == 1 or (0 <= axis < len(shape) and shape[axis] == scale.size)
    finite = bool(np.isfinite(scale).all() and (scale > 0).all())
    if zero.shape != scale.shape or not fits or not finite or zero.min() < limits.min or zero.max() > limits.max:
        raise EdgerunError(
            "a tensor's scales do not fit it", got=f"{scale.size} scales, zero points {zero[:4].tolist()}",
            wanted="finite positive scales, one or one per channel", do="export it again",
        )  # fmt: skip
    return Quant(scale, zero.astype(dtype), axis)


def _text(name: bytes | None) -> str:
    return (name or b"").decode(errors="replace")
