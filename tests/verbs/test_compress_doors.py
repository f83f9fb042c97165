"""What a model may have at its door: an open first axis that is no batch, bfloat16. The float model judges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort  # type: ignore[import-untyped]
import pytest
from onnx import numpy_helper

import edgerun
from edgerun.metrics import sqnr_db

FRAMES = """<ir_version: 8, opset_import: ["": 17]> speech (float[t,40] x) => (float[1,10] y) <int64[1] k = {0}> {
    turned = Transpose<perm=[1,0]>(x) one = Unsqueeze(turned, k)
    a = Conv(one, w) b = Relu(a) c = Conv(b, v) d = Relu(c)
    e = ReduceMax<axes=[2], keepdims=0>(d) y = MatMul(e, u) }"""
NARROW = """<ir_version: 8, opset_import: ["": 17]> narrow (bfloat16[n,40] x) => (float[n,64] y) {
    f = Cast<to=1>(x) a = MatMul(f, p) b = Relu(a) y = MatMul(b, q) }"""


def _saved(path: Path, text: str, **shapes: tuple[int, ...]) -> Path:
    random, proto = np.random.default_rng(0), onnx.parser.parse_model(text)
    for name, shape in shapes.items():
        weight = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        proto.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), name))
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w8a8_dynamic"])
def test_an_array_of_frames_is_one_sample(tmp_path: Path, cli: Any, scheme: str) -> None:
    """Of four frames, as many as a batch had rows, its convolutions without padding could make nothing."""
    model = _saved(tmp_path / "m.onnx", FRAMES, w=(64, 40, 5), v=(64, 64, 5), u=(64, 10))
    random = np.random.default_rng(1)
    samples = [random.standard_normal((random.integers(80, 120), 40)).astype(np.float32) for _ in range(40)]
    (tmp_path / "c").mkdir()
    for index, sample in enumerate(samples[:24]):
        np.save(tmp_path / "c" / f"{index:02}.npy", sample)
    options = ["--scheme", scheme, "--calibration", tmp_path / "c", *(["--allow-slower"] if "w8a8" in scheme else [])]
    done = cli("compress", model, "-o", tmp_path / "q.onnx", *options)
    assert done.code == 0, done.err
    runs = [ort.InferenceSession(path) for path in (model, tmp_path / "q.onnx")]
    truth, got = (np.array([run.run(None, {"x": sample})[0] for sample in samples[24:]]) for run in runs)
    assert sqnr_db(truth, got) > 30


@pytest.mark.parametrize("scheme", ["fp16", "w8a8"])
def test_a_bfloat16_input_is_calibrated(tmp_path: Path, scheme: str) -> None:
    model = _saved(tmp_path / "m.onnx", NARROW, p=(40, 64), q=(64, 64))
    p, q = (numpy_helper.to_array(weight) for weight in onnx.load(model).graph.initializer)
    x = np.random.default_rng(1).standard_normal((96, 40)).astype(ml_dtypes.bfloat16)
    small = tmp_path / "q.onnx"
    edgerun.compress(model, scheme=scheme, calibration=x[:64], output=small, allow_slower=scheme == "w8a8")
    with edgerun.load(small) as session:
        got = session.run({"x": x[64:]})["y"]
    assert sqnr_db(np.maximum(x[64:].astype(np.float32) @ p, 0) @ q, got) > 25
