"""ONNX files whose outputs hold dictionaries (ZipMap): no session gives such out, but they can be looked into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgerun import guard
from edgerun.converters import _normalize, _zipmap
from edgerun.errors import Unsupported
from edgerun.model import Model
from edgerun.passes import Issue
from edgerun.runtime import TensorSpec

REASON = "no session gives out dictionaries; edgerun convert makes a table of them"


@dataclass(frozen=True)
class Read:
    """The `model` with a table in place of each dictionary; `opsets` and `outputs` as the file has them; by name those
    that are dictionaries, each with the ZipMap that makes it."""

    model: Model
    opsets: Mapping[str, int]
    outputs: tuple[TensorSpec, ...]
    maps: dict[str, Issue]


def read(path: str | Path) -> Read:
    """An `.onnx` file. Raises as `Model.load` does, but not for what ZipMaps make."""
    try:
        model = Model.load(path)
        return Read(model, dict(model.ir.opset_imports), model.outputs, {})
    except Unsupported:
        guard.check_onnx(Path(path))
        import onnx

        proto = onnx.load_model(path, load_external_data=False)
        if not (found := _zipmap.classes(proto.graph)):
            raise
    zips = {name: node.name or name for node in proto.graph.node for name in node.output if name in found}
    keys = {v.name: v.type.sequence_type.elem_type.map_type.key_type for v in proto.graph.output if v.name in found}
    opsets = {imported.domain: imported.version for imported in proto.opset_import}
    _zipmap.as_tables(proto, found)
    if not _normalize.opset_of(proto):  # operators of other domains alone; a table is made by one of ONNX's own
        proto.opset_import.add(version=_normalize.OLDEST_OPSET)
    model = Model.from_bytes(proto.SerializeToString())
    kinds = {
        name: f"sequence map {'object' if key == onnx.TensorProto.STRING else 'int64'}" for name, key in keys.items()
    }
    outputs = tuple(TensorSpec(s.name, s.dtype, (), kinds[s.name]) if s.name in kinds else s for s in model.outputs)
    return Read(model, opsets, outputs, {name: Issue(zips[name], "ZipMap", REASON) for name in kinds})
