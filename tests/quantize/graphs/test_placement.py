"""Where Q/DQ stand: read off small graphs, for rules written here (a target's are data of the same kind)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgerun import quantize
from edgerun.data import open_data
from edgerun.passes import Quantization
from edgerun.quantize import fold
from edgerun.quantize.graphs import placement

RULES = Quantization(
    schemes=("w8a8",),
    compute=frozenset({"Conv", "Gemm", "MatMul"}),
    through=frozenset({"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"}),
    join=frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu"}),
    absorbed=frozenset({"Relu", "Clip", "Max", "Min"}),
    float_output=frozenset({"Gemm", "MatMul"}),
)
WRITES_FLOAT = replace(RULES, float_output=frozenset({"Conv", "Gemm", "MatMul"}))
PAIRS = replace(RULES, pair_matmul=True)
SUMS_INSIDE = replace(WRITES_FLOAT, fused_sum=True)
SPLITS = replace(RULES, through=RULES.through | {"Split", "Resize"}, join=RULES.join | {"Sigmoid"})
DOOR = "(float[n,8,8,8] x) => (float[n,p,q,r] y)"
FLAT = "(float[n,8] x) => (float[n,p] y)"

# rules, door, graph; then the points in their scale groups, the integer nodes, and the activations absorbed.
CASES: dict[str, tuple[Quantization, str, str, str, str, str]] = {
    "conv relu conv": (RULES, DOOR, "a = Conv(x, w) r = Relu(a) y = Conv(r, w)", "x r y", "a y", "r"),
    "a last conv may write float": (WRITES_FLOAT, DOOR, "a = Conv(x, w) r = Relu(a) y = Conv(r, w)", "x r", "a y", "r"),
    "relu6": (RULES, DOOR, "a = Conv(x, w) r = Clip(a, zero, six) y = Conv(r, w)", "x r y", "a y", "r"),
    "clip from below zero": (RULES, DOOR, "a = Conv(x, w) r = Clip(a, low, six) y = Conv(r, w)", "x r y", "a y", "r"),
    "clip from above zero": (RULES, DOOR, "a = Conv(x, w) r = Clip(a, six) y = Conv(r, w)", "x a r y", "a y", ""),
    "no less than a number": (
        RULES, DOOR, "a = Conv(x, w) l = LeakyRelu(a) r = Max(l, low) y = Conv(r, w)", "x a r y", "a y", "r",
    ),
    "the larger of two": (RULES, DOOR, "a = Conv(x, w) r = Max(a, a) y = Conv(r, w)", "x a r y", "a y", ""),
    "clip without end": (RULES, DOOR, "a = Conv(x, w) r = Clip(a, zero) y = Conv(r, w)", "x r y", "a y", "r"),
    "residual": (
        RULES, DOOR, "a = Conv(x, w) r = Relu(a) c = Conv(r, w) s = Add(r, c) t = Relu(s) y = Conv(t, w)",
        "x r c t y", "a c y", "r t",
    ),
    "residual, the sum inside the layer": (
        SUMS_INSIDE, DOOR, "a = Conv(x, w) r = Relu(a) c = Conv(r, w) s = Add(r, c) t = Relu(s) y = Conv(t, w)",
        "x r t", "a c y", "r t",
    ),
    "residual of the input": (WRITES_FLOAT, DOOR, "a = Conv(x, w) s = Add(a, x) y = Conv(s, w)", "x a s", "a y", ""),
    "concat keeps each scale": (
        RULES, DOOR, "a = Conv(x, w) r = Relu(a) c = Conv(x, w) k = Concat<axis=1>(r, c) y = Conv(k, wide)",
        "x r c k y", "a c y", "r",
    ),
    "maxpool shares the scale": (
        RULES, DOOR, "a = Conv(x, w) r = Relu(a) p = MaxPool<kernel_shape=[2,2]>(r) y = Conv(p, w)",
        "x r=p y", "a y", "r",
    ),
    "pool, flatten, gemm": (
        RULES, "(float[n,8,8,8] x) => (float[n,p] y)",
        "a = Conv(x, w) r = Relu(a) h = GlobalAveragePool(r) f = Flatten(h) y = Gemm(f, m)", "x r h=f", "a y", "r",
    ),
    "SiLU on integers": (
        SPLITS, DOOR, "a = Conv(x, w) s = Sigmoid(a) t = Mul(a, s) y = Conv(t, w)", "x a s t y", "a y", "",
    ),
    "a Sigmoid that floats read": (SPLITS, DOOR, "a = Conv(x, w) y = Sigmoid(a)", "x a", "a", ""),
    "a Split shares the scale, its parts are joined again": (
        SPLITS, DOOR, "a = Conv(x, w) r = Relu(a) h, k = Split<axis=1>(r) j = Concat<axis=1>(k, h) y = Conv(j, w)",
        "x r=h=k j y", "a y", "r",
    ),
    "one part of a Split is read": (
        SPLITS, DOOR, "a = Conv(x, w) r = Relu(a) h, k = Split<axis=1>(r) y = Conv(k, half)", "x r=h=k y", "a y", "r",
    ),
    "the nearest element again": (
        SPLITS, DOOR, 'a = Conv(x, w) r = Relu(a) p = Resize<mode="nearest">(r, , twice) y = Conv(p, w)',
        "x r=p y", "a y", "r",
    ),
    "elements between": (
        SPLITS, DOOR, 'a = Conv(x, w) r = Relu(a) p = Resize<mode="linear">(r, , twice) y = Conv(p, w)',
        "x r p y", "a y", "r",
    ),
    "float in between": (RULES, DOOR, "a = Conv(x, w) s = Sigmoid(a) y = Conv(s, w)", "x a s y", "a y", ""),
    "float in between, float writer": (
        WRITES_FLOAT, DOOR, "a = Conv(x, w) s = Sigmoid(a) y = Conv(s, w)", "x s", "a y", "",
    ),
    "matrix products": (
        RULES, FLAT, "a = MatMul(x, m) c = Add(a, b) r = Relu(c) y = MatMul(r, m)", "x r", "c y", "r",
    ),
    "weight on the left": (RULES, "(float[8,n] x) => (float[8,n] y)", "a = MatMul(m, x) y = Relu(a)", "", "", ""),
    "two activations multiplied": (RULES, FLAT, "t = Transpose(x) y = MatMul(x, t)", "", "", ""),
    "pairs of what no layer wrote": (PAIRS, FLAT, "t = Transpose(x) y = MatMul(x, t)", "", "", ""),
    "pairs where they pay": (
        PAIRS, "(float[n,4,8] x) => (float[n,4,4] y)", "a = MatMul(x, m) q = Add(a, b) k = MatMul(x, m)"
        " t = Transpose<perm=[0,2,1]>(k) y = MatMul(q, t)", "x q k=t", "a k y", "",
    ),
    "probabilities stay float": (
        PAIRS, FLAT, "q = MatMul(x, m) k = MatMul(x, m) t = Transpose(k) s = MatMul(q, t) p = Softmax(s)"
        " v = MatMul(x, m) y = MatMul(p, v)", "x q k=t", "q k s v", "",
    ),
    "alpha": (RULES, FLAT, "a = Gemm<alpha=0.5>(x, m) y = Gemm(a, m)", "x a", "a y", ""),
    "transposed input": (RULES, "(float[8,n] x) => (float[n,8] y)", "y = Gemm<transA=1>(x, m)", "", "", ""),
    "a bias that is a matrix": (RULES, "(float[8,8] x) => (float[8,8] y)", "y = Gemm(x, m, m2)", "", "", ""),
    "read outside too": (RULES, DOOR, "a = Conv(x, w) r = Relu(a) s = Sigmoid(a) y = Conv(r, w) z = Add(s, r)",
                         "x a r y", "a y", ""),
}  # fmt: skip


@pytest.fixture
def parts(weights: Any) -> dict[str, np.ndarray]:
    scalars = {"zero": 0.0, "six": 6.0, "low": -1.0}
    return {
        "w": weights(1, 8, 8, 1, 1), "wide": weights(2, 8, 16, 1, 1), "m": weights(3, 8, 8), "m2": weights(4, 8, 8),
        "b": weights(5, 8), "half": weights(6, 8, 4, 1, 1),
        "twice": np.array([1, 1, 2, 2], np.float32),
        **{name: np.array(value, np.float32) for name, value in scalars.items()},
    }  # fmt: skip


def planned(net: Any, parts: dict[str, np.ndarray], rules: Quantization, graph: str, *kept: str) -> placement.Plan:
    words = set("".join(c if c.isalnum() else " " for c in graph).split())
    model = net(graph, **{name: array for name, array in parts.items() if name in words})
    return placement.plan(fold.apply(model.clone()).graph, rules, frozenset(kept))


def grouped(plan: placement.Plan) -> set[frozenset[str]]:
    return {frozenset(str(value.name) for value in values) for values in plan.groups().values()}


@pytest.mark.parametrize("case", CASES)
def test_placement(net: Any, parts: dict[str, np.ndarray], case: str) -> None:
    rules, door, graph, points, compute, absorbed = CASES[case]
    if case == "read outside too":
        door = "(float[n,8,8,8] x) => (float[n,8,8,8] y, float[n,8,8,8] z)"
    plan = planned(net, parts, rules, f"{door} {{ {graph} }}")
    assert grouped(plan) == {frozenset(group.split("=")) for group in points.split()}
    assert [node.name for node in plan.compute] == compute.split()
    assert {node.name for node in plan.absorbed} == set(absorbed.split())


def test_a_pictures_first_layer_in_float(net: Any, weights: Any) -> None:
    """Up to four input channels stay float where the target says so; a grouped layer of few channels is no stem."""
    graph = "(float[n,3,8,8] x) => (float[n,p,q,r] y) { a = Conv(x, s) r = Relu(a) y = Conv<group=4>(r, d) }"
    parts = {"s": weights(1, 8, 3, 3, 3), "d": weights(2, 8, 2, 3, 3)}
    plan = planned(net, parts, replace(RULES, float_stem=4), graph)
    assert [node.name for node in plan.compute] == ["y"] and grouped(plan) == {frozenset({"r"}), frozenset({"y"})}
    assert len(planned(net, parts, RULES, graph).compute) == 2


def test_a_depthwise_layer_stays_with_the_float_one_that_it_reads(net: Any, weights: Any) -> None:
    graph = """(float[n,3,9,9] x) => (float[n,p,q,r] y) { a = Conv(x, s) r = Relu(a) d = Conv<group=8>(r, w) t = Relu(d)
        e = Conv(t, m) u = Relu(e) y = Conv<group=8>(u, w) }"""
    parts = {"s": weights(1, 8, 3, 3, 3), "w": weights(2, 8, 1, 3, 3), "m": weights(3, 8, 8, 1, 1)}
    plan = planned(net, parts, replace(RULES, float_stem=4), graph)
    assert [node.name for node in plan.compute] == ["e", "y"]
    assert grouped(plan) == {frozenset({"t"}), frozenset({"u"}), frozenset({"y"})}


def test_a_first_layer_stays_float_for_a_depthwise_one_alone(net: Any, weights: Any) -> None:
    """Where only the pair is as fast in float, a first layer that something else reads too goes on integers."""
    graph = """(float[n,3,9,9] x) => (float[n,p,q,r] y) {{ a = Conv(x, s) r = Relu(a) d = {}(r, w) t = Relu(d)
        y = Conv(t, m) }}"""
    rules = replace(RULES, float_stem=4, depthwise_stem=True)
    parts = {"s": weights(1, 8, 3, 3, 3), "m": weights(3, 8, 8, 1, 1)}
    pair = planned(net, {**parts, "w": weights(2, 8, 1, 3, 3)}, rules, graph.format("Conv<group=8>"))
    assert [node.name for node in pair.compute] == ["y"]
    alone = planned(net, {**parts, "w": weights(2, 8, 8, 3, 3)}, rules, graph.format("Conv"))
    assert [node.name for node in alone.compute] == ["a", "d", "y"]


def test_gates_stay_float(net: Any, weights: Any) -> None:
    """Squeeze-and-excitation: its two layers stay float, and what they pool and scale is what the layer before writes,
    float if it can; a head is no gate."""
    graph = """(float[n,8,6,6] x) => (float[n,p] y) { a = Conv(x, w) h = GlobalAveragePool(a) c = Conv(h, w) r = Relu(c)
        d = Conv(r, w) g = HardSigmoid(d) s = Mul(a, g) e = Conv(s, w) t = Relu(e) k = GlobalAveragePool(t)
        f = Flatten(k) y = Gemm(f, m) }"""
    parts = {"w": weights(1, 8, 8, 1, 1), "m": weights(2, 8, 8)}
    plan = planned(net, parts, replace(WRITES_FLOAT, float_gates=True), graph)
    assert [node.name for node in plan.compute] == ["a", "e", "y"]
    assert grouped(plan) == {frozenset(group) for group in ({"x"}, {"s"}, {"t"}, {"k", "f"})}
    assert {"a"} in grouped(planned(net, parts, replace(RULES, float_gates=True), graph))
    assert len(planned(net, parts, WRITES_FLOAT, graph).compute) == 5


def test_a_gate_of_keras_form_stays_float(net: Any, weights: Any) -> None:
    """Products of rank 2 between reshapes; an MLP whose every value is of rank 2 has no gates."""
    graph = """(float[n,8,6,6] x) => (float[n,p,q,r] y) { a = Conv(x, w) h = GlobalAveragePool(a) f = Flatten(h)
        c = Gemm(f, m) g = Sigmoid(c) u = Unsqueeze(g, ends) s = Mul(u, a) y = Conv(s, w) }"""
    parts = {"w": weights(1, 8, 8, 1, 1), "m": weights(2, 8, 8), "ends": np.array([2, 3])}
    gated = replace(RULES, float_gates=True)
    assert [node.name for node in planned(net, parts, gated, graph).compute] == ["a", "y"]
    rank2 = f"{FLAT} {{ a = MatMul(x, m) g = Sigmoid(a) s = Mul(a, g) y = MatMul(s, m) }}"
    assert [node.name for node in planned(net, parts, gated, rank2).compute] == ["a", "y"]


def test_pairs_have_their_zero_in_the_middle(net: Any, parts: dict[str, np.ndarray]) -> None:
    graph = f"{FLAT} {{ q = MatMul(x, m) k = MatMul(x, m) t = Transpose(k) y = MatMul(q, t) }}"
    assert planned(net, parts, PAIRS, graph).centred == {"q", "t"}
    assert planned(net, parts, PAIRS, graph, "y").centred == set()


def test_kept_nodes(net: Any, parts: dict[str, np.ndarray]) -> None:
    graph = f"{DOOR} {{ a = Conv(x, w) r = Relu(a) c = Conv(r, w) s = Add(r, c) t = Relu(s) y = Conv(t, w) }}"
    plan = planned(net, parts, RULES, graph, "c")
    assert [node.name for node in plan.compute] == ["a", "y"]
    assert "c" not in {str(value.name) for value in plan.points}
    assert [node.name for node in planned(net, parts, RULES, graph, "a", "c", "y").compute] == []


@pytest.mark.parametrize(
    ("layer", "axis", "shape"),
    [
        ("Conv(x, k)", 0, (6, 8, 1, 1)),
        ("Gemm(f, k)", 1, (8, 6)),
        ("Gemm<transB=1>(f, k)", 0, (6, 8)),
        ("MatMul(f, k)", 1, (8, 6)),
    ],
)
def test_the_output_channels_axis(net: Any, layer: str, axis: int, shape: tuple[int, ...], weights: Any) -> None:
    door = "(float[n,8,1,1] x, float[n,8] f) => (float y)"
    plan = planned(net, {"k": weights(1, *shape)}, RULES, f"{door} {{ y = {layer} }}")
    assert [placement.weight_axis(node) for node in plan.weights] == [axis]


def test_short_sums_that_are_read_in_float_stay_float(net: Any, weights: Any) -> None:
    """A 1x1 layer over eight channels whose result a HardSigmoid reads, and then the one before it too; not one that an
    integer layer reads, nor what the model gives out, nor all that there is."""
    graph = """(float[n,8,6,6] x) => (float[n,8,6,6] y) { a = Conv(x, w) b = Conv(a, v) h = HardSigmoid(b)
        c = Conv(h, w) y = Conv(c, v) }"""
    parts = {"w": weights(1, 8, 8, 1, 1), "v": weights(2, 8, 8, 1, 1)}
    compute = {
        most: [node.name for node in planned(net, parts, replace(RULES, thin=most), graph).compute] for most in (7, 8)
    }
    assert compute == {7: ["a", "b", "c", "y"], 8: ["c", "y"]}
    alone = "(float[n,8,6,6] x) => (float[n,8,6,6] y) { a = Conv(x, w) y = HardSigmoid(a) }"
    assert [node.name for node in planned(net, parts, replace(RULES, thin=8), alone).compute] == ["a"]
    fewer = """(float[n,8,6,6] x) => (float[n,8,6,6] y) { a = Conv(x, w) h = HardSigmoid(a) c = Conv(h, v)
        k = HardSigmoid(c) y = Conv(k, u) }"""  # to four channels, which are little to convert, and back
    parts = {"w": weights(1, 4, 8, 1, 1), "v": weights(2, 8, 4, 1, 1), "u": weights(3, 8, 8, 1, 1)}
    assert [node.name for node in planned(net, parts, replace(RULES, thin=8), fewer).compute] == ["a", "y"]


def test_what_the_rules_leave_in_float_does_not_come_back(net: Any, weights: Any, request_for: Any) -> None:
    """Of short sums that floats read one layer remains, for there to be any; without it the next one is not seen."""
    text = """(float[n,8,8,8] x) => (float[n,8,8,8] y) {
        a = Conv<group=4,pads=[1,1,1,1]>(x, w) b = Sigmoid(a) c = Conv<group=4,pads=[1,1,1,1]>(b, v) y = Sigmoid(c) }"""
    model = net(text, w=weights(1, 8, 2, 3, 3), v=weights(2, 8, 2, 3, 3))
    data = open_data({"x": weights(4, 32, 8, 8, 8)}, model.inputs, batch=8)
    variant = quantize.variants("static_int8", model, request_for(calibration=data, ranges="minmax"))
    for kept, integers in ((frozenset[str](), {"a"}), (frozenset({"a"}), set[str]())):
        nodes = [node for node in variant(kept).ir.graph if node.op_type == "Conv"]
        stored = {str(node.name): node.inputs[1].producer() for node in nodes if node.inputs[1] is not None}
        assert {name for name, pair in stored.items() if pair is not None} == integers


@pytest.mark.parametrize(
    ("first", "other", "stays"), [("float", "float", True), ("integer", "float", False), ("float", "integer", False)]
)
def test_short_sums_between_float_layers_stay_in_float(
    net: Any, weights: Any, first: str, other: str, stays: bool
) -> None:
    """With `thin`, though they write fewer channels than they read: what they read is not on integers otherwise."""
    model = net(
        """(float[n,8,8,8] x) => (float[n,16,8,8] y, float[n,16,8,8] z) {
          c = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(x, w1)  a = HardSwish(c)  s = Add(a, t)
          n = Conv(s, w2)  h = HardSwish(n)
          y = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(h, w3)
          z = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(s, w4)
        }""",
        w1=weights(1, 16, 8, 3, 3), t=weights(2, 1, 16, 1, 1), w2=weights(3, 8, 16, 1, 1), w3=weights(4, 16, 8, 3, 3),
        w4=weights(5, 16, 16, 3, 3),
    )  # fmt: skip
    graph = model.clone()
    fold.infer_shapes(graph)
    kept = frozenset({"c"} if first == "float" else set()) | frozenset({"z"} if other == "float" else set())
    plan = placement.plan(graph.graph, replace(RULES, thin=48), kept)
    assert ("n" in plan.thin) is stays
    assert "y" in plan.integer
