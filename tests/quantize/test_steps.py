"""What each step brings stands in the history; models are tried without each, and what does not pay is dropped."""

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
from edgerun.quantize import _without
from edgerun.quantize.graphs.statistics import Watch

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
    generator = np.random.default_rng(8)
    first, second = generator.standard_normal((32, 8)), generator.standard_normal((32, 8))
    first[2:] *= 0.04
    second[:2] = 0
    sizes = np.where(np.arange(32) < 2, 1.0, 1 / 8)
    model = built(UNFAIR, w=np.diag(sizes), b=np.zeros(32), wa=first, wb=second, small=1e-5)
    return model, lambda n: generator.standard_normal((n, 32)).astype(np.float32)


def steps(made: Model) -> dict[str, dict[str, Any]]:
    return {told["step"]: told for told in made.history[-1].options["steps"]}


def test_what_surely_does_not_pay_is_dropped(unfair: tuple[Model, Callable[[int], np.ndarray]]) -> None:
    """Equalization costs 1.5 dB here; without it the model is nearer on data that nobody has seen (n = 400), too (to
    `fast`, which rounds to nearest: inputs are white, and rounding to the second order brings nothing).

    The default preset judges on every fourth batch of four samples among the first ten, `best` on 128 samples.
    """
    model, draw = unfair
    asked: Any = {
        "calibration": {"x": draw(200)},
        "device": "xeon-avx512-vnni",
        "placement": "rules",
        "ranges": "minmax",
    }
    made = {preset: edgerun.compress(model, preset=preset, **asked) for preset in ("fast", "default", "best")}
    fast, *others = (steps(made[preset])["equalization"] for preset in made)
    assert fast["kept"] and fast["measured"] == "predicted" and fast["gain_db"] > 0 and fast["n"] == 1
    assert made["fast"].history[-1].options["equalized"]
    fresh = draw(400)
    for preset, told, n in zip(("default", "best"), others, (8, 128), strict=True):
        assert not told["kept"] and told["measured"] == "output" and told["n"] == n
        low, high = told["interval_db"]
        assert -10 < low < told["gain_db"] < high < 0
        assert not made[preset].history[-1].options["equalized"]
        won = decibels(model, made[preset], fresh) - decibels(model, made["fast"], fresh)
        assert won.mean() > 3 * won.std(ddof=1) / 20, "by three standard errors"


def test_a_step_that_pays_stays_and_its_gain_is_that_of_data_kept_apart() -> None:
    """Channels of a convolution from 1 to 1/64: equalization brings 12 dB or more on samples that it never saw, n = 8.

    Ranges that hold those samples alone move no factor of the trial's: the gain is the same where every other batch is.
    """
    generator = np.random.default_rng(2)
    sizes = 2.0 ** -np.linspace(0, 6, 16)
    first = generator.standard_normal((16, 16)) * sizes
    model = built(PLAIN, w=first, b=np.zeros(16), wa=generator.standard_normal((16, 8)) / sizes[:, None], c=np.zeros(8))
    x = generator.standard_normal((200, 16)).astype(np.float32)
    made = edgerun.compress(model, calibration={"x": x}, target="openvino", placement="rules")
    told = steps(made)["equalization"]
    assert told["kept"] and told["measured"] == "output" and told["n"] == 8
    assert 12 < told["interval_db"][0] < told["gain_db"]
    few = edgerun.compress(model, calibration={"x": x[:12]}, target="openvino", placement="rules")
    assert steps(few)["equalization"]["measured"] == "predicted", "of three batches there is no fourth"


@pytest.mark.parametrize(
    ("gain", "light", "heavy"),
    [
        ((-3.0, -5.9, -4.1, 0.04), True, True),  # it surely costs something, perhaps not half a dB
        ((-4.4, -7.4, -5.5, 1.35), False, False),  # it does
        ((0.4, -6.4, -1.9, -7.3), True, False),  # it may cost something
        ((-0.06, -0.12, -0.08, 0.01), True, False),  # it does, and hardly anything
        ((5.0, 4.0, 4.6, -6.0), False, False),  # it pays
    ],
)
def test_whole_models_are_made_where_plain_ones_leave_it_open(
    gain: tuple[float, float, float, float], light: bool, heavy: bool
) -> None:
    found = _without._Gain(*gain, n=10)
    assert (found.open(light=True), found.open(light=False)) == (light, heavy)


def test_what_is_fitted_for_a_trial_knows_nothing_of_what_judges() -> None:
    """Extremes, mean squares and samples of three batches in four, by NumPy, before and after a checkpoint."""
    generator = np.random.default_rng(3)
    x = generator.standard_normal((10, 4, 6)).astype(np.float32)
    x[3, 0, 0], x[7, 1, 1] = 100, -100  # in the batches that judge
    model = built("(float[n,6] x) => (float[n,2] y) { y = Gemm(x, w) }", w=np.ones((6, 2)))
    watch, again = (Watch(model.ir, ["x"], 24) for _ in range(2))
    session: Any = onnxruntime.InferenceSession(Model.of(watch.graph(full=True)).to_proto().SerializeToString())
    names = [output.name for output in session.get_outputs()]
    for batch in x:
        watch.add(dict(zip(names, session.run(None, {"x": batch}), strict=True)))
    again.restore(watch.state())
    kept = np.delete(x, [3, 7], axis=0)
    for seen in (watch, again):
        told, whole = seen.activations(fit=True)["x"], seen.activations()["x"]
        np.testing.assert_array_equal(told.channels.low, kept.min(axis=(0, 1)))
        np.testing.assert_array_equal(told.channels.high, kept.max(axis=(0, 1)))
        np.testing.assert_allclose(told.channels.power, np.square(kept, dtype=np.float64).mean(axis=(0, 1)), rtol=1e-4)
        assert told.sample.size == told.size == kept.size and told.channels.count == kept.size / 6
        np.testing.assert_array_equal(np.sort(told.sample), np.sort(kept.ravel()))
        np.testing.assert_array_equal(whole.channels.high, x.max(axis=(0, 1)))


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
