"""`edgerun eval` against counting in numpy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import edgerun
from edgerun.errors import EdgerunError
from edgerun.metrics import paired_drop, wilson
from edgerun.preprocess import Preprocessing


def counts(place: Any) -> tuple[int, int, int]:
    """Hits of b, lost and gained against a."""
    a, b = ((place.x @ w).argmax(1) == place.labels for w in (place.w, place.w_b))
    return int(b.sum()), int((a & ~b).sum()), int((b & ~a).sum())


@pytest.mark.parametrize("batch", [1, 64, None])
def test_accuracy_and_paired_drop_are_numpys(place: Any, batch: int | None) -> None:
    hits, lost, gained = counts(place)
    result = edgerun.evaluate(place.b, place.data, baseline=place.a, batch=batch)
    assert (result.samples, result.hits, result.accuracy) == (300, hits, hits / 300)
    assert result.interval == wilson(hits, 300)
    assert result.against is not None and result.against.baseline_accuracy == 0.9
    assert (result.against.lost, result.against.gained) == (lost, gained)
    assert result.against.drop == pytest.approx(0.9 - hits / 300)
    assert result.against.interval == paired_drop(lost, gained, 300)


def test_the_gate_says_yes_no_or_how_many_more(place: Any, cli: Any) -> None:
    _, lost, gained = counts(place)
    drop = paired_drop(lost, gained, 300)
    command = ("eval", place.b, "--data", place.data, "--baseline", place.a, "--max-drop")
    yes = cli(*command, 100 * drop.high + 0.01)
    assert yes.code == 0 and yes.out.splitlines()[-1].endswith("yes")
    no = cli(*command, 100 * drop.low - 0.01)
    assert no.code == 1 and no.out.splitlines()[-1].endswith("no") and "says no" in no.err
    undecided = cli(*command, 100 * (drop.low + drop.high) / 2 + 0.5)
    assert undecided.code == 1 and "undecided: needs about" in undecided.err
    needed = int(undecided.err.split("needs about ")[1].split()[0])
    assert needed > 300


def test_json(place: Any, cli: Any) -> None:
    found = json.loads(cli("eval", place.a, "--data", place.data, "--baseline", place.a, "--max-drop", 2, "--json").out)
    assert found["hits"] == 270 and found["accuracy"] == 0.9 and found["gate"]["answer"] == "yes"
    assert found["against"]["drop"] == 0 and found["against"]["interval"]["high"] < 0.02


def test_a_model_against_itself_on_another_target(place: Any) -> None:
    result = edgerun.evaluate(f"{place.a}@openvino", place.data, baseline=f"{place.a}@onnxruntime")
    assert result.against is not None and result.against.lost == result.against.gained == 0


def test_a_fixed_batch_leaves_out_the_remainder_and_says_so(place: Any, cli: Any) -> None:
    fixed = place.save(place.folder / "f.onnx", batch=7)
    ran = cli("eval", fixed, "--data", place.data, "--json")
    assert json.loads(ran.out)["samples"] == 294 and "last 6 of 300" in ran.err
    want = ((place.x @ place.w).argmax(1) == place.labels)[:294].sum()
    assert json.loads(ran.out)["hits"] == want


def test_a_picture_folder_takes_the_models_own_contract(place: Any, cli: Any) -> None:
    """Two classes by colour: a 2 × 2 picture, the logits are the sums of red and of blue."""
    w = np.zeros((12, 2), np.float32)
    w[0::3, 0] = w[2::3, 1] = 1
    h, t = onnx.helper, onnx.TensorProto
    graph = h.make_graph(
        [h.make_node("Flatten", ["image"], ["flat"]), h.make_node("MatMul", ["flat", "w"], ["y"])],
        "colours",
        [h.make_tensor_value_info("image", t.FLOAT, ["n", 2, 2, 3])],
        [h.make_tensor_value_info("y", t.FLOAT, ["n", 2])],
        [onnx.numpy_helper.from_array(w, "w")],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, place.folder / "plain.onnx")
    contract = Preprocessing(size=(2, 2), scale=1 / 255, layout="NHWC").to_json()
    onnx.helper.set_model_props(model, {"edgerun.preprocessing": json.dumps(contract)})
    onnx.save(model, place.folder / "colours.onnx")
    for name, colour in (("blue", (0, 9, 200)), ("red", (200, 9, 0))):
        (place.folder / "pictures" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (5 + index, 4), colour).save(place.folder / "pictures" / name / f"{index}.png")
    # Folders in name order are the classes: blue is 0, but the model says red is 0, so everything is wrong.
    ran = cli("eval", place.folder / "colours.onnx", "--data", place.folder / "pictures", "--json")
    assert ran.code == 0 and json.loads(ran.out)["hits"] == 0 and json.loads(ran.out)["samples"] == 6
    without = cli("eval", place.folder / "plain.onnx", "--data", place.folder / "pictures")
    assert without.code == 2 and "needs a preprocessing contract" in without.err
    (place.folder / "c.json").write_text(json.dumps({**contract, "colour": "BGR"}))
    command = ("eval", place.folder / "plain.onnx", "--data", place.folder / "pictures", "--preprocessing")
    assert json.loads(cli(*command, place.folder / "c.json", "--json").out)["hits"] == 6
    for text, message in (
        ("{", "cannot read the preprocessing"),
        ("[1]", "not an object"),
        ('{"size": 1}', "not understood"),
    ):
        (place.folder / "c.json").write_text(text)
        bad = cli(*command, place.folder / "c.json")
        assert bad.code == 2 and message in bad.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "random:8"], "the data has no labels"),
        (["--data", "d.npz", "--max-drop", "1"], "needs a baseline"),
        (["--data", "d.npz", "--output", "logits"], "there is no output 'logits'"),
        (["--data", "d.npz", "--baseline", "nope.onnx"], "does not exist"),
        (["--data", "short.npz"], "labels and samples differ in number"),
    ],
)
def test_misuse(place: Any, cli: Any, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str) -> None:
    monkeypatch.chdir(place.folder)
    np.savez("short.npz", x=place.x, labels=place.labels[:9])
    ran = cli("eval", "a.onnx", *options)
    assert ran.code == 2 and message in ran.err and ran.out == ""


def test_one_output_of_one_class_is_no_classifier(place: Any) -> None:
    single = place.save(place.folder / "s.onnx", place.w[:, :1])
    with pytest.raises(EdgerunError, match="no classes"):
        edgerun.evaluate(single, place.data)
