"""Second-order rounding of recurrent layers: nearer to float on data that neither rounding nor choice has seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser, reference

import edgerun
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.quantize.graphs import recurrent
from edgerun.quantize.graphs.edit import constant
from edgerun.runtime import Options
from edgerun.verbs.compress import compress

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUTS, HIDDEN, STEPS = 16, 24, 12
TOLD = "recurrent weights rounded to the second order"


def net(op: str, directions: int = 1, layout: int = 0, last: bool = False, first: bool = False, **more: Any) -> Model:
    """x [T, B, I] (layout 1: [B, T, I]) to all states; with `last` to the last one alone, with `first` from one."""
    rng, gates = np.random.default_rng(3), GATES[op]
    arrays = {
        "W": rng.standard_normal((directions, gates * HIDDEN, INPUTS)) / INPUTS**0.5,
        "R": rng.standard_normal((directions, gates * HIDDEN, HIDDEN)) / HIDDEN**0.5,
        "B": 0.1 * rng.standard_normal((directions, 2 * gates * HIDDEN)),
    }
    names = ["x", "W", "R", "B", "", "h"] if first else ["x", "W", "R", "B"]
    kind = "bidirectional" if directions == 2 else "forward"
    if layout:
        more["layout"] = 1
    node = helper.make_node(op, names, ["", "y"] if last else ["y"], "rec", hidden_size=HIDDEN, direction=kind, **more)
    door = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b", INPUTS])]
    if first:
        door.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [directions, "b", HIDDEN]))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (3 if last else 4))
    weights = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in arrays.items()]
    graph = helper.make_graph([node], "net", door, [out], weights)
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def data(samples: int, seed: int, layout: int = 0, first: int = 0) -> list[dict[str, np.ndarray]]:
    """Inputs that six things drive, slowly: `[T, 2, I]` each."""
    rng, mixing = np.random.default_rng(seed), np.random.default_rng(7).standard_normal((6, INPUTS))
    found = []
    for _ in range(samples):
        hidden = 0.3 * np.cumsum(rng.standard_normal((STEPS, 2, 6)), 0)
        x = (0.5 * hidden @ mixing + 0.2 * rng.standard_normal((STEPS, 2, INPUTS))).astype(np.float32)
        feeds = {"x": np.ascontiguousarray(x.transpose(1, 0, 2)) if layout else x}
        if first:
            feeds["h"] = rng.uniform(-1, 1, (first, 2, HIDDEN)).astype(np.float32)
        found.append(feeds)
    return found


def lost(model: Model, result: Model, feeds: list[dict[str, np.ndarray]]) -> float:
    """SQNR in dB."""
    outputs = []
    for each in (model, result):
        with edgerun.load(edgerun.compile(each, "onnxruntime", Options(1))) as session:
            outputs.append(np.concatenate([session.run(feed)["y"].reshape(-1) for feed in feeds]))
    return sqnr_db(*outputs)


@pytest.mark.parametrize(
    ("op", "asked"),
    [
        ("LSTM", {}),
        ("LSTM", {"directions": 2}),
        ("LSTM", {"last": True}),
        ("GRU", {"linear_before_reset": 1}),
        ("GRU", {"linear_before_reset": 0}),
        ("RNN", {"first": True}),
    ],
)
def test_w8a16_is_nearer_on_new_data(op: str, asked: dict[str, Any]) -> None:
    """By 3 dB and more; 7 to 9 with more data."""
    model, first = net(op, **asked), asked.get("directions", 1) * bool(asked.get("first"))
    known, new = data(24, 1, first=first), data(16, 2, first=first)
    better = compress(model, scheme="w8a16", calibration=known)
    assert better.history[-1].options[TOLD]["weights"] == 2
    assert better.to_bytes() == compress(model, scheme="w8a16", calibration=known).to_bytes()
    plain = compress(model, scheme="w8a16", calibration=known, preset="fast")
    assert TOLD not in plain.history[-1].options
    assert lost(model, better, new) > lost(model, plain, new) + 3
    assert better.weight_bytes() == plain.weight_bytes()


def test_dynamic_lstm() -> None:
    """Its inputs are rounded too, so that less is won: 1 dB and more."""
    model, known, new = net("LSTM"), data(24, 1), data(16, 2)
    plain, better = (compress(model, scheme="w8a8_dynamic", calibration=c, placement="rules") for c in (None, known))
    assert better.history[-1].options[TOLD]["weights"] == 2
    assert lost(model, better, new) > lost(model, plain, new) + 1


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize(("op", "directions", "first"), [("RNN", 1, False), ("RNN", 2, True), ("LSTM", 2, False)])
def test_what_weights_read(op: str, directions: int, first: bool, layout: int) -> None:
    """An RNN's next state is tanh(W·x + R·h + b) of what was seen: 1e-5. Of an LSTM: states of the right shape."""
    model = net(op, directions, layout=layout, first=first and not layout)
    graph, (layer,) = recurrent.watched(model.clone(), ["rec"])
    feeds = data(1, 5, layout=layout, first=directions * (first and not layout))[0]
    (out,) = np.asarray(reference.ReferenceEvaluator(model.to_proto()).run(None, feeds))
    if op != "RNN" or layout:  # the evaluator has layout 1 for one direction alone
        shape = (2, STEPS, directions, HIDDEN) if layout else (STEPS, directions, 2, HIDDEN)
        out = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    states, x = layer.states({**feeds, "y": out}), layer.inputs(feeds)
    assert len(states) == directions and {state.shape for state in states} == {(STEPS * 2, HIDDEN)}
    if op != "RNN" or layout:
        assert not states[0][:2].any() and np.array_equal(states[0][2:4], out[:, 0, 0] if layout else out[0, 0])
        return
    values = {name: constant(value) for name, value in model.ir.graph.initializers.items()}
    for direction, state in enumerate(states):
        if direction:  # what is read at the last step comes first
            state = np.roll(state.reshape(STEPS, 2, HIDDEN), -1, axis=0).reshape(-1, HIDDEN)
        weight, back, bias = (np.asarray(values[name])[direction] for name in "WRB")
        wanted = np.tanh(x @ weight.T + state @ back.T + bias[:HIDDEN] + bias[HIDDEN:])
        np.testing.assert_allclose(out[:, direction].reshape(-1, HIDDEN), wanted, atol=1e-5)


def test_what_is_kept_in_float_is_not_rounded() -> None:
    kept = compress(net("LSTM"), scheme="w8a16", calibration=data(8, 1), keep_float=["rec"])
    assert TOLD not in kept.history[-1].options


def headed(op: str) -> Model:
    """The last state of x [T, B, I] through a product, `head`."""
    proto = net(op, last=True).to_proto()
    proto.graph.node[0].output[1] = "h"
    proto.graph.node.add().CopyFrom(helper.make_node("MatMul", ["h", "head"], ["y"], "product"))
    head = np.random.default_rng(5).standard_normal((HIDDEN, 64)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(head, "head"))
    return Model.from_proto(proto)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("op", "scheme"), [("LSTM", "w4a16_b32"), ("GRU", "w4a16_b32"), ("RNN", "w4a8"), ("GRU", "w8a8_dynamic")]
)
def test_schemes_about_products_store_recurrent_weights_in_8_bits(
    op: str, scheme: str, target: str, calibrated: bool
) -> None:
    """A quarter of their bytes, where no kernel takes them on integers; kept in float, all of them."""
    model, known, new = headed(op), data(24, 1) if calibrated else None, data(8, 2)
    options: dict[str, Any] = {"scheme": scheme, "target": target, "calibration": known}
    made, kept = compress(model, **options), compress(model, keep_float=["rec"], **options)
    recurrent_bytes = 4 * GATES[op] * HIDDEN * (INPUTS + HIDDEN)
    saved = kept.weight_bytes() - made.weight_bytes()
    assert saved == pytest.approx(0.75 * recurrent_bytes, rel=0.1)  # less the scales
    assert made.history[-1].options["recurrent layers"]["weights in 8 bits"] == ["rec"]
    assert (TOLD in made.history[-1].options) == calibrated and TOLD not in kept.history[-1].options
    assert lost(model, made, new) > min(35, lost(model, kept, new) - 3)


@pytest.mark.parametrize("scheme", ["w4a16_b32", "w8a8_dynamic"])
def test_tables_beside_products_may_stay_in_float(scheme: str) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> net (int64[n] x) => (float[n,64] y) {
        [table] a = Gather(t, x) [product] y = MatMul(a, w) }"""
    proto, rng = parser.parse_model(text), np.random.default_rng(0)
    for name, shape in {"t": (512, 64), "w": (64, 64)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    told = [
        compress(Model.from_proto(proto), scheme=scheme, keep_float=kept).history[-1].options
        for kept in ((), ("table",))
    ]
    assert [options["tables in 8 bits"] for options in told] == [1, 0]
