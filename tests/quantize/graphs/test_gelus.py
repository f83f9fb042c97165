"""GELU's tanh form is one operator on ONNX Runtime, however a file brackets it, and nothing else is taken for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.quantize import fold
from edgerun.quantize.graphs import gelus
from edgerun.verbs.compress import compress

HEAD = "(float[n,8] x) => (float[n,8] y) { a = Relu(x) %s }"
CONSTANTS = {"k": 0.044715, "r": math.sqrt(2 / math.pi), "one": 1.0, "half": 0.5, "two": 2.0, "three": 3.0,
             "rk": math.sqrt(2 / math.pi) * 0.044715, "other": 0.05}  # fmt: skip
FLAX = "b = Mul(k, a) c = Mul(a, b) d = Mul(a, c) e = Add(a, d) f = Mul(r, e) t = Tanh(f) g = Add(one, t)"
BERT = "c = Pow(a, three) d = Mul(c, k) e = Add(a, d) f = Mul(e, r) t = Tanh(f) g = Add(t, one)"
SQUARE = "c = Mul(a, a) d = Mul(c, rk) e = Add(d, r) f = Mul(e, a) t = Tanh(f) g = Add(t, one)"


def joined(net: Any, text: str) -> tuple[Model, Model, int]:
    used = {name: np.float32(value) for name, value in CONSTANTS.items() if name in text}
    model = net(HEAD % text, **used)
    made = fold.apply(model.ir.clone())
    count = gelus.join(made)
    return model, Model.of(made), count


@pytest.mark.parametrize("inner", [FLAX, BERT, SQUARE], ids=["flax", "bert", "square"])
@pytest.mark.parametrize(
    "outer",
    ["h = Mul(half, g) y = Mul(a, h)", "h = Mul(a, half) y = Mul(g, h)", "h = Mul(a, g) y = Mul(h, half)",
     "h = Div(a, two) y = Mul(h, g)"],
    ids=["half within", "half of x", "half at last", "divided"],
)  # fmt: skip
def test_pieces_are_one(
    net: Any, evaluate: Any, ops: Callable[[Model], dict[str, int]], inner: str, outer: str
) -> None:
    model, made, count = joined(net, f"{inner} {outer}")
    assert count == 1 and ops(made) == {"Relu": 1, "FastGelu": 1}
    x = np.random.default_rng(0).normal(0, 4, (50, 8)).astype(np.float32)
    (wanted,), (found,) = (evaluate(one, {"x": x}) for one in (model, made))
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6)
    assert made.outputs == model.outputs


@pytest.mark.parametrize(
    "text",
    [
        FLAX.replace("(k, a)", "(other, a)") + " h = Mul(half, g) y = Mul(a, h)",
        FLAX + " y = Mul(a, g)",
        FLAX + " h = Mul(half, g) y = Mul(x, h)",
        FLAX.replace("Add(one, t)", "Sub(one, t)") + " h = Mul(half, g) y = Mul(a, h)",
        FLAX + " h = Mul(half, g) i = Mul(a, h) y = Add(i, t)",
        "t = Tanh(a) g = Add(t, one) h = Mul(g, half) y = Mul(h, a)",
    ],
    ids=["another cube", "no half", "another x", "one less", "tanh read elsewhere", "no cube"],
)
def test_what_is_none(net: Any, text: str) -> None:
    _, made, count = joined(net, text)
    assert count == 0 and any(node.op_type == "Tanh" for node in made.ir.graph)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_dynamic", "w8a16"])
def test_compressed_models_have_it_on_onnx_runtime(net: Any, evaluate: Any, scheme: str) -> None:
    """Beside layers on integers or in 8 bits; on OpenVINO the pieces stay, which it joins by itself."""
    w = np.random.default_rng(0).standard_normal((2, 32, 32)).astype(np.float32) / 6
    used = {name: np.float32(value) for name, value in CONSTANTS.items() if name in ("k", "r", "one", "half")}
    text = f"a = MatMul(x, w) {FLAX} h = Mul(half, g) i = Mul(a, h) y = MatMul(i, v)"
    model = net(f"(float[n,32] x) => (float[n,32] y) {{ {text} }}", w=w[0], v=w[1], **used)
    x = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
    options: dict[str, Any] = {"scheme": scheme, "calibration": {"x": x}}
    if scheme != "w8a16":
        options["placement"] = "rules"
    made = compress(model, **options)
    assert sum(node.op_type == "FastGelu" for node in made.ir.graph) == 1
    (wanted,), (found,) = (evaluate(one, {"x": x}) for one in (model, made))
    assert sqnr_db(wanted, found) > 25
    there = compress(model, target="openvino", **options)
    assert not any(node.op_type == "FastGelu" for node in there.ir.graph)
