"""Samples in a drawn order: the same ones, whatever they come from, and those at the front are from everywhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerun.data import Data, open_data
from edgerun.errors import EdgerunError
from edgerun.mixed import MOST, mixed, order
from edgerun.runtime import TensorSpec

INPUTS = (TensorSpec("x", "float32", ("n", 2)), TensorSpec("t", "int64", ("n",)))
COUNT = 700


def rows(count: int = COUNT) -> dict[str, np.ndarray]:
    """Sorted: a sample's number in both inputs, and as its label."""
    numbers = np.arange(count)
    return {"x": np.stack([numbers, -numbers], 1).astype(np.float32), "t": numbers, "labels": numbers}


def feeds(count: int = COUNT) -> Iterator[dict[str, np.ndarray]]:
    data = rows(count)
    return ({name: array[i : i + 3] for name, array in data.items()} for i in range(0, count, 3))


class Reader:
    """As a CalibrationDataReader without a rewind."""

    def __init__(self) -> None:
        self._left = feeds()

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def _stored(place: Path, save: Callable[..., None], columns: bool = False) -> Path:
    data = rows()
    if columns:
        data["x"] = np.asfortranarray(data["x"])
    save(place / "data.npz", **data)
    return place / "data.npz"


def _folder(place: Path) -> Path:
    for name, array in rows().items():
        if name == "labels":
            np.save(place / "labels.npy", array)
            continue
        (place / name).mkdir()
        for start in range(0, COUNT, 100):
            np.save(place / name / f"{start:04}.npy", array[start : start + 100])
    return place


SOURCES: dict[str, Callable[[Path], Any]] = {
    "npz": lambda place: _stored(place, np.savez),
    "npz, packed": lambda place: _stored(place, np.savez_compressed),
    "npz, columns first": lambda place: _stored(place, np.savez, columns=True),
    "folder": _folder,
    "arrays": lambda place: rows(),
    "list": lambda place: list(feeds()),
    "callable": lambda place: feeds,
    "reader": lambda place: Reader(),
}


def _numbers(data: Data) -> np.ndarray:
    batches = list(data)
    for batch in batches:
        np.testing.assert_array_equal(batch["x"], np.stack([batch["t"], -batch["t"]], 1).astype(np.float32))
    return np.concatenate([batch["t"] for batch in batches])


@pytest.mark.parametrize("kind", SOURCES)
def test_all_samples_come_once_and_the_first_are_from_everywhere(kind: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        data = mixed(open_data(SOURCES[kind](tmp_path), INPUTS, batch=4))
        numbers = _numbers(data)
        assert sorted(numbers) == list(range(COUNT)) and numbers[0] == 0
        assert abs(numbers[:64].mean() / COUNT - 0.5) < 0.15, "64 of a sorted file, within 4 standard errors"
        np.testing.assert_array_equal(_numbers(data), numbers)
        if kind != "reader":
            np.testing.assert_array_equal(data.labels, numbers)
        assert data.samples == COUNT and len(_numbers(data.first(10))) == 10
        del data


def test_a_callable_is_called_once_by_who_takes_what_was_drawn() -> None:
    calls = []

    def counted() -> Iterator[dict[str, np.ndarray]]:
        calls.append(1)
        return feeds()

    data = mixed(open_data(counted, INPUTS, batch=1))
    for _ in range(3):
        for _ in zip(data, range(MOST - 1), strict=False):
            continue
    assert len(calls) == 1
    assert len(_numbers(data)) == COUNT and len(calls) == 2


def test_what_a_broken_sample_is_called() -> None:
    """By its number in the source's own order."""
    data = rows()
    data["x"][613, 1] = np.nan
    for source in (data, lambda: ({name: array[i] for name, array in data.items()} for i in range(COUNT))):
        with pytest.raises(EdgerunError, match="sample 613"):
            _numbers(mixed(open_data(source, INPUTS)))


def test_inputs_that_differ_in_number_are_refused_as_before() -> None:
    with pytest.raises(EdgerunError, match="differ in their number of samples"):
        _numbers(mixed(open_data(lambda: [{"x": np.zeros((3, 2), np.float32), "t": np.zeros(2, np.int64)}], INPUTS)))


def test_texts_and_samples_of_other_shapes() -> None:
    words = TensorSpec("s", "object", ("n", "w"))
    given = [{"s": np.array([["a", "bcd"][: 1 + i % 2]], object)} for i in range(9)]
    found = [tuple(row) for batch in mixed(open_data(given, (words,), batch=1)) for row in batch["s"]]
    assert sorted(found) == sorted(tuple(each["s"][0]) for each in given)


def test_orders() -> None:
    assert [list(order(n)) for n in (0, 1, 2)] == [[], [0], [0, 1]]
    assert sorted(order(1000)) == list(range(1000)) and (order(1000) == order(1000)).all()
