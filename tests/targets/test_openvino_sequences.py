"""OpenVINO: sequences end where their lengths say, whatever sizes are open; every truth is ONNX Runtime's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

import edgerun
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.targets import openvino as target

pytestmark = pytest.mark.skipif(target.available() is not None, reason=str(target.available()))
ONE, UNITS, INPUTS = Options(1), 8, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
HEAD = '<ir_version: 8, opset_import: ["": 17]> net '
Feeds = dict[str, np.ndarray]


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def parsed(text: str, **arrays: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(HEAD + text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return Model.from_proto(proto)


def weights(op: str, ways: int = 1) -> Feeds:
    rows = GATES[op] * UNITS
    return {
        "w": drawn(ways, rows, INPUTS),
        "r": drawn(ways, rows, UNITS, seed=1),
        "bias": drawn(ways, 2 * rows, seed=2),
    }


def layer(op: str, direction: str = "forward", told: str = "", lengths: str = "n") -> Model:
    """y, and every last state, from x, the lengths and the first states."""
    ways, states = 2 if direction == "bidirectional" else 1, ["h", "c"] if op == "LSTM" else ["h"]
    doors = "".join(f", float[{ways},b,{UNITS}] {state}" for state in states)
    made = "".join(f", float[{ways},b,{UNITS}] {state}n" for state in states)
    given, lasts = ", ".join(states), ", ".join(f"{state}n" for state in states)
    return parsed(
        f"""(float[t,b,{INPUTS}] x, int32[b] n{doors}) => (float[t,{ways},b,{UNITS}] y{made}) {{
        y, {lasts} = {op}<hidden_size = {UNITS}, direction = "{direction}"{told}>
            (x, w, r, bias, {lengths}, {given}) }}""",
        **weights(op, ways),
    )


def fed(model: Model, steps: int, *lengths: int) -> Feeds:
    sizes = {"t": steps, "b": len(lengths)}
    feeds = {spec.name: drawn(*spec.with_dims(sizes), seed=i) for i, spec in enumerate(model.inputs)}
    return {**feeds, "n": np.array(lengths, np.int32)} if "n" in feeds else feeds


def same(model: Model, session: edgerun.Session, feeds: Feeds) -> None:
    """Within 1e-5 of ONNX Runtime."""
    with edgerun.load(model.to_bytes(), "onnxruntime", ONE) as truth:
        want, got = truth.run(feeds), session.run(feeds)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", list(GATES))
def test_sequences_end_where_their_lengths_say(op: str, direction: str, tmp_path: Path) -> None:
    """Outputs behind the end are zero, last states those at the end; in ONNX of open sizes and IR of known ones."""
    model = layer(op, direction)
    target.save(target.compile(model, ONE), tmp_path / "net.xml")
    for source, usual in ((model.to_bytes(), False), (tmp_path / "net.xml", True)):
        for steps, lengths in ((4, (4, 4)), (4, (2, 3)), (1, (0, 1))):
            feeds = fed(model, steps, *lengths)
            shapes = {name: array.shape for name, array in feeds.items()} if usual else {}
            with edgerun.load(source, "openvino", Options(1, usual=shapes)) as session:
                same(model, session, feeds)


@pytest.mark.parametrize("told", [
    ', activations = ["Tanh", "Sigmoid", "Tanh"], clip = 0.5', ', activations = ["Sigmoid", "Relu", "Tanh"]',
])  # fmt: skip
def test_activations_and_clipping_stay(told: str) -> None:
    model = layer("LSTM", told=told)
    with edgerun.load(model.to_bytes(), "openvino", ONE) as session:
        same(model, session, fed(model, 4, 2, 3))


@pytest.mark.parametrize("before", [0, 1])
def test_a_gru_resets_before_or_behind_the_product(before: int) -> None:
    model = layer("GRU", told=f", linear_before_reset = {before}")
    with edgerun.load(model.to_bytes(), "openvino", ONE) as session:
        same(model, session, fed(model, 4, 2, 3))


def test_lengths_beyond_the_data_end_with_it() -> None:
    """OpenVINO's own form of a layer with known sizes reads on, which can end the process."""
    model = layer("LSTM", "reverse")
    shapes = {name: array.shape for name, array in fed(model, 4, 4, 4).items()}
    for usual in ({}, shapes):
        with edgerun.load(model.to_bytes(), "openvino", Options(1, usual=usual)) as session:
            whole, beyond = session.run(fed(model, 4, 4, 4)), session.run(fed(model, 4, 4_000_000, 4))
            for name, array in whole.items():
                assert np.array_equal(beyond[name], array)


def test_lengths_that_are_constants_count_too() -> None:
    proto = layer("LSTM").to_proto()
    del proto.graph.input[1]
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.int32), "n"))
    model = Model.from_proto(proto)
    with edgerun.load(model.to_bytes(), "openvino", ONE) as session:
        same(model, session, fed(model, 4, 1, 1))


@pytest.mark.parametrize("op", list(GATES))
def test_without_lengths_a_layer_keeps_its_kernel(op: str) -> None:
    model = layer(op, lengths="")
    feeds = fed(model, 4, 1, 1)
    times = target.profile(target.compile(model, ONE), [feeds], ONE)
    assert f"{op}Sequence" in [time.op for time in times]


def test_layers_of_branches_and_loops_are_seen() -> None:
    model = parsed(
        f"""(float[t,b,{INPUTS}] x, int32[b] n, bool c, bool d, int64 m)
            => (float[t,1,b,{UNITS}] z, float[k,t,1,b,{UNITS}] s) {{
        q = GRU<hidden_size = {UNITS}>(x, w, r, bias)
        z = If(c)<then_branch = a () => (float[t,1,b,{UNITS}] u) {{ u = GRU<hidden_size = {UNITS}>(x, w, r, bias, n) }},
                  else_branch = e () => (float[t,1,b,{UNITS}] v) {{ v = Identity(q) }}>
        s = Loop(m, d)<body = l (int64 i, bool g) => (bool g2, float[t,1,b,{UNITS}] o) {{
            g2 = Identity(g)  o = GRU<hidden_size = {UNITS}>(x, w, r, bias, n) }}>
        }}""",
        **weights("GRU"),
    )
    given = {"d": np.array(True), "m": np.array(2, np.int64)}
    with edgerun.load(model.to_bytes(), "openvino", ONE) as session:
        for taken in (True, False):
            same(model, session, {**fed(model, 4, 2, 3), **given, "c": np.array(taken)})


@pytest.mark.parametrize(("steps", "lengths"), [(10, (10, 7)), (10, (3, 7)), (2, (2, 0)), (1, (1, 1))])
def test_a_feed_of_other_shapes_is_not_cut_below_its_lengths(steps: int, lengths: tuple[int, ...]) -> None:
    """What runs it is compared on the feed as it is: no right one is refused."""
    model = layer("LSTM", "bidirectional")
    usual = {name: array.shape for name, array in fed(model, 4, 1, 1).items()}
    with edgerun.load(model.to_bytes(), "openvino", Options(1, usual=usual)) as session:
        same(model, session, fed(model, steps, *lengths))


@pytest.mark.parametrize("whole", [True, False])
def test_given_feeds_are_not_cut_below_an_index(whole: bool) -> None:
    """Compiled on real feeds that are longer than the usual ones, and run on them."""
    model = parsed("(float[n,s,4] x, int64[n,1] i) => (float[n,4] y) { y = GatherND<batch_dims = 1>(x, i) }")
    feeds = {"x": drawn(2, 10, 4), "i": np.array([[9], [3]])}
    usual = {"x": (1, 4, 4), "i": (1, 1)}
    engine = edgerun.compile(model, "openvino", Options(1, usual=usual), feeds=[feeds], whole=whole)
    assert engine.check is not None and "x[1, 4, 4], i[1, 1]" in engine.check.shapes
    with edgerun.load(engine, options=ONE) as session:
        same(model, session, feeds)
