"""What is right: a score of every sample, from 0 (wrong) to 1 (right), by a model's outputs and its labels.

    top1, top5        the label is the class of the highest logit, or of one of the five highest
    binary            one probability a sample and labels of 0 and 1: 1 is said from 0.5 on
    binary_logits     the same of a logit: 1 is said from 0 on
    agreement         the class is the one that the baseline says; takes no labels
    boxes             2m / (k + k'), with m of k boxes matched by one of the baseline's k' of the same class whose
                      intersection over union is 0.5 or more (F1); of a detector whose file tells what its output
                      means; takes no labels
    module:callable   any other: f(outputs, labels) -> scores [n], of a batch's outputs by name and its labels as given

Accuracy is the mean. Intervals and tests are those of counts; a score in between counts in part on either side, which
errs towards caution: no distribution on [0, 1] varies more than that of 0 and 1 with the same mean.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import answers
from edgerun.data import Data
from edgerun.errors import EdgerunError, unknown
from edgerun.metrics import correct, predicted, same_class
from edgerun.postprocess import Prediction, overlaps
from edgerun.runtime import Session, TensorSpec
from edgerun.sources import imported

MATCHED = 0.5  # intersection over union of two boxes that are the same
DEFAULT = "top1"
Outputs = Mapping[str, np.ndarray]
Given = str | Callable[[Outputs, Any], Any]


@dataclass(frozen=True)
class Reader:
    """The outputs, by name, that a metric reads of one model, and what it makes of a run's: a batch's answers."""

    names: tuple[str, ...]
    answers: Callable[[Outputs], Any]


@dataclass(frozen=True)
class Metric:
    """How samples are scored: `score(answers, truth)`, bool or float `[n]`. The truth is a batch of the labels (class
    numbers, or `raw`: as they are given), or, where the metric is not `labelled`, the baseline's answers.

    `classes` says that the answer is the class of the highest logit. `digest` tells one metric from another.
    """

    name: str
    reader: Callable[[Sequence[TensorSpec], Mapping[str, str], int | None], Reader]
    score: Callable[[Any, Any], np.ndarray]
    labelled: bool = True
    raw: bool = False
    classes: bool = False
    digest: str = ""

    def reads(self, session: Session, batch: int | None) -> Reader:
        """The reader of a session's outputs; `batch` None says that a run is one sample, without an axis for it."""
        return self.reader(session.outputs, session.metadata, batch)

    def labels(self, data: Data) -> np.ndarray | None:
        """The truth of all samples; None where a baseline says it. Raises EdgerunError where there are no labels."""
        if not self.labelled:
            return None
        if (found := data.truth if self.raw else data.labels) is None:
            raise EdgerunError(
                "the data has no labels",
                wanted="an array `labels` or `y` in the .npz, labels.npy in the folder, or a subfolder per class",
                do="--metric agreement and boxes need none, but a baseline",
            )
        return found


def named(metric: Given = DEFAULT, output: str | None = None) -> Metric:
    """The metric of that name, or of a callable; `output` names the output that it reads, where there are several."""
    if callable(metric):
        return _own(metric, getattr(metric, "__qualname__", repr(metric)), output)
    if ":" in metric:
        return _own(imported(metric), metric, output)
    kinds: dict[str, Callable[[], Metric]] = {
        DEFAULT: lambda: Metric(DEFAULT, _logits(output), correct, classes=True),
        "top5": lambda: Metric("top5", _logits(output), functools.partial(correct, highest=5)),
        "binary": lambda: Metric("binary", _single(output, 0.5), _equal),
        "binary_logits": lambda: Metric("binary_logits", _single(output, 0.0), _equal),
        "agreement": lambda: Metric("agreement", _logits(output, predicted), same_class, labelled=False, classes=True),
        "boxes": lambda: Metric("boxes", _boxes, _f1, labelled=False),
    }
    if metric not in kinds:
        raise unknown("metric", metric, [*kinds, "module:callable"])
    if metric == "boxes" and output is not None:
        raise EdgerunError("a detector's contract says which output is read", got=output, do="name none")
    return kinds[metric]()


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


def _logits(output: str | None, answer: Callable[[np.ndarray], Any] = lambda logits: logits) -> Any:
    def reader(outputs: Sequence[TensorSpec], _: Mapping[str, str], batch: int | None) -> Reader:
        name = logits_name(outputs, output)
        (spec,) = (spec for spec in outputs if spec.name == name)
        if spec.shape and all(dim == 1 for dim in spec.shape[batch is not None :]):
            raise EdgerunError(
                "an output of one number has no classes to choose from", got=spec, wanted="[n, classes >= 2]",
                do="--metric binary (a probability), binary_logits or module:callable; compare tells errors",
            )  # fmt: skip
        return Reader((name,), lambda found: answer(logit_rows(found[name], batch)))

    return reader


def _single(output: str | None, threshold: float) -> Any:
    """Readers of one number a sample: 0, 1, or -1 for NaN."""

    def reader(outputs: Sequence[TensorSpec], _: Mapping[str, str], batch: int | None) -> Reader:
        name = logits_name(outputs, output)

        def said(found: Outputs) -> np.ndarray:
            values = found[name]
            if values.size != (len(values) if batch is not None and values.ndim else 1):
                raise EdgerunError("the output holds more than one number of a sample", got=list(values.shape),
                                   wanted="[n] or [n, 1]", do="--metric top1, for classes")  # fmt: skip
            values = values.reshape(-1)
            return np.where(np.isnan(values), -1, values >= threshold).astype(np.int64)

        return Reader((name,), said)

    return reader


def _equal(said: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if labels.size and not np.isin(labels, (0, 1)).all():
        got = f"{labels.min()} to {labels.max()}"
        raise EdgerunError("the labels are not of two classes", got=got, wanted="0 and 1")
    if said.shape != labels.shape:
        raise EdgerunError(
            "answers and labels do not belong together", got=list(labels.shape), wanted=str(list(said.shape))
        )
    same: np.ndarray = said == labels
    return same


def _boxes(outputs: Sequence[TensorSpec], metadata: Mapping[str, str], _: int | None) -> Reader:
    contract = answers.told(metadata, outputs)
    if contract is None or contract.kind != "boxes":
        raise EdgerunError("the model's file does not tell how its output holds boxes",
                           got="no post-processing contract" if contract is None else contract.kind,
                           do="edgerun convert --postprocessing FILE, or --metric module:callable")  # fmt: skip
    return Reader((contract.output,), contract.apply)


def _f1(found: Sequence[Prediction], wanted: Sequence[Prediction]) -> np.ndarray:
    return np.array([_matched(ours, theirs) for ours, theirs in zip(found, wanted, strict=True)])


def _matched(found: Prediction, wanted: Prediction) -> float:
    """F1 of one picture's boxes; each, from the highest score on, takes the one left that it overlaps most."""
    total, left, hits = len(found.indices) + len(wanted.indices), np.ones(len(wanted.indices), bool), 0
    if not total:
        return 1.0
    shared = overlaps(np.asarray(found.boxes)[:, None], np.asarray(wanted.boxes))
    shared = np.where(found.indices[:, None] == wanted.indices, shared, 0)
    for row in shared:
        free = np.where(left, row, 0)
        if free.size and free.max() >= MATCHED:
            left[free.argmax()] = False
            hits += 1
    return 2 * hits / total


def _own(function: Any, name: str, output: str | None) -> Metric:
    if output is not None:
        raise EdgerunError("a metric of your own gets all outputs", got=output, do="name none")
    if not callable(function):
        raise EdgerunError(f"{name} cannot be called", got=type(function).__name__, wanted="f(outputs, labels)")

    def reader(outputs: Sequence[TensorSpec], _: Mapping[str, str], batch: int | None) -> Reader:
        floats = tuple(spec.name for spec in outputs if spec.dtype.startswith("float"))
        return Reader(floats or tuple(spec.name for spec in outputs), lambda found: found)

    def score(outputs: Outputs, labels: np.ndarray) -> np.ndarray:
        try:
            found = np.atleast_1d(np.asarray(function(outputs, labels)))
        except EdgerunError:
            raise
        except Exception as error:
            raise EdgerunError(f"{name} failed", got=f"{type(error).__name__}: {error}",
                               do="call it on one batch by itself first") from error  # fmt: skip
        if found.shape != (len(labels),) or found.dtype.kind not in "bfiu" or not ((found >= 0) & (found <= 1)).all():
            ends = "" if found.dtype.kind not in "bfiu" or not found.size else f", {found.min():g} to {found.max():g}"
            raise EdgerunError(f"{name} gave no scores", got=f"{found.dtype}{list(found.shape)}{ends}",
                               wanted=f"[{len(labels)}] numbers of 0 to 1, 1 for right")  # fmt: skip
        return found if found.dtype.kind == "b" else found.astype(np.float64)

    return Metric(name, reader, score, raw=True, digest=_digest(function))


def _digest(function: Any) -> str:
    """Of the file that a callable stands in: what it was, when results were kept."""
    try:
        return hashlib.sha256(Path(inspect.getfile(inspect.unwrap(function))).read_bytes()).hexdigest()[:16]
    except (OSError, TypeError):
        return ""
