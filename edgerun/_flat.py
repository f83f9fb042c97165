"""FlatBuffers read in place, table by table: every offset is checked before it is followed."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass


class Malformed(ValueError):
    """An offset or a length leads out of the bytes."""


def number(data: memoryview, at: int, form: str) -> int:
    """The little-endian integer at `at`; `form` as in struct."""
    if at < 0 or at + struct.calcsize(form) > len(data):
        raise Malformed(f"byte {at} is asked for, there are {len(data)}")
    return int(struct.unpack_from(f"<{form}", data, at)[0])


@dataclass
class Budget:
    """How many bytes of vectors may still be read: tables that share theirs would else take forever."""

    left: int


@dataclass(frozen=True)
class Table:
    """A table at `at`; fields are asked for by their number in the schema, and absent ones have their default."""

    data: memoryview
    at: int
    budget: Budget

    def _place(self, field: int) -> int:
        """Where the field's value stands; 0 when it is absent."""
        vtable = self.at - number(self.data, self.at, "i")
        size, slot = number(self.data, vtable, "H"), 4 + 2 * field
        offset = number(self.data, vtable + slot, "H") if slot + 2 <= size else 0
        return self.at + offset if offset else 0

    def has(self, field: int) -> bool:
        """Is the field there?"""
        return bool(self._place(field))

    def integer(self, field: int, form: str, default: int = 0) -> int:
        """An integer field."""
        place = self._place(field)
        return number(self.data, place, form) if place else default

    def vector(self, field: int, size: int) -> tuple[int, int]:
        """Where the elements of a vector begin, and how many there are, all of them inside the bytes."""
        if not (place := self._place(field)):
            return 0, 0
        start = place + number(self.data, place, "I")
        count = number(self.data, start, "I")
        if start + 4 + count * size > len(self.data):
            raise Malformed(f"a vector declares {count * size} bytes, {len(self.data) - start - 4} are there")
        self.budget.left -= count * size
        if self.budget.left < 0:
            raise Malformed("its vectors overlap")
        return start + 4, count

    def integers(self, field: int, form: str) -> list[int]:
        """A vector of integers."""
        start, count = self.vector(field, struct.calcsize(form))
        return [int(value) for value in struct.unpack_from(f"<{count}{form}", self.data, start)] if count else []

    def tables(self, field: int) -> Iterator[Table]:
        """A vector of tables."""
        start, count = self.vector(field, 4)
        for place in range(start, start + 4 * count, 4):
            yield Table(self.data, place + number(self.data, place, "I"), self.budget)


def root(data: memoryview) -> Table:
    """The table that the file is."""
    return Table(data, number(data, 0, "I"), Budget(4 * len(data)))
