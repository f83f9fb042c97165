"""One direction between two processes: arrays in shared memory, and a pipe that says that they are there.

A message on the pipe is a kind, a length and so many bytes of JSON. Arrays lie in the memory as the last layout says;
a layout goes over the pipe only when it changes, so that a run of the usual sizes costs one copy and five bytes.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.runtime import dtypes

HEAD = struct.Struct("<cI")
ARRAYS, NOTE = b"A", b"N"
USUAL = 512  # bytes read at once: a message without a layout has five
ALIGNMENT = 64  # bytes; a cache line, and what the runtimes' kernels like


class Closed(Exception):
    """The other end is gone."""


class Mailbox:
    """`memory` is the descriptor of a shared file, `pipe` this side's end of the pipe; both belong to the caller."""

    def __init__(self, memory: int, pipe: int) -> None:
        self._memory, self._pipe = memory, pipe
        self._map: mmap.mmap | None = None
        self._key: object = None
        self._places: list[np.ndarray] = []
        self._named: dict[str, np.ndarray] | None = None
        self._values: dict[str, Any] = {}
        self._ready = select.poll()
        self._ready.register(pipe, select.POLLIN)

    def note(self, values: Mapping[str, Any]) -> None:
        """Send JSON values."""
        self._write(NOTE, json.dumps(values).encode())

    def post(self, values: Mapping[str, Any]) -> None:
        """Send arrays by name; a value may also be a list of them, or None."""
        key = [(name, a.dtype, a.shape) for name, a in values.items() if type(a) is np.ndarray and a.dtype != object]
        text = b""
        if len(key) < len(values) or key != self._key:  # texts differ in length from run to run
            leaves: list[np.ndarray] = []
            tree = {name: _described(value, leaves) for name, value in values.items()}
            self._places, spans = self._laid_out(leaves)
            text = json.dumps([tree, spans]).encode()
            self._key = key if len(key) == len(values) else None
            self._named = dict(zip(values, self._places, strict=True)) if self._key is not None else None
            for place, leaf in zip(self._places, leaves, strict=True):
                place[...] = leaf
        else:
            for place, array in zip(self._places, values.values(), strict=True):
                place[...] = array
        self._write(ARRAYS, text)

    @property
    def places(self) -> dict[str, np.ndarray] | None:
        """Where the arrays of the last `post` lie, by name; None where there was more than arrays of numbers."""
        return self._named

    def again(self) -> None:
        """Say that `places` were filled anew."""
        self._write(ARRAYS, b"")

    def take(self, seconds: float | None = None) -> tuple[bytes, dict[str, Any]]:
        """The next message, its kind first; arrays are views of the memory, valid until the next message is asked for,
        and the dict the very same one while the layout stays. Raises TimeoutError after `seconds`, Closed at the end.
        """
        if seconds is not None and not self._ready.poll(max(1, int(seconds * 1e3))):
            raise TimeoutError
        kind, text = self._read()
        if kind != ARRAYS:
            return kind, json.loads(text) if text else {}
        if text:
            tree, spans = json.loads(text)
            self._map_up_to(max((offset + size for _, _, offset, size in spans), default=0))
            leaves = [self._view(*span) for span in spans]
            self._values = {name: _rebuilt(node, leaves) for name, node in tree.items()}
        return kind, self._values

    def _laid_out(self, leaves: list[np.ndarray]) -> tuple[list[np.ndarray], list[tuple[str, list[int], int, int]]]:
        spans, end = [], 0
        for leaf in leaves:
            spans.append((leaf.dtype.name, list(leaf.shape), end, leaf.nbytes))
            end += -(-leaf.nbytes // ALIGNMENT) * ALIGNMENT
        self._map_up_to(end)
        return [self._view(*span) for span in spans], spans

    def _map_up_to(self, size: int) -> None:
        """The first `size` bytes are there and mapped; views of an older map stay good while somebody has them."""
        size = max(size, 1)
        if self._map is None or len(self._map) < size:
            if os.fstat(self._memory).st_size < size:
                os.ftruncate(self._memory, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
            self._map = mmap.mmap(self._memory, size)

    def _view(self, name: str, shape: list[int], offset: int, size: int) -> np.ndarray:
        assert self._map is not None
        return np.ndarray(tuple(shape), dtypes.dtype(name), self._map, offset if size else 0)

    def _write(self, kind: bytes, text: bytes) -> None:
        data = memoryview(HEAD.pack(kind, len(text)) + text)
        try:
            while data:
                data = data[os.write(self._pipe, data) :]
        except OSError as error:
            raise Closed from error

    def _read(self) -> tuple[bytes, bytes]:
        """Kind and text of a message; none comes before this one was answered, so nothing of the next is read."""
        data = self._some(USUAL)
        while len(data) < HEAD.size:
            data += self._some(HEAD.size - len(data))
        kind, length = HEAD.unpack_from(data)
        parts, missing = [data[HEAD.size :]], HEAD.size + length - len(data)
        while missing:
            parts.append(self._some(missing))
            missing -= len(parts[-1])
        return kind, b"".join(parts)

    def _some(self, most: int) -> bytes:
        part = os.read(self._pipe, most)
        if not part:
            raise Closed
        return part


def _described(value: Any, leaves: list[np.ndarray]) -> Any:
    """`value` as JSON in which an array is its number in `leaves`, and an array of texts those texts."""
    if value is None:
        return None
    if isinstance(value, list):
        return [_described(item, leaves) for item in value]
    array = np.asarray(value)
    if array.dtype.kind == "O":
        if not all(isinstance(text, str) for text in array.flat):
            raise EdgerunError("only texts can be objects in an array", got=str(array.flat[0]))
        return {"texts": array.reshape(-1).tolist(), "shape": list(array.shape)}
    leaves.append(array)
    return len(leaves) - 1


def _rebuilt(node: Any, leaves: list[np.ndarray]) -> Any:
    if node is None:
        return None
    if isinstance(node, list):
        return [_rebuilt(item, leaves) for item in node]
    if isinstance(node, dict):
        texts = np.empty(len(node["texts"]), object)
        texts[:] = node["texts"]
        return texts.reshape(node["shape"])
    return leaves[node]
