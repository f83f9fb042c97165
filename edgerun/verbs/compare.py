"""Compare: two models, the same feeds, and how far their outputs lie apart."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import guard
from edgerun.data import Data
from edgerun.errors import EdgerunError, GateFailed
from edgerun.metrics import Difference, correct, predicted
from edgerun.preprocess import Preprocessing
from edgerun.runtime import Options
from edgerun.verbs.feeds import DeviceLike, Runnable, feeds_for, located, opened, tracked

LARGE = 1_800_000_000  # bytes of weights of which memory holds one model's at a time


@dataclass(frozen=True)
class OutputComparison:
    """One output over all samples; `agreement` is the share of rows with the same top-1 class (None: no classes).

    `sqnr_db` in dB (inf: identical); `max_abs_error` in the output's unit, `relative_error` as a share of max|a|.
    """

    name: str
    sqnr_db: float
    max_abs_error: float
    relative_error: float
    cosine: float
    agreement: float | None


@dataclass(frozen=True)
class Comparison:
    """Every output of two models on `samples` samples; `data` is the digest of the feeds."""

    samples: int
    data: str
    outputs: tuple[OutputComparison, ...]
    notes: tuple[str, ...]

    def require(self, min_sqnr: float) -> None:
        """Raise GateFailed unless every output has at least `min_sqnr` dB."""
        worst = min(self.outputs, key=lambda output: output.sqnr_db)
        if not worst.sqnr_db >= min_sqnr:
            got = f"{worst.sqnr_db:.2f} dB at output {worst.name!r}, n={self.samples}"
            raise GateFailed("the models differ too much", got=got, wanted=f"at least {min_sqnr:g} dB")


def compare(
    a: Runnable,
    b: Runnable,
    data: Any,
    *,
    target: str | None = None,
    target_b: str | None = None,
    device: DeviceLike | None = None,
    options: Options | None = None,
    checked: bool = False,
    preprocessing: Preprocessing | str | Path | None = None,
    batch: int | None = None,
    limit: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Comparison:
    """Run both on the same feeds; `a` is the reference. Memory holds a batch, whatever the data's size, and the weights
    of both, or of one at a time where they are over 1.8 GB: then the outputs of `a` wait on the disk.

    `target` serves both unless `target_b` is given. `device` says where, and models that are `checked` are compared
    with the reference first, as in `edgerun.load`. Outputs are paired by name, or by position where no name is shared.
    Raises EdgerunError when the models' doors differ.
    """
    given: dict[str, Any] = {"preprocessing": preprocessing, "batch": batch, "limit": limit}
    how: dict[str, Any] = {"options": options, "device": device, "checked": checked}
    if _large(a) or _large(b):
        sums, feeds = _in_turn((a, target), (b, target_b or target), data, how, given, progress)
    else:
        with opened(a, target, **how) as first, opened(b, target_b or target, **how) as second:
            pairs = _pairs([spec.name for spec in first.outputs], [spec.name for spec in second.outputs])
            feeds = feeds_for(first.inputs, a, data, **given, outputs=first.outputs)
            sums = {name: _Sum() for name, _ in pairs}
            for feed in tracked(feeds, progress):
                reference, value = first.run(feed), second.run(feed)
                for name, other in pairs:
                    sums[name].add(reference[name], value[other])
    outputs = tuple(total.result(name) for name, total in sums.items())
    return Comparison(feeds.samples or 0, feeds.digest, outputs, feeds.notes)


def _large(model: Runnable) -> bool:
    """Whether it is an ONNX file with over 1.8 GB of weights beside it."""
    if not isinstance(model, (str, Path)) or (path := located(model, None)[0]).suffix != ".onnx":
        return False
    return sum(file.stat().st_size for file in guard.beside(path)) > LARGE


def _in_turn(
    a: tuple[Runnable, str | None], b: tuple[Runnable, str | None], data: Any, how: Mapping[str, Any],
    given: Mapping[str, Any], progress: Callable[[float], None] | None,
) -> tuple[dict[str, _Sum], Data]:  # fmt: skip
    """All feeds through `a`, whose outputs go to the disk, and then through `b`."""
    with tempfile.TemporaryDirectory(prefix="edgerun-") as folder:
        with opened(*a, **how) as first:
            feeds = feeds_for(first.inputs, a[0], data, **given, outputs=first.outputs)
            for index, feed in enumerate(tracked(feeds, progress and (lambda share: progress(share / 2)))):
                for place, array in enumerate(first.run(feed).values()):
                    np.save(Path(folder, f"{index}-{place}.npy"), array, allow_pickle=False)
            door = [spec.name for spec in first.outputs]
        with opened(*b, **how) as second:
            pairs = _pairs(door, [spec.name for spec in second.outputs])
            sums = {name: _Sum() for name, _ in pairs}
            for index, feed in enumerate(tracked(feeds, progress and (lambda share: progress(0.5 + share / 2)))):
                value = second.run(feed)
                for name, other in pairs:
                    reference = np.load(Path(folder, f"{index}-{door.index(name)}.npy"), allow_pickle=False)
                    sums[name].add(reference, value[other])
    return sums, feeds


class _Sum:
    """One output so far."""

    def __init__(self) -> None:
        self._difference, self._same, self._rows = Difference(), 0, 0

    def add(self, reference: np.ndarray, value: np.ndarray) -> None:
        self._difference += Difference.of(reference, value)
        if reference.dtype.kind == "f" and reference.ndim == 2 and reference.shape[1] > 1:
            self._same += int(correct(value, predicted(reference)).sum())
            self._rows += len(reference)

    def result(self, name: str) -> OutputComparison:
        d = self._difference
        agreement = self._same / self._rows if self._rows else None
        return OutputComparison(name, d.sqnr_db, d.max_error, d.relative_error, d.cosine, agreement)


def _pairs(ours: list[str], theirs: list[str]) -> list[tuple[str, str]]:
    if set(ours) == set(theirs):
        return [(name, name) for name in ours]
    if len(ours) != len(theirs) or set(ours) & set(theirs):
        raise EdgerunError("the models have different outputs", got=", ".join(theirs), wanted=", ".join(ours))
    return list(zip(ours, theirs, strict=True))
