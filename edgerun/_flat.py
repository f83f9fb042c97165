"""FlatBuffers read in place: every offset is checked before it is followed."""

# A table is a signed offset back to its vtable, which holds for each field where it lies in the table (0: the default).

from __future__ import annotations

import struct
from collections.abc import Iterator


class Malformed(ValueError):
    """An offset or a length leads out of the bytes."""


class Budget:
    """How many bytes of vectors may still be read: tables that share theirs would else take forever."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, size: int) -> None:
        """Raises Malformed where no more is left."""
        self.left -= size
        if self.left < 0:
            raise Malformed("its vectors overlap")


class Table:
    """The table at byte `at` of `data`; fields go by their number in the schema, and absent ones have their default."""

    __slots__ = ("at", "budget", "data", "vtable", "wide")

    def __init__(self, data: memoryview, at: int, budget: Budget) -> None:
        self.data, self.at, self.budget = data, at, budget
        self.vtable = at - number(data, at, "i")
        self.wide = number(data, self.vtable, "H")  # bytes of the vtable

    def place(self, field: int) -> int:
        """Where a field's value stands; 0 when it is absent."""
        entry = 4 + 2 * field
        offset = number(self.data, self.vtable + entry, "H") if entry + 2 <= self.wide else 0
        return self.at + offset if offset else 0

    def has(self, field: int) -> bool:
        """Is the field there?"""
        return bool(self.place(field))

    def integer(self, field: int, form: str, default: int = 0) -> int:
        """An integer field; `form` as in struct."""
        at = self.place(field)
        return number(self.data, at, form) if at else default

    def table(self, field: int) -> Table | None:
        """The table that a field refers to."""
        at = self.place(field)
        return Table(self.data, at + number(self.data, at, "I"), self.budget) if at else None

    def vector(self, field: int, size: int) -> tuple[int, int]:
        """Where the elements of a vector begin, and how many there are, all of them inside the bytes."""
        at = self.place(field)
        if not at:
            return 0, 0
        start = at + number(self.data, at, "I")
        count = number(self.data, start, "I")
        if start + 4 + count * size > len(self.data):
            raise Malformed(f"a vector declares {count * size} bytes, {len(self.data) - start - 4} are there")
        self.budget.take(count * size)
        return start + 4, count

    def integers(self, field: int, form: str) -> list[int]:
        """A vector of integers; `form` as in struct."""
        start, count = self.vector(field, struct.calcsize(f"<{form}"))
        return list(struct.unpack_from(f"<{count}{form}", self.data, start)) if count else []

    def text(self, field: int) -> str:
        """A string; empty where there is none."""
        start, count = self.vector(field, 1)
        return str(self.data[start : start + count], "utf-8", "replace")

    def tables(self, field: int) -> Iterator[Table]:
        """A vector of tables."""
        start, count = self.vector(field, 4)
        for at in range(start, start + 4 * count, 4):
            yield Table(self.data, at + number(self.data, at, "I"), self.budget)


def number(data: memoryview, at: int, form: str) -> int:
    """The little-endian integer at `at`; `form` as in struct."""
    if at < 0 or at + struct.calcsize(f"<{form}") > len(data):
        raise Malformed(f"an offset leads to byte {at}, {len(data)} are there")
    return int(struct.unpack_from(f"<{form}", data, at)[0])


def root(data: memoryview, identifier: bytes) -> Table:
    """The outermost table of a file that carries `identifier`; all its vectors together may be read four times.

    Raises Malformed for another.
    """
    if len(data) < 8 or data[4:8] != identifier:
        raise Malformed(f"bytes 4 to 7 are not {identifier.decode()}")
    return Table(data, number(data, 0, "I"), Budget(4 * len(data)))
