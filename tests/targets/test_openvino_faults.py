"""Uses that OpenVINO computes otherwise are refused by name; other uses of the same run. Numpy is the judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

pytest.importorskip("openvino")

import edgerun
from edgerun.errors import Unsupported
from edgerun.model import Model
from edgerun.targets import openvino as target

ONE = edgerun.Options(threads=1)
X = np.random.default_rng(0).random((1, 2, 6, 8)).astype(np.float32)
SCALED = '(float[1, 2, 6, 8] x) => (float[a, b, c, d] y) <float[4] s = {SCALES}> { y = Resize<MORE>(x, "", s) }'
SIZED = '(float[1, 2, 6, 8] x) => (float[a, b, c, d] y) <int64[4] s = {SIZES}> { y = Resize<MORE>(x, "", "", s) }'


TURNED = """(float[1, 2, 6, 8] x) => (float[1, 2, 6, 2] y)
    <int64 k = {AXIS}, int64[1] a = {0}, int64[1] b = {1}, int64[1] c = {3}> {
    z = Slice(x, a, b, c) y = DFT(z, "", k) }"""
COMPLEX = np.fft.fft(X[..., 0].astype(np.float64), axis=1)
SPECTRUM = np.stack([COMPLEX.real, COMPLEX.imag], axis=-1)


def _model(text: str, opset: int = 20) -> Model:
    return Model.from_proto(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> m {text}'))


def test_texts_are_refused_by_name() -> None:
    model = _model("(string[n] s) => (string[n] t) { [same] t = Identity(s) }")
    (issue,) = target.check(model)
    assert (issue.op, issue.reason) == ("Identity", "no texts go in or out")
    with pytest.raises(Unsupported, match="no texts go in or out"):
        edgerun.compile(model, "openvino", ONE)


def _scaled(scales: str, more: str) -> str:
    return SCALED.replace("SCALES", scales).replace("MORE", more)


def _sized(sizes: str, more: str) -> str:
    return SIZED.replace("SIZES", sizes).replace("MORE", more)


@pytest.mark.parametrize(
    ("text", "opset", "reason"),
    [
        (_scaled("1, 1, 0.5, 0.5", 'mode = "linear", antialias = 1'), 20, "ignores antialias"),
        (_scaled("1, 1, 2, 0.5", 'mode = "cubic", antialias = 1'), 20, "ignores antialias"),
        (_sized("1, 2, 3, 8", 'mode = "linear", antialias = 1'), 20, "ignores antialias"),
        (_scaled("1, 1, 2, 2", 'mode = "cubic", exclude_outside = 1'), 20, "ignores exclude_outside"),
        (_sized("1, 2, 3, 7", 'keep_aspect_ratio_policy = "not_larger"'), 20, "ignores keep_aspect_ratio_policy"),
        (
            """(float[1, 1, 9, 9] x, float[n, 4] r, int64[n] i) => (float[n, 1, 3, 3] y) {
                y = RoiAlign<mode = "max", output_height = 3, output_width = 3>(x, r, i) }""", 20,
            "takes the largest of the interpolated points",
        ),
        ("(float[1, 8, 1] x) => (float[1, 5, 2] y) { y = DFT<axis = 1, onesided = 1>(x) }", 17, "number of axes"),
        ("(float[1, 6, 8, 1] x) => (float[1, 6, 8, 2] y) { y = DFT(x) }", 20, "axis 1, whatever the input says"),
        (
            "(float[1, 6, 8, 1] x) => (float[1, 6, 8, 2] y) <int64 k = {2}> { y = DFT(x, \"\", k) }", 20,
            "axis 1, whatever the input says",
        ),
        ("(float[1, 6, 8, 1] x, int64 k) => (float[1, 6, 8, 2] y) { y = DFT(x, \"\", k) }", 20, "axis 1, whatever"),
        (
            """(float[2, 1, 3] x, float[1, 8, 3] w, float[1, 8, 2] r) => (float[2, 1, 1, 2] y) {
                y = LSTM<hidden_size = 2, input_forget = 1>(x, w, r) }""", 20, "ignores input_forget",
        ),
    ],
    ids=["linear", "cubic", "sizes", "outside", "aspect", "boxes", "one-sided", "default", "second", "open", "forget"],
)  # fmt: skip
def test_the_reason_is_told_before_anything_is_compiled(text: str, opset: int, reason: str) -> None:
    model = _model(text, opset)
    with pytest.raises(Unsupported, match=f"OpenVINO {reason}|{reason}") as refused:
        edgerun.compile(model, "openvino", ONE)
    op = model.to_proto().graph.node[0].op_type
    assert refused.value.exit_code == 3 and f"y ({op}): OpenVINO " in str(refused.value)
    (issue,) = target.check(model)
    assert issue.op == op and reason in issue.reason


def _line(x: np.ndarray, size: int, aligned: bool) -> np.ndarray:
    """Linear interpolation of `x` [n] at `size` points, the edges held."""
    at = np.arange(size) * (len(x) - 1) / (size - 1) if aligned else (np.arange(size) + 0.5) * len(x) / size - 0.5
    line: np.ndarray = np.interp(at, np.arange(len(x)), x)
    return line


def _resized(x: np.ndarray, sizes: tuple[int, int], aligned: bool) -> np.ndarray:
    rows = np.apply_along_axis(_line, 2, x.astype(np.float64), sizes[0], aligned)
    both: np.ndarray = np.apply_along_axis(_line, 3, rows, sizes[1], aligned)
    return both


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (_scaled("1, 1, 2, 2", 'mode = "linear", antialias = 1'), _resized(X, (12, 16), False)),
        (_sized("1, 2, 7, 9", 'mode = "linear", antialias = 1'), _resized(X, (7, 9), False)),
        (_scaled("1, 1, 2, 2", 'mode = "linear", exclude_outside = 1'), _resized(X, (12, 16), False)),
        (_sized("1, 2, 7, 9", 'mode = "linear", keep_aspect_ratio_policy = "stretch"'), _resized(X, (7, 9), False)),
        (
            _scaled("1, 1, 0.5, 1.5", 'mode = "linear", coordinate_transformation_mode = "align_corners"'),
            _resized(X, (3, 12), True),
        ),
        *((TURNED.replace("AXIS", axis), SPECTRUM) for axis in ("1", "-3")),
    ],
    ids=["larger", "sizes", "outside", "stretch", "corners", "axis", "from the end"],
)
def test_what_it_computes_rightly_runs(text: str, wanted: np.ndarray) -> None:
    with edgerun.load(edgerun.compile(_model(text), "openvino", ONE, feeds=[{"x": X}]), options=ONE) as session:
        found: Any = session.run({"x": X})["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
