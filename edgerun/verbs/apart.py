"""Samples for a diagnosis: some to find what is wrong, some for ranges, and others, kept apart, to judge fixes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgerun.adequacy import FeedCheck
from edgerun.batches import rebatched
from edgerun.data import Data, Feeds
from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.model import Model
from edgerun.quantize.diagnosis import trials
from edgerun.quantize.diagnosis.trials import Open, Progress, Trials
from edgerun.verbs import scoring

ENOUGH = 8  # samples that no fix was made from, for them to judge fixes
FLOATS = ("float32", "float64", "float16")


@dataclass(frozen=True)
class Parted:
    """`judged` samples are those that find what is wrong, `ranges` all that a fix may be made from; `apart` is neither.

    `apart` is None where the data has too few: `notes` say so, what is odd about the data, and whether labels are not
    used.
    """

    judged: Trials
    ranges: Data
    apart: Trials | None
    notes: tuple[str, ...]


def parted(
    model: Model, feeds: Data, output: str | None, metric: scoring.Given | None, wanted: int, open_: Open,
    progress: Progress,
) -> Parted:  # fmt: skip
    """The first `wanted` samples find what is wrong; the last judge fixes: as many, at least ENOUGH.

    What repeats another sample is in neither: it would make both surer than they are. All come with the float model's
    outputs, and scored by the `metric`, which reads `output`; without one by top-1, where the data has labels that fit
    an output. Raises EdgerunError for data that is not fit to calibrate with, for an output that is not there, and for
    a metric that does not fit, Unsupported where no output is float.
    """
    names = [spec.name for spec in model.outputs if spec.dtype in FLOATS]
    if not names:
        raise Unsupported("the model has no float output to compare", do="add the scores as an output")
    if output is not None and output not in names:
        raise unknown("float output", output, names)
    check = FeedCheck(batched=feeds.batch is not None)
    fresh = np.array([new for batch in feeds for new in check.add(batch)], bool)
    notes = [*check.report()["warnings"], *_repeated(check)]
    places = _whole(feeds, np.flatnonzero(fresh))
    size, total = feeds.batch or 1, len(places)
    first = _first(total, size, wanted)
    ends = (min(wanted, first), total - first)
    parts = [trials.collect(open_, model.ir, _at(feeds, chosen), names, count, progress, feeds.batch is not None)
             for chosen, count in zip((places[:first], places[first:]), ends, strict=True) if count]  # fmt: skip
    judged, apart = parts[0], parts[1] if len(parts) > 1 else None
    notes += [] if apart is not None else [_shared(total, judged.samples, check)]
    scored = scoring.named(metric, output).on(feeds) if metric is not None else None
    labels = feeds.labels if scored is None else scored.labels(feeds)
    if scored is None and labels is not None:
        scores, note = _scores(judged, names if output is None else [output], labels, feeds.batch)
        notes += [note] if note else []
        scored = scoring.named(output=scores) if scores else None
    if scored is not None:
        by = scored.reader(model, feeds.batch), scored.score
        judged = _scored(judged, *by, None if labels is None else labels[places[: judged.samples]])
        apart = apart and _scored(apart, *by, None if labels is None else labels[places[first:]])
    # Before the first of the samples apart stand those of the ranges, and what repeats them.
    ranges = feeds if first == total else feeds.first(int(places[first]))
    return Parted(judged, ranges, apart, tuple(notes))


def _scored(
    samples: Trials, reader: scoring.Reader, score: Callable[[Any, Any], np.ndarray], labels: np.ndarray | None
) -> Trials:
    """The samples with their truth: their labels, or what the metric reads of the float model."""
    ends = np.cumsum(samples.rows)[:-1]
    truths = map(reader.answers, samples.truth) if labels is None else np.split(labels, ends)
    return replace(samples, score=lambda outputs, truth: score(reader.answers(outputs), truth), truths=tuple(truths))


def _at(feeds: Data, places: np.ndarray) -> Iterator[Feeds]:
    """The samples at these places, in batches of the data's size."""
    rows = _rows(feeds, set(places.tolist()))
    return rows if feeds.batch is None else rebatched(rows, feeds.batch)


def _rows(feeds: Data, places: set[int]) -> Iterator[Feeds]:
    start = 0
    for batch in feeds.again():
        count = 1 if feeds.batch is None else len(next(iter(batch.values())))
        rows = [i for i in range(count) if start + i in places]
        start += count
        if len(rows) == count:
            yield batch
        elif rows:
            yield {name: np.ascontiguousarray(array[rows]) for name, array in batch.items()}


def _whole(feeds: Data, places: np.ndarray) -> np.ndarray:
    """As many of the places as fill whole batches, where the model fixes its batch."""
    size = feeds.batch if feeds.batch and all(isinstance(spec.shape[0], int) for spec in feeds.inputs) else 1
    if len(places) < size:
        wanted = f"at least {size}: the model's batch is fixed"
        raise EdgerunError("too few samples that differ", got=len(places), wanted=wanted)
    return places[: len(places) // size * size]


def _first(total: int, size: int, wanted: int) -> int:
    """How many samples of `total` fixes are made from, in whole batches."""
    judged = min(-(-wanted // size) * size, total)
    first = -(-(total - min(max(judged, ENOUGH), total - judged)) // size) * size
    return first if total - first >= ENOUGH else total


def _repeated(check: FeedCheck) -> Iterator[str]:
    if repeats := check.samples - check.different:
        yield f"the {repeats} that repeat others are left out, lest gains look surer: {check.different} are left"


def _shared(total: int, judged: int, check: FeedCheck) -> str:
    kind = " different" if check.different < check.samples else ""
    left = f"of {total}{kind} samples {total - judged} are left, and {ENOUGH} are wanted"
    return f"fixes are judged on the samples that they were found on: {left}"


def _scores(judged: Trials, names: Sequence[str], labels: np.ndarray, batch: int | None) -> tuple[str, str]:
    """The output that holds one score per class, or "" and why there is none."""
    columns = {name: _columns(judged, name, batch) for name in names}
    classes = int(labels.max(initial=0)) + 1
    fitting = [name for name, count in columns.items() if count > 1 and count >= classes]
    if len(fitting) == 1:
        return fitting[0], ""
    if fitting:
        return "", f"the labels are not used: name the output with the scores, {' or '.join(fitting)}, with --scores"
    has = ", ".join(f"{name} has {count}" for name, count in columns.items())
    return "", f"the labels are not used: they need {classes} scores for each sample, and {has}"


def _columns(judged: Trials, name: str, batch: int | None) -> int:
    array = scoring.logit_rows(np.asarray(judged.truth[0][name]), batch)
    return array.shape[1] if array.ndim == 2 and len(array) == judged.rows[0] else 0
