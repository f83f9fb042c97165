"""Centring: whatever it moves, the outputs stay; what cannot be moved is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.quantize import fold
from edgerun.quantize.graphs import centre, equalize
from edgerun.quantize.graphs.activation import Channels
from edgerun.verbs.compress import compress

DOOR = "(float[n,8,6,6] x) => (float[n,p,q,r] y)"
FLAT = "(float[n,8] x) => (float[n,6] y)"
MOVED = {
    "a bottleneck": (DOOR, "a = Conv(x, w, b) y = Conv(a, w2, b2)", {"a"}),
    "no biases": (DOOR, "a = Conv(x, w) y = Conv(a, w2)", {"a"}),
    "grouped reader": (DOOR, "a = Conv(x, w, b) y = Conv<group=2>(a, gw, b6)", {"a"}),
    "window without borders": (DOOR, "a = Conv(x, w, b) y = Conv(a, w3, b2)", {"a"}),
    "residual chain": (
        DOOR,
        "a = Conv(x, w, b) c = Conv(a, w2, b2) r = Relu(c) d = Conv(r, w, b2) s = Add(a, d) e = Conv(s, w2) t = Relu(e)"
        " f = Conv(t, w, b) u = Add(s, f) y = Conv(u, w2, b)",
        {"a", "d", "s", "f", "u"},
    ),
    "one value twice": (DOOR, "a = Conv(x, w, b) s = Add(a, a) y = Conv(s, w2, b2)", {"a", "s"}),
    "Gemm": (FLAT, "a = Gemm(x, fc8, b) y = Gemm<transB=1>(a, fc, b6)", {"a"}),
}
LEFT = {
    "a border of zeros": (DOOR, "a = Conv(x, w, b) y = Conv<pads=[1,1,1,1]>(a, w3, b2)"),
    "a border of its own": (DOOR, 'a = Conv(x, w, b) y = Conv<auto_pad="SAME_UPPER">(a, w3, b2)'),
    "Relu": (DOOR, "a = Conv(x, w, b) r = Relu(a) y = Conv(r, w2, b2)"),
    "one branch behind a Relu": (
        DOOR, "a = Conv(x, w, b) r = Relu(a) c = Conv(x, w2) s = Add(r, c) y = Conv(s, w2, b2)"),
    "an output": ("(float[n,8,6,6] x) => (float[n,8,6,6] a, float[n,8,6,6] y)", "a = Conv(x, w, b) y = Conv(a, w2)"),
}  # fmt: skip


@pytest.fixture
def parts(weights: Any) -> dict[str, np.ndarray]:
    shapes = {"w": (8, 8, 1, 1), "w2": (8, 8, 1, 1), "w3": (8, 8, 3, 3), "gw": (6, 4, 1, 1), "fc": (6, 8),
              "fc8": (8, 8), "b": (8,), "b2": (8,), "b6": (6,)}  # fmt: skip
    return {name: weights(seed, *shape) for seed, (name, shape) in enumerate(shapes.items())}


def built(net: Any, parts: dict[str, np.ndarray], door: str, text: str) -> Model:
    words = set("".join(c if c.isalnum() else " " for c in text).split())
    model: Model = net(f"{door} {{ {text} }}", **{name: array for name, array in parts.items() if name in words})
    return model


def centred(model: Model) -> tuple[Model, dict[str, np.ndarray]]:
    """A folded and centred clone; ranges are made up, of every size and far from zero."""
    result = Model.of(fold.apply(model.clone()))
    generator = np.random.default_rng(5)
    seen = {}
    for chain in equalize.chains(result.ir.graph):
        for value in chain.values:
            middle, half = generator.normal(0, 3, chain.channels), np.exp(generator.normal(size=chain.channels))
            seen[str(value.name)] = Channels((middle - half)[None], (middle + half)[None], middle**2 + half**2 / 3)
    return result, centre.centre(result.ir.graph, equalize.chains(result.ir.graph), seen)


@pytest.mark.parametrize("case", MOVED)
def test_outputs_stay(net: Any, evaluate: Any, parts: dict[str, np.ndarray], case: str) -> None:
    """Equal to 1e-5 of the largest value: float rounding beside the offsets; the values in between moved as told."""
    door, text, values = MOVED[case]
    model = built(net, parts, door, text)
    after, moved = centred(model)
    assert moved.keys() == values and all(offset.any() for offset in moved.values())
    shape = (3, 8) if door == FLAT else (3, 8, 6, 6)
    feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    for want, got in zip(evaluate(model, feeds), evaluate(after, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("case", LEFT)
def test_left_alone(net: Any, parts: dict[str, np.ndarray], case: str) -> None:
    model = built(net, parts, *LEFT[case])
    before = Model.of(fold.apply(model.clone()))
    after, moved = centred(model)
    assert not moved and after.digest() == before.digest()


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_channels_that_lie_off_zero_cost_nothing(
    net: Any, evaluate: Any, parts: dict[str, np.ndarray], target: str
) -> None:
    """The same function with channels at ±8, three times their width off zero: within 1 dB, where 9 would be lost."""
    off = np.where(np.arange(8) % 2, 8, -8).astype(np.float32)
    back = parts["b2"] - parts["w2"].reshape(8, 8) @ (off - parts["b"])
    text = f"{DOOR} {{ a = Conv(x, w, b) y = Conv(a, w2, b2) }}"
    x = np.random.default_rng(1).standard_normal((48, 8, 6, 6)).astype(np.float32)
    reached = []
    for biases in ({"b": parts["b"], "b2": parts["b2"]}, {"b": off, "b2": back}):
        model = net(text, w=parts["w"], w2=parts["w2"], **biases)
        made = compress(model, target=target, calibration={"x": x[:24]}, ranges="minmax")
        assert made.history[-1].options["centred"] == ["a"]
        reached.append(sqnr_db(*(evaluate(m, {"x": x[24:]})[0] for m in (model, made))))
    assert reached[1] == pytest.approx(reached[0], abs=1)
