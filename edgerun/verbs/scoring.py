"""What is right: a score of every sample, from 0 (wrong) to 1 (right), by a model's outputs and its labels.

    top1, top5        the label is the class of the highest logit, or of one of the five highest
    binary            one probability a sample and labels of 0 and 1: 1 is said from 0.5 on
    binary_logits     the same of a logit: 1 is said from 0 on
    agreement         the class is the one that the baseline says; takes no labels
    boxes             2m / (k + k'), with m of k boxes matched by one of the baseline's k' of the same class whose
                      intersection over union is 0.5 or more (F1); of a detector whose file tells what its output
                      means; takes no labels
    module:callable   any other: f(outputs, labels) -> scores [n], of a batch's outputs by name and its labels as given,
                      or, where the data has none, the baseline's outputs

Accuracy is the mean. Tests of counts prove a bound, where a score in between counts in part; that errs towards caution:
no distribution on [0, 1] varies more than that of 0 and 1 with the same mean.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgerun import answers
from edgerun.data import Data
from edgerun.errors import EdgerunError, unknown
from edgerun.metrics import correct, predicted, same_class
from edgerun.postprocess import Prediction, overlaps
from edgerun.runtime import Session, TensorSpec
from edgerun.sources import called, imported

if TYPE_CHECKING:
    from edgerun.model import Model

MATCHED = 0.5  # intersection over union of two boxes that are the same
DEFAULT = "top1"
Outputs = Mapping[str, np.ndarray]
Given = str | Callable[..., Any]


@dataclass(frozen=True)
class Metric:
    """How samples are scored: `score(answers, truth)` is bool or float `[n]`, of a batch's answers as `reader` makes
    them of a run's outputs (`raw`: the outputs). The truth is the batch's labels (class numbers; `raw`: as they are
    given); where the metric is not `labelled`, the baseline's answers.

    `output` is the one that is read, where it was named; `digest` tells a callable from what it was before.
    """

    name: str
    _reads: Callable[..., Reader]
    score: Callable[[Any, Any], np.ndarray]
    output: str | None = None
    labelled: bool = True
    raw: bool = False
    digest: str = ""

    @property
    def classes(self) -> bool:
        """Whether the answer is the class of the highest logit."""
        return self.name in (DEFAULT, "agreement")

    def reader(self, model: Session | Model, batch: int | None) -> Reader:
        """What is read of a model's outputs; `batch` None says that a run is one sample, without an axis for it.

        Raises EdgerunError where the metric does not fit them.
        """
        return self._reads(model, self.output, batch)

    def on(self, data: Data) -> Metric:
        """The same on `data`: a callable gets the baseline's outputs where there are no labels."""
        return replace(self, labelled=False) if self.raw and data.truth is None else self

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


class Reader(NamedTuple):
    """The outputs that a metric reads, by name, and what it makes of a run's: a batch's answers."""

    names: tuple[str, ...]
    answers: Callable[[Outputs], Any]


def named(metric: Given = DEFAULT, output: str | None = None) -> Metric:
    """The metric of that name, or of a callable; `output` names the output that it reads, where there are several."""
    if not isinstance(metric, str) or ":" in metric:
        function = imported(metric) if isinstance(metric, str) else metric
        name = metric if isinstance(metric, str) else getattr(metric, "__qualname__", repr(metric))
        if output is not None or not callable(function):
            raise EdgerunError(f"{name} is called with all outputs", got=output or type(function).__name__,
                               wanted="f(outputs, labels), and no output named")  # fmt: skip
        return Metric(name, _all, partial(_called, name, function), raw=True, digest=_digest(function))
    kinds: dict[str, tuple[Callable[..., Reader], Callable[[Any, Any], np.ndarray]]] = {
        DEFAULT: (_logits, correct),
        "top5": (_logits, partial(correct, highest=5)),
        "binary": (partial(_single, 0.5), _equal),
        "binary_logits": (partial(_single, 0.0), _equal),
        "agreement": (_classes, same_class),
        "boxes": (_boxes, _f1),
    }
    if metric not in kinds:
        raise unknown("metric", metric, [*kinds, "module:callable"])
    return Metric(metric, *kinds[metric], output, labelled=metric not in ("agreement", "boxes"))


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


def _logits(model: Session | Model, output: str | None, batch: int | None) -> Reader:
    name = logits_name(model.outputs, output)
    spec = next(spec for spec in model.outputs if spec.name == name)
    if spec.shape and set(spec.shape[batch is not None :]) <= {1}:
        raise EdgerunError(
            "an output of one number has no classes to choose from", got=spec, wanted="[n, classes >= 2]",
            do="--metric binary (a probability), binary_logits or module:callable; compare tells errors",
        )  # fmt: skip
    return Reader((name,), lambda found: logit_rows(found[name], batch))


def _classes(model: Session | Model, output: str | None, batch: int | None) -> Reader:
    names, logits = _logits(model, output, batch)
    return Reader(names, lambda found: predicted(logits(found)))


def _single(threshold: float, model: Session | Model, output: str | None, batch: int | None) -> Reader:
    """Of one number a sample: 0, 1, or -1 for NaN."""
    name = logits_name(model.outputs, output)

    def said(found: Outputs) -> np.ndarray:
        values = found[name].reshape(-1)
        return np.where(np.isnan(values), -1, values >= threshold).astype(np.int64)

    return Reader((name,), said)


def _equal(said: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if said.shape != labels.shape:
        raise EdgerunError("the output is not one number a sample", got=f"{said.size} for {labels.size} samples",
                           wanted="[n] or [n, 1]", do="--metric top1, for classes")  # fmt: skip
    if not np.isin(labels, (0, 1)).all():
        raise EdgerunError("the labels are not of two classes", got=f"{labels.min()} to {labels.max()}", wanted="0, 1")
    return np.asarray(said == labels)


def _boxes(model: Session | Model, output: str | None, batch: int | None) -> Reader:
    contract = answers.told(model.metadata, model.outputs)
    if contract is None or contract.kind != "boxes" or output not in (None, contract.output):
        raise EdgerunError("the model's file does not tell how its output holds boxes", got=contract or output,
                           wanted="a post-processing contract of boxes",
                           do="edgerun convert --postprocessing FILE, or --metric module:callable")  # fmt: skip
    return Reader((contract.output,), contract.apply)


def _f1(found: Sequence[Prediction], wanted: Sequence[Prediction]) -> np.ndarray:
    return np.array([_matched(ours, theirs) for ours, theirs in zip(found, wanted, strict=True)])


def _matched(found: Prediction, wanted: Prediction) -> float:
    """F1 of one picture's boxes; each, from the highest score on, takes the one left that it overlaps most."""
    total, hits = len(found.indices) + len(wanted.indices), 0
    if not total:
        return 1.0
    shared = overlaps(np.asarray(found.boxes)[:, None], np.asarray(wanted.boxes))
    shared = np.where(found.indices[:, None] == wanted.indices, shared, 0)
    for row in shared:
        if row.size and row.max() >= MATCHED:
            shared[:, row.argmax()] = 0
            hits += 1
    return 2 * hits / total


def _all(model: Session | Model, output: str | None, batch: int | None) -> Reader:
    floats = [spec.name for spec in model.outputs if spec.dtype.startswith("float")]
    return Reader(tuple(floats or [spec.name for spec in model.outputs]), dict if batch is not None else _One)


class _One(dict[str, np.ndarray]):
    """Outputs of one sample, without an axis for it."""


def _called(name: str, function: Callable[..., Any], outputs: Outputs, labels: Any) -> np.ndarray:
    """What a callable says of a batch."""
    rows = 1 if isinstance(outputs, _One) else len(next(iter(labels.values())) if isinstance(labels, dict) else labels)
    with called(f"{name} failed", "call it on one batch by itself first"):
        found = np.atleast_1d(np.asarray(function(outputs, labels)))
    if found.dtype.kind not in "bfiu" or found.shape != (rows,) or not ((found >= 0) & (found <= 1)).all():
        raise EdgerunError(f"{name} gave no scores", got=f"{found.dtype}{list(found.shape)} {found[:3]}",
                           wanted=f"[{rows}] numbers of 0 to 1, 1 for right")  # fmt: skip
    return found if found.dtype.kind == "b" else found.astype(np.float64)


def _digest(function: Any) -> str:
    """Of the file that a callable stands in."""
    try:
        return hashlib.sha256(Path(inspect.getfile(inspect.unwrap(function))).read_bytes()).hexdigest()[:16]
    except (OSError, TypeError):
        return ""
