"""Folding: the outputs stay, BatchNorms go where that is exact and stay where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgerun.model import Model
from edgerun.quantize import fold

Ops = Callable[[Model], dict[str, int]]
PLANE = "(float[n,6,8,8] x) => (float[n,c,h,w] y)"


def folded(model: Model) -> Model:
    """A folded clone, its door as it was found."""
    return Model.of(fold.apply(model.clone()))


def same(evaluate: Any, before: Model, after: Model, **feeds: np.ndarray) -> None:
    """All outputs agree to 1e-5 of the largest value."""
    for want, got in zip(evaluate(before, feeds), evaluate(after, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max(initial=1e-30))


@pytest.fixture
def plane() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 6, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("layer", ["Conv<pads=[1,1,1,1]>(x, w)", "Conv<pads=[1,1,1,1]>(x, w, b)"])
def test_norm_into_the_convolution_before(
    net: Any, evaluate: Any, ops: Ops, weights: Any, norm: Any, plane: np.ndarray, layer: str, opset: int
) -> None:
    text = f"{PLANE} {{ c = {layer}\n n = BatchNormalization<epsilon=0.01>(c, g, o, m, v)\n y = Relu(n) }}"
    extra = {"b": weights(2, 4)} if "b)" in layer else {}
    model = net(text, opset=opset, w=weights(1, 4, 6, 3, 3), **norm(3, 4, negative=True), **extra)
    after = folded(model)
    assert ops(after) == {"Conv": 1, "Relu": 1}
    same(evaluate, model, after, x=plane)


@pytest.mark.parametrize(
    ("layer", "shape", "channels"),
    [
        ("Conv<group=3>", (9, 2, 3, 3), 9),
        ("Conv<group=6>", (12, 1, 3, 3), 12),
        ("ConvTranspose", (6, 5, 2, 2), 5),
        ("ConvTranspose<group=2, strides=[2,2]>", (6, 4, 3, 3), 8),
    ],
)
def test_norm_into_grouped_and_transposed(
    net: Any, evaluate: Any, ops: Ops, weights: Any, norm: Any, plane: np.ndarray, layer: str, shape: Any, channels: int
) -> None:
    text = f"{PLANE} {{ c = {layer}(x, w)\n y = BatchNormalization(c, g, o, m, v) }}"
    model = net(text, w=weights(1, *shape), **norm(3, channels))
    after = folded(model)
    assert "BatchNormalization" not in ops(after)
    same(evaluate, model, after, x=plane)


@pytest.mark.parametrize(("transposed", "bias"), [(0, "b"), (1, "b"), (1, "row"), (0, "scalar"), (0, None)])
def test_norm_into_gemm(
    net: Any, evaluate: Any, ops: Ops, weights: Any, norm: Any, transposed: int, bias: str | None
) -> None:
    """The bias may be [N], [1, N], a scalar or absent."""
    biases = {"b": weights(2, 5), "row": weights(2, 5)[None], "scalar": np.float32(0.7)}
    third = {"b": biases[bias]} if bias else {}
    text = f"(float[n,6] x) => (float[n,5] y) {{ c = Gemm<transB={transposed}>(x, w{', b' if bias else ''})\n"
    text += " y = BatchNormalization(c, g, o, m, v) }"
    model = net(text, w=weights(1, *((5, 6) if transposed else (6, 5))), **norm(3, 5), **third)
    after = folded(model)
    assert ops(after) == {"Gemm": 1}
    same(evaluate, model, after, x=np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32))


def test_norm_onward_through_the_pool(
    net: Any, evaluate: Any, ops: Ops, weights: Any, norm: Any, plane: np.ndarray
) -> None:
    """Conv, Relu, BatchNorm, MaxPool, Conv: the norm goes into the second Conv."""
    text = f"""{PLANE} {{ c = Conv(x, w) r = Relu(c) n = BatchNormalization(r, g, o, m, v)
        p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(n) y = Conv(p, w2, b2) }}"""
    parts = {"w": weights(1, 4, 6, 3, 3), "w2": weights(2, 5, 4, 2, 2), "b2": weights(4, 5)}
    model = net(text, **parts, **norm(3, 4))
    after = folded(model)
    assert ops(after) == {"Conv": 2, "Relu": 1, "MaxPool": 1}
    same(evaluate, model, after, x=plane)


def test_norm_onward_through_pooling_and_flatten_into_gemm(
    net: Any, evaluate: Any, ops: Ops, weights: Any, norm: Any
) -> None:
    text = """(float[n,6,1,1] x) => (float[n,4] y) { r = Relu(x) n = BatchNormalization(r, g, o, m, v)
        f = Flatten(n) y = Gemm(f, w, b) }"""
    model = net(text, w=weights(1, 6, 4), b=weights(2, 4), **norm(3, 6, negative=True))
    after = folded(model)
    assert ops(after) == {"Relu": 1, "Flatten": 1, "Gemm": 1}
    same(evaluate, model, after, x=np.random.default_rng(1).standard_normal((4, 6, 1, 1)).astype(np.float32))


KEPT = {
    "a negative gain before MaxPool": "r = Relu(x) n = BatchNormalization(r, g, o, m, v)"
    " p = MaxPool<kernel_shape=[2,2]>(n) y = Conv(p, w)",
    "a padded convolution behind": "r = Relu(x) n = BatchNormalization(r, g, o, m, v) y = Conv<pads=[1,1,1,1]>(n, w)",
    "automatic padding behind": "r = Relu(x) n = BatchNormalization(r, g, o, m, v)"
    ' y = Conv<auto_pad="SAME_UPPER">(n, w)',
    "a padded pool between": "r = Relu(x) n = BatchNormalization(r, g, o, m, v)"
    " p = MaxPool<kernel_shape=[2,2], pads=[1,1,1,1]>(n) y = Conv(p, w)",
    "two readers": "r = Relu(x) n = BatchNormalization(r, g, o, m, v) a = Conv(n, w) b = Conv(n, w) y = Add(a, b)",
    "something between": "r = Relu(x) n = BatchNormalization(r, g, o, m, v) s = Sigmoid(n) y = Conv(s, w)",
    "a convolution that is read twice": "c = Conv(x, w6) n = BatchNormalization(c, g, o, m, v) y = Add(c, n)",
    "transposed input": "r = Relu(x) n = BatchNormalization(r, g, o, m, v)"
    " t = Transpose<perm=[0,1,3,2]>(n) y = Conv<pads=[1,1,1,1]>(t, w)",
}


@pytest.mark.parametrize("case", KEPT)
def test_norm_stays(net: Any, evaluate: Any, ops: Ops, weights: Any, norm: Any, plane: np.ndarray, case: str) -> None:
    """Where folding would not be exact, nothing is folded and nothing changes."""
    parts = {"w": weights(1, 4, 6, 3, 3), "w6": weights(2, 6, 6, 1, 1)}
    used = {key: value for key, value in parts.items() if f", {key})" in KEPT[case]}
    model = net(f"{PLANE} {{ {KEPT[case]} }}", **used, **norm(3, 6, negative=True))
    after = folded(model)
    assert ops(after)["BatchNormalization"] == 1
    same(evaluate, model, after, x=plane)


def test_a_graph_output_between_stays_what_it_was(
    net: Any, evaluate: Any, ops: Ops, weights: Any, norm: Any, plane: np.ndarray
) -> None:
    """Conv (an output) → BatchNorm: both values must come out."""
    text = "(float[n,6,8,8] x) => (float[n,6,8,8] c, float[n,6,8,8] y)"
    model = net(
        f"{text} {{ c = Conv(x, w) y = BatchNormalization(c, g, o, m, v) }}", w=weights(1, 6, 6, 1, 1), **norm(3, 6)
    )
    after = folded(model)
    assert ops(after) == {"Conv": 1, "BatchNormalization": 1}
    assert (after.inputs, after.outputs) == (model.inputs, model.outputs)
    same(evaluate, model, after, x=plane)


def test_a_norm_at_the_door_keeps_the_outputs_name(
    net: Any, evaluate: Any, weights: Any, norm: Any, plane: np.ndarray
) -> None:
    model = net(
        "(float[n,6,8,8] x) => (float[n,6,8,8] y) { c = Conv(x, w) y = BatchNormalization(c, g, o, m, v) }",
        w=weights(1, 6, 6, 1, 1), **norm(3, 6),
    )  # fmt: skip
    after = folded(model)
    assert after.outputs == model.outputs
    same(evaluate, model, after, x=plane)


def test_shared_weights_are_folded_apart(
    net: Any, evaluate: Any, ops: Ops, weights: Any, norm: Any, plane: np.ndarray
) -> None:
    """Two convolutions share weight and bias, only one has a norm behind it."""
    text = f"{PLANE} {{ a = Conv(x, w, b) n = BatchNormalization(a, g, o, m, v) c = Conv(n, w, b) y = Relu(c) }}"
    model = net(text, w=weights(1, 6, 6, 1, 1), b=weights(2, 6), **norm(3, 6))
    after = folded(model)
    assert ops(after) == {"Conv": 2, "Relu": 1}
    same(evaluate, model, after, x=plane)


def test_equal_initializers_and_constants(net: Any, evaluate: Any, ops: Ops, weights: Any, plane: np.ndarray) -> None:
    """Twice the same array under two names, a Constant node, and a subgraph of constants that folds to one."""
    text = f"""{PLANE} {{ k = Constant<value_float=0.5>() t = Add(k, k) a = Conv(x, w) b = Conv(x, w2)
        s = Add(a, b) y = Mul(s, t) }}"""
    model = net(text, w=weights(1, 4, 6, 3, 3), w2=weights(1, 4, 6, 3, 3))
    after = folded(model)
    assert ops(after) == {"Conv": 2, "Add": 1, "Mul": 1}
    same(evaluate, model, after, x=plane)


BRANCHES = """(float[n,6,8,8] x, bool k) => (float[n,c,h,w] y) {
    c = Conv(x, w)
    y = If(k) <
        then_branch = yes () => (float[n,6,8,8] t) { t = BatchNormalization(c, g, o, m, v) },
        else_branch = no () => (float[n,6,8,8] e) { e = Relu(c) }
    >
}"""


@pytest.mark.parametrize("answer", [True, False])
def test_branches_see_the_values_around_them(
    net: Any, evaluate: Any, weights: Any, norm: Any, plane: np.ndarray, answer: bool
) -> None:
    """A norm inside a branch reads a Conv outside, whose value the other branch reads too: nothing may be folded."""
    model = net(BRANCHES, w=weights(1, 6, 6, 1, 1), **norm(3, 6))
    same(evaluate, model, folded(model), x=plane, k=np.array(answer))


def test_twice_is_once(net: Any, weights: Any, norm: Any) -> None:
    """Folding a folded model changes nothing, and two folds of one model are equal."""
    text = f"{PLANE} {{ c = Conv(x, w) r = Relu(c) n = BatchNormalization(r, g, o, m, v) y = Conv(n, w2) }}"
    model = net(text, w=weights(1, 6, 6, 3, 3), w2=weights(2, 4, 6, 1, 1), **norm(3, 6))
    once = folded(model)
    assert once.digest() == folded(model).digest() == folded(once).digest()


AFFINE = {
    "a number behind": ("c = Conv(x, w, b) m = Mul(s, c) y = Add(m, t)", {"Conv": 1}),
    "a row behind": ("c = Conv(x, w) m = Mul(c, row) a = Sub(m, row) y = Div(a, s)", {"Conv": 1}),
    "behind a product": ("f = GlobalAveragePool(x) p = Flatten(f) g = Gemm<transB=1>(p, fc, fb) a = Mul(g, s) "
                         "y = Add(a, fb)", {"GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}),
    "in front": ("r = Relu(x) m = Mul(r, s) a = Add(m, t) y = Conv(a, w, b)", {"Relu": 1, "Conv": 1}),
    "in front of padding": ("r = Relu(x) m = Mul(r, s) a = Add(m, t) y = Conv<pads=[1,1,1,1]>(a, w, b)",
                            {"Relu": 1, "Add": 1, "Conv": 1}),
    "read twice": ("c = Conv(x, w, b) m = Mul(c, s) y = Add(m, c)", {"Conv": 1, "Mul": 1, "Add": 1}),
    "a picture": ("c = Conv<pads=[1,1,1,1]>(x, w, b) y = Add(c, wide)", {"Conv": 1, "Add": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", AFFINE)
def test_numbers_and_rows_into_the_layers_next_to_them(
    net: Any, evaluate: Any, ops: Ops, weights: Any, plane: np.ndarray, case: str
) -> None:
    """Products and sums with one number, or one per channel, are gone where that is exact."""
    text, wanted = AFFINE[case]
    given = {"w": weights(1, 6, 6, 3, 3), "b": weights(2, 6), "s": np.array(-1.5, np.float32), "t": weights(3, 1),
             "row": np.abs(weights(4, 1, 6, 1, 1)) + 1, "fc": weights(5, 6, 6), "fb": weights(6, 6),
             "wide": weights(7, 1, 6, 8, 8)}  # fmt: skip
    words = set("".join(c if c.isalnum() else " " for c in text).split())
    door = "(float[n,6,8,8] x) => (float[n,c] y)" if "Gemm" in text else PLANE
    model = net(f"{door} {{ {text} }}", **{name: array for name, array in given.items() if name in words})
    after = folded(model)
    assert ops(after) == wanted
    same(evaluate, model, after, x=plane)


GATED = f"{PLANE} {{ p = GlobalAveragePool(x) g = HardSigmoid(p) %s }}"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("s = Mul(x, g) y = Add(x, s)", {"Mul": 1, "Add": 1}),
        ("s = Mul(g, x) y = Add(s, x)", {"Mul": 1, "Add": 1}),
        ("s = Mul(x, g) t = Add(x, s) r = Relu(t) q = Sigmoid(t) y = Add(r, q)", {"Mul": 1, "Add": 2}),
    ],
)
def test_a_gate_and_what_it_is_added_to_are_one_product(
    net: Any, evaluate: Any, ops: Ops, plane: np.ndarray, text: str, left: dict[str, int]
) -> None:
    """x + x·g is x·(1 + g): the sum that is left is of one number per channel."""
    model = net(GATED % text)
    after = folded(model)
    assert {op: ops(after)[op] for op in left} == left
    sums = [node for node in after.ir.graph if node.op_type == "Add"]
    assert list(sums[0].outputs[0].shape or ())[2:] == [1, 1]
    assert [value.name for value in after.ir.graph.outputs] == ["y"]
    same(evaluate, model, after, x=plane)


@pytest.mark.parametrize(
    "text",
    [
        "s = Mul(x, g) t = Add(x, s) y = Mul(s, t)",  # the product is read elsewhere
        "r = Relu(x) s = Mul(r, g) y = Add(x, s)",  # another value is added
        "n = Relu(x) s = Mul(x, n) t = Add(x, s) y = Mul(t, g)",  # no gate
        "s = Mul(p, g) t = Add(p, s) y = Mul(x, t)",  # a few numbers all along
    ],
)
def test_other_sums_with_products_stay(net: Any, evaluate: Any, ops: Ops, plane: np.ndarray, text: str) -> None:
    model = net(GATED % text)
    after = folded(model)
    assert ops(after) == ops(model)
    same(evaluate, model, after, x=plane)
