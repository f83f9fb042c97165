"""Smoothing: the float model stays the same, the quantized one comes nearer; other structures are left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgerun import registry
from edgerun.metrics import Difference
from edgerun.model import Model
from edgerun.quantize import fold
from edgerun.quantize.graphs import placement, smooth
from edgerun.quantize.graphs.activation import Channels
from edgerun.verbs.compress import compress

DOOR = "(float[n,l,16] x) => (float[n,l,16] y)"
RULES = registry.target("openvino").quantization()
BLOCK = (
    "t = LayerNormalization(x, g, b) q = MatMul(t, m) k = MatMul(t, m2) h = Gelu(q) u = MatMul(h, m3) s = Add(u, k)"
    " y = Add(s, t)"
)


@pytest.fixture
def parts(weights: Any) -> dict[str, np.ndarray]:
    """Weights whose norm makes one channel thirty times as large as the others, read with weights that small."""
    loud = np.ones(16, np.float32)
    loud[5] = 30
    return {"g": loud, "b": weights(2, 16), "m": weights(3, 16, 16) / loud[:, None], "m2": weights(4, 16, 16),
            "m3": weights(5, 16, 16)}  # fmt: skip


def seen(model: Model, evaluate: Any, names: list[str], feeds: dict[str, np.ndarray]) -> dict[str, Channels]:
    """Channels along the last axis, by a runner that is not ours."""
    import onnx_ir as ir

    graph = model.ir.clone()
    values = {v.name: v for n in graph.graph for v in n.outputs}
    graph.graph.outputs[:] = [values[name] for name in names]
    arrays = evaluate(Model.of(ir.from_proto(ir.to_proto(graph))), feeds)
    rows = [array.reshape(-1, array.shape[-1]).astype(np.float64) for array in arrays]
    return {n: Channels(r.min(0)[None], r.max(0)[None], (r**2).mean(0)) for n, r in zip(names, rows, strict=True)}


def smoothed(model: Model, evaluate: Any, feeds: dict[str, np.ndarray]) -> tuple[Model, Model, Any, Any]:
    before = Model.of(fold.apply(model.clone()))
    graph = before.clone()
    found = smooth.sites(placement.plan(graph.graph, RULES), RULES)
    channels = seen(before, evaluate, [str(site.value.name) for site in found], feeds) if found else {}
    gains, made = smooth.apply(graph.graph, found, channels)
    fold.infer_shapes(graph)
    return before, Model.of(graph), gains, made


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((40, 6, 16)).astype(np.float32)}


def test_outputs_stay_and_one_mul_serves_all_readers(
    net: Any, evaluate: Any, ops: Any, parts: dict[str, np.ndarray], feeds: dict[str, np.ndarray]
) -> None:
    before, after, gains, made = smoothed(net(f"{DOOR} {{ {BLOCK} }}", opset=20, **parts), evaluate, feeds)
    assert gains["t"] > 3 and ops(after)["Mul"] == len(gains) == len(made)
    (want,), (got,) = evaluate(before, feeds), evaluate(after, feeds)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())
    # What is said of the new value is so.
    told = seen(after, evaluate, list(made), feeds)
    float_ones = seen(before, evaluate, [old for old, _ in made.values()], feeds)
    for name, (old, factors) in made.items():
        channels = float_ones[old].scaled(factors.astype(np.float64))
        np.testing.assert_allclose(channels.low, told[name].low, rtol=1e-5)
        np.testing.assert_allclose(channels.high, told[name].high, rtol=1e-5)
        np.testing.assert_allclose(channels.power, told[name].power, rtol=1e-4)
    mul = next(node for node in after.ir.graph if node.op_type == "Mul" and node.name == "t/Mul")
    assert {user.op_type for user, _ in mul.outputs[0].uses()} == {"MatMul"}
    # The residual reads the norm as it was.
    assert "Add" in {user.op_type for user, _ in mul.inputs[0].uses()}  # type: ignore[union-attr]


LEFT = {
    "behind an integer node": ("(float[n,16] x) => (float[n,16] y)", "a = Gemm(x, m) r = Relu(a) y = Gemm(r, m2)"),
    "an input": (DOOR, "y = MatMul(x, m)"),
    "a reader that is no product with constants": (
        DOOR, "t = Gelu(x) a = MatMul(t, m) k = Transpose<perm=[0,2,1]>(t) z = MatMul(t, k) y = MatMul(z, a)"),
    "attention's mean of values": (
        DOOR, "k = Transpose<perm=[0,2,1]>(x) a = MatMul(x, k) p = Softmax(a) z = MatMul(p, x)"
              " r = Transpose<perm=[1,0,2]>(z) y = MatMul(r, m)"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_other_structures_are_no_sites(net: Any, parts: dict[str, np.ndarray], case: str) -> None:
    door, text = LEFT[case]
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    model = net(f"{door} {{ {text} }}", opset=20, **{n: a for n, a in parts.items() if n in words})
    graph = fold.apply(model.clone()).graph
    found = {str(site.value.name) for site in smooth.sites(placement.plan(graph, RULES), RULES)}
    # Float readers beside the products do no harm: only integer ones must be products with constants.
    assert found == ({"t"} if case.startswith("a reader") else set())


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemms_of_either_layout(
    net: Any, evaluate: Any, parts: dict[str, np.ndarray], transposed: int, feeds: dict[str, np.ndarray]
) -> None:
    text = f"t = LayerNormalization(x, g, b) y = Gemm<transB={transposed}>(t, m)"
    weights = {"g": parts["g"], "b": parts["b"], "m": parts["m"].T.copy() if transposed else parts["m"]}
    flat = {"x": feeds["x"].reshape(-1, 16)}
    before, after, gains, _ = smoothed(
        net(f"(float[n,16] x) => (float[n,16] y) {{ {text} }}", **weights), evaluate, flat
    )
    assert gains["t"] > 3
    (want,), (got,) = evaluate(before, flat), evaluate(after, flat)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_the_quantized_model_comes_nearer(
    net: Any, evaluate: Any, parts: dict[str, np.ndarray], target: str,
    feeds: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """At least 6 dB on an outlier channel, and the residual is added as the float that it is."""
    model = net(f"{DOOR} {{ {BLOCK} }}", opset=20, **parts)
    fresh = {"x": np.random.default_rng(1).standard_normal((50, 6, 16)).astype(np.float32)}
    (want,) = evaluate(model, fresh)

    def reached() -> float:
        (got,) = evaluate(compress(model, target=target, calibration=feeds, ranges="minmax"), fresh)
        return float(Difference.of(want, got).sqnr_db)

    with_it = reached()
    monkeypatch.setattr(smooth, "WORTH", np.inf)
    assert with_it > reached() + 6


def test_what_a_quantizer_clips_is_read_from_behind_it(net: Any, evaluate: Any, weights: Any) -> None:
    """A Conv kept in float, its Relu absorbed: the Sigmoid beside the integer Conv still sees no negative number."""
    text = "a = Conv(x, w) r = Relu(a) y = Conv(r, w2) z = Sigmoid(r)"
    door = "(float[n,8,4,4] x) => (float[n,8,4,4] y, float[n,8,4,4] z)"
    model = net(f"{door} {{ {text} }}", w=weights(1, 8, 8, 1, 1), w2=weights(2, 8, 8, 1, 1))
    batch = {"x": np.random.default_rng(0).standard_normal((8, 8, 4, 4)).astype(np.float32)}
    small = compress(model, calibration=batch, keep_float=["a"], ranges="minmax")
    for want, got in zip(evaluate(model, batch), evaluate(small, batch), strict=True):
        assert Difference.of(want, got).sqnr_db > 30
