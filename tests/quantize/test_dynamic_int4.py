"""w4a8: 4-bit weights, and inputs rounded to int8 by blocks as they come, on both runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import edgerun
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.quantize import _spare
from edgerun.quantize.graphs.edit import constant
from edgerun.runtime import Options
from edgerun.targets import _cpu
from edgerun.verbs.compress import compress

ONE = Options(1)
MLP = """(float[n,64] x) => (float[n,10] y) {
    a = Gemm<transB=1>(x, w1, b1) r = Relu(a) p = MatMul(r, w2) q = Add(p, b2) s = Relu(q) y = Gemm(s, w3) }"""
SHAPES = {"w1": (256, 64), "b1": (256,), "w2": (256, 128), "b2": (128,), "w3": (128, 10)}


def build(text: str, shapes: dict[str, tuple[int, ...]]) -> Model:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> net {text}')
    arrays = {n: rng.standard_normal(s) * np.sqrt(2 / max(s[0], s[-1])) for n, s in shapes.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items())
    for node in proto.graph.node:
        node.name = node.output[0]
    return Model.from_proto(proto)


@pytest.fixture(scope="module")
def mlp() -> Model:
    return build(MLP, SHAPES)


def data(samples: int = 64) -> dict[str, np.ndarray]:
    """Correlated inputs, as real ones are."""
    mixing, rng = np.random.default_rng(1).standard_normal((8, 64)), np.random.default_rng(samples)
    mixed = rng.standard_normal((samples, 8)) @ mixing
    return {"x": (mixed + 0.3 * rng.standard_normal((samples, 64))).astype(np.float32)}


def run(model: Model | Path, target: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    engine = edgerun.compile(model, target, ONE) if isinstance(model, Model) else model
    with edgerun.load(engine, target, ONE) as session:
        return session.run(feeds)["y"]


def test_int4_products_on_integers_by_hand() -> None:
    """Each row's blocks of 32 inputs as int8 by their own largest, in float64: 1e-5 of the largest output."""
    model = build("(float[n,64] x) => (float[n,32] y) { y = Gemm(x, w, b) }", {"w": (64, 32), "b": (32,)})
    made, x = compress(model, scheme="w4a8"), data()["x"]
    assert made.history[-1].options["integer nodes"] == 1
    float_math = compress(model, scheme="w4a16_b32")  # the same weights, and inputs as they are
    blocks = x.reshape(len(x), 2, 32).astype(np.float32)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    rounded = (np.rint(blocks / scale) * scale).reshape(x.shape).astype(np.float32)
    wanted = run(float_math, "onnxruntime", {"x": rounded})
    found, plain = (run(m, "onnxruntime", {"x": x}) for m in (made, float_math))
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert np.abs(found - plain).max() > 1e-4 * np.abs(plain).max(), "inputs were rounded"


def test_openvino_rounds_inputs_of_int4_products_only_where_it_may(mlp: Model, tmp_path: Path) -> None:
    """The IR says so, and so does a plain ONNX file: the same numbers, and others than with inputs in float."""
    ways = []
    for scheme in ("w4a8", "w4a16_b32"):
        made = compress(mlp, scheme=scheme, target="openvino", calibration=data(150), output=tmp_path / f"{scheme}.xml")
        made.save(tmp_path / f"{scheme}.onnx")
        ways += [run(tmp_path / f"{scheme}{suffix}", "openvino", data()) for suffix in (".xml", ".onnx")]
    np.testing.assert_array_equal(ways[0], ways[1])
    np.testing.assert_array_equal(ways[2], ways[3])
    assert 25 < sqnr_db(ways[2], ways[0]) < 80


def test_wide_int4_layers_cannot_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pairs are added in 16 bits, layers that get 8 bits use 7 of them: 2·127·128 < 2¹⁵."""
    monkeypatch.setattr(_spare, "spared", lambda *_: ["q"])
    monkeypatch.setattr(_cpu, "saturates", lambda *_: True)
    made = compress(build(MLP, SHAPES), scheme="w4a8", calibration=data(150))
    stored = {}
    for node in made.ir.graph:
        if node.op_type == "MatMulNBits":
            stored[node.attributes.get_int("bits", 0)] = constant(node.inputs[1])
    assert sorted(stored) == [4, 8]
    wide = stored[8]
    assert wide is not None and wide.max() == 127
