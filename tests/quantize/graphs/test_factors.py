"""Factors in quantizers: the float model stays the same, pairs take the factors in, and the INT8 model comes nearer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgerun import registry
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.quantize import _precision, diagnosis, fold
from edgerun.quantize.diagnosis import trials
from edgerun.quantize.graphs import factored, factors, placement, thin
from edgerun.quantize.graphs.activation import Channels
from edgerun.quantize.graphs.edit import constant
from edgerun.verbs.compress import compress
from edgerun.verbs.why_wrong import opened_here

NET = """(float[n,3,16,16] x) => (float[n,8,16,16] y) {
  c1 = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(x, w1, b1)
  a1 = Add(c1, three)  k1 = Clip(a1, zero, six)  m1 = Mul(c1, k1)  s1 = Add(m1, t)
  c2 = Conv<kernel_shape = [3,3], group = 16, pads = [1,1,1,1]>(s1, w2, b2)
  a2 = Add(c2, three)  k2 = Clip(a2, zero, six)  m2 = Mul(c2, k2)
  y = Conv<kernel_shape = [1,1]>(m2, w3, b3)
}"""
FEEDS = {"x": np.random.default_rng(0).standard_normal((32, 3, 16, 16)).astype(np.float32)}


@pytest.fixture
def model(net: Any, weights: Any) -> Model:
    """Two hard-swishes with a constant between them; a channel in sixteen is thirty times as loud as the others."""
    loud = np.ones((16, 1, 1, 1), np.float32)
    loud[5] = 30
    arrays = {
        "w1": weights(1, 16, 3, 3, 3) * loud, "b1": weights(2, 16), "w2": weights(3, 16, 1, 3, 3) / loud,
        "b2": weights(4, 16), "w3": weights(5, 8, 16, 1, 1), "b3": weights(6, 8), "t": weights(7, 1, 16, 1, 1),
        "zero": np.float32(0), "three": np.float32(3), "six": np.float32(6),
    }  # fmt: skip
    made: Model = net(NET, **{name: np.asarray(array, np.float32) for name, array in arrays.items()})
    return made


@pytest.fixture
def all_on_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums as short as these would stay in float on ONNX Runtime."""
    monkeypatch.setattr(thin, "layers", lambda weights, in_float, rules: frozenset())


def pairs(model: Model) -> dict[str, tuple[Any, list[Any]]]:
    """Scales of each activation's QuantizeLinear, and of the DequantizeLinears that read it."""
    found = {}
    for node in model.ir.graph:
        if node.op_type == "QuantizeLinear":
            readers = [constant(use.node.inputs[1]) for use in node.outputs[0].uses()]
            found[str(node.inputs[0].name)] = constant(node.inputs[1]), readers  # type: ignore[union-attr]
    return found


@pytest.mark.usefixtures("all_on_integers")
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_pairs_take_the_factors_and_the_model_comes_nearer(
    model: Model, evaluate: Any, ops: Any, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (want,) = evaluate(model, FEEDS)
    after = compress(model, target=target, calibration=FEEDS)
    found = pairs(after)
    scale, (back,) = found["s1" if target == "openvino" else "s1/evened"]
    assert back.shape == ()
    if target == "openvino":  # its layers write floats, and its pairs have scales per channel for nothing
        assert scale.shape == (16,) and "c1" not in found
        assert scale.max() / scale.min() > 8  # the loud channel is rounded in coarser steps than the quiet ones
        assert "Mul" not in ops(after)  # none of ours is left
    else:
        assert scale.shape == () and ops(after)["Mul"] > 1
    monkeypatch.setattr(factors, "WORTH", np.inf)
    monkeypatch.setattr(factors, "WORTH_MUL", np.inf)
    before = compress(model, target=target, calibration=FEEDS)
    (got,), (plain,) = evaluate(after, FEEDS), evaluate(before, FEEDS)
    assert sqnr_db(want, got) > sqnr_db(want, plain) + 3 and sqnr_db(want, got) > 28


@pytest.mark.usefixtures("all_on_integers")
def test_folding_is_undone(model: Model, evaluate: Any) -> None:
    standing = compress(model, target="onnxruntime", calibration=FEEDS)
    known = {str(node.name) for node in model.ir.graph}
    (want,) = evaluate(standing, FEEDS)
    graph = standing.clone()
    count = factors.fold(graph.graph)
    scales = pairs(Model.of(graph.clone()))
    assert count >= 2 and not factored.evened(graph.graph, known)
    assert any(scale.shape == (16,) for scale, _ in scales.values())
    assert any(back.shape == (16,) for _, readers in scales.values() for back in readers)
    # The same but for ties, and what is a step apart for having been divided first.
    (got,) = evaluate(Model.of(graph.clone()), FEEDS)
    assert sqnr_db(want, got) > 40
    assert factored.unfold(graph.graph) == count
    fold.infer_shapes(graph)
    assert len(factored.evened(graph.graph, known)) == len(factored.evened(standing.ir.graph, known))
    (again,) = evaluate(Model.of(graph), FEEDS)
    assert sqnr_db(want, again) > 40


def test_a_mul_that_is_not_positive_or_per_channel_stays(net: Any) -> None:
    text = """(float[n,4,5,5] x) => (float[n,4,5,5] y) {
      m = Mul(x, f) q = QuantizeLinear(m, s, z) y = DequantizeLinear(q, s, z)
    }"""
    shared = {"s": np.float32(0.1), "z": np.uint8(128)}
    for kind, array, folds in (
        ("positive", np.full((4, 1, 1), 2), 1),
        ("negative", -np.ones((4, 1, 1)), 0),
        ("scalar", np.ones(1), 0),
        ("along another axis", np.ones((1, 5, 1)), 0),
    ):
        graph = net(text, f=array.astype(np.float32), **{k: np.asarray(v) for k, v in shared.items()}).ir.clone()
        fold.infer_shapes(graph)
        assert factors.fold(graph.graph) == folds, kind


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_why_wrong_sees_through_the_factors(model: Model, evaluate: Any, target: str) -> None:
    quantized = compress(model, target=target, calibration=FEEDS)
    (want,) = evaluate(model, FEEDS)
    judged = trials.collect(opened_here, model.ir, [FEEDS], ["y"], 32, lambda *_: None)
    told = diagnosis.diagnose(quantized.ir, model.ir, judged, 3, lambda *_: None)
    assert told.counterpart_db > 90 and not told.notes
    (got,) = evaluate(quantized, FEEDS)
    assert told.quantized.sqnr_db == pytest.approx(sqnr_db(want, got), abs=0.2)


def test_where_all_channels_are_alike_nothing_is_done(net: Any, weights: Any) -> None:
    text = "(float[n,4,6,6] x) => (float[n,4,6,6] y) { h = HardSwish(x) y = Conv<kernel_shape = [1,1]>(h, w) }"
    made = net(text, w=weights(1, 4, 4, 1, 1))
    feeds = {"x": np.random.default_rng(1).standard_normal((40, 4, 6, 6)).astype(np.float32)}
    after = compress(made, target="onnxruntime", calibration=feeds)
    assert all(np.shape(scale) == () for scale, _ in pairs(after).values())


def test_layers_stay_in_float_where_that_is_needed_and_pays(
    model: Model, evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (want,) = evaluate(model, FEEDS)
    plain = compress(model, target="openvino", calibration=FEEDS)
    assert "float layers" not in plain.history[-1].options
    monkeypatch.setattr(_precision, "FLOOR", np.inf)
    monkeypatch.setattr(_precision, "WIDER", ())
    for share, worth, kept in ((0.7, 99.0, None), (0.7, -99.0, ["c1", "c2"]), (0.21, -99.0, ["c2"])):
        monkeypatch.setattr(_precision, "WORTH", worth)
        monkeypatch.setattr(_precision, "SHARE", share)
        after = compress(model, target="openvino", calibration=FEEDS)
        told = after.history[-1].options
        assert told.get("float layers") == kept and set(told["dB won in float"]) <= {"stem", "depthwise"}
        if kept is None:
            assert (
                after.ir.graph.num_nodes() == plain.ir.graph.num_nodes() and pairs(after).keys() == pairs(plain).keys()
            )
            continue
        nodes = {str(node.name): node for node in after.ir.graph}
        assert {name for name in ("c1", "c2", "y") if not _rounded(nodes[name])} == set(kept)
        assert ("x" in pairs(after)) == ("c1" not in kept)
        (got,) = evaluate(after, FEEDS)
        assert sqnr_db(want, got) > 28


def test_more_of_the_first_layers_stay_in_float_until_a_model_is_surely_near(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_precision, "WORTH", -99.0)
    monkeypatch.setattr(_precision, "WIDER", (0.8, 0.95))
    told = []
    for floor in (99.0, 20.0):
        monkeypatch.setattr(_precision, "FLOOR", floor)
        told.append(compress(model, target="openvino", calibration=FEEDS).history[-1].options)
    assert set(told[0]["dB won in float"]) == {"first 80%", "first 95%"} and told[0]["float layers"] == ["c1", "c2"]
    assert "dB won in float" not in told[1]


@pytest.mark.usefixtures("all_on_integers")
def test_released_factors_change_nothing(model: Model, evaluate: Any) -> None:
    graph = fold.apply(model.clone())
    rules = registry.target("onnxruntime").quantization()
    plan = placement.plan(graph.graph, rules)
    channels = Channels(-np.ones((1, 16)), np.geomspace(1, 50, 16)[None], np.ones(16))
    seen: dict[str, Channels] = dict.fromkeys(("c1", "s1", "c2", "m2/HardSwish"), channels)
    gains, _, _ = factors.apply(graph.graph, factors.sites(plan, ()), seen, rules)
    assert len(gains) >= 3
    fold.infer_shapes(graph)
    (want,), (evened,) = evaluate(model, FEEDS), evaluate(Model.of(graph.clone()), FEEDS)
    np.testing.assert_allclose(evened, want, rtol=0, atol=1e-5 * np.abs(want).max())
    before = sum(node.op_type == "Mul" for node in graph.graph)
    factors.release(graph.graph, placement.plan(graph.graph, rules, frozenset({"c1", "c2", "y"})))
    assert sum(node.op_type == "Mul" for node in graph.graph) == before - len(gains)
    (got,) = evaluate(Model.of(graph), FEEDS)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("op", ["Sigmoid(r)", "LeakyRelu(r)", "Tanh(r)"])
def test_behind_a_function_of_integers(net: Any, weights: Any, op: str) -> None:
    """What reads a pair and is evened out behind itself runs where it is judged: ONNX Runtime has one scale there."""
    text = f"""(float[n,8,12,12] x) => (float[n,8,12,12] y) {{ a = Conv<pads=[1,1,1,1]>(x, w, b) r = Identity(a)
        s = {op} c = Conv(s, v) d = Conv(r, v) y = Add(c, d) }}"""
    made = net(text, w=weights(1, 16, 8, 3, 3), v=weights(2, 8, 16, 1, 1), b=-np.arange(16, dtype=np.float32) / 2)
    feeds = {"x": np.random.default_rng(1).standard_normal((24, 8, 12, 12)).astype(np.float32)}
    told = compress(made, target="openvino", calibration=feeds).history[-1].options
    assert told["calibration SQNR (dB)"] > 30


def _rounded(node: Any) -> bool:
    """Whether its weight is in 8 bits."""
    source = node.inputs[1].producer()
    return source is not None and source.op_type == "DequantizeLinear"
