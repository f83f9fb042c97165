"""The float counterpart, the switches, the repairs and the 16-bit sums, each against an oracle of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgerun.errors import EdgerunError
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.quantize import diagnosis
from edgerun.quantize.diagnosis import trials
from edgerun.quantize.graphs import align, overflow, quantizers, repairs, switches
from edgerun.quantize.graphs.quantizers import Activation, Constant
from edgerun.quantize.numerics import causes, grid
from edgerun.verbs.compress import compress
from edgerun.verbs.why_wrong import opened_here

NET = """(float[n,3,12,12] x) => (float[n,6] y) {
  c1 = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(x, w1, b1)  n1 = BatchNormalization(c1, g, o, m, v)  r1 = Relu(n1)
  c2 = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(r1, w2, b2)  r2 = Clip(c2, zero, six)
  c3 = Conv<kernel_shape = [3,3], group = 16, pads = [1,1,1,1]>(r2, w3, b3)  r3 = Relu(c3)
  c4 = Conv<kernel_shape = [1,1]>(r3, w4, b4)  p = GlobalAveragePool(c4)  f = Flatten(p)  y = Gemm(f, w5, b5)
}"""
X = np.random.default_rng(8).standard_normal((32, 3, 12, 12)).astype(np.float32)
FEEDS = {"x": X}
MLP = "(float[n,16] x) => (float[n,6] y) { h = Gemm(x, w1, b1) r = Relu(h) y = Gemm(r, w2, b2) }"
FEATURES = {"x": np.random.default_rng(9).standard_normal((64, 16)).astype(np.float32)}


@pytest.fixture
def model(net: Any, weights: Any, norm: Any) -> Model:
    arrays = {"w1": weights(0, 16, 3, 3, 3), "b1": weights(1, 16), "w2": weights(2, 16, 16, 3, 3),
              "b2": weights(3, 16), "w3": weights(4, 16, 1, 3, 3), "b3": weights(5, 16), "w4": weights(6, 12, 16, 1, 1),
              "b4": weights(7, 12), "w5": weights(8, 12, 6), "b5": weights(9, 6), "zero": np.float32(0),
              "six": np.float32(3), **norm(10, 16)}  # fmt: skip
    made: Model = net(NET, **{name: np.asarray(array) for name, array in arrays.items()})
    return made


@pytest.fixture
def mlp(net: Any, weights: Any) -> Model:
    made: Model = net(MLP, w1=weights(0, 16, 24), b1=weights(1, 24), w2=weights(2, 24, 6), b2=weights(3, 6))
    return made


def _found(model: Model, quantized: Model) -> tuple[list[Any], align.Counterpart]:
    found = quantizers.find(quantized.ir.graph)
    return found, align.align(model.ir, quantized.ir, found)


def _run(graph: Any, feeds: Any = FEEDS) -> np.ndarray:
    with opened_here(graph) as session:
        out: np.ndarray = session.run(feeds)["y"]
    return out


def test_the_counterpart_of_a_folded_and_equalized_model_computes_as_the_float_one(model: Model) -> None:
    quantized = compress(model, calibration=FEEDS)
    assert quantized.history[-1].options["equalized"]
    found, counterpart = _found(model, quantized)
    assert counterpart.rescaled > 0 and not counterpart.foreign
    plain = switches.off(quantized.ir, counterpart, found)
    assert not {n.op_type for n in plain.graph} & {"QuantizeLinear", "DequantizeLinear"}
    assert sqnr_db(_run(model.ir), _run(plain)) > 60  # the first layer's weights are float16's


def test_channels_that_were_moved_are_moved_in_the_counterpart(net: Any, weights: Any) -> None:
    """A layer without an activation behind it, all of whose channels lie on one side of zero: its biases are found."""
    model = net(
        """(float[n,3,12,12] x) => (float[n,6] y) { c1 = Conv(x, w1, b1) r1 = Relu(c1) c2 = Conv(r1, w2, b2)
        c3 = Conv(c2, w3, b3) r3 = Relu(c3) p = GlobalAveragePool(r3) f = Flatten(p) y = Gemm(f, w5, b5) }""",
        w1=weights(0, 16, 3, 3, 3), b1=weights(1, 16), w2=weights(2, 8, 16, 1, 1), b2=6 + weights(3, 8),
        w3=weights(4, 24, 8, 1, 1), b3=weights(5, 24), w5=weights(6, 24, 6), b5=weights(7, 6),
    )  # fmt: skip
    quantized = compress(model, target="openvino", calibration=FEEDS, placement="rules")
    assert quantized.history[-1].options["centred"] == ["c2"]
    found, counterpart = _found(model, quantized)
    assert counterpart.recentred == 1
    assert sqnr_db(_run(model.ir), _run(switches.off(quantized.ir, counterpart, found))) > 90
    for q in found:
        if isinstance(q, Constant) and q.kind == "bias":
            difference = np.abs(q.values - counterpart.constants[q.key]).max()
            assert difference < 0.01 * np.abs(q.values).max() + 0.2, "corrections are small"


def test_its_weights_are_the_stored_ones_up_to_rounding(model: Model) -> None:
    """The error of every weight is that of rounding: rms of step/√12, to 15 %."""
    quantized = compress(model, calibration=FEEDS)
    found, counterpart = _found(model, quantized)
    for q in found:
        if isinstance(q, Constant) and q.kind == "weight" and q.grid is not None:
            step = np.broadcast_to(np.moveaxis(np.atleast_1d(q.grid.scale).reshape(-1, *[1] * (q.stored.ndim - 1)), 0,
                                               q.grid.axis or 0), q.stored.shape)  # fmt: skip
            error = np.sqrt(np.mean(((q.values - counterpart.constants[q.key]) / step) ** 2))
            assert error == pytest.approx(1 / np.sqrt(12), rel=0.15), q.layer


def test_all_switches_on_is_the_quantized_model_and_off_the_counterpart(model: Model) -> None:
    quantized = compress(model, calibration=FEEDS)
    found, counterpart = _found(model, quantized)
    with opened_here(switches.switched(quantized.ir, counterpart, found)) as session:
        on = session.run({**FEEDS, **switches.feeds(found, found)})["y"]
        off = session.run({**FEEDS, **switches.feeds(found)})["y"]
    assert sqnr_db(_run(quantized.ir), on) > 40
    assert sqnr_db(_run(switches.off(quantized.ir, counterpart, found)), off) > 90


def test_what_one_quantizer_does_alone(mlp: Model) -> None:
    """Rounding the hidden layer by numpy gives the same noise, to 0.1 dB."""
    quantized = compress(mlp, calibration=FEATURES)
    found, counterpart = _found(mlp, quantized)
    hidden = next(q for q in found if isinstance(q, Activation) and q.layer == "h")
    judged = trials.collect(opened_here, mlp.ir, [FEATURES], ["y"], 64, lambda *_: None)
    measured = trials.alone(quantized.ir, counterpart, found, judged, lambda *_: None)[hidden.key]
    w1, b1, w2, b2 = (counterpart.constants[k] for k in ("h:1", "h:2", "y:1", "y:2"))
    h = np.maximum(FEATURES["x"] @ w1 + b1, 0)
    rounded = hidden.grid.dequantize(hidden.grid.quantize(h.astype(np.float32)))
    wanted, got = h @ w2 + b2, rounded @ w2 + b2
    assert -10 * np.log10(measured) == pytest.approx(sqnr_db(wanted, got), abs=0.1)


def test_taking_everything_out_leaves_the_counterpart(mlp: Model) -> None:
    quantized = compress(mlp, calibration=FEATURES)
    found, counterpart = _found(mlp, quantized)
    graph = quantized.clone()
    repairs.leave_float(graph.graph, counterpart, found)
    assert sqnr_db(_run(mlp.ir, FEATURES), _run(graph, FEATURES)) > 90


def test_a_new_range_takes_the_biases_along(model: Model) -> None:
    """Integer kernels don't read a bias's scale: after the change they still agree with the plain graph to 40 dB."""
    quantized = compress(model, calibration=FEEDS)
    found, _ = _found(model, quantized)
    activations = [q for q in found if isinstance(q, Activation)]
    wider = {a.name: grid.asymmetric(1.7 * a.low, 1.7 * a.high) for a in activations}
    graph = quantized.clone()
    repairs.set_ranges(graph.graph, wider, activations)
    for q in quantizers.find(graph.graph):
        if isinstance(q, Constant) and q.kind == "bias" and q.grid is not None:
            before = next(b for b in found if b.key == q.key)
            assert isinstance(before, Constant)
            assert (np.abs(q.values - before.values) <= q.grid.scale).all()
    assert sqnr_db(_run(model.ir), _run(graph)) > 25


def test_evened_out_channels_change_nothing_in_float(mlp: Model) -> None:
    quantized = compress(mlp, calibration=FEATURES)
    found, counterpart = _found(mlp, quantized)
    hidden = next(q for q in found if isinstance(q, Activation) and q.layer == "h")
    graph = quantized.clone()
    factors = np.geomspace(1, 30, 24).astype(np.float32)
    assert repairs.equalize(graph.graph, hidden, factors, counterpart, -1)
    again = quantizers.find(graph.graph)
    assert sqnr_db(_run(mlp.ir, FEATURES), _run(switches.off(graph, counterpart, again), FEATURES)) > 90


def _saturated(codes: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Integer sums `[N, O]` of u8 `[N, K]` and s8 `[O, K]` as vpmaddubsw and an int32 sum make them."""
    products = codes[:, None, :].astype(np.int64) * weight[None].astype(np.int64)
    pairs = products.reshape(*products.shape[:2], -1, 2).sum(axis=3)
    total: np.ndarray = np.clip(pairs, -32768, 32767).sum(axis=2)
    return total


def test_sums_in_16_bits_are_those_of_the_instruction(net: Any) -> None:
    """A Gemm with large weights of one sign on large activations: excess to the last integer."""
    draw = np.random.default_rng(4)
    weight = np.abs(draw.standard_normal((16, 6))).astype(np.float32)
    model = net("(float[n,16] x) => (float[n,6] y) { y = Gemm(x, w, b) }", w=weight, b=np.zeros(6, np.float32))
    feeds = {"x": draw.uniform(1, 4, (32, 16)).astype(np.float32)}
    quantized = compress(model, calibration=feeds)
    (risk,) = overflow.risks(quantized.ir.graph)
    stored = next(q for q in quantizers.find(quantized.ir.graph) if isinstance(q, Constant) and q.kind == "weight")
    codes = risk.grid.quantize(feeds["x"])
    exact = codes.astype(np.int64) @ stored.stored.astype(np.int64)
    excess = (exact - _saturated(codes, stored.stored.T)) * risk.step
    assert (excess > 0).mean() > 0.5
    got = _run(quantized.ir, feeds) - _run(overflow.add(quantized.ir, [risk]), feeds)
    np.testing.assert_allclose(got, excess, atol=1e-3)


def test_a_convolution_saturates_with_its_padding(net: Any, weights: Any) -> None:
    """Channels 2j and 2j+1 at one kernel position are neighbours; what is padded has the zero point's code."""
    draw = np.random.default_rng(5)
    weight = np.abs(weights(1, 4, 8, 3, 3))
    model = net("(float[n,8,5,5] x) => (float[n,4,5,5] y) { y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b) }",
                w=weight, b=np.zeros(4, np.float32))  # fmt: skip
    feeds = {"x": draw.uniform(-1, 4, (8, 8, 5, 5)).astype(np.float32)}
    quantized = compress(model, calibration=feeds)
    (risk,) = overflow.risks(quantized.ir.graph)
    stored = next(q for q in quantizers.find(quantized.ir.graph) if isinstance(q, Constant) and q.kind == "weight")
    codes = np.pad(risk.grid.quantize(feeds["x"]), ((0, 0), (0, 0), (1, 1), (1, 1)),
                   constant_values=int(risk.grid.zero_point))  # fmt: skip
    got = _run(quantized.ir, feeds) - _run(overflow.add(quantized.ir, [risk]), feeds)
    output = next(q for q in quantizers.find(quantized.ir.graph) if isinstance(q, Activation) and q.layer == "y")
    step = float(output.grid.scale)  # what comes out is rounded once more
    assert got.max() > 15 * step
    rows = stored.stored.transpose(0, 2, 3, 1).reshape(4, -1)
    for row in range(5):
        for column in range(5):
            patch = codes[:, :, row : row + 3, column : column + 3].transpose(0, 2, 3, 1).reshape(8, -1)
            exact = patch.astype(np.int64) @ rows.T.astype(np.int64)
            wanted = (exact - _saturated(patch, rows)) * risk.step
            np.testing.assert_allclose(got[:, :, row, column], wanted, atol=1.01 * step)


def test_a_model_without_qdq_is_refused(mlp: Model) -> None:
    judged = trials.collect(opened_here, mlp.ir, [FEATURES], ["y"], 64, lambda *_: None)
    with pytest.raises(EdgerunError, match="no QuantizeLinear"):
        diagnosis.diagnose(mlp.ir, mlp.ir, judged, 3, lambda *_: None)


def test_a_healthy_model_has_no_cause_but_rounding(model: Model) -> None:
    quantized = compress(model, calibration=FEEDS, ranges="minmax")
    judged = trials.collect(opened_here, model.ir, [FEEDS], ["y"], 32, lambda *_: None)
    found = diagnosis.diagnose(quantized.ir, model.ir, judged, 4, lambda *_: None)
    assert found.counterpart_db > 60 and not found.notes  # by the first layer's weights, which are float16's
    assert {f.cause.name for f in found.findings if f.damage > 0.5 * float(found.quantized.noise.mean())} <= {
        causes.ROUNDING
    }
