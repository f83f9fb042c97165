"""Feeds and labels from arrays, files, folders, pictures and callables: streamed, checked, batched.

    open_data("calib.npz", model.inputs)        arrays by input name, and `labels` or `y` beside them
    open_data("x.npy" or "folder", …)           .npy files, each a sample or a batch, in name order
    open_data("pictures", …, preprocessing=…)   pictures through the contract; subfolders are classes
    open_data("module:callable", …)             what the callable returns: feeds by input name, or arrays; or one of
                                                the last line's objects, which may be named themselves
    open_data("random:64", …)                   seeded noise, only by this name
    open_data(reader or dataset, …)             what has get_next() (ONNX Runtime's CalibrationDataReader) or
                                                get_inference_data() (nncf.Dataset); a torch Dataset or DataLoader

An array has the model input's axes (rows of samples first), or one axis fewer (one sample). When the inputs have
no batch axis in common (a scalar among them, say, or sizes that no output begins with), every stored row is one whole
feed without batching, and an array with the input's own axes is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgerun import readers, sources
from edgerun.batches import Digest, Feeds, batching, rebatched, transposed
from edgerun.errors import EdgerunError
from edgerun.npy import read_npy
from edgerun.preprocess import Preprocessing
from edgerun.runtime.spec import TensorSpec

__all__ = ["Data", "Feeds", "open_data"]
KINDS = "an .npz or .npy file, a folder of .npy or pictures, module:callable, or random[:N]"
DEFAULT_BATCH = 32  # samples, where the model leaves the batch open
DEFAULT_RANDOM = 32  # samples


class Data:
    """Feeds, one batch at a time; iterate as often as needed, memory holds a batch or two.

    `inputs` are the specs served; `batch` the samples per feed (None: whole feeds without a batch axis);
    `random` says that the content is noise. `len()` is the number of batches; it raises TypeError while that is
    unknown (a callable's, before one whole pass; `operator.length_hint(data, 0)` never raises).
    """

    def __init__(
        self, source: sources.Source, inputs: Sequence[TensorSpec], batch: int | None, fixed: int | None,
        limit: int | None,
    ) -> None:  # fmt: skip
        self.inputs, self.batch = tuple(inputs), batch
        self.random = isinstance(source, sources.Random)
        self.source, self._fixed, self._limit = source, fixed, limit
        self._samples, self._digest, self._uniform = source.samples, "", False
        self._hashed = Digest(self.inputs)
        self._truth: np.ndarray | None = None
        if self._samples is not None:
            self._samples = min(self._samples, limit or self._samples)
            self._refuse_too_few(self._samples)

    def in_batches(self, batch: int) -> Data:
        """The same samples in batches of `batch`, where the model leaves its batch open."""
        size = self.batch if self.batch is None or self._fixed else batch
        return Data(self.source, self.inputs, size, self._fixed, self._limit)

    def over(self, source: sources.Source) -> Data:
        """The same of another source."""
        return Data(source, self.inputs, self.batch, self._fixed, self._limit)

    def first(self, samples: int) -> Data:
        """The first `samples` samples, or all where there are no more."""
        return Data(self.source, self.inputs, self.batch, self._fixed, min(samples, self._limit or samples))

    @property
    def samples(self) -> int | None:
        """How many samples one pass gives, None while unknown. A model's fixed batch leaves the remainder out."""
        return None if self._samples is None else self._samples - self._samples % (self._fixed or 1)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know about this data, one sentence each."""
        notes = ["the data is random noise: its numbers say nothing about the model's accuracy"] if self.random else []
        if self._fixed and self._samples and self._samples % self._fixed:
            left, total = self._samples % self._fixed, self._samples
            notes.append(
                f"the last {left} of {total} samples are left out: the model's batch is fixed at {self._fixed}"
            )
        return tuple(notes)

    def __len__(self) -> int:
        if self.samples is None:
            raise TypeError("the number of batches is unknown before one whole pass")
        return -(-self.samples // (self.batch or 1))

    def __iter__(self) -> Iterator[Feeds]:
        self._hashed = hashed = Digest(self.inputs)
        self._samples = yield from self._served(hashed)
        self._digest, self._uniform = hashed.hexdigest(), hashed.uniform

    def again(self) -> Iterator[Feeds]:
        """One more pass, in which nothing is hashed."""
        yield from self._served(None)

    def _served(self, hashed: Digest | None) -> Generator[Feeds, None, int]:
        """Batches, which go into `hashed`; gives the number of samples."""
        count = 0
        for feeds in rebatched(self._checked(), self.batch or 1):
            rows = len(feeds[self.inputs[0].name])
            count += rows
            if self._fixed and rows < self._fixed:
                continue
            if hashed is not None:
                hashed.update(feeds)
            yield feeds if self.batch else {name: array[0] for name, array in feeds.items()}
        self._refuse_too_few(count)
        return count

    @property
    def digest(self) -> str:
        """SHA-256 over names, dtypes, shapes and content in order; the batch size does not change it.

        Free after a whole pass over the data, else it makes one.
        """
        if not self._digest:
            for _ in self:
                continue
        return self._digest

    @property
    def uniform(self) -> bool:
        """Whether all samples have the same shapes; as free as the digest."""
        _ = self.digest
        return self._uniform

    @property
    def digest_so_far(self) -> str:
        """The digest of what the newest pass has given until now."""
        return self._hashed.hexdigest()

    @property
    def truth(self) -> np.ndarray | None:
        """The labels as given, `[samples, …]`, or None when there are none; from a callable it takes one pass.

        Found as `labels` or `y` in an `.npz` or in a callable's feeds, as `labels.npy` in a folder, or as the
        names of a picture folder's subfolders (numbers, else their places in name order).
        """
        if self._truth is None and (found := self.source.labels()) is not None:
            found = np.atleast_1d(found)
            if len(found) != (total := self.source.samples or len(found)):
                raise EdgerunError("labels and samples differ in number", got=len(found), wanted=str(total))
            usable = min(total, self._limit or total)
            self._truth = found[: usable - usable % (self._fixed or 1)]
        return self._truth

    @property
    def labels(self) -> np.ndarray | None:
        """`truth` as class numbers, int64 [samples]. Raises EdgerunError where it is something else."""
        if (found := self.truth) is None:
            return None
        labels = found.reshape(-1) if found.ndim == 2 and found.shape[1] == 1 else found
        if labels.ndim != 1 or labels.dtype.kind not in "biu":
            raise EdgerunError("labels are not class numbers", got=f"{found.dtype}{list(found.shape)}",
                               wanted="integers [n]", do="one-hot: argmax; else --metric module:callable")  # fmt: skip
        return labels.astype(np.int64)

    def _refuse_too_few(self, samples: int) -> None:
        if samples < (self._fixed or 1):
            wanted = f"at least {self._fixed}: the model's batch is fixed" if self._fixed else "at least 1"
            raise EdgerunError("the data is empty" if samples == 0 else "too few samples", got=samples, wanted=wanted)

    def _checked(self) -> Iterator[Feeds]:
        """Chunks as rows, cut at the limit; raises EdgerunError for the first sample that cannot be fed."""
        first = 0
        for where, raw in self.source.chunks(self.batch or 1):
            number = getattr(self.source, "number", first)  # where the source has another order
            chunk = {s.name: _rows(raw[s.name], s, self.batch is not None, where, number) for s in self.inputs}
            shapes = {name: array.shape for name, array in raw.items()}
            count = sources.agreed({len(array) for array in chunk.values()}, shapes, f"{where}: ")
            if self._limit is not None:
                chunk = {name: array[: self._limit - first] for name, array in chunk.items()}
            first += count
            yield chunk
            if self._limit is not None and first >= self._limit:
                return


def open_data(
    source: str | Path | Mapping[str, Any] | Iterable[Any] | Callable[[], Iterable[Any]] | readers.GivesNext
    | readers.GivesInferenceData,
    inputs: Sequence[TensorSpec],
    *,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    batch: int | None = None,
    limit: int | None = None,
    outputs: Sequence[TensorSpec] = (),
) -> Data:  # fmt: skip
    """Open data for a model's inputs; see the module for the kinds. Its `outputs` tell what a fixed first size is.

    `batch` counts where the model leaves its batch open (default 32), else the model's own batch does.
    `limit`: at most so many samples. Arrays must have the inputs' dtypes; nothing is cast.
    Raises EdgerunError for what cannot be opened; what is wrong inside a sample is raised when it is reached.
    """
    if not inputs:
        raise EdgerunError("the model has no inputs: there is nothing to feed")
    for name, number in (("batch", batch), ("limit", limit)):
        if number is not None and number < 1:
            raise EdgerunError(f"a {name} counts samples", got=number, wanted="1 or more")
    batched, fixed = batching(inputs, outputs)
    axes = {s.name: len(s.shape) - batched for s in inputs}
    opened = _open(source, inputs, axes, batched, preprocessing)
    return Data(opened, inputs, (fixed or batch or DEFAULT_BATCH) if batched else None, fixed, limit)


def _open(
    source: Any, inputs: Sequence[TensorSpec], axes: sources.Axes, batched: bool, contract: Preprocessing | Any
) -> sources.Source:
    if isinstance(source, str) and (match := re.fullmatch(r"random(?::(\d+))?", source)):
        return _random(int(match[1] or DEFAULT_RANDOM), inputs, batched)
    if isinstance(source, str) and re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", source) and not Path(source).exists():
        named = sources.imported(source)
        if callable(getattr(named, "get_next", None)) or callable(getattr(named, "get_inference_data", None)):
            source = readers.made(source, named)
        elif not callable(named):
            wanted = "a function that gives feeds, a CalibrationDataReader, or an nncf.Dataset"
            raise EdgerunError(f"{source} is not callable", got=type(named).__name__, wanted=wanted)
        else:
            return sources.Called(source, cast("Callable[[], Iterable[Any]]", named), axes)
    if isinstance(source, (str, Path)):
        return _open_path(Path(source), axes, contract)
    if callable(getattr(source, "get_next", None)):
        return readers.Reader(source, axes)
    if callable(getattr(source, "get_inference_data", None)):
        return readers.dataset(source, axes)
    if isinstance(source, np.ndarray):
        source = {"array": source}
    if isinstance(source, Mapping):
        return sources.Arrays(source, axes)
    if callable(source):
        function = cast("Callable[[], Iterable[Any]]", source)
        return sources.Called(getattr(source, "__name__", "the callable"), function, axes)
    if not isinstance(source, Iterable) and hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return sources.Called("the data", lambda: map(source.__getitem__, range(len(source))), axes)
    if isinstance(source, Iterator) or not isinstance(source, Iterable):
        got, do = type(source).__name__, "give a list, or a function that returns a new iterator"
        raise EdgerunError("the data cannot be read more than once", got=got, do=do)
    return sources.Called("the data", lambda: source, axes)


def _open_path(path: Path, axes: sources.Axes, contract: Preprocessing | Mapping[str, Any] | None) -> sources.Source:
    if path.is_file():
        if path.stat().st_size == 0:
            raise EdgerunError("the data file is empty", got=path)
        if path.suffix == ".npz":
            return sources.npz(path, axes)
        if path.suffix == ".npy":
            return sources.Files([sources.pick({"array": read_npy(path)}, list(axes), str(path))], None, axes)
        raise EdgerunError("the data file is of an unknown kind", got=path, wanted=KINDS)
    if not path.is_dir():
        raise EdgerunError("the data does not exist", got=path, wanted=KINDS, do="check the path")
    has_pictures = bool(sources.pictures(path))
    if any(path.glob("*/*.npy")) or (any(path.glob("*.npy")) and not has_pictures):
        return sources.npy_folder(path, axes)
    if not has_pictures:
        raise EdgerunError("the folder holds neither .npy files nor pictures", got=path, wanted=KINDS)
    if contract is None:
        raise EdgerunError(
            "a folder of pictures needs a preprocessing contract", got=path, wanted="size, scale, mean, std, layout, …"
        )
    contract = contract if isinstance(contract, Preprocessing) else Preprocessing.from_json(contract)
    return sources.Pictures(path, contract, axes)


def _random(samples: int, inputs: Sequence[TensorSpec], batched: bool) -> sources.Random:
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    for spec in inputs:
        row = spec.shape[1:] if batched else spec.shape
        if any(isinstance(dim, str) for dim in row):
            raise EdgerunError("random data needs every dimension", got=spec, do="give the shape, or real data")
        shapes[spec.name] = (tuple(dim for dim in row if isinstance(dim, int)), spec.dtype)
    return sources.Random(samples, shapes)


def _rows(array: np.ndarray, spec: TensorSpec, batched: bool, where: str, first: int) -> np.ndarray:
    """`array` as rows of samples, contiguous. `first` is the number of its first sample in the whole data."""
    want = spec.shape[1:] if batched else spec.shape
    rows = array[None] if array.ndim == len(want) else array
    name, at = f"{where}: input {spec.name!r}", f"sample {first}"
    if spec.dtype == "object" and rows.dtype.kind == "U":
        rows = rows.astype(object)
    if rows.dtype.name != spec.dtype:
        cast_to = f"array.astype('{spec.dtype}')"
        raise EdgerunError(f"{name} has the wrong dtype", got=f"{rows.dtype} at {at}", wanted=spec.dtype, do=cast_to)
    have, do = rows.shape[1:], transposed(array.shape, want)
    if rows.ndim != len(want) + 1 or any(isinstance(w, int) and w != h for h, w in zip(have, want, strict=True)):
        wanted = f"{list(spec.shape)}, or {list(want)} for one sample" if batched else str(list(want))
        raise EdgerunError(f"{name} has the wrong shape", got=f"{list(array.shape)} at {at}", wanted=wanted, do=do)
    if rows.dtype.kind in "fV" and not np.isfinite(rows).all():
        bad = first + int(np.argmin(np.isfinite(rows).reshape(len(rows), -1).all(axis=1)))
        raise EdgerunError(f"{name} holds NaN or infinity", got=f"at sample {bad}", do="remove or repair the sample")
    return np.ascontiguousarray(rows)
