"""Equal values, and values at a threshold: the self-check draws them, and finds what decides otherwise."""

from __future__ import annotations

import itertools

import numpy as np
import onnx.parser
import pytest

import edgerun
from edgerun import draws, registry, thresholds
from edgerun.errors import GateFailed
from edgerun.model import Model

RUNNERS = [n for n in ("onnxruntime", "openvino") if not registry.target(n, usable=False).available()]
TOP = "t (float[b, 6] x, int64[1] k) => (float[b, n] y, int64[b, n] i) { y, i = TopK(x, k) }"
NMS = """n (float[1, 5, 4] boxes, float[1, 2, 5] scores) => (int64[n, 3] y) <int64[1] most = {3}, float[1] iou = {IOU}>
    { y = NonMaxSuppression<center_point_box = CENTRE>(boxes, scores, most, iou) }"""


def _model(text: str, opset: int = 17) -> Model:
    return Model.from_proto(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}'))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (TOP, {"x": ()}),
        ("t (float[9] x) => (float[3] y, int64[3] i) <int64[1] k = {3}> { y, i = TopK<sorted = 0>(x, k) }", {}),
        ("c (float[9] x) => (bool[9] y) <float c = {0.3}> { a = Identity(x)  y = Greater(a, c) }",
         {"x": (float(np.float32(0.3)),)}),
        ("c (int64[9] x) => (bool[9] y) { c = Constant<value_int = 7>()  y = Equal(c, x) }", {"x": (7.0,)}),
        ("c (float[9] x, float[9] z) => (bool[9] y) { y = LessOrEqual(x, z) }", {"x": (), "z": ()}),
        ("c (float[9] x) => (bool[9] y, float[9] z) { y = Greater(x, x)  z = Log(x) }", {}),
        ("s (float[9] x) => (float[9] y) { y = Shrink<lambd = 0.75>(x) }", {"x": (0.75, -0.75)}),
        ("r (float[9] x) => (float[9] y) { a = Exp(x)  y = Round(a) }", {}),
        ("h (int32[9] x) => (bool[9, 3] y) <int64[1] a = {-1}, int32[1, 3] t = {0, 1, 2}>"
         " { u = Unsqueeze(x, a) y = Equal(u, t) }", {}),
    ],
)  # fmt: skip
def test_inputs_that_are_only_moved_to_what_steps(text: str, values: dict[str, tuple[float, ...]]) -> None:
    assert thresholds.decided(_model(text).ir).values == values


def test_halves_constants_and_equal_values() -> None:
    text = """c (float[40] x, int64[6] n, float[40] z) => (bool[40] y, bool[6] m, float[40] e)
        <float c = {0.3}, int64 seven = {7}> { y = Less(x, c)  m = Equal(n, seven)  e = Exp(z) }"""
    model = _model(text)
    told, drawn = thresholds.decided(model.ir), draws.feeds(model.inputs, {}, 0)
    steps, tied = thresholds.at_steps(drawn, told), thresholds.tied(drawn, told)
    assert steps["x"][0] == np.float32(0.3) and steps["n"][0] == 7
    assert (steps["x"][1:] * 2 % 1 == 0).all() and len(set(steps["x"])) > 4
    assert set(tied["x"]) == {1} and set(tied["n"]) == {1}
    assert steps["z"] is tied["z"] is drawn["z"]


@pytest.mark.parametrize(("iou", "centre"), list(itertools.product((0.5, 0.25, 0.875), (0, 1))))
def test_boxes_overlap_by_just_the_threshold(iou: float, centre: int) -> None:
    model = _model(NMS.replace("IOU", str(iou)).replace("CENTRE", str(centre)))
    feed = thresholds.tied(draws.feeds(model.inputs, {}, 0), thresholds.decided(model.ir))
    first, second = feed["boxes"][0, :2].astype(np.float64)
    if centre:
        first, second = (np.concatenate([b[:2] - b[2:] / 2, b[:2] + b[2:] / 2]) for b in (first, second))
    inside = np.prod(np.minimum(first, second)[2:] - np.maximum(first, second)[:2])
    area = sum(np.prod(box[2:] - box[:2]) for box in (first, second))
    assert inside / (area - inside) == iou
    assert (np.argsort(-feed["scores"], axis=2)[..., :2] == [0, 1]).all()


@pytest.mark.parametrize("iou", [0.45, 0.7, 0.0, 1.0])
def test_a_threshold_that_rounding_decides_is_left_alone(iou: float) -> None:
    assert not thresholds.decided(_model(NMS.replace("IOU", str(iou)).replace("CENTRE", "0")).ir).boxes


STEPPING = [
    TOP,
    "t (float[b, 6] x) => (float[b, 4] y, int64[b, 4] i) <int64[1] k = {4}> { y, i = TopK<largest = 0>(x, k) }",
    "a (float[b, 6] x) => (int64[b, 1] y) { y = ArgMax<axis = 1>(x) }",
    "a (float[b, 6] x) => (int64[b, 1] y) { y = ArgMin<axis = 1, select_last_index = 1>(x) }",
    "h (float[b, 6] x) => (float[b, 6] y) { y = Hardmax<axis = 1>(x) }",
    "r (float[b, 6] x) => (float[b, 6] y) { y = Round(x) }",
    "s (float[b, 6] x) => (float[b, 6] y, float[b, 6] z) { y = Sign(x)  z = ThresholdedRelu<alpha = 0.5>(x) }",
    "c (float[b, 6] x) => (bool[b, 6] y, bool[b, 6] z) <float c = {0.3}> { y = Greater(x, c)  z = Less(x, c) }",
    "n (float[b, 6] x) => (int64[2, n] y) { y = NonZero(x) }",
    NMS.replace("IOU", "0.5").replace("CENTRE", "0"),
    NMS.replace("IOU", "0.25").replace("CENTRE", "1"),
]


@pytest.mark.parametrize("target", RUNNERS)
@pytest.mark.parametrize("text", STEPPING, ids=range(len(STEPPING)))
def test_nothing_right_is_refused(target: str, text: str) -> None:
    check = edgerun.compile(_model(text), target, edgerun.Options(threads=1)).check
    assert check is not None and check.runs == 4 and check.relative_error == 0


@pytest.mark.skipif("openvino" not in RUNNERS, reason="needs openvino")
@pytest.mark.parametrize("text", [TOP, STEPPING[1], *STEPPING[-2:]], ids=["top", "bottom", "boxes", "centred"])
def test_what_decides_otherwise_is_found(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO as it is orders equal values as it likes, and drops boxes at the threshold."""
    from edgerun.targets import _openvino_ties as ties

    monkeypatch.setattr(ties, "mend", lambda ops, payload: 0)
    with pytest.raises(GateFailed, match="does not compute what the model says|another type than the model says"):
        edgerun.compile(_model(text), "openvino", edgerun.Options(threads=1))
