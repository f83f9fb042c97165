"""Protobuf's wire format read in place, field by field over a memory map: weights are not copied."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

Value = int | memoryview
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Malformed(ValueError):
    """The bytes are not whole protobuf fields."""


class Truncated(Malformed):
    """A field declares more bytes than there are."""


def view(source: bytes | Path) -> memoryview:
    """The bytes of a message in memory or in a file, which is mapped."""
    if isinstance(source, bytes):
        return memoryview(source)
    with source.open("rb") as file:  # unmapped when the last view of it goes: an error on its way up may still hold one
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """The unsigned integer at `at`, and the place behind it."""
    value = shift = 0
    while True:
        if at >= len(data):
            raise Truncated("the file ends inside a number")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise Malformed("a number is longer than 64 bits")


def signed(value: Value) -> int:
    """A varint field's value as int64, two's complement."""
    if not isinstance(value, int):
        raise Malformed("a number was expected")
    return value - (1 << 64) if value >> 63 else value


def text(value: Value) -> str:
    """A length-delimited field as UTF-8, which protobuf asks of every name; a runtime may see another one otherwise."""
    if isinstance(value, int):
        raise Malformed("a text was expected")
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"a name is no UTF-8: {bytes(value[:40])!r}") from error


def message(value: Value) -> memoryview:
    """A length-delimited field's bytes."""
    if isinstance(value, int):
        raise Malformed("a message was expected")
    return value


def fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """(number, value) of every field of one message: int for numbers, a view for everything length-delimited."""
    at, end = 0, len(data)
    try:
        while at < end:
            key, at = data[at], at + 1  # one byte in nearly every field, as most numbers are: read here, twice as fast
            if key > 0x7F:
                key, at = varint(data, at - 1)
            if key < 8:
                raise Malformed("field number 0")
            wire = key & 7
            if wire == BYTES:
                length, at = data[at], at + 1
                if length > 0x7F:
                    length, at = varint(data, at - 1)
                start, at = at, at + length
                if at > end:
                    raise Truncated(f"a field declares {length} bytes, {end - start} are there")
                yield key >> 3, data[start:at]
            elif wire == VARINT:
                value, at = data[at], at + 1
                if value > 0x7F:
                    value, at = varint(data, at - 1)
                yield key >> 3, value
            elif wire in (FIXED32, FIXED64):
                start, at = at, at + (4 if wire == FIXED32 else 8)
                if at > end:
                    raise Truncated("the file ends inside a number")
                yield key >> 3, int.from_bytes(data[start:at], "little")
            else:
                raise Malformed(f"wire type {wire}")
    except IndexError:
        raise Truncated("the file ends inside a number") from None


Name = tuple[str, str, str]  # domain, name, overload


def function(data: memoryview) -> tuple[Name, list[Name]]:
    """The name of one onnx.FunctionProto and what its nodes call, in order; subgraphs are not looked into."""
    name, domain, overload, calls = "", "", "", list[Name]()
    for number, value in fields(data):
        if number == 1:
            name = text(value)
        elif number == 10:
            domain = text(value)
        elif number == 13:
            overload = text(value)
        elif number == 7:
            told = {n: text(v) for n, v in fields(message(value)) if n in (4, 7, 8)}
            calls.append((told.get(7, ""), told.get(4, ""), told.get(8, "")))
    return (domain, name, overload), calls


def integers(value: Value) -> Iterator[int]:
    """One repeated int64 field's values: a lone varint, or a packed run of them."""
    if isinstance(value, int):
        yield signed(value)
        return
    at = 0
    while at < len(value):
        number, at = varint(value, at)
        yield signed(number)
