"""The layers' shares of the work, against counting by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgerun import registry
from edgerun.quantize import fold
from edgerun.quantize.graphs import placement, work
from edgerun.quantize.graphs.work import layers

RULES = registry.target("onnxruntime").quantization()
TEXT = """(float[n,8,6,6] x) => (float[n,5] y) {
    a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1) r = Relu(a) d = Conv<group=12>(r, w2) g = GlobalAveragePool(d)
    f = Flatten(g) y = Gemm<transB=1>(f, w3) }"""


def test_multiply_accumulates(net: Any, weights: Callable[..., np.ndarray]) -> None:
    model = net(TEXT, w1=weights(0, 12, 8, 3, 3), w2=weights(1, 12, 1, 1, 1), w3=weights(2, 5, 12))
    conv, depthwise, dense = 12 * 3 * 3 * 8 * 9, 12 * 3 * 3, 5 * 12
    total = conv + depthwise + dense
    expected = {"a": conv / total, "d": depthwise / total, "y": dense / total}
    assert layers(model, RULES) == pytest.approx(expected)
    rest = layers(model, RULES, frozenset({"a"}))
    assert rest == pytest.approx({"d": depthwise / (depthwise + dense), "y": dense / (depthwise + dense)})


def test_transposed_and_products_of_activations(net: Any, weights: Callable[..., np.ndarray]) -> None:
    text = """(float[1,8,6,6] x) => (float[1,4,12,12] y) { r = Relu(x)
        y = ConvTranspose<strides=[2,2], kernel_shape=[2,2]>(r, w) }"""
    rules = replace(RULES, compute=RULES.compute | {"ConvTranspose"}, pair_matmul=True)
    assert layers(net(text, w=weights(0, 8, 4, 2, 2)), rules) == {"y": 1.0}
    text = """(float[n,7,8] x) => (float[n,7,8] y) { q = MatMul(x, w) k = MatMul(x, w) t = Transpose<perm=[0,2,1]>(k)
        s = MatMul(q, t) y = MatMul(s, q) }"""
    dense, product = 7 * 8 * 8, 7 * 7 * 8
    counts = {"q": dense, "k": dense, "s": product}
    expected = {name: count / sum(counts.values()) for name, count in counts.items()}
    assert layers(net(text, w=weights(0, 8, 8)), rules) == pytest.approx(expected)


def test_first_and_depthwise_layers_within_a_share(net: Any, weights: Callable[..., np.ndarray]) -> None:
    text = """(float[n,8,6,6] x) => (float[n,8,6,6] y) { a = Conv<group=8>(x, w) b = Conv(a, v) c = Conv<group=8>(b, w)
        d = Conv<group=2>(c, u) e = Conv<group=8>(d, w) y = Conv(e, v) }"""
    model = net(text, w=weights(0, 8, 1, 1, 1), v=weights(1, 8, 8, 1, 1), u=weights(2, 8, 4, 1, 1))
    plan = placement.plan(fold.apply(model.clone()).graph, RULES)
    total = 3 * 1 + 2 * 8 + 4  # products per output
    assert work.stem(plan, 1 / total) == {"a"} and work.stem(plan, 0.9 / total) == frozenset()
    assert work.stem(plan, 9 / total) == {"a", "b"}
    assert work.depthwise(plan, 3 / total) == {"a", "c", "e"} and work.depthwise(plan, 2.5 / total) == {"a", "c"}


def test_recurrent_layers_are_layers(net: Any, weights: Callable[..., np.ndarray]) -> None:
    """W and R are read in each of 7 steps, a head once."""
    text = """(float[7,n,16] x) => (float[1,n,12] h) { s, h = LSTM<hidden_size=12>(x, w, r) }"""
    model = net(text, w=weights(0, 1, 48, 16), r=weights(1, 1, 48, 12))
    name = next(node.name for node in model.ir.graph)
    assert layers(model, RULES) == {} and layers(model, RULES, names=[name]) == {name: 1.0}
    (loop,) = model.ir.graph
    assert work._macs(loop) == 7 * 48 * (16 + 12)
