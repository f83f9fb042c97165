"""The post-processing contract: what a model's raw outputs mean, the same from training to device. On numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.runtime.spec import TensorSpec

if TYPE_CHECKING:
    from edgerun.preprocess import Preprocessing

MOST = 1 << 16  # predictions of a sample, and labels
_KINDS = ("classes", "boxes")
_ACTIVATIONS = ("none", "softmax", "sigmoid")
# What a detector's output holds, box by box: its shape, and how many values stand before the classes' scores.
_FORMATS = {
    "xywh_classes": ("[n, 4 + classes, boxes]", 4),
    "xywh_object_classes": ("[n, boxes, 5 + classes]", 5),
    "xyxy_score_class": ("[n, boxes, 6]", 6),
}


@dataclass(frozen=True)
class Prediction:
    """What a model says of one sample, k answers by falling score: `indices` int64 `[k]` of the classes, `scores`
    float64 `[k]`, their `labels` ("" where a class has none), and of a detector `boxes` float64 `[k, 4]`: left, top,
    right, bottom in pixels of the picture, from its upper left corner."""

    indices: np.ndarray
    scores: np.ndarray
    labels: tuple[str, ...]
    boxes: np.ndarray | None = None

    def to_json(self) -> list[dict[str, Any]]:
        """The answers as JSON values, one object each."""
        boxes = [{}] * len(self.labels) if self.boxes is None else [{"box": box} for box in self.boxes.tolist()]
        rows = zip(self.indices.tolist(), self.labels, self.scores.tolist(), boxes, strict=True)
        return [{"index": index, "label": label, "score": score, **box} for index, label, score, box in rows]


@dataclass(frozen=True)
class Postprocessing:
    """From raw outputs to answers: of each sample the `most` highest scores that are at least `threshold`.

    `output` names the output that is read; "" is the model's only one. `labels` are the classes' names by number.
    Of "classes", `[n, classes]`, scores are the output's values after `activation`: "none", "softmax", or "sigmoid"
    for labels that don't exclude each other.
    Of "boxes", `format` says what the output holds: "xywh_classes" `[n, 4 + classes, boxes]` (YOLOv8 and later) and
    "xywh_object_classes" `[n, boxes, 5 + classes]` (YOLOv5, whose classes are multiplied by the object's score): the
    box's middle, width and height, and a score for each class, of which the highest counts; "xyxy_score_class"
    `[n, boxes, 6]`: corners, score and class, chosen in the graph already. All are in pixels of the model's input.
    Of the first two, a box goes whose intersection over union with a higher one of its class is above `iou` (greedy
    non-maximum suppression).
    """

    kind: str
    output: str = ""
    labels: tuple[str, ...] = field(default=(), repr=False)
    most: int = 5
    threshold: float = 0.0
    activation: str = "none"
    format: str = ""
    iou: float = 0.45

    def __post_init__(self) -> None:
        choices = {"kind": _KINDS, "activation": _ACTIVATIONS, "format": [*_FORMATS] if self.kind == "boxes" else [""]}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                wanted = f"one of {', '.join(known)}" if any(known) else "none: the kind is classes"
                raise _wrong(name, getattr(self, name), wanted)
        if self.kind == "boxes" and self.activation != "none":
            raise _wrong("activation", self.activation, "none: the scores of boxes are probabilities")
        if type(self.output) is not str:
            raise _wrong("output", self.output, "the name of an output")
        if len(self.labels) > MOST or not all(type(label) is str for label in self.labels):
            raise _wrong("labels", f"{len(self.labels)} labels", f"texts, at most {MOST}")
        if type(self.most) is not int or not 0 < self.most <= MOST:
            raise _wrong("most", self.most, f"an integer, 1..{MOST}")
        for name in ("threshold", "iou"):
            if not isinstance(value := getattr(self, name), (int, float)) or type(value) is bool or not 0 <= value <= 1:
                raise _wrong(name, value, "a number, 0..1")

    def fitted(self, outputs: Sequence[TensorSpec]) -> Postprocessing:
        """The same contract with its output's name. Raises EdgerunError where it does not fit the model's outputs."""
        found = [spec for spec in outputs if spec.name == self.output or (not self.output and len(outputs) == 1)]
        if len(found) != 1:
            wanted = ", ".join(map(str, outputs))
            raise EdgerunError("the post-processing contract names no output of the model", got=repr(self.output),
                               wanted=wanted, do='"output": its name')  # fmt: skip
        self._check(found[0].shape, str(found[0]))
        return replace(self, output=found[0].name)

    def to_json(self) -> dict[str, Any]:
        """The contract as JSON values, as `Model.postprocessing` holds them: those that its kind reads."""
        foreign = ("format", "iou") if self.kind == "classes" else ("activation",)
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {key: value for key, value in values.items() if key not in foreign}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Postprocessing:
        """Read JSON values. Raises EdgerunError for an unknown key, a missing kind or a value out of range."""
        known = [one.name for one in fields(cls)]
        if surplus := sorted(set(values) - set(known)):
            raise _wrong(surplus[0], values[surplus[0]], f"only {', '.join(known)}")
        if "kind" not in values:
            raise _wrong("kind", "nothing", f"one of {', '.join(_KINDS)}")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if not isinstance(arguments.get("labels", ()), tuple):
            raise _wrong("labels", values["labels"], "a list of texts")
        try:
            return cls(**arguments)
        except TypeError as error:  # a value that cannot be compared
            raise EdgerunError("the post-processing contract is not understood", got=dict(values)) from error

    def apply(
        self, outputs: Mapping[str, np.ndarray], preprocessing: Preprocessing | None = None,
        pictures: Sequence[tuple[int, int]] | None = None,
    ) -> list[Prediction]:  # fmt: skip
        """The answers of every sample of `outputs`.

        With `preprocessing` and the (height, width) of every picture, boxes are in that picture's pixels and end at its
        edges; without, in pixels of the model's input. Raises EdgerunError for outputs that do not fit the contract.
        """
        if not self.output and len(outputs) == 1:
            values = np.asarray(next(iter(outputs.values())), np.float64)
        elif self.output in outputs:
            values = np.asarray(outputs[self.output], np.float64)
        else:
            what = "the output of the post-processing contract is missing"
            raise EdgerunError(what, got=", ".join(outputs), wanted=self.output or "one output")
        self._check(values.shape, f"{self.output}{list(values.shape)}")
        if self.kind == "classes":
            indices, scores = highest(activated(values, self.activation), self.most)
            return [self._prediction(i, s) for i, s in zip(indices, scores, strict=True)]
        boxes, scores, classes = decoded(values, self.format)
        kept = self._kept(boxes, scores, classes)
        if preprocessing is not None and pictures is not None:
            if len(pictures) != len(boxes):
                raise EdgerunError("every sample has its picture", got=len(pictures), wanted=f"{len(boxes)} sizes")
            boxes = np.stack([unplaced(b, preprocessing, size) for b, size in zip(boxes, pictures, strict=True)])
        rows = zip(kept, boxes, scores, classes, strict=True)
        return [self._prediction(c[k], s[k], b[k]) for k, b, s, c in ((k[k >= 0], b, s, c) for k, b, s, c in rows)]

    def _kept(self, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
        if self.format == "xyxy_score_class":
            order, found = highest(scores, self.most)
            return np.where(found >= self.threshold, order, -1)
        return suppressed(boxes, np.where(scores >= self.threshold, scores, np.nan), classes, self.iou, self.most)

    def _prediction(self, indices: np.ndarray, scores: np.ndarray, boxes: np.ndarray | None = None) -> Prediction:
        passed, names = scores >= self.threshold, self.labels
        chosen = indices[passed].astype(np.int64)
        labels = tuple(names[i] if 0 <= i < len(names) else "" for i in chosen.tolist())
        return Prediction(chosen, scores[passed], labels, None if boxes is None else boxes[passed])

    def _check(self, shape: Sequence[int | str], got: str) -> None:
        """Raise EdgerunError for a shape that is not the contract's, as far as its dimensions are known."""
        rank, axis, ahead, text = 2, 1, 0, "[n, classes]"
        if self.kind == "boxes":
            text, ahead = _FORMATS[self.format]
            rank, axis = 3, 1 if self.format == "xywh_classes" else 2
        size = shape[axis] if len(shape) == rank else None
        named = len(self.labels) if ahead != 6 else 0
        fits = size == 6 if ahead == 6 else not isinstance(size, int) or size > ahead
        if size is None or (isinstance(size, int) and (not fits or (named and size != ahead + named))):
            wanted = f"{text}, {named} classes" if named else text
            raise EdgerunError("the output does not fit the post-processing contract", got=got, wanted=wanted,
                               do="check kind, format, output and labels of the contract")  # fmt: skip


def activated(logits: np.ndarray, activation: str) -> np.ndarray:
    """Probabilities `[n, classes]`: exp(x - max) / Σ exp(x - max), or 1 / (1 + exp(-x)), or the values themselves."""
    if activation == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    if activation == "sigmoid":
        return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))  # the same, without overflow
    return logits


def highest(scores: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(places, scores) `[n, k]` of the highest by falling score, the first place first among equals; NaN comes last."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :most]
    return order, np.take_along_axis(scores, order, axis=1)


def decoded(values: np.ndarray, form: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes `[n, boxes, 4]` by their corners, each with its highest score `[n, boxes]` and that one's class."""
    if form == "xyxy_score_class":
        return values[..., :4], values[..., 4], np.nan_to_num(values[..., 5], nan=-1).astype(np.int64)
    if form == "xywh_classes":
        values = values.transpose(0, 2, 1)
    middle, half = values[..., :2], values[..., 2:4] / 2
    scores = values[..., 4:] if form == "xywh_classes" else values[..., 4:5] * values[..., 5:]
    classes = scores.argmax(axis=2)
    best = np.take_along_axis(scores, classes[..., None], axis=2)[..., 0]
    return np.concatenate([middle - half, middle + half], axis=2), best, classes


def suppressed(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, iou: float, most: int) -> np.ndarray:
    """Places `[n, k]` of the boxes that greedy non-maximum suppression keeps, by falling score, -1 where there are
    fewer. A box with a score of NaN is none.

    One round takes the highest box that is left of every sample, and all of its class that overlap it by more than
    `iou` go: at most `most` rounds.
    """
    count = int((~np.isnan(scores)).sum(axis=1).max(initial=0))
    order, left = highest(scores, count)
    boxes, classes = np.take_along_axis(boxes, order[..., None], 1), np.take_along_axis(classes, order, 1)
    alive, rows = ~np.isnan(left), np.arange(len(boxes))
    kept = np.full((len(boxes), min(most, count)), -1)
    for place in range(kept.shape[1]):
        if not alive.any():
            break
        first = alive.argmax(axis=1)  # scores fall
        kept[:, place] = np.where(alive.any(axis=1), order[rows, first], -1)
        covered = overlaps(boxes, boxes[rows, first][:, None]) > iou
        alive &= ~(covered & (classes == classes[rows, first][:, None]))
        alive[rows, first] = False
    return kept


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes `[…, 4]` by their corners, 0..1, after broadcasting."""
    corners = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    shared = _area(np.concatenate(corners, axis=-1))
    union = _area(first) + _area(second) - shared
    ratio: np.ndarray = shared / np.where(union > 0, union, 1)
    return ratio


def unplaced(boxes: np.ndarray, preprocessing: Preprocessing, picture: tuple[int, int]) -> np.ndarray:
    """Boxes `[…, 4]` of the model's input in pixels of the picture of (height, width), cut at its edges."""
    scale, offset = (np.tile(pair[::-1], 2) for pair in preprocessing.placement(*picture))
    cut: np.ndarray = np.clip((boxes - offset) / scale, 0, np.tile(picture[::-1], 2))
    return cut


def _area(boxes: np.ndarray) -> np.ndarray:
    """Of `[…, 4]` corners; 0 where they are crossed."""
    area: np.ndarray = np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(axis=-1)
    return area


def _wrong(name: str, got: object, wanted: str) -> EdgerunError:
    return EdgerunError(f"{name!r} of the post-processing contract is wrong", got=got, wanted=wanted)


def not_understood(key: str, got: object, wanted: str) -> EdgerunError:
    """The error for a value in a post-processing file, of any tool's."""
    return EdgerunError(
        f"{key!r} of the post-processing file is not understood", got=got, wanted=wanted,
        do="write the contract by hand: kind, output, labels, most, threshold, activation, format, iou",
    )  # fmt: skip
