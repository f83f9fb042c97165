"""A large model's two files, graph and weights: written one tensor at a time, old or new together."""

from __future__ import annotations

import contextlib
import glob
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from edgerun import external, files
from edgerun.errors import EdgerunError

_SUFFIX = ".data"


def write(path: Path, graph: bytes, weights: Mapping[str, ir.TensorProtocol]) -> None:
    """Write `graph` to `path` and `weights`, which it names as external, to `<path>.data`, one at a time.

    The weights get a name that no file has, and the graph, which is renamed last, says which: a killed run leaves the
    old model or the new one. Weights that lie in the model's own file already are left there.
    """
    proto, old = onnx.ModelProto.FromString(graph), _own(path)
    if (data := _lying(path, weights)) is not None:
        mapped = {name: tensor for name, tensor in weights.items() if isinstance(tensor, external.Mapped)}
        _commit(path, proto, data, {name: (t.offset or 0, t.nbytes) for name, t in mapped.items()}, old)
        return
    data = _free(path)
    with files.replacing(data) as temporary:
        places = _streamed(temporary, weights)
    _commit(path, proto, data, places, old)


def spilled(model: ir.Model) -> tempfile.TemporaryDirectory[str] | None:
    """Bring large weights in memory to a file, one at a time: they are mapped from then on. The folder of that file
    goes with what is returned; None where there is nothing to bring."""
    weights = {name: t for name, t in external.outside(model).items() if not isinstance(t, ir.ExternalTensor)}
    if sum(tensor.nbytes for tensor in weights.values()) <= external.ABOVE:
        return None
    room = tempfile.TemporaryDirectory(prefix="edgerun-")
    path = Path(room.name).resolve() / "weights"
    for name, (offset, _) in _streamed(path, weights).items():
        model.graph.initializers[name].const_value = external.Mapped(path, offset, weights[name])
    return room


def _streamed(path: Path, weights: Mapping[str, ir.TensorProtocol]) -> dict[str, tuple[int, int]]:
    """Write `weights` to `path`; the offset and the bytes of each."""
    places = {}
    with open(path, "wb") as file:
        for name, tensor in weights.items():
            file.seek(-file.tell() % external.PAGE, 1)  # so that each can be mapped by itself
            places[name] = file.tell(), tensor.nbytes
            if (to_file := getattr(tensor, "tofile", None)) is not None:  # without a copy in memory
                to_file(file)
            else:
                file.write(tensor.tobytes())
    return places


def replace(path: Path, model: bytes) -> None:
    """Write a model that has no data beside it; the data of the one that it replaces goes."""
    old = _own(path)
    files.write_bytes(path, model)
    for file in old:
        file.unlink(missing_ok=True)


def rewrite(path: Path, graph: bytes, arrays: Mapping[str, np.ndarray], folder: Path | None) -> None:
    """Write what `external.apart` gave for a model: one file, or `write` two where it is large."""
    model = ir.from_proto(onnx.ModelProto.FromString(graph))
    for name, array in arrays.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    if folder is not None:
        ir.external_data.set_base_dir(model.graph, folder)
    external.attach(model)
    if external.weight_bytes(model) <= external.ABOVE:
        replace(path, ir.to_proto(model).SerializeToString(deterministic=True))
    else:
        write(path, *external.split(model))


def move(source: Path, path: Path) -> None:
    """Rename a model that `write` wrote, weights and all, to `path`; the same promise."""
    proto, old = onnx.load_model(source, load_external_data=False), _own(path)
    places = {t.name: (int(e["offset"]), int(e["length"])) for t, e in external.named(proto)}
    (location,) = {entries["location"] for _, entries in external.named(proto)}
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
            names = {
                entries["location"] for _, entries in external.named(onnx.load_model(path, load_external_data=False))
            }
    ours = {path.with_name(name) for name in names if name.startswith(path.name) and name.endswith(_SUFFIX)}
    return {file for file in ours if file.parent == path.parent}


def _lying(path: Path, weights: Mapping[str, ir.TensorProtocol]) -> Path | None:
    """The data file of the model at `path`, if all of `weights` lie in it."""
    homes = {Path(t.path) if isinstance(t, external.Mapped) else None for t in weights.values()}
    home = homes.pop() if len(homes) == 1 else None
    return home if home is not None and home in {file.resolve() for file in _own(path)} else None
