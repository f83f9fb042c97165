"""The post-processing contract in other tools' files: what is taken over, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgerun import answers
from edgerun.errors import EdgerunError
from edgerun.postprocess import Postprocessing
from edgerun.runtime import TensorSpec

LOGITS = [TensorSpec("logits", "float32", ("batch", 3))]
VIT: dict[str, Any] = {
    "architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": 768,
    "id2label": {"0": "cat", "1": "dog", "2": "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2},
}  # fmt: skip
TIMM: dict[str, Any] = {
    "architecture": "resnet18", "num_classes": 3, "label_names": ["cat", "dog", "owl"],
    "pretrained_cfg": {"input_size": [3, 224, 224], "mean": [0.5], "std": [0.5]},
}  # fmt: skip
YOLO = {"task": "detect", "imgsz": "[640, 640]", "stride": "32", "names": "{0: 'cat', 1: 'dog', 2: 'owl'}"}


def boxes(*shape: int | str) -> list[TensorSpec]:
    return [TensorSpec("output0", "float32", shape)]


def test_transformers() -> None:
    found = answers.parsed(VIT, LOGITS)
    assert found == Postprocessing("classes", "logits", ("cat", "dog", "owl"), 5, 0.0, "softmax")
    several = answers.parsed({**VIT, "problem_type": "multi_label_classification"}, LOGITS)
    assert (several.activation, several.threshold) == ("sigmoid", 0.5)
    ten = {str(number): f"class {number}" for number in (3, 1, 2, 0, 4, 5, 6, 7, 8, 9, 10)}
    many = answers.parsed({**VIT, "id2label": ten}, [TensorSpec("logits", "float32", (1, 11))])
    assert many.labels == tuple(f"class {number}" for number in range(11)), "by number, not by text"


def test_timm() -> None:
    assert answers.parsed(TIMM, LOGITS) == answers.parsed(VIT, LOGITS)
    without = {key: value for key, value in TIMM.items() if key != "label_names"}
    assert answers.parsed(without, LOGITS).labels == ()
    within = {**without, "pretrained_cfg": {**TIMM["pretrained_cfg"], "label_names": ["cat", "dog", "owl"]}}
    assert answers.parsed(within, LOGITS) == answers.parsed(TIMM, LOGITS)


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        ((1, 7, 8400), "xywh_classes"),
        (("batch", 7, "anchors"), "xywh_classes"),
        ((1, 300, 6), "xyxy_score_class"),
        (("batch", 300, 6), "xyxy_score_class"),
        ((1, 7, 6), "xywh_classes"),  # six boxes, by the number of classes
    ],
)
def test_ultralytics_detectors(shape: tuple[int | str, ...], form: str) -> None:
    found = answers.parsed(YOLO, boxes(*shape))
    assert found.format == form and found.labels == ("cat", "dog", "owl")
    assert (found.kind, found.threshold, found.iou, found.most) == ("boxes", 0.25, 0.7, 300)


def test_ultralytics_classifiers_have_their_softmax() -> None:
    found = answers.told({**YOLO, "task": "classify"}, LOGITS)
    assert found is not None and (found.kind, found.activation, found.most) == ("classes", "none", 5)
    assert answers.told({"task": "classify"}, LOGITS) is None, "nothing is guessed"


def test_edgeruns_own(tmp_path: Path) -> None:
    own = Postprocessing("boxes", "output0", ("cat",), 9, 0.3, format="xyxy_score_class")
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own.to_json()))
    assert answers.parsed(answers.read(path), boxes(1, 300, 6)) == own
    assert answers.told({answers.OWN: path.read_text(), **YOLO}, boxes(1, 300, 6)) == own


@pytest.mark.parametrize(
    ("values", "outputs", "message"),
    [
        ({**VIT, "architectures": ["DetrForObjectDetection"]}, LOGITS, "'architectures'[\\s\\S]*ForImageClass"),
        ({**VIT, "architectures": None}, LOGITS, "'architectures'"),
        ({**VIT, "problem_type": "regression"}, LOGITS, "'problem_type'"),
        ({**VIT, "id2label": {"0": "cat", "2": "owl"}}, LOGITS, "'id2label'[\\s\\S]*every number from 0"),
        ({**VIT, "id2label": ["cat"]}, LOGITS, "'id2label'"),
        ({**VIT, "id2label": {"0": "cat"}}, LOGITS, "1 classes"),
        ({**TIMM, "label_names": {"a": 1}}, LOGITS, "'label_names'"),
        ({**YOLO, "names": "{1: 'cat'}"}, boxes(1, 7, 9), "'names'"),
        ({**YOLO, "names": "__import__('os')"}, boxes(1, 7, 9), "'names'[\\s\\S]*literal"),
        ({**YOLO, "task": "pose"}, boxes(1, 56, 8400), "'task'[\\s\\S]*got: pose"),
        (YOLO, [*boxes(1, 7, 9), TensorSpec("protos", "float32", (1, 32, 9, 9))], "'task'"),
        (YOLO, boxes(1, 9, 8400), "3 classes"),
        ({}, LOGITS, "'kind'"),
    ],
)
def test_what_is_not_understood_is_refused(values: Any, outputs: list[TensorSpec], message: str) -> None:
    with pytest.raises(EdgerunError, match=message):
        answers.parsed(values, outputs)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, "null"])
def test_files_that_are_no_contract(tmp_path: Path, text: str) -> None:
    path = tmp_path / "contract.json"
    path.write_text(text)
    with pytest.raises(EdgerunError, match="post-processing contract"):
        answers.read(path)
    with pytest.raises(EdgerunError, match="damaged|'kind'"):
        answers.told({answers.OWN: text}, LOGITS)
