"""Samples for a diagnosis: some to find what is wrong, some for ranges, and others, kept apart, to judge fixes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgerun.data import Data
from edgerun.errors import Unsupported, unknown
from edgerun.model import Model
from edgerun.quantize.diagnosis import trials
from edgerun.quantize.diagnosis.trials import Open, Progress, Trials

ENOUGH = 8  # samples that no fix was made from, for them to judge fixes
FLOATS = ("float32", "float64", "float16")


@dataclass(frozen=True)
class Parted:
    """`judged` samples are those that find what is wrong, `ranges` all that a fix may be made from; `apart` is neither.

    `apart` is None where the data has too few: `notes` say so, and whether labels are not used.
    """

    judged: Trials
    ranges: Data
    apart: Trials | None
    notes: tuple[str, ...]


def parted(model: Model, feeds: Data, output: str | None, wanted: int, open_: Open, progress: Progress) -> Parted:
    """The first `wanted` samples find what is wrong; the last judge fixes: as many, at least ENOUGH.

    All come with the float model's outputs, and with labels where the data has some that fit an output (`output`
    names it). Raises EdgerunError for an output that is not there, Unsupported where none is float.
    """
    names = [spec.name for spec in model.outputs if spec.dtype in FLOATS]
    if not names:
        raise Unsupported("the model has no float output to compare", do="add the scores as an output")
    if output is not None and output not in names:
        raise unknown("float output", output, names)
    first, total = _split(feeds, wanted)
    batched, size = feeds.batch is not None, feeds.batch or 1
    judged = trials.collect(open_, model.ir, feeds, names, min(wanted, first), progress, batched)
    apart = None
    if first < total:
        rest = itertools.islice(feeds.again(), first // size, None)
        apart = trials.collect(open_, model.ir, rest, names, total - first, progress, batched)
    notes = [] if apart is not None else [_shared(total, judged.samples)]
    if (labels := feeds.labels) is not None:
        scores, note = _scores(judged, names if output is None else [output], labels)
        notes += [note] if note else []
        if scores:
            judged = replace(judged, labels=labels[: judged.samples], scores=scores)
            apart = apart and replace(apart, labels=labels[first : first + apart.samples], scores=scores)
    return Parted(judged, feeds.first(first), apart, tuple(notes))


def _split(feeds: Data, wanted: int) -> tuple[int, int]:
    """How many samples fixes are made from, in whole batches, and how many there are."""
    if feeds.samples is None:
        _ = feeds.digest  # a pass, which counts them
    total, size = feeds.samples or 0, feeds.batch or 1
    judged = min(-(-wanted // size) * size, total)
    first = -(-(total - min(max(judged, ENOUGH), total - judged)) // size) * size
    return (first, total) if total - first >= ENOUGH else (total, total)


def _shared(total: int, judged: int) -> str:
    left = f"of {total} samples {total - judged} are left, and {ENOUGH} are wanted"
    return f"fixes are judged on the samples that they were found on: {left}"


def _scores(judged: Trials, names: Sequence[str], labels: np.ndarray) -> tuple[str, str]:
    """The output that holds one score per class, or "" and why there is none."""
    columns = {name: _columns(judged, name) for name in names}
    classes = int(labels.max(initial=0)) + 1
    fitting = [name for name, count in columns.items() if count > 1 and count >= classes]
    if len(fitting) == 1:
        return fitting[0], ""
    if fitting:
        return "", f"the labels are not used: name the output with the scores, {' or '.join(fitting)}, with --scores"
    has = ", ".join(f"{name} has {count}" for name, count in columns.items())
    return "", f"the labels are not used: they need {classes} scores for each sample, and {has}"


def _columns(judged: Trials, name: str) -> int:
    array, rows = judged.truth[0][name], judged.rows[0]
    return array.size // rows if array.ndim and len(array) == rows else 0
