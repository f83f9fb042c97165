"""Where samples come from: arrays in memory, `.npz`, `.npy`, folders, pictures, callables, random numbers.

A source yields chunks: what to call them in a message, and raw arrays by input name; `edgerun.data` checks and batches.
An array has one axis more than a sample (rows), or is one sample itself.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgerun.errors import EdgerunError, Unsupported
from edgerun.npy import Stored, damaged, read_npy, read_npz
from edgerun.preprocess import Preprocessing
from edgerun.runtime.spec import WORDS

LABELS = ("labels", "y")
OURS = Path(__file__).parent
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
Chunk = tuple[str, dict[str, np.ndarray]]
Axes = Mapping[str, int]  # input name -> number of axes of one sample


class Source(Protocol):
    """Samples in a fixed order. `samples` is None when only reading tells; `labels` is None when there are none."""

    samples: int | None

    def chunks(self, rows: int) -> Iterator[Chunk]: ...
    def labels(self) -> np.ndarray | None: ...


class Files:
    """Stored arrays, several parts one after the other; every part holds all inputs with as many rows each."""

    def __init__(self, parts: Sequence[Mapping[str, Stored]], labels: Stored | None, axes: Axes) -> None:
        self.parts, self._labels, self.axes = parts, labels, axes
        self.samples: int | None = 0
        for part in parts:
            counts = {s.shape[0] if len(s.shape) > axes[name] else 1 for name, s in part.items()}
            self.samples += agreed(counts, {s.where: s.shape for s in part.values()})

    def chunks(self, rows: int) -> Iterator[Chunk]:
        for part in self.parts:
            where = next(iter(part.values())).where
            streams = [stored.rows(rows, axes=self.axes[name]) for name, stored in part.items()]
            for arrays in zip(*streams, strict=True):
                yield where, dict(zip(part, arrays, strict=True))

    def labels(self) -> np.ndarray | None:
        return self._labels.whole() if self._labels else None


class Arrays:
    """Arrays in memory, by input name; `labels` or `y` among them are the labels."""

    def __init__(self, arrays: Mapping[str, Any], axes: Axes) -> None:
        values = {name: np.asarray(value) for name, value in arrays.items()}
        self._arrays = {name: rows(array, axes[name]) for name, array in pick(values, list(axes)).items()}
        self._labels = next((values[name] for name in LABELS if name in values and name not in axes), None)
        shapes = {name: array.shape for name, array in self._arrays.items()}
        self.samples: int | None = agreed({len(array) for array in self._arrays.values()}, shapes)

    def chunks(self, rows: int) -> Iterator[Chunk]:
        for start in range(0, self.samples or 0, rows):
            yield self.at(start, rows)

    def at(self, index: int, rows: int = 1) -> Chunk:
        return "the arrays given", {name: array[index : index + rows] for name, array in self._arrays.items()}

    def labels(self) -> np.ndarray | None:
        return self._labels


class Called:
    """What a callable returns, called again for every pass: an iterable of feeds by name, of arrays, or of lists or
    tuples of arrays in the inputs' order; or what has get_next() or get_inference_data() (edgerun.readers)."""

    def __init__(self, name: str, function: Callable[[], Iterable[Any]], axes: Axes) -> None:
        self._name, self._function, self.axes = name, function, axes
        self.samples: int | None = None

    def chunks(self, rows: int) -> Iterator[Chunk]:
        for where, values in self._items():
            yield where, pick(values, list(self.axes))

    def labels(self) -> np.ndarray | None:
        found: list[np.ndarray] = []
        for _, values in self._items():
            label = next((values[name] for name in LABELS if name in values and name not in self.axes), None)
            if label is None:
                return None
            found.append(np.atleast_1d(label))
        return np.concatenate(found) if found else None

    def _items(self) -> Iterator[Chunk]:
        with called(f"{self._name} failed"):
            yield from self._given()

    def _given(self) -> Iterator[Chunk]:
        items: Any = self._function()
        if callable(following := getattr(items, "get_next", None)):
            items = iter(following, None)
        elif callable(given := getattr(items, "get_inference_data", None)):
            items = given()
        if isinstance(items, Mapping):
            items = [items]
        elif not isinstance(items, Iterable):
            raise EdgerunError(f"{self._name} gave no data", got=type(items).__name__, wanted="an iterable of feeds")
        # What is made one after the other may be the same array every time, written anew.
        own = np.asarray if isinstance(items, (list, tuple)) else np.array
        for index, item in enumerate(items):
            where = f"{self._name}, item {index}"
            yield where, {name: own(value) for name, value in _named(item, self.axes, where).items()}


class Pictures:
    """A folder of pictures through the preprocessing contract; subfolders are classes."""

    def __init__(self, folder: Path, contract: Preprocessing, axes: Axes) -> None:
        if len(axes) != 1:
            raise EdgerunError(
                "a folder of pictures feeds one input", got=list(axes), do="give an .npz with all inputs"
            )
        self._folder, self._contract, self._input = folder, contract, next(iter(axes))
        self._files = pictures(folder)
        self.samples: int | None = len(self._files)

    def chunks(self, rows: int) -> Iterator[Chunk]:
        for index in range(len(self._files)):
            yield self.at(index)

    def at(self, index: int) -> Chunk:
        path = self._files[index]
        return str(path), {self._input: self._contract.apply(open_picture(path))[None]}

    def labels(self) -> np.ndarray | None:
        """`labels.npy` in the folder, else the subfolders: their numbers, or their places in name order."""
        if (self._folder / "labels.npy").is_file():
            return read_npy(self._folder / "labels.npy").whole()
        folders = [path.parent.name for path in self._files]
        if any(path.parent == self._folder for path in self._files):
            return None
        known = sorted(set(folders))
        numbered = all(name.isdecimal() for name in known)
        return np.array([int(name) if numbered else known.index(name) for name in folders], np.int64)


class Random:
    """Seeded noise: floats from the normal distribution, integers and bools 0 or 1, WORDS. For smoke tests only."""

    def __init__(self, samples: int, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
        self.samples: int | None = samples
        self._shapes = shapes

    def chunks(self, rows: int) -> Iterator[Chunk]:
        generator = np.random.default_rng(0)
        for _ in range(self.samples or 0):
            yield "random", {name: _noise(generator, *shape) for name, shape in self._shapes.items()}

    def labels(self) -> None:
        return None


def npz(path: Path, axes: Axes) -> Files:
    """One `.npz`: arrays by input name; for a model of one input any single array will do."""
    arrays = read_npz(path)
    labels = next((arrays[name] for name in LABELS if name in arrays and name not in axes), None)
    return Files([pick(arrays, list(axes), str(path))], labels, axes)


def npy_folder(folder: Path, axes: Axes) -> Files:
    """A folder of `.npy` in name order, each a sample or a batch; with several inputs a subfolder each."""
    labels = folder / "labels.npy"
    columns: dict[str, list[Stored]] = {}
    for name in axes:
        place = folder / name if (folder / name).is_dir() else folder
        if place == folder and len(axes) > 1:
            raise _missing(name, sorted(p.name for p in folder.iterdir() if p.is_dir()), list(axes), str(folder))
        columns[name] = [read_npy(path) for path in sorted(place.glob("*.npy")) if path != labels]
    if len({len(column) for column in columns.values()}) > 1:
        counts = {name: len(column) for name, column in columns.items()}
        raise EdgerunError(f"the inputs in {folder} differ in their number of files", got=counts)
    parts = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Files(parts, read_npy(labels) if labels.is_file() else None, axes)


def pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and its subfolders, in path order."""
    found = (*folder.iterdir(), *folder.glob("*/*"))
    return sorted(path for path in found if path.suffix.lower() in PICTURES and path.is_file())


def imported(reference: str) -> Any:
    """What `module:name` names; modules of the working folder are found. They run with the user's rights."""
    module, _, attribute = reference.partition(":")
    sys.path.insert(0, "")
    try:
        with called(f"cannot import {reference}", "import it by itself first, from the folder that holds it"):
            return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    finally:
        sys.path.remove("")


def pick(values: Mapping[str, Any], wanted: Sequence[str], where: str = "the data") -> dict[str, Any]:
    """The inputs among named values, in the model's order; what is neither input nor label does not matter."""
    if all(name in values for name in wanted):
        return {name: values[name] for name in wanted}
    others = [name for name in values if name not in LABELS]
    if len(wanted) == 1 and len(others) == 1:
        return {wanted[0]: values[others[0]]}
    raise _missing(next(name for name in wanted if name not in values), list(values), wanted, where)


@contextlib.contextmanager
def called(what: str, do: str = "call it by itself first") -> Iterator[None]:
    """What a caller's own code raises within becomes an EdgerunError of `what`, with its line where that is known."""
    try:
        yield
    except (EdgerunError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if OURS not in Path(f.filename).parents and "importlib" not in f.filename]
        where = f", at {own[-1].filename}:{own[-1].lineno}" if own else ""
        got = f"{type(error).__name__}: {error}{where}"
        raise EdgerunError(what, got=got, do=do) from error


def _named(item: Any, axes: Axes, where: str) -> Mapping[str, Any]:
    # A feed by name: a dict, one array, or a list or tuple in the inputs' order, with labels behind them or without
    # (what a torch DataLoader over a TensorDataset gives).
    if isinstance(item, Mapping):
        return item
    if not isinstance(item, (list, tuple)):
        return {next(iter(axes)): item}
    names = list(axes)
    if len(item) == len(names) + 1 and LABELS[0] not in axes and _class_numbers(item[-1]):
        names.append(LABELS[0])
    if len(item) != len(names):
        got, wanted = f"a {type(item).__name__} of {len(item)}", f"a dict by input name, or one array for {list(axes)}"
        do = "give each input in the model's order, or a function that picks them (nncf.Dataset(data, function))"
        raise EdgerunError(f"{where}: not a feed", got=got, wanted=wanted, do=do)
    return dict(zip(names, item, strict=True))


def _class_numbers(value: Any) -> bool:
    """Whether it is one whole number for each row."""
    numbers = np.asarray(value)
    return numbers.dtype.kind in "iu" and (numbers.ndim < 2 or numbers.shape[1:] == (1,))


def _missing(name: str, got: Sequence[str], wanted: Sequence[str], where: str) -> EdgerunError:
    return EdgerunError(
        f"input {name!r} is missing in {where}", got=", ".join(got) or "nothing", wanted=", ".join(wanted)
    )


def agreed(counts: set[int], shapes: Mapping[str, Sequence[int]], where: str = "") -> int:
    """The one number of samples. Raises EdgerunError where inputs of these shapes have several."""
    if len(counts) > 1:
        raise EdgerunError(f"{where}the inputs differ in their number of samples", got=shapes)
    return counts.pop()


def rows(array: np.ndarray, axes: int) -> np.ndarray:
    """An array as rows of samples, of `axes` each."""
    return array[None] if array.ndim <= axes else array


def open_picture(path: Path) -> np.ndarray:
    """A picture's file as uint8 `[height, width, 3]` in RGB."""
    try:
        from PIL import Image
    except ImportError as error:
        raise Unsupported("pictures are read by Pillow", got=str(error), do="pip install pillow") from error
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        damaged(str(path), error)


def _noise(generator: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return generator.standard_normal((1, *shape)).astype(dtype)
    if dtype == "object":
        return np.array(WORDS, object)[generator.integers(0, len(WORDS), (1, *shape))]
    return generator.integers(0, 2, (1, *shape)).astype(dtype)
