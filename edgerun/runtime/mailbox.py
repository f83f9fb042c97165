"""One direction between two processes: arrays in shared memory, and a pipe that says that they are there.

A message on the pipe is a kind, a length and so many bytes of JSON. Arrays lie in the memory as the last layout says;
a layout goes over the pipe only when it changes, so that a run of the usual sizes costs one copy and five bytes, and no
copy for what lies in memory that both sides have already (`arena`).
"""

from __future__ import annotations

import json
import mmap
import os
import select
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from edgerun.runtime import dtypes
from edgerun.runtime.arena import Arena, Looks

HEAD = struct.Struct("<cI")
ARRAYS, NOTE = b"A", b"N"
USUAL = 512  # bytes read at once: a message without a layout has five
ALIGNMENT = 64  # bytes; a cache line, and what the runtimes' kernels like
MOST = 64  # layouts that are kept in mind
K = TypeVar("K")
V = TypeVar("V")


class Closed(Exception):
    """The other end is gone."""


class Late(Exception):
    """No message came in time."""


@dataclass(frozen=True)
class _Layout:
    """What is said of arrays once, where each is to be copied to (None: it is there already), and that by name, where
    there is nothing but arrays of numbers."""

    text: bytes
    places: list[np.ndarray | None]
    named: dict[str, np.ndarray] | None


class Mailbox:
    """`memory` is the descriptor of a shared file, `pipe` this side's end of the pipe; both belong to the caller, as
    does the `arena`, if any: on the side that posts what may lie in it, and on the other what looks at it."""

    def __init__(self, memory: int, pipe: int, arena: Arena | Looks | None = None) -> None:
        self._memory, self._pipe, self._arena = memory, pipe, arena
        self._map: mmap.mmap | None = None
        self._key: object = None
        self._layout = _Layout(b"", [], None)
        self._layouts: dict[object, _Layout] = {}
        self._values: dict[str, Any] = {}
        self._known: dict[bytes, dict[str, Any]] = {}
        self._ready = select.poll()
        self._ready.register(pipe, select.POLLIN)

    def note(self, values: Mapping[str, Any]) -> None:
        """Send JSON values."""
        self._write(NOTE, json.dumps(values).encode())

    def post(self, values: Mapping[str, Any]) -> None:
        """Send arrays by name; a value may also be a list of them, or None."""
        leaves = [a for a in values.values() if type(a) is np.ndarray and a.dtype != object]
        lies = self._arena.place if isinstance(self._arena, Arena) else _elsewhere
        key = tuple([(name, a.dtype, a.shape, lies(a)) for name, a in zip(values, leaves, strict=False)])
        text = b""
        if len(leaves) < len(values):  # texts differ in length from run to run
            leaves = []
            tree = {name: _described(value, leaves) for name, value in values.items()}
            self._key, self._layout = None, self._laid_out(tree, leaves, [-1] * len(leaves))
            text = self._layout.text
        elif key != self._key:
            found = self._layouts.get(key)
            if found is None:
                tree = {name: number for number, name in enumerate(values)}
                found = _remember(self._layouts, key, self._laid_out(tree, leaves, [own[-1] for own in key]))
            self._key, self._layout, text = key, found, found.text
        for place, array in zip(self._layout.places, leaves, strict=True):
            if place is not None:
                place[...] = array
        self._write(ARRAYS, text)

    @property
    def places(self) -> dict[str, np.ndarray] | None:
        """Where the arrays of the last `post` lie, by name; None where there was more than arrays of numbers."""
        return self._layout.named

    def again(self) -> None:
        """Say that `places` were filled anew."""
        self._write(ARRAYS, b"")

    def take(self, seconds: float | None = None) -> tuple[bytes, dict[str, Any]]:
        """The next message, its kind first; arrays are views of the memory, valid until the next message is asked for,
        and the dict the very same one for the same layout. Raises Late after `seconds`, Closed at the end.
        """
        if seconds is not None and not self._ready.poll(max(1, int(seconds * 1e3))):
            raise Late
        kind, text = self._read()
        if kind != ARRAYS:
            return kind, json.loads(text) if text else {}
        if text:
            self._values = self._known.get(text) or self._told(text)
        return kind, self._values

    def _told(self, text: bytes) -> dict[str, Any]:
        tree, spans = json.loads(text)
        self._map_up_to(max((offset + size for *_, offset, size, place in spans if place < 0), default=0))
        leaves = [self._view(*span[:-1]) if span[-1] < 0 else self._given(*span) for span in spans]
        values = {name: _rebuilt(node, leaves) for name, node in tree.items()}
        return _remember(self._known, text, values) if all(type(node) is int for node in tree.values()) else values

    def _laid_out(self, tree: dict[str, Any], leaves: list[np.ndarray], lie: list[int]) -> _Layout:
        """`tree` says which of the `leaves` is what, and `lie` where in the arena each lies (-1: not there)."""
        spans, end = [], 0
        for leaf, place in zip(leaves, lie, strict=True):
            spans.append((leaf.dtype.name, list(leaf.shape), end, leaf.nbytes, place))
            end += -(-leaf.nbytes // ALIGNMENT) * ALIGNMENT if place < 0 else 0
        self._map_up_to(end)
        places = [self._view(*span[:-1]) if span[-1] < 0 else None for span in spans]
        named = {name: places[node] for name, node in tree.items() if type(node) is int}
        whole = {name: place for name, place in named.items() if place is not None}
        return _Layout(json.dumps([tree, spans]).encode(), places, whole if len(whole) == len(tree) else None)

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

    def _given(self, name: str, shape: list[int], offset: int, size: int, place: int) -> np.ndarray:
        assert isinstance(self._arena, Looks)
        return self._arena.view(tuple(shape), dtypes.dtype(name), place)

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


def _elsewhere(array: np.ndarray) -> int:
    return -1


def _remember(known: dict[K, V], key: K, value: V) -> V:
    if len(known) >= MOST:
        known.clear()
    known[key] = value
    return value


def _described(value: Any, leaves: list[np.ndarray]) -> Any:
    """`value` as JSON in which an array is its number in `leaves`, and an array of texts those texts."""
    if value is None:
        return None
    if isinstance(value, list):
        return [_described(item, leaves) for item in value]
    array = np.asarray(value)
    if array.dtype.kind == "O":
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
