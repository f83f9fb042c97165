"""Flattening: the same numbers from rank-2 Gemms; what is no row-wise region stays."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest

from edgerun import registry
from edgerun.model import Model
from edgerun.quantize import fold
from edgerun.quantize.graphs import edit, flatten

DOOR = "(float[n,l,8] x) => (float[n,l,8] y)"
RULES = dataclasses.replace(registry.target("reference").quantization(), flat_rows=True)
CASES = {
    "a product alone": (DOOR, "y = MatMul(x, m)", 1),
    "with a bias": (DOOR, "a = MatMul(x, m) y = Add(b, a)", 1),
    "the product is read twice": (DOOR, "a = MatMul(x, m) c = Add(a, b) y = Mul(a, c)", 1),
    "the product is an output": ("(float[n,l,8] x) => (float[n,l,8] a, float[n,l,8] y)",
                                 "a = MatMul(x, m) y = Add(a, b)", 1),
    "perceptron": (DOOR, "a = MatMul(x, m) c = Add(a, b) r = Relu(c) d = MatMul(r, m2) y = Add(d, b)", 2),
    "residual and norm": (DOOR, "a = MatMul(x, m) c = Add(a, b) s = Add(c, x) y = LayerNormalization(s, g, b)", 1),
    "another axis is normed": (DOOR, "a = MatMul(x, m) y = Softmax<axis=1>(a)", 1),
    "broadcast over positions": ("(float[n,l,8] x, float[n,1,8] k) => (float[n,l,8] y)",
                                 "a = MatMul(x, m) y = Add(a, k)", 1),
    "a matrix is added": ("(float[n,4,8] x) => (float[n,4,8] y)", "a = MatMul(x, m) y = Add(a, places)", 1),
    "heads": ("(float[n,4,8] x) => (float[n,4,8] y)",
              "a = MatMul(x, m) h = Reshape(a, heads) t = Transpose<perm=[0,2,1,3]>(h)"
              " s = Transpose<perm=[0,2,1,3]>(t) j = Reshape(s, joined) y = MatMul(j, m2)", 2),
    "rows before the product": (DOOR, "r = Reshape(x, rows) p = MatMul(r, m) h = Reshape(p, joined) a = MatMul(x, m2)"
                                " y = Add(a, h)", 1),
    "rows of a layer before the product": (
        DOOR, "t = Softmax<axis=1>(x) r = Reshape(t, rows) p = MatMul(r, m) h = Reshape(p, joined) a = MatMul(t, m2)"
        " y = Add(a, h)", 1),
    "sizes copied by place": ("(float[n,l,8] x) => (float[n,l,2,4] y)", "a = MatMul(x, m) y = Reshape(a, copied)", 1),
    "four axes": ("(float[n,2,3,8] x) => (float[n,2,3,8] y)", "a = MatMul(x, m) y = Add(a, b)", 1),
    "fixed sizes": ("(float[2,3,8] x) => (float[2,3,8] y)", "a = MatMul(x, m) y = Relu(a)", 1),
    "two axes already": ("(float[n,8] x) => (float[n,8] y)", "y = MatMul(x, m)", 0),
    "two activations": (DOOR, "t = Transpose<perm=[0,2,1]>(x) a = MatMul(x, t) y = MatMul(a, x)", 0),
}  # fmt: skip
SHAPES = {"x": (2, 4, 8), "k": (2, 1, 8)}
SPECIAL = {"four axes": (2, 2, 3, 8), "fixed sizes": (2, 3, 8), "two axes already": (5, 8)}


@pytest.fixture
def parts(weights: Any) -> dict[str, np.ndarray]:
    """Arrays by the names that the cases use."""
    return {
        "m": weights(1, 8, 8), "m2": weights(2, 8, 8), "b": weights(3, 8), "g": weights(4, 8),
        "places": weights(5, 4, 8),
        "heads": np.array([-1, 4, 2, 4]), "joined": np.array([-1, 4, 8]), "rows": np.array([-1, 8]),
        "copied": np.array([0, 0, 2, 4]),
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("opset", [13, 20])
def test_outputs_stay(net: Any, evaluate: Any, ops: Any, parts: dict[str, np.ndarray], case: str, opset: int) -> None:
    door, text, products = CASES[case]
    if "LayerNormalization" in text and opset < 17:
        pytest.skip("LayerNormalization came with opset 17")
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    arrays = {name: array for name, array in parts.items() if name in words}
    before = Model.of(fold.apply(net(f"{door} {{ {text} }}", opset=opset, **arrays).clone()))
    graph = before.clone()
    assert flatten.apply(graph.graph, RULES) == products
    edit.drop_unused(graph)
    fold.infer_shapes(graph)
    after = Model.of(graph)
    onnx.checker.check_model(after.to_proto(), full_check=True)
    assert [(o.name, o.dtype, len(o.shape)) for o in after.outputs] == [
        (o.name, o.dtype, len(o.shape)) for o in before.outputs
    ]
    assert all(len(n.outputs[0].shape or ()) == 2 for n in graph.graph if n.op_type == "Gemm")
    generator = np.random.default_rng(0)
    feeds = {
        spec.name: generator.standard_normal(SPECIAL.get(case, SHAPES[spec.name])).astype(np.float32)
        for spec in before.inputs
    }
    for want, got in zip(evaluate(before, feeds), evaluate(after, feeds), strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_one_reshape_in_and_one_out(net: Any, ops: Any, parts: dict[str, np.ndarray]) -> None:
    text = (
        "a = MatMul(x, m) c = Add(a, b) s = Add(c, x) t = LayerNormalization(s, g, b) d = MatMul(t, m2)"
        " e = Add(d, b) r = Gelu(e) k = MatMul(r, m) f = Add(k, b) y = Add(f, t)"
    )
    arrays = {name: parts[name] for name in ("m", "m2", "b", "g")}
    graph = fold.apply(net(f"{DOOR} {{ {text} }}", opset=20, **arrays).clone())
    names = {n.name for n in graph.graph if n.op_type == "MatMul"}
    assert flatten.apply(graph.graph, RULES) == 3
    edit.drop_unused(graph)
    found = ops(Model.of(graph))
    # The leading sizes are not known, so the way back takes Shape, Slice and Concat.
    assert found == {
        "Reshape": 2, "Gemm": 3, "Add": 2, "LayerNormalization": 1, "Gelu": 1, "Shape": 1, "Slice": 1, "Concat": 1
    }  # fmt: skip
    # Whoever keeps a layer in float names the product, and it is still there.
    assert {n.name for n in graph.graph if n.op_type == "Gemm"} == names


def test_a_target_that_does_not_want_it_gets_nothing(net: Any, parts: dict[str, np.ndarray]) -> None:
    graph = fold.apply(net(f"{DOOR} {{ y = MatMul(x, m) }}", m=parts["m"]).clone())
    assert flatten.apply(graph.graph, dataclasses.replace(RULES, flat_rows=False)) == 0
