"""Weights beside the model, mapped where they lie.

A model over `ABOVE` bytes does not hold its weights in memory: each is a `Mapped`, whose pages are the file's own, so
that the system can take them back when it needs the room. Needs onnx-ir, and is imported inside functions.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.external_data_helper import load_external_data_for_model

from edgerun import guard
from edgerun.errors import EdgerunError

ABOVE = 1_800_000_000  # bytes; protobuf stops at 2 GiB, so larger models keep weights beside the file
APART = 256_000_000  # bytes from which on a runtime is given weights and graph apart
LEAST = 1024  # bytes below which a tensor stays in the graph: shapes, axes and the like, which inference reads
PAGE = mmap.ALLOCATIONGRANULARITY


class Mapped(ir.ExternalTensor):
    """A tensor in a file, by the file's absolute path. `numpy()` maps its own range, and `forget` lets go of that.

    onnx_ir's own maps the whole file for each tensor, which takes more addresses than a limited child has.
    """

    __slots__ = ("_view",)

    def __init__(self, path: Path, offset: int, tensor: ir.TensorProtocol) -> None:
        shape = ir.Shape(tensor.shape.numpy())
        super().__init__(str(path), offset, tensor.nbytes, tensor.dtype, shape=shape, name=str(tensor.name))
        self._view: np.ndarray | None = None

    def numpy(self) -> np.ndarray:
        """The array, read-only; sub-byte types are unpacked into memory, and so is what isn't aligned."""
        if self._view is None:
            try:
                self._view = self._mapped()
            except (OSError, ValueError) as error:  # no such file, or a shorter one
                raise EdgerunError("the file of the model's weights is gone", got=error, do="load it again") from error
        return self._view

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def tobytes(self) -> bytes:
        """The bytes as they lie in the file, in memory."""
        with open(self.path, "rb") as file:
            file.seek(self.offset or 0)
            return file.read(self.nbytes)

    def forget(self) -> None:
        """Unmap it, where nobody else holds the array."""
        self._view = None

    def _mapped(self) -> np.ndarray:
        dtype, shape, offset = self.dtype.numpy(), self.shape.numpy(), self.offset or 0
        if not self.nbytes:
            return np.empty(shape, dtype)
        if self.dtype.bitwidth < 8:
            packed = np.frombuffer(self.tobytes(), np.uint8)
            return ir.PackedTensor(packed, self.dtype, shape=self.shape).numpy()
        start = offset // PAGE * PAGE
        with open(self.path, "rb") as file:
            pages = mmap.mmap(file.fileno(), offset - start + self.nbytes, access=mmap.ACCESS_READ, offset=start)
        array = np.frombuffer(pages, dtype.newbyteorder("<"), math.prod(shape), offset - start).reshape(shape)
        return np.require(array, dtype, ["A"])


def attach(model: ir.Model) -> None:
    """Give every initializer that names a file its content: mapped where the model is large, else in memory.

    The files are named by absolute paths: the static guard has seen them, or this process wrote them.
    """
    large = weight_bytes(model) > ABOVE
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor) or not Path(tensor.path).is_absolute():
                continue
            if not large or graph is not model.graph or tensor.nbytes < LEAST:
                value.const_value = _loaded(tensor)
            elif not isinstance(tensor, Mapped):
                value.const_value = Mapped(Path(tensor.path).resolve(), tensor.offset or 0, tensor)


def read(path: Path) -> onnx.ModelProto:
    """The model at `path`, with the weights beside it; in a large model they are named by their absolute path."""
    proto, folder = onnx.load_model(path, load_external_data=False), path.resolve().parent
    kept = [tensor for tensor, _ in named(proto) if size(tensor) >= LEAST] if beside(proto) > ABOVE else []
    for tensor in kept:
        tensor.ClearField("data_location")
    load_external_data_for_model(proto, str(folder))
    for tensor in kept:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str((folder / entry.value).resolve())
    return proto


def beside(proto: onnx.ModelProto) -> int:
    """Bytes of the initializers that `proto` names as external."""
    return sum(size(tensor) for tensor, _ in named(proto))


def size(tensor: onnx.TensorProto) -> int:
    """Bytes of its content, wherever that is; a text counts as one."""
    return (int(math.prod(tensor.dims)) * guard.BITS.get(tensor.data_type, 8) + 7) // 8


def _loaded(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """A copy in memory."""
    if tensor.dtype.bitwidth < 8:
        packed = np.frombuffer(tensor.tobytes(), np.uint8).copy()
        return ir.PackedTensor(packed, tensor.dtype, shape=tensor.shape, name=tensor.name)
    return ir.tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    values = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def split(model: ir.Model) -> tuple[bytes, dict[str, ir.TensorProtocol]]:
    """The graph as protobuf in which initializers of `LEAST` bytes and more are named as external, and these tensors.

    Nothing is copied; the tensors are the model's own.
    """
    held = outside(model)
    return _graph(model, {name: _stand_in(tensor, "weights", 0) for name, tensor in held.items()}), held


def apart(model: ir.Model) -> tuple[bytes, dict[str, np.ndarray], Path | None]:
    """As `split`, for a runtime: what is mapped is named by its place in the folder that is returned (None where
    nothing is), and the rest are arrays in C order, which share the memory of `model` where that has it. What nobody
    reads stays in the graph: runtimes drop it, and then do not find it. So do arrays of less than a byte, which they
    take from nobody."""
    values = model.graph.initializers
    held = {
        name: tensor for name, tensor in outside(model).items()
        if (values[name].uses() or values[name].is_graph_output())
        and (tensor.dtype.bitwidth >= 8 or isinstance(tensor, Mapped))
    }  # fmt: skip
    mapped = {name: tensor for name, tensor in held.items() if isinstance(tensor, Mapped)}
    folder = Path(os.path.commonpath([Path(t.path).parent for t in mapped.values()])) if mapped else None
    names = {name: _stand_in(tensor, "weights", 0) for name, tensor in held.items()}
    for name, tensor in mapped.items():
        names[name] = _stand_in(tensor, Path(tensor.path).relative_to(folder or "/").as_posix(), tensor.offset or 0)
    # A folded Transpose left a view of another's memory, in another order: runtimes take none.
    arrays = {name: np.ascontiguousarray(t.numpy()) for name, t in held.items() if name not in mapped}
    return _graph(model, names), arrays, folder


def outside(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The initializers that go beside the graph of a large model."""
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.nbytes >= LEAST}


def _stand_in(tensor: ir.TensorProtocol, location: str, offset: int) -> ir.ExternalTensor:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor(location, offset, tensor.nbytes, tensor.dtype, shape=shape, name=str(tensor.name))


def _graph(model: ir.Model, names: Mapping[str, ir.ExternalTensor]) -> bytes:
    """The model as protobuf with these in place of the initializers' content."""
    values, held = model.graph.initializers, {name: model.graph.initializers[name].const_value for name in names}
    for name, tensor in names.items():
        values[name].const_value, tensor.name = tensor, name
    try:
        return bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    finally:
        for name, before in held.items():
            values[name].const_value = before


def digest(graph: bytes, weights: Mapping[str, ir.TensorProtocol]) -> str:
    """SHA-256 over a graph and then its weights' values, one after the other."""
    hashed = hashlib.sha256(graph)
    for tensor in weights.values():
        hashed.update(np.ascontiguousarray(tensor.numpy()).view(np.uint8).data)
        if isinstance(tensor, Mapped):
            tensor.forget()
    return hashed.hexdigest()


def named(proto: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, dict[str, str]]]:
    """The initializers whose data is external, and what they say of it."""
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor, {entry.key: entry.value for entry in tensor.external_data}
