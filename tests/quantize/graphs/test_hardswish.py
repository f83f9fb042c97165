"""Hard-swish in pieces becomes one operator, whatever the order; what only looks like it stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgerun.model import Model
from edgerun.quantize import fold

Ops = Callable[[Model], dict[str, int]]
NUMBERS = {"zero": 0, "one": 1, "three": 3, "six": 6, "half": 0.5, "sixth": 1 / 6, "fifth": 0.2, "eighteenth": 1 / 18}
X = np.concatenate([np.linspace(-9, 9, 61), [-3, 3, 0, -3.0001, 2.9999]]).astype(np.float32)[:, None]

SWISH = {
    "Paddle's": "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
    "turned": "a = Add(three, x) c = Clip(a, zero, six) m = Mul(c, x) y = Mul(sixth, m)",
    "the gate first": "a = Add(x, three) c = Clip(a, zero, six) g = Div(c, six) y = Mul(g, x)",
    "x over 6": "a = Add(x, three) c = Clip(a, zero, six) d = Div(x, six) y = Mul(d, c)",
    "a slope": "s = Mul(x, sixth) a = Add(s, half) c = Clip(a, zero, one) y = Mul(x, c)",
    "HardSigmoid": "g = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, g)",
    "in three": "a = Add(x, three) c = Clip(a, zero, six) g = Mul(c, eighteenth) m = Mul(x, g) y = Mul(m, three)",
}
GATES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "Paddle's": ("a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)", lambda x: (x + 3) / 6),
    "a slope": ("s = Mul(fifth, x) a = Add(s, half) y = Clip(a, zero, one)", lambda x: 0.2 * x + 0.5),
    "less": (
        "s = Div(x, six) a = Sub(s, half) c = Clip(a, zero, three) y = Div(c, three)",
        lambda x: (x / 6 - 0.5) / 3,
    ),
}
STAYS = {
    "a ReLU6 that is moved": "a = Add(x, three) y = Clip(a, zero, six)",
    "another slope": "s = Mul(x, fifth) a = Add(s, half) c = Clip(a, zero, one) y = Mul(x, c)",
    "another end": "a = Add(x, three) c = Clip(a, one, six) m = Mul(x, c) y = Div(m, six)",
    "no offset": "c = Clip(x, zero, six) m = Mul(x, c) y = Div(m, six)",
    "a falling slope": "a = Sub(three, x) c = Clip(a, zero, six) y = Div(c, six)",
    "a vector": "a = Add(x, row) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
    "read twice": "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) s = Div(m, six) y = Add(s, c)",
}


def made(net: Any, text: str, opset: int = 17) -> Model:
    """The net, with those of the numbers that it names."""
    words = set("".join(c if c.isalnum() else " " for c in text).split())
    arrays = {name: np.array(n, np.float32) for name, n in NUMBERS.items() if name in words}
    if "row" in words:
        arrays["row"] = np.array([3, 3], np.float32)
    model: Model = net(f"(float[n,d] x) => (float[n,d] y) {{ {text} }}", opset=opset, **arrays)
    return model


def folded(model: Model) -> Model:
    return Model.of(fold.apply(model.clone()))


@pytest.mark.parametrize("case", SWISH)
def test_hard_swish_is_one_operator(net: Any, evaluate: Any, ops: Ops, case: str) -> None:
    model = made(net, SWISH[case])
    after = folded(model)
    assert ops(after) == {"HardSwish": 1}
    (got,) = evaluate(after, {"x": X})
    wide = X.astype(np.float64)
    np.testing.assert_allclose(got, wide * np.clip(wide / 6 + 0.5, 0, 1), rtol=0, atol=2e-6)
    assert folded(after).digest() == after.digest()


@pytest.mark.parametrize("case", GATES)
def test_hard_sigmoid_is_one_operator(net: Any, evaluate: Any, ops: Ops, case: str) -> None:
    text, line = GATES[case]
    after = folded(made(net, text))
    assert ops(after) == {"HardSigmoid": 1}
    np.testing.assert_allclose(
        evaluate(after, {"x": X})[0], np.clip(line(X.astype(np.float64)), 0, 1), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("case", STAYS)
def test_what_stays(net: Any, ops: Ops, case: str) -> None:
    model = made(net, STAYS[case])
    assert ops(folded(model)) == ops(model)


def test_opset_13_has_no_hard_swish(net: Any, ops: Ops) -> None:
    """HardSigmoid and Mul in its place would be slower on OpenVINO."""
    model = made(net, SWISH["Paddle's"], opset=13)
    assert ops(folded(model)) == ops(model)


def test_a_gate_of_something_else(net: Any, evaluate: Any, ops: Ops) -> None:
    model = made(net, "a = Add(x, three) c = Clip(a, zero, six) g = Div(c, six) o = Tanh(x) y = Mul(o, g)")
    after = folded(model)
    assert ops(after) == {"HardSigmoid": 1, "Tanh": 1, "Mul": 1}
    np.testing.assert_allclose(evaluate(after, {"x": X})[0], evaluate(model, {"x": X})[0], rtol=0, atol=1e-6)


def test_the_six_goes_into_the_layer_behind(net: Any, evaluate: Any, ops: Ops, weights: Any) -> None:
    """Where ÷ 6 was folded away already, and where it was not, the weights come out the same to 1e-6 of the largest."""
    text = "(float[n,6,8,8] x) => (float[n,4,6,6] y) { a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) %s }"
    numbers = {name: np.array(NUMBERS[name], np.float32) for name in ("zero", "three", "six")}
    plane = 4 * np.random.default_rng(0).standard_normal((2, 6, 8, 8)).astype(np.float32)
    w = weights(1, 4, 6, 3, 3)
    whole = net(text % "s = Div(m, six) y = Conv(s, w)", w=w, **numbers)
    parts = net(text % "y = Conv(m, w)", w=w / 6, **numbers)
    for model in (whole, parts):
        after = folded(model)
        assert ops(after) == {"HardSwish": 1, "Conv": 1}
        weight = after.ir.graph[1].inputs[1].const_value.numpy()  # type: ignore[union-attr]
        np.testing.assert_allclose(weight, w, rtol=0, atol=1e-6 * np.abs(w).max())
        (want,) = evaluate(model, {"x": plane})
        np.testing.assert_allclose(evaluate(after, {"x": plane})[0], want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_an_output_between_stays(net: Any, evaluate: Any, ops: Ops) -> None:
    text = "(float[n,d] x) => (float[n,d] y, float[n,d] c) { a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) "
    numbers = {name: np.array(NUMBERS[name], np.float32) for name in ("zero", "three", "six")}
    model = net(f"{text} y = Div(m, six) }}", **numbers)
    after = folded(model)
    assert ops(after) == ops(model) and after.outputs == model.outputs
