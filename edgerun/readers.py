"""Calibration data in the shapes that other quantizers take: objects with `get_next`, or with `get_inference_data`."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgerun import sources
from edgerun.errors import EdgerunError


class GivesNext(Protocol):
    """As ONNX Runtime's `CalibrationDataReader`: feeds by input name, then None."""

    def get_next(self) -> Any: ...


class GivesInferenceData(Protocol):
    """As `nncf.Dataset`."""

    def get_inference_data(self) -> Iterable[Any]: ...


class Reader:
    """ONNX Runtime's `CalibrationDataReader`: `get_next()` gives feeds by input name, then None.

    It is read from the start by its `rewind`; where it has none, what it gives once is kept in a temporary folder.
    """

    def __init__(self, reader: GivesNext, axes: sources.Axes) -> None:
        self._reader, self.axes = reader, axes
        self.samples: int | None = None
        self._kept: list[list[str]] = []  # the names in every file of the folder
        self._rewind = getattr(reader, "rewind", None)
        self._folder = tempfile.mkdtemp() if self._rewind is None else ""
        if self._folder:
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            for index, item in enumerate(self._drained()):
                self._kept.append(list(item))
                np.savez(Path(self._folder) / f"{index}.npz", *item.values())

    def chunks(self, rows: int) -> Iterator[sources.Chunk]:
        if self._rewind is not None:
            with sources.called("the calibration data reader failed"):
                self._rewind()
        for index, item in enumerate(self._stored() if self._folder else self._drained()):
            where = f"the calibration data reader, item {index}"
            yield where, sources.pick(item, list(self.axes), where)

    def labels(self) -> None:
        return None

    def _drained(self) -> Iterator[dict[str, np.ndarray]]:
        while (item := self._next()) is not None:
            if not isinstance(item, Mapping):
                got = type(item).__name__
                raise EdgerunError("get_next() gave no feeds", got=got, wanted="a dict by input name, or None")
            yield {str(name): np.array(value) for name, value in item.items()}  # readers write into one buffer again

    def _next(self) -> Any:
        with sources.called("the calibration data reader failed"):
            return self._reader.get_next()

    def _stored(self) -> Iterator[dict[str, np.ndarray]]:
        for index, names in enumerate(self._kept):
            with np.load(Path(self._folder) / f"{index}.npz", allow_pickle=False) as arrays:
                yield dict(zip(names, arrays.values(), strict=True))


def made(name: str, given: Any) -> Any:
    """A reader or dataset that was named, or one of the class that was. Raises EdgerunError where that fails."""
    with sources.called(f"{name} failed"):
        return given() if isinstance(given, type) else given


def dataset(source: GivesInferenceData, axes: sources.Axes) -> sources.Called:
    """`nncf.Dataset`: `get_inference_data()` gives dicts by input name, arrays, or tuples in the inputs' order."""
    read = 0

    def items() -> Iterator[Any]:
        nonlocal read
        count = 0
        for count, item in enumerate(source.get_inference_data(), 1):  # noqa: B007 (counted for the next pass)
            read = max(read, count)
            yield item
        if read and not count:
            do = "make the dataset over a list or a loader, not over an iterator"
            raise EdgerunError("the dataset cannot be read more than once", do=do)

    return sources.Called("the dataset", items, axes)
