"""The layers' shares of the work, against counting by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgerun import registry
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
