"""What an ONNX file tells of its model beside the graph, read where it lies: a device has no onnx."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgerun import _wire, guard
from edgerun.runtime.spec import named

# Field numbers of onnx.proto.
GRAPH, METADATA = 7, 14  # of ModelProto
DOORS = (11, 12)  # GraphProto.input and .output
TENSOR, SHAPE = 1, 2  # TypeProto.tensor_type, and its shape
NAME = TYPE = 2  # TensorShapeProto.Dimension.dim_param; ValueInfoProto.type


@dataclass(frozen=True)
class Told:
    """`metadata` by key, and `dims`: the name of every dimension of an input or output ("" where it has none).
    `bare` are those without a shape."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bare: frozenset[str] = frozenset()


def told(source: bytes | Path) -> Told:
    """Read a model, in memory or in a file, that the guard has let through."""
    metadata, dims, bare = dict[str, str](), dict[str, tuple[str, ...]](), set[str]()
    for number, value in _wire.fields(_wire.view(source)):
        if number == METADATA:
            pair = {key: _wire.text(text) for key, text in _wire.fields(_wire.message(value)) if key in (1, 2)}
            metadata[pair.get(1, "")] = pair.get(2, "")
        elif number == GRAPH:
            for kind, part in _wire.fields(_wire.message(value)):
                if kind in DOORS:
                    name, shape = _named(_wire.message(part))
                    dims[name] = shape or ()
                    bare |= {name} if shape is None else set()
    return Told(metadata, dims, frozenset(bare))


def metadata(path: Path) -> Mapping[str, str]:
    """The metadata of an `.onnx` file, by key. Raises EdgerunError for one that the guard refuses."""
    guard.check_onnx(path)
    return told(path).metadata


def _named(value: memoryview) -> tuple[str, tuple[str, ...] | None]:
    """The name of one ValueInfoProto, and its dimensions where it is a tensor with a shape."""
    name, dims = "", None
    for number, part in _wire.fields(value):
        if number == 1:
            name = _wire.text(part)
        elif number == TYPE:
            for shape in _inside(_inside([_wire.message(part)], TENSOR), SHAPE):
                found = ["".join(_wire.text(text) for kind, text in _wire.fields(dim) if kind == NAME)
                         for dim in _inside([shape], 1)]  # fmt: skip
                dims = tuple(dim if named(dim) else "" for dim in found)
    return name, dims


def _inside(messages: list[memoryview], number: int) -> list[memoryview]:
    """The messages in field `number` of each."""
    return [_wire.message(value) for part in messages for kind, value in _wire.fields(part) if kind == number]
