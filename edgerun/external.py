"""Weights beside the model: mapped where they lie, written one tensor at a time, old or new together with their graph.

A model over `ABOVE` bytes does not hold its weights in memory: each is a `Mapped`, whose pages are the file's own, so
that the system can take them back when it needs the room. Needs onnx-ir, and is imported inside functions.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgerun import files, guard
from edgerun.errors import EdgerunError

ABOVE = 1_800_000_000  # bytes; protobuf stops at 2 GiB, so larger models keep weights beside the file
LEAST = 1024  # bytes below which a tensor stays in the graph: shapes, axes and the like, which inference reads
_PAGE = mmap.ALLOCATIONGRANULARITY
_SUFFIX = ".data"


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
        start = offset // _PAGE * _PAGE
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
    kept = [tensor for tensor, _ in _named(proto) if _bytes(tensor) >= LEAST] if beside(proto) > ABOVE else []
    for tensor in kept:
        tensor.ClearField("data_location")
    onnx.external_data_helper.load_external_data_for_model(proto, str(folder))
    for tensor in kept:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str((folder / entry.value).resolve())
    return proto


def beside(proto: onnx.ModelProto) -> int:
    """Bytes of the initializers that `proto` names as external."""
    return sum(_bytes(tensor) for tensor, _ in _named(proto))


def _bytes(tensor: onnx.TensorProto) -> int:
    return (math.prod(tensor.dims) * guard.BITS.get(tensor.data_type, 8) + 7) // 8


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
    held = _outside(model)
    return _graph(model, {name: _stand_in(tensor, "weights", 0) for name, tensor in held.items()}), held


def apart(model: ir.Model) -> tuple[bytes, dict[str, np.ndarray], Path | None]:
    """As `split`, for a runtime: what is mapped is named by its place in the folder that is returned (None where
    nothing is), and the rest are arrays, which share memory with `model`. What nobody reads stays in the graph:
    runtimes drop it, and then do not find it."""
    values = model.graph.initializers
    held = {n: t for n, t in _outside(model).items() if values[n].uses() or values[n].is_graph_output()}
    mapped = {name: tensor for name, tensor in held.items() if isinstance(tensor, Mapped)}
    folder = Path(os.path.commonpath([Path(t.path).parent for t in mapped.values()])) if mapped else None
    names = {name: _stand_in(tensor, "weights", 0) for name, tensor in held.items()}
    for name, tensor in mapped.items():
        names[name] = _stand_in(tensor, Path(tensor.path).relative_to(folder or "/").as_posix(), tensor.offset or 0)
    return _graph(model, names), {name: t.numpy() for name, t in held.items() if name not in mapped}, folder


def _outside(model: ir.Model) -> dict[str, ir.TensorProtocol]:
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


def write(path: Path, graph: bytes, weights: Mapping[str, ir.TensorProtocol]) -> None:
    """Write `graph` to `path` and `weights`, which it names as external, to `<path>.data`, one at a time.

    The weights get a name that no file has, and the graph, which is renamed last, says which: a killed run leaves the
    old model or the new one. Weights that lie in the model's own file already are left there.
    """
    proto, old = onnx.ModelProto.FromString(graph), _own(path)
    if (data := _lying(path, weights)) is not None:
        places = {name: tensor.offset or 0 for name, tensor in weights.items() if isinstance(tensor, Mapped)}
        _commit(path, proto, data, {name: (at, weights[name].nbytes) for name, at in places.items()}, old)
        return
    data = _free(path)
    with files.replacing(data) as temporary:
        places = _streamed(temporary, weights)
    _commit(path, proto, data, places, old)


def spilled(model: ir.Model) -> tempfile.TemporaryDirectory[str] | None:
    """Bring large weights in memory to a file, one at a time: they are mapped from then on. The folder of that file
    goes with what is returned; None where there is nothing to bring."""
    weights = {name: t for name, t in _outside(model).items() if not isinstance(t, ir.ExternalTensor)}
    if sum(tensor.nbytes for tensor in weights.values()) <= ABOVE:
        return None
    room = tempfile.TemporaryDirectory(prefix="edgerun-")
    path = Path(room.name).resolve() / "weights"
    for name, (offset, _) in _streamed(path, weights).items():
        model.graph.initializers[name].const_value = Mapped(path, offset, weights[name])
    return room


def _streamed(path: Path, weights: Mapping[str, ir.TensorProtocol]) -> dict[str, tuple[int, int]]:
    """Write `weights` to `path`; the offset and the bytes of each."""
    places = {}
    with open(path, "wb") as file:
        for name, tensor in weights.items():
            file.seek(-file.tell() % _PAGE, 1)  # so that each can be mapped by itself
            places[name] = file.tell(), tensor.nbytes
            tensor.tofile(file)
    return places


def replace(path: Path, model: bytes) -> None:
    """Write a model that has no data beside it; the data of the one that it replaces goes."""
    old = _own(path)
    files.write_bytes(path, model)
    for file in old:
        file.unlink(missing_ok=True)


def rewrite(path: Path, graph: bytes, arrays: Mapping[str, np.ndarray], folder: Path | None) -> None:
    """`write` what `apart` gave for a model."""
    model = ir.from_proto(onnx.ModelProto.FromString(graph))
    for name, array in arrays.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    if folder is not None:
        ir.external_data.set_base_dir(model.graph, folder)
    attach(model)
    write(path, *split(model))


def move(source: Path, path: Path) -> None:
    """Rename a model that `write` wrote, weights and all, to `path`; the same promise."""
    proto, old = onnx.load_model(source, load_external_data=False), _own(path)
    places = {t.name: (int(e["offset"]), int(e["length"])) for t, e in _named(proto)}
    (location,) = {entries["location"] for _, entries in _named(proto)}
    data = _free(path)
    with files.replacing(data) as temporary:
        shutil.move(source.parent / location, temporary)
    _commit(path, proto, data, places, old)


def _commit(
    path: Path, proto: onnx.ModelProto, data: Path, places: Mapping[str, tuple[int, int]], old: set[Path]
) -> None:
    """Write the graph that names `data`, and remove the `old` data that no graph names any more."""
    for tensor in proto.graph.initializer:
        if tensor.name in places:
            offset, length = places[tensor.name]
            tensor.ClearField("external_data")
            for key, text in (("location", data.name), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(text))
    try:
        files.write_bytes(path, proto.SerializeToString(deterministic=True))
    except EdgerunError:
        if data not in old:
            data.unlink(missing_ok=True)
        raise
    for file in old - {data}:
        file.unlink(missing_ok=True)


def _free(path: Path) -> Path:
    """`<path>.data`, or with a number where there is such a file."""
    number, found = 1, path.with_name(path.name + _SUFFIX)
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}.{number}{_SUFFIX}")
    return found


def _own(path: Path) -> set[Path]:
    """The data files by our name that the model at `path` names, if there is one."""
    names: set[str] = set()
    if next(path.parent.glob(f"{glob.escape(path.name)}*{_SUFFIX}"), None) is not None:
        with contextlib.suppress(Exception):  # what is replaced may be anything
            names = {entries["location"] for _, entries in _named(onnx.load_model(path, load_external_data=False))}
    ours = {path.with_name(name) for name in names if name.startswith(path.name) and name.endswith(_SUFFIX)}
    return {file for file in ours if file.parent == path.parent}


def _lying(path: Path, weights: Mapping[str, ir.TensorProtocol]) -> Path | None:
    """The data file of the model at `path`, if all of `weights` lie in it."""
    homes = {Path(t.path) if isinstance(t, Mapped) else None for t in weights.values()}
    home = homes.pop() if len(homes) == 1 else None
    return home if home is not None and home in {file.resolve() for file in _own(path)} else None


def _named(proto: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, dict[str, str]]]:
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor, {entry.key: entry.value for entry in tensor.external_data}
