"""Models whose open axis is a length, without one for a batch: a sequence is one sample, whole, everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort  # type: ignore[import-untyped]
import pytest
from onnx import numpy_helper

from edgerun.metrics import sqnr_db

TOKENS = """<ir_version: 8, opset_import: ["": 17]> net (int64[L] ids) => (float[L,10] y) {
    x = Gather(table, ids) q = MatMul(x, w) t = Transpose<perm = [1, 0]>(q) s = MatMul(x, t) p = Softmax(s)
    c = MatMul(p, x) y = MatMul(c, v) }"""
SAMPLES = 24


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """`m.onnx`: attention, in which every token hears all others; `d.npz`: SAMPLES sequences of 12 tokens."""
    random, proto = np.random.default_rng(0), onnx.parser.parse_model(TOKENS)
    for name, shape, size in (("table", (100, 64), 1.0), ("w", (64, 64), 0.1), ("v", (64, 10), 0.1)):
        array = (size * random.standard_normal(shape)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", ids=random.integers(0, 100, (SAMPLES, 12)))
    return tmp_path


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_sequences_are_calibrated_and_compared_whole(place: Path, cli: Any, target: str) -> None:
    given = ("--target", target, "--calibration", place / "d.npz", "--placement", "rules")
    done = cli("compress", place / "m.onnx", "-o", place / "q.onnx", *given)
    assert done.code == 0 and f"(n={SAMPLES}," in done.out + done.err, done.out + done.err
    done = cli("compare", place / "m.onnx", place / "q.onnx", "--data", place / "d.npz", "--json")
    (found,) = json.loads(done.out)["outputs"]
    runs = [ort.InferenceSession(place / name) for name in ("m.onnx", "q.onnx")]
    truth, got = (np.array([run.run(None, {"ids": ids})[0] for ids in np.load(place / "d.npz")["ids"]]) for run in runs)
    assert found["sqnr_db"] == pytest.approx(sqnr_db(truth, got), abs=0.01) and found["sqnr_db"] > 25


def test_one_array_of_tokens_is_one_sample(place: Path, cli: Any) -> None:
    np.savez(place / "one.npz", ids=np.arange(30))
    done = cli("compress", place / "m.onnx", "-o", place / "q.onnx", "--calibration", place / "one.npz",
               "--placement", "rules")  # fmt: skip
    assert done.code == 0 and "1 calibration sample is few" in done.err, done.err


def test_noise_needs_the_length(place: Path, cli: Any) -> None:
    done = cli("bench", place / "m.onnx")
    assert done.code == 2 and "--input-shape ids:[L], with numbers for L" in done.err
