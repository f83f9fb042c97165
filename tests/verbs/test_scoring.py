"""`--metric` of `edgerun eval` and `--max-drop`, against counting in numpy and boxes written by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import edgerun
from edgerun.errors import EdgerunError
from edgerun.metrics import paired_drop, wilson
from edgerun.model import Model
from edgerun.postprocess import Postprocessing, Prediction
from edgerun.verbs import scoring
from edgerun.verbs.evaluate import Drop, Evaluation


def dropped(model: Path, data: Any, baseline: Path, **asked: Any) -> tuple[Evaluation, Drop]:
    """What is found, and against the baseline."""
    found = edgerun.evaluate(model, data, baseline=baseline, **asked)
    assert found.against is not None
    return found, found.against


def linear(path: Path, w: np.ndarray, tail: str = "") -> Path:
    """y = x·w, then what `tail` says."""
    body = f"m = MatMul(x, w) {tail or 'y = Identity(m)'}"
    columns = "" if "Squeeze" in tail else f",{w.shape[1]}"
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> net (float[n,{len(w)}] x) => (float[n{columns}] y) {{ {body} }}"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(w.astype(np.float32), "w"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    onnx.save(proto, path)
    return path


Pair = tuple[Path, Path, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """A model of 8 classes, one near it, and 400 samples with labels that the first mostly says."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((6, 8))
    x = rng.standard_normal((400, 6)).astype(np.float32)
    labels = (x @ w.astype(np.float32)).argmax(axis=1)
    labels[::7] = rng.integers(0, 8, len(labels[::7]))
    near = w + 0.3 * rng.standard_normal(w.shape)
    return linear(tmp_path / "a.onnx", w), linear(tmp_path / "b.onnx", near), x, labels, w, near


@pytest.mark.parametrize("batch", [1, 64])
def test_top5_counts_the_five_highest(pair: Pair, batch: int) -> None:
    a, b, x, labels, w, near = pair
    result, drop = dropped(b, {"x": x, "labels": labels}, a, metric="top5", batch=batch)
    first, second = ((np.argsort(-(x @ m), axis=1)[:, :5] == labels[:, None]).any(axis=1) for m in (w, near))
    assert (result.hits, result.metric, drop.baseline_hits) == (second.sum(), "top5", first.sum())
    assert (drop.lost, drop.gained) == ((first & ~second).sum(), (second & ~first).sum())
    with pytest.raises(EdgerunError, match="no class can be missed"):
        edgerun.evaluate(linear(a.with_name("c.onnx"), w[:, :5]), {"x": x, "labels": labels % 5}, metric="top5")


def test_agreement_needs_no_labels_but_a_baseline(pair: Pair, tmp_path: Path, cli: Any) -> None:
    a, b, x, _, w, near = pair
    np.savez(tmp_path / "x.npz", x=x)
    same = int(((x @ w).argmax(axis=1) == (x @ near).argmax(axis=1)).sum())
    command = ("eval", b, "--data", tmp_path / "x.npz", "--metric", "agreement", "--json")
    found = json.loads(cli(*command, "--baseline", a).out)
    assert (found["hits"], found["against"]["baseline_accuracy"], found["against"]["gained"]) == (same, 1, 0)
    assert found["against"]["lost"] == 400 - same and found["metric"] == "agreement"
    itself = json.loads(cli(*command[:1], a, *command[2:], "--baseline", a).out)
    assert itself["against"]["interval"]["low"] == 0 < itself["against"]["interval"]["high"] < 0.01
    alone = cli(*command)
    assert alone.code == 2 and "against a baseline" in alone.err


@pytest.mark.parametrize("tail", ["", "y = Squeeze(m, one)"])
def test_one_number_of_a_sample_is_a_class_of_two(tmp_path: Path, tail: str) -> None:
    """Logits from 0 on, probabilities from ½ on."""
    rng = np.random.default_rng(1)
    w, x = rng.standard_normal((6, 1)), rng.standard_normal((300, 6)).astype(np.float32)
    path = linear(tmp_path / "a.onnx", w, tail)
    values = (x @ w.astype(np.float32))[:, 0]
    labels = (values + rng.standard_normal(300) > 0).astype(np.int64)
    data = {"x": x, "labels": labels}
    for metric, threshold in (("binary_logits", 0), ("binary", 0.5)):
        result = edgerun.evaluate(path, data, metric=metric)
        assert result.hits == int(((values >= threshold) == labels).sum())
    with pytest.raises(EdgerunError, match="--metric binary"):
        edgerun.evaluate(path, data)
    with pytest.raises(EdgerunError, match="not of two classes"):
        edgerun.evaluate(path, {"x": x, "labels": labels + 1}, metric="binary")


def test_nan_is_neither_class(tmp_path: Path) -> None:
    path = linear(tmp_path / "a.onnx", np.ones((6, 1)), "s = Sqrt(m) y = Identity(s)")
    data = {"x": -np.ones((4, 6), np.float32), "labels": np.array([0, 1, 0, 1])}
    assert edgerun.evaluate(path, data, metric="binary").hits == 0


def test_several_numbers_are_not_one(pair: Pair) -> None:
    a, _, x, labels, *_ = pair
    with pytest.raises(EdgerunError, match="not one number a sample"):
        edgerun.evaluate(a, {"x": x, "labels": labels % 2}, metric="binary")


def near_enough(outputs: dict[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
    """The share of a sample's outputs that are within 0.5 of its labels [n, 8]."""
    return np.asarray(np.mean(np.abs(outputs["y"] - labels) < 0.5, axis=1))


def test_a_metric_of_ones_own_counts_in_part(pair: Pair, tmp_path: Path, cli: Any, monkeypatch: Any) -> None:
    """Labels of any kind go in as they are; the mean, what is lost and its interval are numpy's."""
    a, b, x, _, w, near = pair
    wanted = (x @ w + 0.4 * np.random.default_rng(2).standard_normal((400, 8))).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=wanted)
    first, second = (near_enough({"y": x @ m.astype(np.float32)}, wanted) for m in (w, near))
    result, drop = dropped(b, tmp_path / "data.npz", a, metric=near_enough, batch=32)
    lost, gained = np.maximum(first - second, 0).sum(), np.maximum(second - first, 0).sum()
    assert result.accuracy == pytest.approx(second.mean(), abs=1e-9) and result.metric == "near_enough"
    assert [drop.lost, drop.gained] == pytest.approx([lost, gained])
    d = np.concatenate([first - second, [1, -1]])  # with the two examples that the interval adds
    half = 1.959964 * np.sqrt(np.var(d) / len(d))
    low, high = drop.interval.low, drop.interval.high
    assert [low, high] == pytest.approx([d.mean() - half, d.mean() + half], abs=1e-7)
    widest = paired_drop(drop.lost, drop.gained, 400)
    assert widest.low < low < high < widest.high and result.interval == wilson(result.hits, 400)
    source = "def near(outputs, labels):\n    return (abs(outputs['y'] - labels) < 0.5).mean(axis=1)\n"
    (tmp_path / "own.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    ran = cli("eval", b, "--data", "data.npz", "--baseline", a, "--metric", "own:near")
    assert ran.code == 0 and "own:near" in ran.out and f"{100 * second.mean():.2f} %" in ran.out


def test_a_sample_without_an_axis_of_its_own_is_one(tmp_path: Path) -> None:
    """Of inputs that have no first axis in common a run is one sample, however long its outputs are."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> net (float[3] a, float[4,2] b) => (float[4] y) {
            m = ReduceSum(a) c = MatMul(b, v) y = Mul(c, m) }"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "v"))
    onnx.save(proto, tmp_path / "one.onnx")
    rng = np.random.default_rng(1)
    feeds = [{"a": rng.standard_normal(3).astype(np.float32), "b": rng.standard_normal((4, 2)).astype(np.float32)}
             for _ in range(5)]  # fmt: skip

    def near(outputs: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
        return np.allclose(outputs["y"], wanted["y"])

    def each(outputs: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(np.isclose(outputs["y"], wanted["y"]))

    path = tmp_path / "one.onnx"
    result, drop = dropped(path, lambda: iter(feeds), path, metric=near)
    assert (result.samples, result.hits, drop.lost) == (5, 5, 0)
    with pytest.raises(EdgerunError, match=re.escape("[1] numbers of 0 to 1")):
        edgerun.evaluate(path, lambda: iter(feeds), baseline=path, metric=each)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda outputs, labels: 1 / 0, "ZeroDivisionError"),
        (lambda outputs, labels: np.full(len(labels), 1.5), "float64[400] [1.5 1.5 1.5]"),
        (lambda outputs, labels: np.ones(len(labels) + 1), "wanted: [400] numbers of 0 to 1"),
        (lambda outputs, labels: np.full(len(labels), np.nan), "gave no scores"),
        (lambda outputs, labels: "good", "gave no scores"),
    ],
)
def test_what_is_no_score_is_refused(pair: Pair, function: Any, message: str) -> None:
    a, _, x, labels, *_ = pair
    with pytest.raises(EdgerunError, match=re.escape(message)):
        edgerun.evaluate(a, {"x": x, "labels": labels}, metric=function, batch=400)


def test_names_that_are_no_metric_are_refused(pair: Pair) -> None:
    a, _, x, labels, *_ = pair
    data = {"x": x, "labels": labels}
    with pytest.raises(
        EdgerunError, match="one of agreement, binary, binary_logits, boxes, module:callable, top1, top5"
    ):
        edgerun.evaluate(a, data, metric="map")
    with pytest.raises(EdgerunError, match="cannot import"):
        edgerun.evaluate(a, data, metric="nowhere:nothing")
    with pytest.raises(EdgerunError, match="called with all outputs"):
        edgerun.evaluate(a, data, metric=near_enough, output="y")
    with pytest.raises(EdgerunError, match="has no labels"):
        edgerun.evaluate(a, {"x": x})


def said(*rows: tuple[int, float, float, float, float]) -> Prediction:
    """A picture's boxes as class and corners, by falling score."""
    indices = np.array([row[0] for row in rows], np.int64)
    boxes = np.array([row[1:] for row in rows], np.float64).reshape(-1, 4)
    return Prediction(indices, np.linspace(0.9, 0.5, len(rows)), ("",) * len(rows), boxes)


@pytest.mark.parametrize(
    ("found", "wanted", "score"),
    [
        (said(), said(), 1.0),
        (said((0, 0, 0, 10, 10)), said(), 0.0),
        (said((0, 0, 0, 10, 10)), said((0, 0, 0, 10, 10)), 1.0),
        (said((0, 0, 0, 10, 10)), said((1, 0, 0, 10, 10)), 0.0),  # of another class
        (said((0, 0, 0, 10, 10)), said((0, 0, 0, 10, 6)), 1.0),  # 60 of 100 are shared
        (said((0, 0, 0, 10, 10)), said((0, 0, 0, 10, 4)), 0.0),  # 40 of 100
        (said((0, 0, 0, 10, 10), (0, 0, 0, 10, 9)), said((0, 0, 0, 10, 10)), 2 / 3),  # only one can match it
        (said((0, 0, 0, 10, 10), (1, 20, 0, 30, 10)), said((1, 20, 0, 30, 10), (0, 0, 1, 10, 10)), 1.0),
    ],
)
def test_boxes_are_matched_by_class_and_overlap(found: Prediction, wanted: Prediction, score: float) -> None:
    metric = scoring.named("boxes")
    assert metric.score([found], [wanted]) == pytest.approx([score])


def detector(path: Path, shift: float = 0.0) -> Path:
    """Boxes [n, 6, 3] straight from the input, the middle moved by `shift`; the file tells what they are."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> net (float[n,6,3] x) => (float[n,6,3] y) { y = Add(x, by) }"""
    )
    by = np.zeros((1, 6, 3), np.float32)
    by[0, 0, 0] = shift
    proto.graph.initializer.append(numpy_helper.from_array(by, "by"))
    contract = Postprocessing("boxes", labels=("a", "b"), threshold=0.3, format="xywh_classes")
    model = Model.from_proto(proto).answering(contract.to_json())
    model.save(path)
    return path


def test_a_detector_is_compared_box_by_box(tmp_path: Path, cli: Any) -> None:
    """Of three boxes one moves by half its width: two of three still match, on either side."""
    rows = np.array([[10, 10, 8, 8, 0.9, 0.1], [40, 40, 8, 8, 0.1, 0.8], [70, 70, 8, 8, 0.6, 0.2]], np.float32)
    np.savez(tmp_path / "x.npz", x=np.repeat(rows.T[None], 5, axis=0))
    a, moved = detector(tmp_path / "a.onnx"), detector(tmp_path / "b.onnx", shift=4.0)
    result, drop = dropped(moved, tmp_path / "x.npz", a, metric="boxes")
    assert result.accuracy == pytest.approx(2 / 3) and drop.lost == pytest.approx(5 / 3)
    same = cli("eval", a, "--data", tmp_path / "x.npz", "--baseline", a, "--metric", "boxes", "--max-drop", 50)
    assert same.code == 0 and "100.00 %" in same.out
    bare = linear(tmp_path / "c.onnx", np.ones((6, 2)))
    with pytest.raises(EdgerunError, match="does not tell how its output holds boxes"):
        edgerun.evaluate(bare, {"x": np.ones((5, 6))}, baseline=bare, metric="boxes")
