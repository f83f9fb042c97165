"""Other tools' calibration data, named on the command line as callables are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgerun.data import open_data
from edgerun.errors import EdgerunError
from edgerun.runtime import TensorSpec

X = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
ONE = (TensorSpec("x", "float32", ("n", 3)),)


class _Once:
    """As ONNX Runtime's CalibrationDataReader without rewind."""

    def __init__(self) -> None:
        self._rows = iter(X)

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self._rows, None)
        return None if row is None else {"x": row[None]}


class _Dataset:
    """As nncf.Dataset."""

    def get_inference_data(self) -> Iterator[dict[str, np.ndarray]]:
        return ({"x": row[None]} for row in X)


GIVERS = """
import sys
kinds = sys.modules["tests.test_readers"]
def made(): return kinds._Once()
def dataset(): return kinds._Dataset()
Reader, OPEN, SET = kinds._Once, kinds._Once(), kinds._Dataset()
NUMBER = 1
"""


@pytest.mark.parametrize("name", ["made", "dataset", "Reader", "OPEN", "SET"])
def test_readers_of_other_tools_are_named_as_callables_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / f"givers_{name}.py").write_text(GIVERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tests.test_readers", sys.modules[__name__])
    data = open_data(f"givers_{name}:{name}", ONE, batch=4)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in data]), X)
    with pytest.raises(EdgerunError, match="not callable"):
        open_data(f"givers_{name}:NUMBER", ONE)


class _Buffered:
    """One that is rewound, and writes each sample into the array that it gave before."""

    def __init__(self) -> None:
        self._array = np.zeros((1, 3), np.float32)
        self.rewind()

    def rewind(self) -> None:
        self._rows = iter(X)

    def get_next(self) -> dict[str, np.ndarray] | None:
        if (row := next(self._rows, None)) is None:
            return None
        self._array[0] = row
        return {"x": self._array}


def test_a_reader_may_write_into_one_buffer() -> None:
    data = open_data(_Buffered(), ONE, batch=4)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in data]), X)


FAILING = """
class Reader:
    def get_next(self): raise FileNotFoundError("photo_5.jpg")
class Again:
    def get_next(self): return {"x": [0.0, 0.0, 0.0]}
    def rewind(self): raise OSError("no disk")
class Dataset:
    def get_inference_data(self): yield 1 / 0
class Asks:
    def __init__(self, path): pass
    def get_next(self): return None
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Reader", r"the calibration data reader failed\s+got: FileNotFoundError: photo_5.jpg, at .*failing_\w+\.py:3"),
        ("Again", r"the calibration data reader failed\s+got: OSError: no disk, at .*failing_\w+\.py:6"),
        ("Dataset", r"the dataset failed\s+got: ZeroDivisionError: division by zero, at .*failing_\w+\.py:8"),
        ("Asks", r"failing_Asks:Asks failed\s+got: TypeError: .*missing 1 required positional argument: 'path'\n"),
    ],
)
def test_what_fails_is_told_with_its_line(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"failing_{name}.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EdgerunError, match=told):
        list(open_data(f"failing_{name}:{name}", ONE))
