"""Static checks of a `.tflite` file before any parser sees it: what it is, and that what it names is in it."""

from __future__ import annotations

import math
import mmap
from pathlib import Path

from edgerun import _flat
from edgerun.errors import EdgerunError, Unsupported

IDENTIFIER = b"TFL3"
VERSION = 3  # of the schema; the only one since 2017
# tflite.TensorType -> bits of one element; strings, resources and variants have no fixed size
_BITS = {
    0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 8: 64, 9: 8, 10: 64, 11: 128, 12: 64, 15: 32, 16: 16, 17: 4, 18: 16,
    20: 4,
}  # fmt: skip


def check(path: Path) -> None:
    """Raise unless `path` is a TFLite model whose vectors, buffers and indices lie inside it, of the sizes declared.

    Reads the structure only, through a memory map; weights are not looked at.
    """
    with open(path, "rb") as file:
        if path.stat().st_size < 8:
            raise EdgerunError(f"{path}: not a TFLite model", got="less than 8 bytes", do="export or download it again")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if bytes(data[4:8]) != IDENTIFIER:
        raise EdgerunError(f"{path}: not a TFLite model", got=f"identifier {bytes(data[4:8])!r}",
                           wanted=f"{IDENTIFIER!r}", do="export or download it again")  # fmt: skip
    try:
        _model(path, data, _flat.root(data, IDENTIFIER))
    except _flat.Malformed as error:
        raise EdgerunError(
            f"{path}: the file is truncated or damaged", got=str(error), do="export or download it again"
        ) from None


def _model(path: Path, data: memoryview, model: _flat.Table) -> None:
    if (version := model.integer(0, "I")) != VERSION:
        raise Unsupported(f"{path}: another version of the schema", got=version, wanted=str(VERSION))
    codes = model.vector(1, 4)[1]
    buffers = [_buffer(path, data, table) for table in model.tables(4)]
    graphs = list(model.tables(2))
    if not graphs:
        raise EdgerunError(f"{path}: the model has no graph", do="export it again")
    for graph in graphs:
        tensors = list(graph.tables(0))
        for tensor in tensors:
            _tensor(path, tensor, buffers)
        _inside(path, "tensor", [*graph.integers(1, "i"), *graph.integers(2, "i")], 0, len(tensors))
        for operator in graph.tables(3):
            _inside(path, "operator code", [operator.integer(0, "I")], 0, codes)
            _inside(path, "tensor", operator.integers(1, "i"), -1, len(tensors))  # -1: an input that is left out
            _inside(path, "tensor", operator.integers(2, "i"), 0, len(tensors))
    for signature in model.tables(7):
        _inside(path, "subgraph", [signature.integer(4, "I")], 0, len(graphs))


def _buffer(path: Path, data: memoryview, buffer: _flat.Table) -> int:
    """The bytes that a buffer holds: within the table, or behind it at an offset from the file's begin."""
    offset, size = buffer.integer(1, "Q"), buffer.integer(2, "Q")
    if offset > 1 and offset + size > len(data):
        raise EdgerunError(f"{path}: a buffer reaches beyond the file", got=f"bytes {offset}..{offset + size}",
                           wanted=f"within {len(data)}", do="export or download it again")  # fmt: skip
    return size if offset > 1 else buffer.vector(0, 1)[1]


def _tensor(path: Path, tensor: _flat.Table, buffers: list[int]) -> None:
    shape, kind, index = tensor.integers(0, "i"), tensor.integer(1, "b"), tensor.integer(2, "I")
    _inside(path, "buffer", [index], 0, len(buffers))
    if any(size < 0 for size in shape):
        raise EdgerunError(f"{path}: a tensor has a negative dimension", got=str(shape))
    if kind in _BITS and buffers[index] and not tensor.has(6):  # 6: how a sparse tensor is stored
        size = (math.prod(shape) * _BITS[kind] + 7) // 8
        if buffers[index] != size:
            raise EdgerunError(f"{path}: a tensor does not have the size it declares", got=f"{buffers[index]} bytes",
                               wanted=f"{size} bytes for {shape}", do="export it again")  # fmt: skip


def _inside(path: Path, what: str, indices: list[int], low: int, high: int) -> None:
    for index in indices:
        if not low <= index < high:
            raise EdgerunError(f"{path}: a {what} is named that is not there", got=index, wanted=f"{low} to {high - 1}")
