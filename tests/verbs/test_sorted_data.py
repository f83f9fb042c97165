"""What data in an order of its own, and branches of other scales side by side, cost a compressed model: nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import edgerun
from edgerun.metrics import sqnr_db

DENSE = """<ir_version: 8, opset_import: ["": 17]> net (float[n,16] x) => (float[n,8] y) {
    a = Gemm(x, w, b) r = Relu(a) c = Gemm(r, w, b) s = Relu(c) y = Gemm(s, v) }"""
BRANCHES = """<ir_version: 8, opset_import: ["": 17]> net (float[n,3,8,8] x) => (float[n,6,8,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, first) r = Relu(a) c = Conv(r, loud) d = Relu(c) e = Conv(r, quiet) f = Relu(e)
    j = Concat<axis=1>(d, f) y = Conv(j, last) }"""


def _saved(text: str, place: Path, arrays: dict[str, np.ndarray]) -> Path:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items())
    onnx.save(proto, place / "m.onnx")
    return place / "m.onnx"


def _reached(model: Path, calibration: Any, x: np.ndarray, target: str = "onnxruntime") -> tuple[float, float]:
    """SQNR (dB) on `x`, and what was told of it."""
    small = edgerun.compress(model, target=target, calibration=calibration, placement="rules")
    with edgerun.load(model, target) as before, edgerun.load(edgerun.compile(small, target)) as after:
        told = small.history[-1].options["calibration SQNR (dB)"]
        return sqnr_db(before.run({"x": x})["y"], after.run({"x": x})["y"]), told


KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "arrays": lambda x: {"x": x},
    "list": lambda x: [{"x": row[None]} for row in x],
    "callable": lambda x: lambda: ({"x": row[None]} for row in x),
}


@pytest.mark.parametrize("kind", KINDS)
def test_loud_samples_behind_quiet_ones(kind: str, tmp_path: Path) -> None:
    """400, and 200 times eight: 2.8 dB, with the first samples as they come."""
    draw = np.random.default_rng(0)
    parts = {"w": draw.standard_normal((16, 16)) / 3, "b": draw.standard_normal(16), "v": draw.standard_normal((16, 8))}
    model = _saved(DENSE, tmp_path, parts)
    x = draw.standard_normal((600, 16)).astype(np.float32)
    x[400:] *= 8
    reached, told = _reached(model, KINDS[kind](x), x)
    assert reached > 30 and abs(reached - told) < 3


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_branches_of_other_scales_side_by_side(target: str, tmp_path: Path) -> None:
    """The quiet one would have two of 256 steps: 6 dB."""
    draw = np.random.default_rng(5)
    last = draw.standard_normal((6, 16, 1, 1)) * np.array([0.01] * 8 + [1.0] * 8).reshape(1, 16, 1, 1)
    parts = {"first": draw.standard_normal((16, 3, 3, 3)) / 4, "loud": 25 * draw.standard_normal((8, 16, 1, 1)),
             "quiet": draw.standard_normal((8, 16, 1, 1)) / 4, "last": last}  # fmt: skip
    model = _saved(BRANCHES, tmp_path, parts)
    x = draw.standard_normal((128, 3, 8, 8)).astype(np.float32)
    reached, _ = _reached(model, {"x": x[:64]}, x[64:], target)
    assert reached > 33
