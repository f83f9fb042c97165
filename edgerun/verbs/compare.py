"""Compare: two models, the same feeds, and how far their outputs lie apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError, GateFailed
from edgerun.metrics import Difference, correct, predicted
from edgerun.preprocess import Preprocessing
from edgerun.runtime import Options, Session
from edgerun.verbs.feeds import Runnable, feeds_for, opened, tracked


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
    options: Options | None = None,
    preprocessing: Preprocessing | str | Path | None = None,
    batch: int | None = None,
    limit: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Comparison:
    """Run both on the same feeds; `a` is the reference. Memory holds a batch, whatever the data's size.

    `target` serves both unless `target_b` is given. Outputs are paired by name, or by position where no name is shared.
    Raises EdgerunError when the models' doors differ.
    """
    with opened(a, target, options) as first, opened(b, target_b or target, options) as second:
        pairs = _pairs(first, second)
        feeds = feeds_for(first.inputs, a, data, preprocessing=preprocessing, batch=batch, limit=limit)
        sums = {name: _Sum() for name, _ in pairs}
        for feed in tracked(feeds, progress):
            reference, value = first.run(feed), second.run(feed)
            for name, other in pairs:
                sums[name].add(reference[name], value[other])
    outputs = tuple(total.result(name) for name, total in sums.items())
    return Comparison(feeds.samples or 0, feeds.digest, outputs, feeds.notes)


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


def _pairs(first: Session, second: Session) -> list[tuple[str, str]]:
    ours, theirs = [spec.name for spec in first.outputs], [spec.name for spec in second.outputs]
    if set(ours) == set(theirs):
        return [(name, name) for name in ours]
    if len(ours) != len(theirs) or set(ours) & set(theirs):
        raise EdgerunError("the models have different outputs", got=", ".join(theirs), wanted=", ".join(ours))
    return list(zip(ours, theirs, strict=True))
