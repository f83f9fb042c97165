"""OpenVINO decides as ONNX says: equal values in order, boxes at the threshold kept. Numpy is the judge."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

pytest.importorskip("openvino")

import edgerun
from edgerun.model import Model
from edgerun.targets import _openvino_ir as ir
from edgerun.targets import _openvino_ties as ties

ONE = edgerun.Options(threads=1)
NMS = """n (float[1, n, 4] boxes, float[1, 1, n] scores, float[1] iou) => (int64[m, 3] y) <int64[1] most = {9}>
    { y = NonMaxSuppression(boxes, scores, most, iou) }"""


def _model(text: str) -> Model:
    return Model.from_proto(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}'))


def _run(text: str, feeds: dict[str, Any]) -> dict[str, np.ndarray]:
    """What the file itself gives, and the engine that compile makes of it, which is IR."""
    model = _model(text)
    with edgerun.load(model.to_bytes(), "openvino", ONE) as session:
        found = session.run(feeds)
    with edgerun.load(edgerun.compile(model, "openvino", ONE), options=ONE) as session:
        for name, array in session.run(feeds).items():
            np.testing.assert_array_equal(array, found[name])
    return found


@pytest.mark.parametrize(
    ("dtype", "largest", "axis", "levels"),
    list(itertools.product(("float", "int64", "float16"), (0, 1), (0, 1), (1, 2, 5))),
)
def test_equal_values_come_with_the_lower_index_first(dtype: str, largest: int, axis: int, levels: int) -> None:
    text = f"""t ({dtype}[37, 41] x, int64[1] k) => ({dtype}[c, d] y, int64[c, d] i)
        {{ y, i = TopK<axis = {axis}, largest = {largest}>(x, k) }}"""
    x = np.random.default_rng(levels).integers(0, levels, (37, 41)).astype("float32" if dtype == "float" else dtype)
    found = _run(text, {"x": x, "k": np.array([9])})
    order = np.argsort(-x if largest else x, axis=axis, kind="stable").take(range(9), axis)
    np.testing.assert_array_equal(found["i"], order)
    np.testing.assert_array_equal(found["y"], np.take_along_axis(x, order, axis))


def test_little_is_ordered_within_a_model_too() -> None:
    """Top-5 of 1,000 classes, which Relu makes tie."""
    text = "t (float[b, 1000] x) => (float[b, 5] y, int64[b, 5] i) <int64[1] k = {5}> { a = Relu(x) y, i = TopK(a, k) }"
    x = np.random.default_rng(0).integers(-9, 2, (3, 1000)).astype(np.float32)
    order = np.argsort(-np.maximum(x, 0), axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(_run(text, {"x": x})["i"], order)


TOP = "t (float[b, 9000] x) => (float[b, n] y, int64[b, n] i) <int64[1] k = {K}> { BEFORE y, i = TopK<MORE>(a, k) }"


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        (TOP.replace("BEFORE", "a = Relu(x)").replace("K}", "300}").replace("<MORE>", ""), 0),  # costs too much
        (TOP.replace("BEFORE", "a = Relu(x)").replace("K}", "2}").replace("<MORE>", ""), 1),
        (TOP.replace("BEFORE", "a = Identity(x)").replace("K}", "300}").replace("<MORE>", ""), 1),
        (TOP.replace("BEFORE", "a = Identity(x)").replace("K}", "1}").replace("<MORE>", ""), 0),
        (TOP.replace("BEFORE", "a = Identity(x)").replace("K}", "3}").replace("MORE", "sorted = 0"), 0),
        (NMS, 1),
    ],
    ids=["large", "small", "moved", "one", "unsorted", "boxes"],
)
def test_what_is_mended(text: str, mended: int) -> None:
    data = _model(text).to_bytes()
    assert ties.mend(ir.by_kind(ir.read(data)), data) == mended


def test_ir_is_left_as_it_is() -> None:
    """Ours is mended once; what is in another's means OpenVINO's operators."""
    engine = edgerun.compile(_model(NMS), "openvino", ONE)
    assert isinstance(engine.payload, bytes)
    assert ties.mend(ir.by_kind(ir.read(engine.payload)), engine.payload) == 0


@pytest.mark.parametrize("iou", [0.0, 1 / 7, 0.25, 0.45, 0.5, 0.7, 0.9])
def test_boxes_go_only_above_the_threshold(iou: float) -> None:
    """A threshold of 0, ONNX's default, left one box of all."""
    height = np.float32(iou)
    boxes = np.array([[[0, 0, 1, 1], [0, 0, 1, height], [5, 5, 6, 6], [5, 5, 6, 5.95]]], np.float32)
    scores = np.array([[[0.9, 0.8, 0.7, 0.6]]], np.float32)
    kept = [0, 1, 2]  # the last overlaps by 0.95; the second by the threshold itself
    found = _run(NMS, {"boxes": boxes, "scores": scores, "iou": np.array([iou], np.float32)})
    assert found["y"][:, 2].tolist() == kept
