"""What each step brings stands in the history; `best` tries a model without each, and drops what does not pay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import numpy_helper

import edgerun
from edgerun.metrics import sqnr_db
from edgerun.model import Model

# What reads `a` is two products; the result hangs on the first one alone, which equalization serves less.
UNFAIR = """(float[n,32] x) => (float[n,8] y) {
    a = Gemm(x, w, b) p = Gemm(a, wa) q = Gemm(a, wb) t = Mul(q, small) y = Add(p, t) }"""
PLAIN = """(float[n,16] x) => (float[n,8] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, wa, c) }"""


def built(text: str, **arrays: Any) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> net {text}')
    tensors = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    for node in proto.graph.node:
        node.name = node.output[0]
    return Model.from_proto(proto)


def output(model: Model, x: np.ndarray) -> np.ndarray:
    session: Any = onnxruntime.InferenceSession(model.to_proto().SerializeToString())
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


def decibels(model: Model, made: Model, x: np.ndarray) -> np.ndarray:
    """The SQNR of every sample."""
    return np.array([sqnr_db(r, v) for r, v in zip(output(model, x), output(made, x), strict=True)])


@pytest.fixture
def unfair() -> tuple[Model, Callable[[int], np.ndarray]]:
    """Two channels make the result; the others are an eighth as large, and read by a product that hardly counts."""
    generator = np.random.default_rng(0)
    first, second = generator.standard_normal((32, 8)), generator.standard_normal((32, 8))
    first[2:] *= 0.04
    second[:2] = 0
    sizes = np.where(np.arange(32) < 2, 1.0, 1 / 8)
    model = built(UNFAIR, w=np.diag(sizes), b=np.zeros(32), wa=first, wb=second, small=1e-5)
    return model, lambda n: generator.standard_normal((n, 32)).astype(np.float32)


def steps(made: Model) -> dict[str, dict[str, Any]]:
    return {told["step"]: told for told in made.history[-1].options["steps"]}


def test_best_drops_what_surely_does_not_pay(unfair: tuple[Model, Callable[[int], np.ndarray]]) -> None:
    """Equalization costs 1.4 dB here; without it the model is nearer on data that nobody has seen (n = 400), too."""
    model, draw = unfair
    asked: Any = {"calibration": {"x": draw(200)}, "target": "openvino", "placement": "rules", "ranges": "minmax"}
    made = {preset: edgerun.compress(model, preset=preset, **asked) for preset in ("default", "best")}
    usual, told = (steps(made[preset])["equalization"] for preset in made)
    assert usual["kept"] and usual["measured"] == "predicted" and usual["gain_db"] > 0 and usual["n"] == 1
    assert not told["kept"] and told["measured"] == "output" and told["n"] == 128
    low, high = told["interval_db"]
    assert -3 < low < told["gain_db"] < high < 0
    assert made["default"].history[-1].options["equalized"] and not made["best"].history[-1].options["equalized"]
    fresh = draw(400)
    won = decibels(model, made["best"], fresh) - decibels(model, made["default"], fresh)
    assert won.mean() > 3 * won.std(ddof=1) / 20, "by three standard errors"


def test_the_gain_of_bias_correction_is_measured_at_the_output() -> None:
    """On samples that judged: of a light model forty, or fewer where these tell it surely."""
    generator = np.random.default_rng(1)
    sizes = {"w": (16, 16), "b": (16,), "wa": (16, 8), "c": (8,)}
    model = built(PLAIN, **{name: generator.standard_normal(size) for name, size in sizes.items()})
    x = (generator.standard_normal((64, 16)) + 1).astype(np.float32)
    made = edgerun.compress(model, calibration={"x": x}, target="onnxruntime", placement="rules")
    told = steps(made)["bias correction"]
    assert told["measured"] == "output" and 4 <= told["n"] <= 40
    assert told["kept"] == (told["gain_db"] > 0) == made.history[-1].options["bias correction"]
    assert told["interval_db"][0] <= told["gain_db"] <= told["interval_db"][1]
    assert {told["measured"] for told in steps(made).values()} <= {"output", "layer", "predicted"}
