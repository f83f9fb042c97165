"""Evaluate: top-1 accuracy on labelled data, and the drop against a baseline on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.data import Data
from edgerun.errors import EdgerunError, GateFailed
from edgerun.metrics import Interval, correct, paired_drop, samples_to_decide, wilson
from edgerun.preprocess import Preprocessing
from edgerun.runtime import Options, Session, TensorSpec
from edgerun.verbs.feeds import Runnable, feeds_for, opened, tracked


@dataclass(frozen=True)
class Drop:
    """How much accuracy was lost against a baseline, as shares of all samples (0.01 is one point).

    `lost` samples only the baseline has right, `gained` samples only the model has.
    """

    baseline_hits: int
    baseline_accuracy: float
    lost: int
    gained: int
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
    """Top-1 accuracy with its Wilson interval (95 %); `data` is the digest of the feeds."""

    samples: int
    hits: int
    accuracy: float
    interval: Interval
    against: Drop | None
    gate: Gate | None
    data: str
    notes: tuple[str, ...]

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
    target: str | None = None,
    device: str | Path | None = None,
    options: Options | None = None,
    checked: bool = False,
    output: str | None = None,
    preprocessing: Preprocessing | str | Path | None = None,
    batch: int | None = None,
    limit: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Evaluation:
    """Top-1 on `data`, which carries labels; with `baseline` the paired drop; with `max_drop` (points) the gate.

    The gate says 'yes' only when the whole interval of the drop lies below the limit. `output` names the logits
    [n, classes] where a model has several outputs; `target` serves both models (`PATH@TARGET` chooses for one), and so
    do `device` and `checked`, as in `edgerun.load`.
    """
    if max_drop is not None and baseline is None:
        raise EdgerunError(
            "a largest drop needs a baseline", got=f"max_drop={max_drop:g}", do="give the baseline model"
        )
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
        hits = np.concatenate(list(_hits(sessions, feeds, output, progress)), axis=1)
    count, total = int(hits[0].sum()), hits.shape[1]
    against = _drop(hits) if baseline is not None else None
    gate = _gate(against, total, max_drop / 100) if against and max_drop is not None else None
    return Evaluation(total, count, count / total, wilson(count, total), against, gate, feeds.digest, feeds.notes)


def _hits(
    sessions: list[Session], feeds: Data, output: str | None, progress: Callable[[float], None] | None
) -> Iterator[np.ndarray]:
    """Per batch, bool [sessions, rows]: which session has which row right."""
    labels = feeds.labels
    if labels is None:
        raise EdgerunError(
            "the data has no labels",
            wanted="an array `labels` or `y` in the .npz, labels.npy in the folder, or a subfolder per class",
        )
    names = [logits_name(session.outputs, output) for session in sessions]
    start = 0
    for feed in tracked(feeds, progress):
        found = [
            logit_rows(session.run(feed)[name], feeds.batch) for session, name in zip(sessions, names, strict=True)
        ]
        stop = start + len(found[0])
        yield np.stack([correct(logits, labels[start:stop]) for logits in found])
        start = stop


def logits_name(outputs: Sequence[TensorSpec], output: str | None) -> str:
    """The output that holds the logits: `output`, else the one that can. Raises EdgerunError when several can."""
    names = [spec.name for spec in outputs]
    if output is not None:
        if output not in names:
            raise EdgerunError(f"there is no output {output!r}", wanted=f"one of {', '.join(names)}")
        return output
    likely = [s.name for s in outputs if s.dtype.startswith("float") and len(s.shape) >= 2] or names
    if len(likely) > 1:
        raise EdgerunError("which output holds the logits?", got=", ".join(likely), do="name one with --output")
    return likely[0]


def logit_rows(logits: np.ndarray, batch: int | None) -> np.ndarray:
    """Logits as [n, classes]: a feed without a batch axis is one row, and trailing axes of size 1 are dropped."""
    if batch is None and logits.ndim == 1:
        return logits[None]
    return logits.reshape(logits.shape[:2]) if logits.ndim > 2 and set(logits.shape[2:]) == {1} else logits


def _drop(hits: np.ndarray) -> Drop:
    ours, theirs = hits
    n = hits.shape[1]
    lost, gained, count = int((theirs & ~ours).sum()), int((ours & ~theirs).sum()), int(theirs.sum())
    return Drop(count, count / n, lost, gained, (lost - gained) / n, paired_drop(lost, gained, n))


def _gate(drop: Drop, n: int, limit: float) -> Gate:
    if drop.interval.high < limit:
        return Gate(limit, "yes", None)
    if drop.interval.low > limit:
        return Gate(limit, "no", None)
    return Gate(limit, "undecided", samples_to_decide(drop.lost, drop.gained, n, limit))
