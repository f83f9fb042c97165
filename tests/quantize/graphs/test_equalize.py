"""Equalization: whatever factors it chooses, the outputs stay; what cannot be rescaled is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgerun.model import Model
from edgerun.quantize import fold
from edgerun.quantize.graphs import equalize
from edgerun.quantize.graphs.activation import Channels

DOOR = "(float[n,8,6,6] x) => (float[n,p,q,r] y)"
FLAT = "(float[n,8,6,6] x) => (float[n,p] y)"


def rescaled(model: Model, *, spread: float = 3.0) -> tuple[Model, Model, dict[str, float]]:
    """The folded model, an equalized clone of it, and what was changed; ranges are made up, over e^±spread."""
    before = Model.of(fold.apply(model.clone()))
    graph = before.clone()
    chains = equalize.chains(graph.graph)
    generator = np.random.default_rng(5)
    seen: dict[str, Channels] = {}
    for chain in chains:
        every = np.exp(generator.uniform(-spread, spread, chain.channels))
        for value, places in chain.values.items():
            own = every[places]
            seen[str(value.name)] = Channels(-own[None], own[None], own**2 / 3)
    changed, gains, factors = equalize.equalize(graph.graph, chains, seen)
    assert all((f > 0).all() and np.isfinite(f).all() for f in factors.values()) and changed.keys() <= factors.keys()
    assert len(gains) == len(changed) and all(gain > 0 for gain in gains), "what is changed has the least noise"
    fold.infer_shapes(graph)
    return before, Model.of(graph), changed


def same(evaluate: Any, before: Model, after: Model, shape: tuple[int, ...] = (3, 8, 6, 6)) -> None:
    """Equal to 2e-6 of the largest value: float rounding alone."""
    feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    for want, got in zip(evaluate(before, feeds), evaluate(after, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


CHANGED = {
    "Relu": (DOOR, "a = Conv(x, w, b) r = Relu(a) y = Conv(r, w2, b2)"),
    "nothing between": (DOOR, "a = Conv(x, w, b) y = Conv(a, w2)"),
    "LeakyRelu": (DOOR, "a = Conv(x, w, b) r = LeakyRelu(a) y = Conv(r, w2)"),
    "MaxPool": (
        DOOR,
        "a = Conv(x, w, b) r = Relu(a) p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(r)"
        " y = Conv(p, w2)",
    ),
    "AveragePool": (
        DOOR,
        "a = Conv(x, w) p = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1>(a) y = Conv(p, w2)",
    ),
    "depthwise": (
        DOOR,
        "a = Conv(x, w, b) r = Relu(a) d = Conv<group=8, pads=[1,1,1,1]>(r, dw, b2) s = Relu(d) y = Conv(s, w2)",
    ),
    "depthwise multiplier": (DOOR, "a = Conv(x, w, b) r = Relu(a) y = Conv<group=8>(r, dm)"),
    "grouped": (DOOR, "a = Conv(x, w, b) r = Relu(a) y = Conv<group=2>(r, gw)"),
    "residual": (
        DOOR,
        "a = Conv(x, w, b) r = Relu(a) c = Conv(r, w2, b2) s = Add(r, c) t = Relu(s) y = Conv(t, w3)",
    ),
    "two readers": (DOOR, "a = Conv(x, w, b) r = Relu(a) c = Conv(r, w2) d = Conv(r, w3, b2) y = Add(c, d)"),
    "shared weights": (DOOR, "a = Conv(x, w, b) r = Relu(a) c = Conv(r, w, b) s = Relu(c) y = Conv(s, w, b)"),
    "pooled to a vector": (
        FLAT,
        "a = Conv(x, w, b) r = Relu(a) g = GlobalAveragePool(r) f = Flatten(g) y = Gemm<transB=1>(f, m)",
    ),
    "mean to a vector": (
        FLAT,
        "a = Conv(x, w, b) r = Relu(a) g = ReduceMean<axes=[2,3], keepdims=0>(r) y = Gemm(g, m)",
    ),
    "Gemm to Gemm": (
        FLAT,
        "g = GlobalMaxPool(x) f = Flatten(g) c = Gemm<transB=1>(f, m, b) r = Relu(c) y = Gemm(r, m, b2)",
    ),
    "side by side": (
        DOOR, "a = Conv(x, w, b) r = Relu(a) c = Conv(x, w2) j = Concat<axis=1>(r, c) k = Relu(j) y = Conv(k, wide)",
    ),
    "side by side, and read alone": (
        DOOR,
        "a = Conv(x, w, b) r = Relu(a) c = Conv(r, w2) j = Concat<axis=-3>(c, r) d = Conv(j, wide) e = Conv(r, w3)"
        " y = Add(d, e)",
    ),
    "twice itself": (DOOR, "a = Conv(x, w, b) j = Concat<axis=1>(a, a) y = Conv(j, wide)"),
    "added to two side by side": (
        DOOR,
        "a = Conv(x, w, b) c = Conv(x, w2) j = Concat<axis=1>(a, c) k = Conv(x, tall) s = Add(j, k) y = Conv(s, wide)",
    ),
    "joined one by one": (
        DOOR,
        "a = Conv(x, w, b) c = Conv(a, w2) j = Concat<axis=1>(a, c) d = Conv(j, wide, b2) i = Concat<axis=1>(j, d)"
        " y = Conv(i, wider)",
    ),
    "scalar Gemm bias": (FLAT, "g = GlobalMaxPool(x) f = Flatten(g) c = Gemm(f, m, one) r = Relu(c) y = Gemm(r, m)"),
}  # fmt: skip


@pytest.fixture
def parts(weights: Any) -> dict[str, np.ndarray]:
    """Arrays for every case, by the names that the cases use."""
    return {
        "w": weights(1, 8, 8, 1, 1), "w2": weights(2, 8, 8, 1, 1), "w3": weights(3, 8, 8, 1, 1), "b": weights(4, 8),
        "b2": weights(5, 8), "dw": weights(6, 8, 1, 3, 3), "dm": weights(7, 16, 1, 3, 3), "gw": weights(8, 6, 4, 3, 3),
        "m": weights(9, 8, 8), "six": np.array(0.6, np.float32), "zero": np.array(0, np.float32),
        "one": np.array(0.3, np.float32), "plane": weights(10, 1, 8, 6, 6),
        "wide": weights(13, 8, 16, 1, 1), "tall": weights(14, 16, 8, 1, 1), "wider": weights(15, 8, 24, 1, 1),
    }  # fmt: skip


def used(parts: dict[str, np.ndarray], text: str) -> dict[str, np.ndarray]:
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: array for name, array in parts.items() if name in words}


@pytest.mark.parametrize("case", CHANGED)
def test_outputs_stay(net: Any, evaluate: Any, parts: dict[str, np.ndarray], case: str) -> None:
    door, text = CHANGED[case]
    before, after, changed = rescaled(net(f"{door} {{ {text} }}", **used(parts, text)))
    assert changed and all(exponent in (0.25, 0.5, 0.75, 1.0) for exponent in changed.values())
    moved = [v.const_value for n, v in after.ir.graph.initializers.items() if n in before.ir.graph.initializers]
    kept = [v.const_value for n, v in before.ir.graph.initializers.items() if n in after.ir.graph.initializers]
    assert any(not np.array_equal(a.numpy(), b.numpy()) for a, b in zip(moved, kept, strict=True) if a and b)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    same(evaluate, before, after)


def test_a_clip_becomes_a_cap_for_each_channel(net: Any, evaluate: Any, ops: Any, parts: dict[str, np.ndarray]) -> None:
    text = "a = Conv(x, w, b) r = Clip(a, zero, six) d = Conv<group=8>(r, dw) s = Clip(d, zero, six) y = Conv(s, w2)"
    before, after, changed = rescaled(net(f"{DOOR} {{ {text} }}", **used(parts, text)))
    assert len(changed) == 2 and ops(before)["Clip"] == 2
    assert ops(after) == {"Conv": 3, "Relu": 2, "Min": 2}
    caps = [after.ir.graph.initializers[str(n.inputs[1].name)] for n in after.ir.graph if n.op_type == "Min"]  # type: ignore[union-attr]
    assert all(cap.const_value is not None and cap.const_value.numpy().shape == (8, 1, 1) for cap in caps)
    same(evaluate, before, after)


LEFT = {
    "the value is a graph output": ("(float[n,8,6,6] x) => (float[n,8,6,6] r, float[n,8,6,6] y)",
                                    "a = Conv(x, w) r = Relu(a) y = Conv(r, w2)"),
    "Sigmoid between": (DOOR, "a = Conv(x, w) s = Sigmoid(a) y = Conv(s, w2)"),
    "Concat of samples": (DOOR, "a = Conv(x, w) k = Conv(x, w2) c = Concat<axis=0>(a, k) y = Conv(c, w3)"),
    "two joined in both orders": (
        DOOR, "a = Conv(x, w) k = Conv(x, w2) c = Concat<axis=1>(a, k) d = Concat<axis=1>(k, a) e = Add(c, d)"
              " y = Conv(e, wide)"),
    "joined with an input": (DOOR, "a = Conv(x, w) c = Concat<axis=1>(a, x) y = Conv(c, wide)"),
    "added to an input": (DOOR, "a = Conv(x, w) s = Add(a, x) y = Conv(s, w2)"),
    "added to a constant": (DOOR, "a = Conv(x, w) s = Add(a, plane) y = Conv(s, w2)"),
    "read by something else too": (DOOR, "a = Conv(x, w) r = Relu(a) s = Sigmoid(r) c = Conv(r, w2) y = Add(c, s)"),
    "Clip from below zero": (DOOR, "a = Conv(x, w) n = Neg(six) "
                                   "r = Clip(a, n, six) y = Conv(r, w2)"),
    "positions become features": (FLAT, "a = Conv(x, w) f = Flatten(a) y = Gemm(f, flat)"),
    "no layer behind": (DOOR, "a = Conv(x, w) y = Relu(a)"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_what_cannot_be_rescaled_is_left_alone(net: Any, weights: Any, parts: dict[str, np.ndarray], case: str) -> None:
    door, text = LEFT[case]
    arrays = used({**parts, "flat": weights(12, 288, 4)}, text)
    before, after, changed = rescaled(net(f"{door} {{ {text} }}", **arrays))
    assert changed == {} and after.digest() == before.digest()


def test_even_ranges_change_nothing(net: Any, parts: dict[str, np.ndarray]) -> None:
    _, text = CHANGED["Relu"]
    before, after, changed = rescaled(net(f"{DOOR} {{ {text} }}", **used(parts, text)), spread=0.0)
    assert changed == {} and after.digest() == before.digest()


def test_a_layer_with_a_computed_weight_is_no_writer(net: Any, parts: dict[str, np.ndarray]) -> None:
    text = "a = Conv(x, k) r = Relu(a) y = Conv(r, w2)"
    model = net(f"(float[n,8,6,6] x, float[8,8,1,1] k) => (float[n,p,q,r] y) {{ {text} }}", **used(parts, text))
    _, _, changed = rescaled(model)
    assert changed == {}
