"""FlatBuffers read in place: tables, vectors and strings, each looked up within the bytes that are there.

A table is a signed offset back to its vtable, which holds for each field where it lies in the table (0: the default).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_U16, _I32, _U32, _I64 = (struct.Struct(f"<{code}") for code in "HiIq")


class Malformed(ValueError):
    """An offset leads out of the bytes, or a text is none."""


class Table:
    """The table at byte `at` of `data`; fields go by their number in the schema."""

    __slots__ = ("at", "data", "vtable", "wide")

    def __init__(self, data: memoryview, at: int) -> None:
        self.data, self.at = data, at
        self.vtable = at - self._number(_I32, at)
        self.wide = self._number(_U16, self.vtable)  # bytes of the vtable

    def place(self, field: int) -> int:
        """Where a field lies; 0 when it has its default."""
        entry = 4 + 2 * field
        offset = self._number(_U16, self.vtable + entry) if entry < self.wide else 0
        return self.at + offset if offset else 0

    def integer(self, field: int, default: int = 0) -> int:
        """An int32."""
        at = self.place(field)
        return self._number(_I32, at) if at else default

    def long(self, field: int, default: int = 0) -> int:
        """An int64."""
        at = self.place(field)
        return self._number(_I64, at) if at else default

    def table(self, field: int) -> Table | None:
        """The table that a field refers to."""
        at = self.place(field)
        return Table(self.data, self._target(at)) if at else None

    def vector(self, field: int, each: int) -> memoryview | None:
        """The bytes of a vector whose items are `each` bytes wide."""
        at = self.place(field)
        if not at:
            return None
        start = self._target(at) + 4
        end = start + each * self._number(_U32, start - 4)
        if end > len(self.data):
            raise Malformed(f"a list ends at byte {end}, {len(self.data)} are there")
        return self.data[start:end]

    def longs(self, field: int) -> list[int]:
        """A vector of int64."""
        found = self.vector(field, 8)
        return [number for (number,) in _I64.iter_unpack(found)] if found is not None else []

    def text(self, field: int) -> str:
        """A string; empty where there is none."""
        return str(self.vector(field, 1) or b"", "utf-8", "replace")

    def tables(self, field: int) -> Iterator[Table]:
        """A vector of tables."""
        at = self.place(field)
        if at and (found := self.vector(field, 4)) is not None:
            start = self._target(at) + 4
            for index, (offset,) in enumerate(_U32.iter_unpack(found)):
                yield Table(self.data, start + 4 * index + offset)

    def _target(self, at: int) -> int:
        return at + self._number(_U32, at)

    def _number(self, kind: struct.Struct, at: int) -> int:
        if at < 0 or at + kind.size > len(self.data):
            raise Malformed(f"an offset leads to byte {at}, {len(self.data)} are there")
        return int(kind.unpack_from(self.data, at)[0])


def root(data: memoryview, identifier: bytes) -> Table:
    """The outermost table of a file that carries `identifier`. Raises Malformed for another."""
    if len(data) < 8 or data[4:8] != identifier:
        raise Malformed(f"bytes 4 to 7 are not {identifier.decode()}")
    return Table(data, _U32.unpack_from(data, 0)[0])
