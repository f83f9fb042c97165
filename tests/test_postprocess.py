"""The post-processing contract against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.errors import EdgerunError
from edgerun.postprocess import Postprocessing, activated, suppressed
from edgerun.preprocess import Preprocessing
from edgerun.runtime import TensorSpec

Box = list[float]
NAMES = ("cat", "dog", "owl")


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes by their corners."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def greedy(boxes: list[Box], scores: list[float], classes: list[int], iou: float, most: int) -> list[int]:
    """Non-maximum suppression as it is taught: by falling score, a box stays that no kept one of its class covers."""
    kept: list[int] = []
    for place in sorted((i for i, score in enumerate(scores) if not math.isnan(score)), key=lambda i: (-scores[i], i)):
        if len(kept) < most and all(
            classes[k] != classes[place] or overlap(boxes[k], boxes[place]) <= iou for k in kept
        ):
            kept.append(place)
    return kept


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(0, 40), st.integers(1, 3), st.integers(1, 12),
    st.floats(0, 1), st.floats(0, 1),
)  # fmt: skip
def test_suppression_is_the_greedy_one(
    seed: int, samples: int, count: int, kinds: int, most: int, iou: float, threshold: float
) -> None:
    """Every sample of the batch by itself; scores with ties, on a grid, and boxes that are equal or empty."""
    draws = np.random.default_rng(seed)
    corners = draws.integers(0, 8, (samples, count, 2)).astype(float)
    boxes = np.concatenate([corners, corners + draws.integers(0, 5, (samples, count, 2))], axis=2)
    scores = draws.integers(0, 11, (samples, count)) / 10
    classes = draws.integers(0, kinds, (samples, count))
    passed = np.where(scores >= threshold, scores, np.nan)
    got = suppressed(boxes, passed, classes, iou, most)
    for row in range(samples):
        wanted = greedy(boxes[row].tolist(), passed[row].tolist(), classes[row].tolist(), iou, most)
        assert got[row][got[row] >= 0].tolist() == wanted


def detector(boxes: list[Box], scores: list[list[float]], form: str) -> np.ndarray:
    """One sample of a detector's output, in float32: boxes by their corners, a score for each class."""
    rows = []
    for (left, top, right, bottom), own in zip(boxes, scores, strict=True):
        middle = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
        best = max(own)
        rows.append({
            "xywh_classes": [*middle, *own],
            "xywh_object_classes": [*middle, best, *(score / best for score in own)],
            "xyxy_score_class": [left, top, right, bottom, best, float(own.index(best))],
        }[form])  # fmt: skip
    found = np.array([rows], np.float32)
    return found.transpose(0, 2, 1) if form == "xywh_classes" else found


BOXES: list[Box] = [[10, 20, 50, 60], [12, 20, 50, 60], [12, 22, 50, 60], [70, 70, 90, 90], [0, 0, 5, 5]]
SCORES = [[0.9, 0.1, 0.1], [0.8, 0.2, 0.1], [0.1, 0.7, 0.1], [0.1, 0.1, 0.5], [0.2, 0.1, 0.1]]


@pytest.mark.parametrize("form", ["xywh_classes", "xywh_object_classes"])
def test_boxes_of_each_format(form: str) -> None:
    """The second goes (IoU 0.95 with the first of its class), the third is of another class, the last too low."""
    contract = Postprocessing("boxes", labels=NAMES, format=form, threshold=0.25, most=10)
    (found,) = contract.apply({"output0": detector(BOXES, SCORES, form)})
    assert found.labels == ("cat", "dog", "owl") and found.indices.tolist() == [0, 1, 2]
    assert found.indices.dtype == np.int64 and found.scores.dtype == np.float64
    assert found.scores == pytest.approx([0.9, 0.7, 0.5], abs=1e-6)
    assert found.boxes == pytest.approx(np.array([BOXES[0], BOXES[2], BOXES[3]]), abs=1e-4)


def test_chosen_boxes_are_not_chosen_again() -> None:
    """[n, boxes, 6] was suppressed in the graph: both boxes that overlap stay, in falling order."""
    contract = Postprocessing("boxes", labels=("cat",), format="xyxy_score_class", threshold=0.25, most=3)
    (found,) = contract.apply({"y": detector(BOXES[::-1], SCORES[::-1], "xyxy_score_class")})
    assert found.scores == pytest.approx([0.9, 0.8, 0.7], abs=1e-6)
    assert found.labels == ("cat", "cat", ""), "a class without a name has none"


@pytest.mark.parametrize("form", ["xywh_classes", "xywh_object_classes", "xyxy_score_class"])
def test_nothing_found(form: str) -> None:
    contract = Postprocessing("boxes", format=form, threshold=0.95)
    (found,) = contract.apply({"y": detector(BOXES, SCORES, form)})
    assert found.labels == () and found.boxes is not None and found.boxes.shape == (0, 4)
    empty = detector([], [], "xyxy_score_class").reshape(2, 0, 6)
    none = Postprocessing("boxes", format="xyxy_score_class").apply({"y": empty})
    assert [p.to_json() for p in none] == [[], []]


def test_boxes_that_are_no_numbers_are_left_out() -> None:
    values = detector(BOXES, SCORES, "xywh_classes")
    values[0, 4, 0] = np.nan
    (found,) = Postprocessing("boxes", format="xywh_classes", threshold=0.3).apply({"y": values})
    assert found.scores == pytest.approx([0.8, 0.7, 0.5], abs=1e-6)


@given(
    st.sampled_from(["letterbox", "stretch", "shortest", "crop"]), st.integers(4, 90), st.integers(4, 90),
    st.sampled_from(["round", "floor"]),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_boxes_lie_where_they_lie_in_the_picture(how: str, height: int, width: int, centre: str) -> None:
    """A white square is drawn into a black picture, and found in the sample: its corners, mapped back, are those that
    were drawn, within a pixel of the sample on each side."""
    kind = {"crop": "stretch"}.get(how, how)
    contract = Preprocessing(size=(48, 64), resize=kind, crop=(40, 50) if how == "crop" else None, centre=centre,
                             interpolation="nearest", layout="NHWC", dtype="uint8")  # fmt: skip
    top, left = height // 2 - height // 4, width // 2 - width // 4
    bottom, right = height // 2 + height // 4, width // 2 + width // 4
    picture = np.zeros((height, width, 3), np.uint8)
    picture[top:bottom, left:right] = 255
    rows, columns = np.nonzero(contract.apply(picture)[..., 0] == 255)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    sample = np.array([[[*found, 0.9, 0.0]]])
    after = Postprocessing("boxes", format="xyxy_score_class")
    boxes = after.apply({"y": sample}, contract, [(height, width)])[0].boxes
    assert boxes is not None
    scale, offset = contract.placement(height, width)
    shown = contract.shape[:2]
    limits = [(0 - offset[1]) / scale[1], (0 - offset[0]) / scale[0],
              (shown[1] - offset[1]) / scale[1], (shown[0] - offset[0]) / scale[0]]  # fmt: skip
    wanted = [max(left, limits[0]), max(top, limits[1]), min(right, limits[2]), min(bottom, limits[3])]
    allowed = [1 / scale[1], 1 / scale[0], 1 / scale[1], 1 / scale[0]]
    assert all(abs(a - b) <= tolerance + 1e-9 for a, b, tolerance in zip(boxes[0], wanted, allowed, strict=True))


def test_boxes_of_a_letterbox_by_hand() -> None:
    """40 x 80 into 64 x 64: scale 0.8, 32 rows under 16 of grey. Boxes beyond the picture end at its edges."""
    before = Preprocessing(size=(64, 64), resize="letterbox", fill=114)
    values = np.array([[[8, 20, 16, 24, 0.9, 0], [-5, 0, 70, 64, 0.8, 1]]])
    (found,) = Postprocessing("boxes", format="xyxy_score_class").apply({"y": values}, before, [(40, 80)])
    assert found.boxes is not None and found.boxes.tolist() == [[10, 5, 20, 10], [0, 0, 80, 40]]
    with pytest.raises(EdgerunError, match="every sample has its picture"):
        Postprocessing("boxes", format="xyxy_score_class").apply({"y": values}, before, [])


@given(st.lists(st.lists(st.floats(-700, 700), min_size=3, max_size=3), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_activations(rows: list[list[float]]) -> None:
    logits = np.array(rows)
    for got, row in zip(activated(logits, "softmax"), rows, strict=True):
        powers = [math.exp(value - max(row)) for value in row]
        assert got == pytest.approx([power / sum(powers) for power in powers], abs=1e-12)
    for got, row in zip(activated(logits, "sigmoid"), rows, strict=True):
        assert got == pytest.approx([1 / (1 + math.exp(-value)) for value in row], abs=1e-12)


def test_the_highest_classes_of_every_sample() -> None:
    logits: dict[str, np.ndarray] = {"logits": np.array([[1, 3, 2], [5, 5, 0]], np.float32), "other": np.zeros(1)}
    contract = Postprocessing("classes", "logits", NAMES, most=2, activation="softmax")
    first, second = contract.apply(logits)
    assert (first.labels, second.labels) == (("dog", "owl"), ("cat", "dog")), "the first of equals is the first"
    assert first.scores[0] == pytest.approx(math.e / (math.e + 1 + 1 / math.e))
    assert first.to_json()[1] == {"index": 2, "label": "owl", "score": pytest.approx(0.244728471)}
    assert first.boxes is None


def test_labels_that_do_not_exclude_each_other() -> None:
    contract = Postprocessing("classes", labels=NAMES, activation="sigmoid", threshold=0.5)
    assert [p.labels for p in contract.apply({"y": np.array([[0.1, -0.1, 4], [-1, -1, -1]])})] == [("owl", "cat"), ()]


def test_json_and_back() -> None:
    for contract in (
        Postprocessing("classes", "y", NAMES, 3, 0.1, "sigmoid"),
        Postprocessing("boxes", "y", NAMES, 30, 0.1, format="xywh_classes", iou=0.6),
    ):
        assert Postprocessing.from_json(contract.to_json()) == contract


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "'kind'[\\s\\S]*wanted: one of classes, boxes"),
        ({"kind": "masks"}, "'kind'[\\s\\S]*got: masks"),
        ({"kind": "classes", "topk": 5}, "'topk'[\\s\\S]*wanted: only kind, output"),
        ({"kind": "classes", "activation": "relu"}, "none, softmax, sigmoid"),
        ({"kind": "classes", "format": "xywh_classes"}, "'format'"),
        ({"kind": "boxes"}, "'format'[\\s\\S]*wanted: one of xywh_classes"),
        ({"kind": "boxes", "format": "xywh_classes", "activation": "sigmoid"}, "'activation'"),
        ({"kind": "classes", "most": 0}, "'most'[\\s\\S]*1..65536"),
        ({"kind": "classes", "most": True}, "'most'"),
        ({"kind": "classes", "threshold": 1.5}, "'threshold'[\\s\\S]*0..1"),
        ({"kind": "classes", "threshold": float("nan")}, "'threshold'"),
        ({"kind": "boxes", "format": "xywh_classes", "iou": "0.5"}, "'iou'"),
        ({"kind": "classes", "labels": "cat"}, "'labels'[\\s\\S]*a list of texts"),
        ({"kind": "classes", "labels": [1]}, "'labels'"),
        ({"kind": "classes", "output": 3}, "'output'"),
        ({"kind": ["classes"]}, "'kind'"),
        ({"kind": {}}, "'kind'"),
    ],
)
def test_bad_contracts(values: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgerunError, match=message):
        Postprocessing.from_json(values)


@pytest.mark.parametrize(
    ("contract", "shape", "message"),
    [
        (Postprocessing("classes"), (1, 3, 4), r"wanted: \[n, classes\]"),
        (Postprocessing("classes", labels=NAMES), (1, 4), "3 classes"),
        (Postprocessing("boxes", format="xywh_classes"), (1, 7), r"\[n, 4 \+ classes, boxes\]"),
        (Postprocessing("boxes", format="xywh_classes"), (1, 4, 9), "does not fit"),
        (Postprocessing("boxes", format="xywh_classes", labels=NAMES), (1, 8, 9), "3 classes"),
        (Postprocessing("boxes", format="xywh_object_classes"), (1, 9, 5), r"\[n, boxes, 5 \+ classes\]"),
        (Postprocessing("boxes", format="xyxy_score_class"), (1, 9, 7), r"\[n, boxes, 6\]"),
        (Postprocessing("classes", "z"), (1, 3), "wanted: z|names no output"),
    ],
)
def test_outputs_that_do_not_fit(contract: Postprocessing, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(EdgerunError, match=message):
        contract.apply({"y": np.zeros(shape)})
    with pytest.raises(EdgerunError, match=message):
        contract.fitted([TensorSpec("y", "float32", shape)])


def test_open_sizes_fit_until_they_are_known() -> None:
    open_ = [TensorSpec("y", "float32", ("n", "rows", "boxes"))]
    assert Postprocessing("boxes", labels=NAMES, format="xywh_classes").fitted(open_).output == "y"
    with pytest.raises(EdgerunError, match="names no output"):
        Postprocessing("classes").fitted([TensorSpec(name, "float32", (1, 3)) for name in "yz"])
