"""Outputs of several kinds side by side: found through what moves data, told apart by what they hold, judged apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from onnxruntime.quantization import CalibrationDataReader, quantize_static  # type: ignore[import-untyped]

import edgerun
from edgerun.quantize import fold
from edgerun.quantize.graphs import sides
from edgerun.quantize.graphs.sides import Sides

DOOR = "(float[n,4,6,5] x, float[n,2,6,5] z) => (float[n,p,q] y)"
FOUND = {
    "as it is": ("(float[n,4,6] x, float[n,2,6] z) => (float[n,p,q] y)", "y = Concat<axis=1>(x, z)", (1, (4, 6))),
    "from the end": ("(float[n,4,6] x, float[n,2,6] z) => (float[n,p,q] y)", "y = Concat<axis=-2>(x, z)", (1, (4, 6))),
    "flattened": (DOOR, "c = Concat<axis=1>(x, z) y = Reshape(c, flat)", (1, (4, 6))),
    "turned": (DOOR, "c = Concat<axis=1>(x, z) f = Reshape(c, flat) y = Transpose<perm=[0,2,1]>(f)", (2, (4, 6))),
    "alike in three scales": (
        "(float[n,8,4] x, float[n,8,2] z, float[n,4,4] u, float[n,4,2] v) => (float[n,p,q] y)",
        "a = Concat<axis=2>(x, z) b = Concat<axis=-1>(u, v) y = Concat<axis=1>(a, b)", (2, (4, 6)),
    ),
    "three": ("(float[n,4,6] x, float[n,2,6] z) => (float[n,p,q] y)", "s = Sigmoid(z) y = Concat<axis=1>(x, s, z)",
              (1, (4, 6, 8))),
    "nothing joined": (DOOR, "r = Relu(x) y = Reshape(r, loose)", None),
    "samples": ("(float[n,4,6] x, float[m,4,6] z) => (float[p,q,r] y)", "y = Concat<axis=0>(x, z)", None),
    "computed behind": ("(float[n,4,6] x, float[n,2,6] z) => (float[n,p,q] y)", "c = Concat<axis=1>(x, z) y = Relu(c)",
                        None),
    "mixed by the reshape": (DOOR, "c = Concat<axis=1>(x, z) y = Reshape(c, loose)", None),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_sides_are_found(net: Any, case: str) -> None:
    door, text, wanted = FOUND[case]
    shapes = {"flat": np.array([0, 6, 30]), "loose": np.array([0, 5, -1])}
    model = net(f"{door} {{ {text} }}", **{name: array for name, array in shapes.items() if f" {name})" in text})
    fold.infer_shapes(model.ir)
    assert {name: (s.axis, s.ends) for name, s in sides.of(model.ir.graph).items()} == ({"y": wanted} if wanted else {})


def test_only_other_kinds_are_apart() -> None:
    """Boxes of 300 and scores of .3 are; logits of two scales of a head are not, nor what is all zero."""
    draw, found = np.random.default_rng(0), {"y": Sides(1, (4, 6))}
    y = draw.standard_normal((3, 6, 5))
    assert sides.different(found, [{"y": y}]) == {}
    assert sides.different(found, [{"y": y * np.array([300] * 4 + [0.3] * 2)[:, None]}]) == found
    assert sides.different(found, [{"y": y * np.array([300] * 4 + [0] * 2)[:, None]}]) == {}
    assert sides.different(found, [{"y": y[:, :5]}]) == {} == sides.different(found, [])
    told = sides.cut({"y": y, "z": y}, found)
    assert list(told) == ["y[:, 0:4]", "y[:, 4:6]", "z"]
    np.testing.assert_array_equal(told["y[:, 4:6]"], y[:, 4:])


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, x: np.ndarray) -> None:
        self._left = iter(x)

    def get_next(self) -> Any:
        return None if (row := next(self._left, None)) is None else {"x": row[None]}


@pytest.fixture
def detector(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Boxes up to some 1,000 and scores in one output, and 96 samples."""
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[n,3,8,8] x) => (float[n,10,64] y) {
        a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a) box = Conv(r, boxes, middle) c = Conv(r, classes) s = Sigmoid(c)
        j = Concat<axis=1>(box, s) y = Reshape(j, shape) }"""
    draw, proto = np.random.default_rng(3), parser.parse_model(text)
    arrays = {"w": draw.standard_normal((16, 3, 3, 3)) / 4, "boxes": 60 * draw.standard_normal((4, 16, 1, 1)),
              "middle": np.full(4, 300.0), "classes": draw.standard_normal((6, 16, 1, 1)) / 2}  # fmt: skip
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items())
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0, 10, 64]), "shape"))
    for node in proto.graph.node:
        node.name = node.output[0]
    onnx.save(proto, tmp_path / "float.onnx")
    return tmp_path / "float.onnx", draw.standard_normal((96, 3, 8, 8)).astype(np.float32)


def test_scores_that_are_gone_beside_boxes_are_seen(detector: tuple[Path, np.ndarray]) -> None:
    """quantize_static puts both onto 256 steps of one scale, 4 or more apart: as a whole the output has 35 dB."""
    model, x = detector
    other = model.with_name("other.onnx")
    quantize_static(model, other, Reader(x[:48]))
    row = edgerun.why_wrong(model, other, {"x": x}).rows[0]
    assert (row.layer, row.cause) == ("j", "mixed-scale Concat") and row.gain_db is not None
    assert row.gain_db.interval.low > 20
    whole = edgerun.compare(model, other, {"x": x}).outputs[0].sqnr_db
    assert whole > 30, "which says nothing of the scores"


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_compress_keeps_both_and_judges_both(target: str, detector: tuple[Path, np.ndarray]) -> None:
    model, x = detector
    small = edgerun.compress(model, target=target, calibration={"x": x[:48]}, placement="rules")
    with edgerun.load(model, target) as before, edgerun.load(edgerun.compile(small, target)) as after:
        y, z = before.run({"x": x[48:]})["y"], after.run({"x": x[48:]})["y"]
    reached = [10 * np.log10((y[:, a:b] ** 2).sum() / ((y - z)[:, a:b] ** 2).sum()) for a, b in ((0, 4), (4, 10))]
    assert min(reached) > 30
    assert abs(np.mean(reached) - small.history[-1].options["calibration SQNR (dB)"]) < 2
