"""Evaluate: accuracy on labelled data, and the drop against a baseline on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.data import Data
from edgerun.errors import EdgerunError, GateFailed
from edgerun.metrics import Interval, counted, paired_drop, samples_to_decide, whole, wilson
from edgerun.preprocess import Preprocessing
from edgerun.runtime import Options, Session
from edgerun.verbs import scoring
from edgerun.verbs.feeds import DeviceLike, Runnable, feeds_for, opened, tracked


@dataclass(frozen=True)
class Drop:
    """How much accuracy was lost against a baseline, as shares of all samples (0.01 is one point).

    `lost` samples only the baseline has right, `gained` samples only the model has: sums of what scores differ by.
    """

    baseline_hits: float
    baseline_accuracy: float
    lost: float
    gained: float
    drop: float
    interval: Interval


@dataclass(frozen=True)
class Gate:
    """Is the drop below `max_drop` (share)? 'yes', 'no' or 'undecided'; then `needed` says about how many samples
    would decide it (None: the drop sits on the limit)."""

    max_drop: float
    answer: str
    needed: int | None


@dataclass(frozen=True)
class Evaluation:
    """Accuracy by a `metric` (its name) with its Wilson interval (95 %): the mean of the samples' scores, whose sum is
    `hits`. `data` is the digest of the feeds."""

    samples: int
    hits: float
    accuracy: float
    interval: Interval
    against: Drop | None
    gate: Gate | None
    data: str
    notes: tuple[str, ...]
    metric: str = scoring.DEFAULT

    def require(self) -> None:
        """Raise GateFailed unless the gate was not asked for or says yes."""
        if self.gate is None or self.against is None or self.gate.answer == "yes":
            return
        low, high = 100 * self.against.interval.low, 100 * self.against.interval.high
        got = f"a drop between {low:.2f} and {high:.2f} points (n={self.samples}, 95 %)"
        wanted = f"less than {100 * self.gate.max_drop:g} points"
        if self.gate.answer == "no":
            raise GateFailed("the accuracy gate says no", got=got, wanted=wanted)
        needed = f"about {self.gate.needed} samples" if self.gate.needed else "another limit: the drop sits on this one"
        raise GateFailed(f"the accuracy gate is undecided: needs {needed}", got=got, wanted=wanted)


def evaluate(
    model: Runnable,
    data: Any,
    *,
    baseline: Runnable | None = None,
    max_drop: float | None = None,
    metric: scoring.Given = scoring.DEFAULT,
    target: str | None = None,
    device: DeviceLike | None = None,
    options: Options | None = None,
    checked: bool = False,
    output: str | None = None,
    preprocessing: Preprocessing | str | Path | None = None,
    batch: int | None = None,
    limit: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Evaluation:
    """Accuracy on `data`, which carries labels; with `baseline` the paired drop; with `max_drop` (points) the gate.

    The gate says 'yes' only when the whole interval of the drop lies below the limit. `metric` is a name, `module:name`
    or a callable (`edgerun.verbs.scoring`): top-1 by default. `output` names the output that it reads, [n, classes] for
    top-1, where a model has several; `target` serves both models (`PATH@TARGET` chooses for one), and so
    do `device` and `checked`, as in `edgerun.load`.
    """
    if max_drop is not None and baseline is None:
        raise EdgerunError(
            "a largest drop needs a baseline", got=f"max_drop={max_drop:g}", do="give the baseline model"
        )
    asked = scoring.named(metric, output)
    with ExitStack() as stack:
        sessions = [stack.enter_context(opened(model, target, options, device, checked))]
        if baseline is not None:
            sessions.append(stack.enter_context(opened(baseline, target, options, device, checked)))
        feeds = feeds_for(
            sessions[0].inputs,
            model,
            data,
            preprocessing=preprocessing,
            batch=batch,
            limit=limit,
            outputs=sessions[0].outputs,
        )
        scored = asked.on(feeds)
        if not scored.labelled and baseline is None:
            raise EdgerunError(f"{scored.name} is measured against a baseline, without labels", do="give the baseline")
        scores = np.concatenate(list(_scores(sessions, feeds, scored, progress)), axis=1)
    count, total = whole(scores[0].sum()), scores.shape[1]
    against = _drop(scores, scored.labelled) if baseline is not None else None
    gate = _gate(against, scores, max_drop / 100) if against and max_drop is not None else None
    interval = wilson(count, total)
    return Evaluation(total, count, count / total, interval, against, gate, feeds.digest, feeds.notes, scored.name)


def _scores(
    sessions: list[Session], feeds: Data, metric: scoring.Metric, progress: Callable[[float], None] | None
) -> Iterator[np.ndarray]:
    """Per batch, bool or float [sessions, rows]: the score of every row by every session."""
    labels = metric.labels(feeds)
    readers = [metric.reader(session, feeds.batch) for session in sessions]
    start = 0
    for feed in tracked(feeds, progress):
        found = [reader.answers(session.run(feed)) for session, reader in zip(sessions, readers, strict=True)]
        stop = start + (len(next(iter(feed.values()))) if feeds.batch is not None else 1)
        truth = found[-1] if labels is None else labels[start:stop]
        yield np.stack([metric.score(answers, truth) for answers in found])
        start = stop


def _drop(scores: np.ndarray, labelled: bool) -> Drop:
    ours, theirs = scores
    (lost, gained, squares), count, n = counted(theirs, ours), whole(theirs.sum()), len(ours)
    found = paired_drop(lost, gained, n, squares=squares)
    if not labelled:  # nothing is nearer to the baseline than itself
        found = replace(found, low=max(0.0, found.low))
    return Drop(count, count / n, lost, gained, (lost - gained) / n, found)


def _gate(drop: Drop, scores: np.ndarray, limit: float) -> Gate:
    if drop.interval.high < limit:
        return Gate(limit, "yes", None)
    if drop.interval.low > limit:
        return Gate(limit, "no", None)
    lost, gained, squares = counted(scores[1], scores[0])
    return Gate(limit, "undecided", samples_to_decide(lost, gained, scores.shape[1], limit, squares=squares))
