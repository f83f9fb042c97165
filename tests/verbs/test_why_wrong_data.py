"""The data of `edgerun why-wrong` is looked at as calibration data is, and what repeats samples makes nothing surer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import edgerun
from edgerun.errors import EdgerunError
from edgerun.model import Model
from edgerun.verbs.why_wrong import why_wrong

NET = """<ir_version: 8, opset_import: ["": 17]> net (float[N,3,8,8] x) => (float[N,10] y) {
  c1 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, b1)  r1 = Relu(c1)
  c2 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(r1, w2, b2)  r2 = Relu(c2)
  pool = GlobalAveragePool(r2)  flat = Flatten(pool)  y = Gemm(flat, w3, b3)
}"""


def network(path: Path, batch: str = "n") -> Path:
    draw = np.random.default_rng(6)
    proto = onnx.parser.parse_model(NET.replace("N,", f"{batch},"))
    for node in proto.graph.node:
        node.name = node.output[0]
    for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (16, 8, 3, 3)), ("w3", (16, 10))):
        bias = 0.1 * draw.standard_normal(shape[1] if name == "w3" else shape[0])
        for key, array in ((name, 0.3 * draw.standard_normal(shape)), (f"b{name[1]}", bias)):
            proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), key))
    onnx.save(proto, path)
    return path


def pictures(count: int) -> np.ndarray:
    """Smooth ones `[count, 3, 8, 8]`: patches of 3 by 3, channels that differ."""
    small = np.random.default_rng(1).standard_normal((count, 3, 3, 3)).astype(np.float32)
    return np.ascontiguousarray(np.repeat(np.repeat(small, 3, 2), 3, 3)[:, :, :8, :8])


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    model, small = network(tmp_path / "float.onnx"), tmp_path / "small.onnx"
    edgerun.compress(model, calibration={"x": pictures(64)}, ranges="minmax", output=small)
    return model, small


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.full((64, 3, 8, 8), 0.5, np.float32), "the calibration data is constant"),
        (np.repeat(pictures(1), 64, axis=0), "the calibration data is constant"),
        (pictures(64).transpose(0, 2, 3, 1).reshape(64, 3, 8, 8), "the pictures lie in NHWC order"),
    ],
)
def test_what_compress_refuses_is_refused(
    pair: tuple[Path, Path], tmp_path: Path, data: np.ndarray, message: str, cli: Any
) -> None:
    np.savez(tmp_path / "data.npz", x=data)
    ran = cli("why-wrong", *pair, "--data", tmp_path / "data.npz", "--fix", tmp_path / "fixed.onnx")
    told = cli("compress", pair[0], "--calibration", tmp_path / "data.npz", "-o", tmp_path / "out.onnx")
    assert ran.code == told.code == 2 and message in ran.err and ran.err == told.err
    assert ran.out == "" and not (tmp_path / "fixed.onnx").exists()


def test_samples_that_repeat_others_are_left_out(pair: tuple[Path, Path], tmp_path: Path, cli: Any) -> None:
    """Four pictures 20 times over are four: nothing is sure of four, and no fix is written."""
    data, fixed = tmp_path / "data.npz", tmp_path / "fixed.onnx"
    np.savez(data, x=np.concatenate([pictures(4)] * 20))
    ran = cli("why-wrong", *pair, "--data", data, "--fix", fixed, "--json")
    found, once = json.loads(ran.out), why_wrong(*pair, {"x": pictures(4)})
    assert (found["samples"], found["fix_samples"], found["apart"]) == (4, 4, False)
    assert found["sqnr_db"] == pytest.approx(once.sqnr_db, abs=1e-6) and found["unfixed"] == once.unfixed
    assert ran.code == 1 and not fixed.exists()
    assert "76 of 80 calibration samples repeat others exactly and add nothing" in ran.err
    assert "the 76 that repeat others are left out, lest gains look surer: 4 are left" in ran.err
    assert "of 4 different samples 0 are left, and 8 are wanted" in ran.err
    assert "4 different calibration samples are few" in ran.err


def test_fixes_are_judged_on_samples_that_repeat_none_of_the_first(pair: tuple[Path, Path]) -> None:
    """Of 64 samples 24 stand twice: 40 are left, of which 20 judge; all 40 together are as if there were no others."""
    every, labels = pictures(64), np.arange(64) % 10
    every[40:] = every[:24]
    labels[40:] = labels[:24]
    parted = why_wrong(*pair, {"x": every, "labels": labels}, limit=20)
    assert (parted.samples, parted.fix_samples, parted.apart) == (20, 20, True)
    found = why_wrong(*pair, {"x": every, "labels": labels}, limit=64)
    once = why_wrong(*pair, {"x": every[:40], "labels": labels[:40]}, limit=64)
    assert found.samples == once.samples == 40 and found.sqnr_db == pytest.approx(once.sqnr_db, abs=1e-6)
    assert found.drop_points is not None and once.drop_points is not None
    assert found.drop_points.value == pytest.approx(once.drop_points.value)


def test_a_fixed_batch_wants_as_many_that_differ(tmp_path: Path) -> None:
    model, small = network(tmp_path / "float.onnx", "8"), tmp_path / "small.onnx"
    edgerun.compress(model, calibration={"x": pictures(64)}, output=small)
    found = why_wrong(model, small, {"x": np.concatenate([pictures(20)] * 3)}, limit=8, top=1)
    assert (found.samples, found.fix_samples, found.apart) == (8, 8, True)
    with pytest.raises(EdgerunError, match="too few samples that differ"):
        why_wrong(model, small, {"x": np.concatenate([pictures(4)] * 8)})


def test_every_number_is_told_with_its_samples(tmp_path: Path, cli: Any) -> None:
    """The SQNR before and after a fix are of the same samples, and their difference is the gain."""
    model, small, data = network(tmp_path / "float.onnx"), tmp_path / "small.onnx", tmp_path / "data.npz"
    edgerun.compress(model, calibration={"x": 0.3 * pictures(64)}, ranges="minmax", output=small)
    every = pictures(80)
    every[:40] *= 0.7
    np.savez(data, x=every)
    found = why_wrong(model, small, data, limit=40)
    assert found.fixes and found.fixed_db is not None and found.fixed_gain_db is not None
    assert found.fixed_db - found.before_db == pytest.approx(found.fixed_gain_db.value, abs=1e-6)
    assert found.sqnr_db != found.before_db
    lines = cli("why-wrong", model, small, "--data", data, "--limit", 40).out.splitlines()
    told = f"costs are of these samples; gains of 40 other samples, with SQNR {found.before_db:.1f} dB"
    assert lines[0] == f"SQNR {found.sqnr_db:.1f} dB at the outputs, n=40: {told}"
    gains = f"SQNR {found.before_db:.1f} dB -> {found.fixed_db:.1f} dB, gains {found.fixed_gain_db} dB"
    assert any(gains in line and line.endswith("on 40 other samples") for line in lines)
    one = why_wrong(model, small, data, limit=80)
    assert not one.apart and one.before_db == one.sqnr_db
    assert one.beginning().endswith("n=80: costs and gains are of these samples")


def test_inputs_of_words_are_no_pictures(tmp_path: Path) -> None:
    """No mistake with the preparation of integers is known: it goes on without."""
    draw = np.random.default_rng(4)
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> net (int64[n,6] x) => (float[n,5] y) {
            e = Gather(table, x) f = Flatten(e) a = MatMul(f, w0) r = Relu(a) b = MatMul(r, w1) s = Relu(b)
            y = MatMul(s, w2) }"""
    )
    for name, shape in (("table", (30, 4)), ("w0", (24, 16)), ("w1", (16, 16)), ("w2", (16, 5))):
        array = (draw.standard_normal(shape) * np.sqrt(2 / shape[0])).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    model = Model.from_proto(proto)
    data = {"x": draw.integers(0, 30, (80, 6))}
    result = why_wrong(model, edgerun.compress(model, calibration=data, placement="rules"), data)
    assert result.rows and result.sqnr_db > 20
