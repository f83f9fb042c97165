"""What readers can tell apart: clipping there changes nothing that is computed, and clipping closer does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.quantize import fold
from edgerun.quantize.graphs import reach
from edgerun.verbs.compress import compress

CONSTANTS = {"zero": 0.0, "three": 3.0, "six": 6.0, "two": 2.0}
CASES = {
    "hard-swish of four ops": ("a = Add(v, three) k = Clip(a, zero, six) m = Mul(v, k) y = Mul(m, two)", -3.0, np.inf),
    "the constant first": ("a = Add(two, v) k = Clip(a, zero, six) y = Mul(k, v)", -2.0, np.inf),
    "as HardSigmoid and Mul": ("k = HardSigmoid<alpha = 0.25, beta = 0.5>(v) y = Mul(v, k)", -2.0, np.inf),
    "HardSwish": ("y = HardSwish(v)", -3.0, np.inf),
    "a gate alone": ("y = HardSigmoid<alpha = 0.25, beta = 0.5>(v)", -2.0, 2.0),
    "Clip": ("y = Clip(v, zero, six)", 0.0, 6.0),
    "two readers": ("h = HardSwish(v) k = Clip(v, zero, six) y = Add(h, k)", -3.0, np.inf),
    "another reader": ("h = HardSwish(v) y = Add(h, v)", -np.inf, np.inf),
    "the gate of something else": ("k = HardSigmoid(v) y = Mul(x, k)", -2.5, 2.5),
    "read beside its gate": ("k = HardSigmoid(v) m = Mul(x, k) n = Mul(v, two) y = Add(m, n)", -np.inf, np.inf),
    "not from zero": ("a = Add(v, three) k = Clip(a, two, six) y = Mul(v, k)", -np.inf, np.inf),
    "Sigmoid": ("y = Sigmoid(v)", -np.inf, np.inf),
}


@pytest.mark.parametrize("case", CASES)
def test_intervals(case: str, net: Any, evaluate: Any) -> None:
    text, low, high = CASES[case]
    shared = {name: np.float32(number) for name, number in CONSTANTS.items() if name in text}

    def between(ends: tuple[float, float] | None) -> Model:
        """The net with v = 4x as it is, or clipped."""
        head = "v = Mul(x, four)" if ends is None else "u = Mul(x, four) v = Clip(u, least, most)"
        ends_ = {} if ends is None else {"least": np.float32(ends[0]), "most": np.float32(ends[1])}
        made: Model = net(f"(float[n,3,4,4] x) => (float[n,3,4,4] y) {{ {head} {text} }}", opset=20,
                          four=np.float32(4), **shared, **ends_)  # fmt: skip
        return made

    graph = Model.of(fold.apply(between(None).clone())).ir.graph
    value = next(v for node in graph for v in node.outputs if v.name == "v")
    assert reach.heard(value) == pytest.approx((low, high), abs=1e-6)
    x = np.random.default_rng(0).standard_normal((20, 3, 4, 4)).astype(np.float32)
    (want,) = evaluate(between(None), {"x": x})
    (got,) = evaluate(between((max(low, -1e9), min(high, 1e9))), {"x": x})
    np.testing.assert_array_equal(got + 0.0, want + 0.0)
    if np.isfinite(low):
        (closer,) = evaluate(between((low + 0.5, min(high, 1e9))), {"x": x})
        assert not np.array_equal(closer, want)


@pytest.mark.parametrize("top", [0.0, 3.0, 15.0])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("k = Sigmoid(v) y = Mul(v, k)", True),
        ("k = Sigmoid(v) y = Mul(k, v)", True),
        ("k = Sigmoid(v) m = Mul(v, k) y = Add(m, v)", False),
        ("k = Sigmoid(v) y = Mul(x, k)", False),
    ],
    ids=["SiLU", "the gate first", "another reader", "the gate of something else"],
)
def test_silu_is_heard_until_half_a_step(text: str, found: bool, top: float, net: Any) -> None:
    """By the function itself: there it lies half a step of 255 from zero to a hundredth of that, beyond it nearer."""
    model = net(f"(float[n,3,4,4] x) => (float[n,3,4,4] y) {{ v = Mul(x, four) {text} }}", four=np.float32(4))
    value = next(v for node in model.ir.graph for v in node.outputs if v.name == "v")
    assert reach.heard(value) == reach.EVERYTHING
    if not found:
        assert reach.heard(value, top) == reach.EVERYTHING
        return
    low, high = reach.heard(value, top)
    line = np.linspace(-40, top, 100_000)
    silu = line / (1 + np.exp(-line))
    half = (silu.max() - silu.min()) / 255 / 2
    assert high == np.inf and low / (1 + np.exp(-low)) == pytest.approx(-half, rel=0.011)
    assert np.abs(silu[line < low]).max() <= half < np.abs(silu[(line > low + 0.02) & (line < -1.3)]).min()


def test_a_channel_far_below_zero_takes_no_steps_from_the_others(net: Any, weights: Any, evaluate: Any) -> None:
    """SiLU behind a layer with a channel at -56, of which it makes nothing: with steps over all of that, 26.5 dB were
    left; it is within a decibel of the same model with that channel at -6."""
    text = """(float[n,3,16,16] x) => (float[n,8,16,16] y) { c = Conv(x, w, b) s = Sigmoid(c) m = Mul(c, s)
              y = Conv(m, v) }"""
    x = np.random.default_rng(0).standard_normal((64, 3, 16, 16)).astype(np.float32)
    reached = []
    for bias in (-6, -56):
        arrays = {"w": weights(1, 16, 3, 1, 1) * np.float32(0.7), "b": weights(2, 16) - 2, "v": weights(3, 8, 16, 1, 1)}
        arrays["b"][0] = bias
        model = net(text, **arrays)
        small = compress(model, target="onnxruntime", calibration={"x": x[:32]}, placement="rules", ranges="minmax")
        reached.append(sqnr_db(*(evaluate(each, {"x": x[32:]})[0] for each in (model, small))))
    near, far = reached
    assert far > near - 1
