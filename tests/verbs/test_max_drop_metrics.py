"""`--max-drop` by any `--metric`: with labels, without, and by a function of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

import edgerun
from edgerun.data import open_data
from edgerun.errors import GateFailed
from edgerun.metrics import counted
from edgerun.model import Model
from edgerun.postprocess import Postprocessing
from edgerun.quantize.numerics import sequential
from edgerun.verbs import scoring
from edgerun.verbs.looks import Looks
from tests.verbs.conftest import W, save_linear

Arrays = dict[str, np.ndarray]
OPTIONS: dict[str, Any] = {"placement": "rules"}


@pytest.fixture
def float_model(tmp_path: Path) -> Path:
    return save_linear(tmp_path / "a.onnx", W)


def samples(seed: int, n: int) -> np.ndarray:
    """float32 [n, 8]."""
    return np.random.default_rng(seed).standard_normal((n, len(W))).astype(np.float32)


def near_enough(outputs: Arrays, labels: np.ndarray) -> np.ndarray:
    """The share of a sample's outputs that are within 0.5 of its labels [n, 4]."""
    return np.asarray(np.mean(np.abs(outputs["y"] - labels) < 0.5, axis=1))


def near_float(outputs: Arrays, float_outputs: Arrays) -> np.ndarray:
    """The share of a sample's outputs that are within 0.2 of the float model's."""
    return np.asarray(np.mean(np.abs(outputs["y"] - float_outputs["y"]) < 0.2, axis=1))


def as_float(outputs: Arrays, labels: np.ndarray) -> np.ndarray:
    """Which samples are within a thousandth: no INT8 is."""
    found: np.ndarray = np.abs(outputs["y"] - labels).max(axis=1) < 1e-3
    return found


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.floats(0.01, 0.5))
def test_scores_in_between_are_never_surer_than_counts(drops: list[float], bound: float) -> None:
    """The player's capital on the scores themselves is at least that on their counts: e is valid for scores too."""
    d = np.array(drops)
    lost, gained, _ = counted(np.maximum(d, 0), np.maximum(-d, 0))
    stakes = sequential.STAKES / (1 - bound)
    capital = np.log1p(stakes[:, None] * (bound - d)).sum(axis=1)
    exact = float(np.logaddexp.reduce(capital) - np.log(len(stakes)))
    assert sequential.log_evidence(lost, gained, len(d), bound) <= exact + 1e-9


def test_a_bound_is_held_by_agreement_without_labels(float_model: Path, tmp_path: Path, cli: Any) -> None:
    np.savez(tmp_path / "calib.npz", x=samples(4, 400))
    np.savez(tmp_path / "dev.npz", x=samples(5, 3000))
    command = ("compress", float_model, "--calibration", tmp_path / "calib.npz", "--placement", "rules", "--max-drop",
               8, "--labelled", tmp_path / "dev.npz", "-o", tmp_path / "small.onnx")  # fmt: skip
    ran = cli(*command, "--metric", "agreement")
    assert ran.code == 0 and "agreement: drop" in ran.out and "surely below 8" in ran.out
    record = Model.load(tmp_path / "small.onnx").history[-1].options["max drop"]
    assert record["metric"] == "agreement" and all(trial["gained"] == 0 for trial in record["trials"])
    assert cli(*command, "--force").err.count("has no labels") == 1
    bare = cli(*command[:4], "--metric", "top5", "-o", tmp_path / "x.onnx")
    assert bare.code == 2 and "--metric says how --max-drop is measured" in bare.err


def test_a_bound_is_held_by_a_metric_of_ones_own(float_model: Path) -> None:
    fresh = samples(6, 2000)
    asked: dict[str, Any] = {
        "calibration": {"x": samples(4, 400)},
        "labelled": {"x": fresh, "labels": fresh @ W},
        "max_drop": 5.0,
    }
    held = edgerun.compress(float_model, metric=near_enough, **asked, **OPTIONS)
    record = held.history[-1].options["max drop"]
    assert record["metric"] == "near_enough" and record["interval (points, 95 %)"][1] < 5
    with pytest.raises(GateFailed, match="cannot be held|does not decide"):
        edgerun.compress(float_model, metric=as_float, **asked, **OPTIONS)


def test_a_bound_is_held_without_labels_by_a_metric_of_ones_own(float_model: Path) -> None:
    """It gets the float model's outputs in their place."""
    held = edgerun.compress(float_model, calibration={"x": samples(4, 400)}, labelled={"x": samples(7, 2000)},
                            max_drop=5.0, metric=near_float, **OPTIONS)  # fmt: skip
    record = held.history[-1].options["max drop"]
    assert record["interval (points, 95 %)"][1] < 5 and all(trial["gained"] == 0 for trial in record["trials"])


def test_a_bound_is_held_on_boxes() -> None:
    """Of a detector whose boxes a product makes: what its output means goes along into what is compressed."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> net (float[n,6,3] x) => (float[n,6,3] y) { y = MatMul(x, by) }"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(3, dtype=np.float32), "by"))
    contract = Postprocessing("boxes", labels=("a", "b"), threshold=0.3, format="xywh_classes")
    model = Model.from_proto(proto).answering(contract.to_json())
    rows = np.random.default_rng(8).uniform(0, 1, (400, 6, 3)).astype(np.float32)
    rows[:, :2] = 10 * rows[:, :2] + 20
    rows[:, 2:4] = 10 * rows[:, 2:4] + 2
    held = edgerun.compress(model, calibration={"x": rows[:100]}, labelled={"x": rows[100:]}, max_drop=20.0,
                            metric="boxes", **OPTIONS)  # fmt: skip
    record = held.history[-1].options["max drop"]
    assert record["metric"] == "boxes" and record["samples"] == 300 and record["interval (points, 95 %)"][1] < 20


def test_other_labels_or_another_metric_are_other_scores(float_model: Path) -> None:
    """What a stopped search kept is not taken for another's."""
    inputs, x = Model.load(float_model).inputs, samples(9, 40)
    labels = (x @ W).argmax(axis=1)
    data = [open_data({"x": x, "labels": given}, inputs) for given in (labels, labels[::-1].copy())]
    metrics: tuple[Any, ...] = ("top1", "binary", near_enough)
    assert len({Looks(each, scoring.named(metric)).scored_by for each in data for metric in metrics}) == 6
