"""Reading `.npy` and `.npz` a few rows at a time, so that a file larger than memory is no trouble.

Members of an `.npz` are decompressed as a stream, and their CRC is checked at their end; where they lie as they are, as
`numpy.savez` leaves them, once: it takes longer than to read them. Nothing is unpickled.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

import numpy as np

from edgerun.errors import EdgerunError

Open = Callable[[], IO[bytes]]
# What zipfile, zlib and numpy's header parser raise on damaged bytes.
DAMAGE = (OSError, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Stored:
    """An array in a file: what its header says, and how to read it. `where` names it in messages."""

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran: bool
    open: Open
    ended: Callable[[], None] = lambda: None  # told when all of it was read
    packed: bool = False  # rows cannot be read at any place

    def rows(self, count: int, *, axes: int) -> Iterator[np.ndarray]:
        """At most `count` rows at a time, each array [rows, …]; an array of only `axes` axes is a single row.

        Columns-first (Fortran) files are read whole, because a row of theirs is scattered over the file.
        Raises EdgerunError when the file is damaged.
        """
        try:
            with self.open() as file:
                header(file)
                if self.fortran or len(self.shape) <= axes:
                    whole = self.read(file, self.shape, "F" if self.fortran else "C")
                    self.ended()
                    rows = whole[None] if len(self.shape) <= axes else whole
                    for start in range(0, len(rows), count):
                        yield np.ascontiguousarray(rows[start : start + count])
                    return
                for start in range(0, self.shape[0], count):
                    yield self.read(file, (min(count, self.shape[0] - start), *self.shape[1:]), "C")
                self.ended()
        except DAMAGE as error:
            damaged(self.where, error)

    def whole(self) -> np.ndarray:
        """The whole array."""
        array: np.ndarray = next(self.rows(1, axes=len(self.shape)))[0]
        return array

    def read(self, file: IO[bytes], shape: tuple[int, ...], order: str) -> np.ndarray:
        """What lies here, of this shape."""
        buffer = np.empty(math.prod(shape) * self.dtype.itemsize, np.uint8)
        view, done = buffer.data, 0
        while done < len(buffer):
            got = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                raise EOFError("the file ends too early")
            done += got
        array = np.frombuffer(view, self.dtype).reshape(shape, order="F" if order == "F" else "C")
        native: np.ndarray = array.astype(self.dtype.newbyteorder("="), copy=False)
        return native


def read_npy(path: Path) -> Stored:
    """The array of a `.npy` file. Raises EdgerunError when it is damaged, truncated or holds Python objects."""
    try:
        return _stored(str(path), lambda: open(path, "rb"), path.stat().st_size)
    except DAMAGE as error:
        damaged(str(path), error)


def read_npz(path: Path) -> dict[str, Stored]:
    """The arrays of an `.npz` file by name, in file order; errors as `read_npy`, and for a name that stands twice."""
    arrays: dict[str, Stored] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name in arrays:
                    raise EdgerunError("an .npz holds a name twice", got=f"{name!r} in {path}", do="write it again")
                member = _Member(path, info)
                packed = info.compress_type != zipfile.ZIP_STORED
                arrays[name] = _stored(f"{path}: {name!r}", member.opened, info.file_size, member.ended, packed)
    except DAMAGE as error:
        damaged(str(path), error)
    return arrays


class _Member:
    """An array of an `.npz`: read through zipfile, which checks it, until that came to its end; then where it lies."""

    def __init__(self, path: Path, info: zipfile.ZipInfo) -> None:
        self._path, self._info = path, info
        self._checked: tuple[int, int] | None = None  # what the file was then

    def opened(self) -> IO[bytes]:
        if self._checked is not None and self._checked == self._version():
            file = open(self._path, "rb")  # whoever reads it closes it
            file.seek(self._info.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))  # how long they are, behind the header's 30 bytes
            file.seek(name + extra, os.SEEK_CUR)
            return file
        # A member stays readable after its archive object is gone: it holds the shared file open.
        with zipfile.ZipFile(self._path) as archive:
            return archive.open(self._info)

    def ended(self) -> None:
        if self._info.compress_type == zipfile.ZIP_STORED:
            self._checked = self._version()

    def _version(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size


def _stored(
    where: str, opened: Open, size: int, ended: Callable[[], None] = lambda: None, packed: bool = False
) -> Stored:
    with opened() as file:
        start, shape, fortran, dtype = header(file)
    if dtype.kind not in "fiubU":
        wanted = "floats, integers, bool or text"
        raise EdgerunError("an array is neither numeric nor text", got=f"{dtype} in {where}", wanted=wanted)
    # A header may promise more than the file holds: that would only show after a huge allocation.
    if start + math.prod(shape) * dtype.itemsize > size:
        raise EOFError("the header promises more than the file holds")
    return Stored(where, shape, dtype, fortran, opened, ended, packed)


def header(file: IO[bytes]) -> tuple[int, tuple[int, ...], bool, np.dtype[np.generic]]:
    """Its end, the shape, whether columns lie first, and the dtype."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"unknown .npy version {version}")
    if min(shape, default=0) < 0:
        raise ValueError(f"a negative dimension in {shape}")
    return file.tell(), shape, fortran, dtype


def damaged(where: str, error: BaseException) -> NoReturn:
    """Raise the EdgerunError for a data file that cannot be read."""
    reason = str(error) or type(error).__name__
    raise EdgerunError(f"cannot read {where}", got=reason, do="write the file again") from error
