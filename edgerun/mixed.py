"""Samples in a drawn order: however many are taken from the front, they are from everywhere.

Data is often sorted (a folder for each class, quiet recordings before loud ones), and what looks at the first samples
until they say enough takes it for granted that the others are like them.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgerun import readers, sources
from edgerun.data import Data
from edgerun.npy import DAMAGE, Stored, damaged, header

MOST, BYTES = 256, 1 << 30  # samples of what can only be read from the front that are put aside, and about their bytes
At = Callable[[int], sources.Chunk]


def mixed(data: Data) -> Data:
    """The same samples in a drawn order; of a callable's, which come one after the other, MOST are drawn, and the
    others follow as they come."""
    source = data.source
    if isinstance(source, (sources.Arrays, sources.Pictures)):
        return data.over(_Mixed(source, lambda _: source.at))
    if isinstance(source, sources.Files):
        return data.over(_Mixed(source, lambda files: _of_files(source, files)))
    return data.over(_Drawn(source)) if isinstance(source, (sources.Called, readers.Reader)) else data


def order(samples: int) -> np.ndarray:
    """A permutation int64 [samples], always the same, that leaves the first sample in its place."""
    drawn = 1 + np.random.default_rng(0).permutation(max(samples - 1, 0))
    return np.concatenate([np.zeros(min(samples, 1), np.int64), drawn])


class _Mixed:
    """A source whose samples can be read in any order."""

    def __init__(self, source: sources.Source, opened: Callable[[ExitStack], At]) -> None:
        self._source, self._opened, self._files = source, opened, ExitStack()
        weakref.finalize(self, self._files.close)
        self._at: At | None = None
        self.samples, self.number = source.samples, 0
        self._order = order(source.samples or 0)

    def chunks(self, rows: int) -> Iterator[sources.Chunk]:
        self._at = self._at or self._opened(self._files)
        for index in self._order:
            self.number = int(index)
            yield self._at(self.number)

    def labels(self) -> np.ndarray | None:
        found = self._source.labels()
        return found if found is None or len(found) != len(self._order) else found[self._order]


def _of_files(source: sources.Files, files: ExitStack) -> At:
    """Reads every file once, which finds damage, and puts aside what cannot be read at any place (what is packed)."""
    parts = [{n: _Rows(stored, source.axes[n], files) for n, stored in part.items()} for part in source.parts]
    ends = np.cumsum([next(iter(part.values())).count for part in parts])

    def at(index: int) -> sources.Chunk:
        number = int(np.searchsorted(ends, index, side="right"))
        part, first = parts[number], int(ends[number - 1]) if number else 0
        where = next(iter(source.parts[number].values())).where
        return where, {name: rows.read(index - first) for name, rows in part.items()}

    return at


class _Rows:
    """The rows of an array in a file, each by its number."""

    def __init__(self, stored: Stored, axes: int, files: ExitStack) -> None:
        self._stored, self._axes = stored, axes
        self.count = 1 if len(stored.shape) <= axes else stored.shape[0]
        packed = stored.packed or stored.fortran
        self._aside: IO[bytes] | None = files.enter_context(tempfile.TemporaryFile()) if packed else None
        for row in stored.rows(1, axes=axes):
            self._dtype, self._shape = row.dtype, row.shape
            if self._aside is not None:
                self._aside.write(row.tobytes())
        if self._aside is not None:
            self._aside.flush()

    def read(self, index: int) -> np.ndarray:
        if self._aside is None:
            return self._lying(index)
        size = math.prod(self._shape) * self._dtype.itemsize
        return np.frombuffer(os.pread(self._aside.fileno(), size, index * size), self._dtype).reshape(self._shape)

    def _lying(self, index: int) -> np.ndarray:
        stored = self._stored
        if len(stored.shape) <= self._axes:
            return next(stored.rows(1, axes=self._axes))
        try:
            with stored.open() as file:
                header(file)
                file.seek(index * math.prod(self._shape) * stored.dtype.itemsize, os.SEEK_CUR)
                return stored.read(file, self._shape, "C")
        except DAMAGE as error:
            damaged(stored.where, error)


@dataclass(frozen=True)
class _Aside:
    """A sample in a file: its number, what to call it in a message, and each input's dtype and shape."""

    number: int
    where: str
    inputs: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]

    def read(self, path: Path) -> sources.Chunk:
        data, at, found = path.read_bytes(), 0, dict[str, np.ndarray]()
        for name, (dtype, shape) in self.inputs.items():
            count = math.prod(shape)
            found[name] = np.frombuffer(data, dtype, count, at).reshape(shape) if count else np.empty(shape, dtype)
            at += count * dtype.itemsize
        return self.where, found


class _Drawn:
    """A source whose samples come one after the other: in its first pass some are drawn, each as likely as any other
    (Vitter's algorithm R, 1985), and put aside; they come first. Who takes no more than these calls it once."""

    def __init__(self, source: sources.Called | readers.Reader) -> None:
        self._source = source
        self._folder: Path | None = None
        self._aside: list[_Aside] = []
        self.samples: int | None = None
        self.number = 0

    def chunks(self, rows: int) -> Iterator[sources.Chunk]:
        folder = self._folder or self._drawn()
        for place in order(len(self._aside)):
            self.number = self._aside[place].number
            yield self._aside[place].read(folder / str(place))
        if len(self._aside) == self.samples:
            return
        aside = {sample.number for sample in self._aside}
        for number, chunk in enumerate(self._one_by_one()):
            if number not in aside:
                self.number = number
                yield chunk

    def labels(self) -> np.ndarray | None:
        found = self._source.labels()
        if found is None or (self._folder is None and not self._drawn()) or len(found) != self.samples:
            return found
        first = [self._aside[place].number for place in order(len(self._aside))]
        return found[[*first, *sorted(set(range(len(found))) - set(first))]]

    def _drawn(self) -> Path:
        """The folder of what is put aside; tells how many samples there are, too."""
        folder, generator = Path(tempfile.mkdtemp(prefix="edgerun-")), np.random.default_rng(0)
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._aside, most, number = [], MOST, -1
        for number, (where, chunk) in enumerate(self._one_by_one()):
            if number == 0:
                most = max(1, min(MOST, BYTES // max(1, sum(array.nbytes for array in chunk.values()))))
            place = number if number < most else int(generator.integers(1, number + 1))
            if place < most:
                stored = {n: array.astype(str) if array.dtype.kind == "O" else array for n, array in chunk.items()}
                (folder / str(place)).write_bytes(b"".join(array.tobytes() for array in stored.values()))
                told = {name: (array.dtype, array.shape) for name, array in stored.items()}
                self._aside[place : place + 1] = [_Aside(number, where, told)]
        self.samples, self._folder = number + 1, folder
        return folder

    def _one_by_one(self) -> Iterator[sources.Chunk]:
        for where, chunk in self._source.chunks(1):
            rows = {name: sources.rows(array, self._source.axes[name]) for name, array in chunk.items()}
            if len(counts := {len(array) for array in rows.values()}) > 1:
                yield where, chunk  # which is refused
                continue
            for index in range(counts.pop()):
                yield where, {name: array[index : index + 1] for name, array in rows.items()}
