"""The reference where sequences end early and loops stack what they give: ONNX Runtime says the same."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

pytest.importorskip("onnxruntime")

import edgerun
from edgerun.errors import EdgerunError

ONE = edgerun.Options(threads=1)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, SIZE, HIDDEN = 5, 3, 4, 2
LENGTHS = np.array([0, 2, 5], np.int32)


def _turned(array: np.ndarray) -> np.ndarray:
    """With the batch in front."""
    return np.ascontiguousarray(array.swapaxes(0, 1))


def _cell(op: str, direction: str, states: bool) -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
    """A layer, and feeds of all its inputs."""
    ways, rows, random = 2 if direction == "bidirectional" else 1, GATES[op] * HIDDEN, np.random.default_rng(3)
    shapes = {"x": (STEPS, BATCH, SIZE), "w": (ways, rows, SIZE), "r": (ways, rows, HIDDEN), "b": (ways, 2 * rows)}
    own: dict[str, np.ndarray] = {
        name: random.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()
    }
    own["lengths"] = LENGTHS
    for name in ("h0", "c0")[: (2 if op == "LSTM" else 1) * states]:
        own[name] = random.uniform(1, 2, (ways, BATCH, HIDDEN)).astype(np.float32)
    acts = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}[op] * ways
    told: dict[str, Any] = {"hidden_size": HIDDEN, "direction": direction, "activations": acts}
    return helper.make_node(op, list(own), ["y", "h", "c"][: 3 if op == "LSTM" else 2], op, **told), own


def _ran(target: str, path: Path, node: onnx.NodeProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    kinds = {"lengths": TensorProto.INT32}
    infos = [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), a.shape) for n, a in feeds.items()]
    outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["?"] * (4 if n == "y" else 3)) for n in node.output]
    graph = helper.make_graph([node], "ends", infos, outs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with edgerun.load(path, target, ONE) as session:
        return session.run(feeds)


@pytest.mark.parametrize(
    ("op", "direction", "states"),
    list(itertools.product(GATES, ("forward", "reverse", "bidirectional"), (False, True))),
)
def test_sequences_that_end_early(op: str, direction: str, states: bool, tmp_path: Path) -> None:
    node, feeds = _cell(op, direction, states)
    theirs = _ran("onnxruntime", tmp_path / "m.onnx", node, feeds)
    assert not theirs["y"][2:, :, 1].any()
    ours = _ran("reference", tmp_path / "m.onnx", node, feeds)
    for name, wanted in theirs.items():
        np.testing.assert_allclose(ours[name], wanted, atol=1e-6)
    node.attribute.append(helper.make_attribute("layout", 1))  # ONNX Runtime has none
    turned = _ran(
        "reference", tmp_path / "m.onnx", node, feeds | {n: _turned(feeds[n]) for n in feeds if n in ("x", "h0", "c0")}
    )
    for name in ("h", "c")[: len(theirs) - 1]:
        np.testing.assert_allclose(_turned(turned[name]), theirs[name], atol=1e-6)
    np.testing.assert_allclose(turned["y"].transpose(1, 2, 0, 3), theirs["y"], atol=1e-6)


LOOP = """<ir_version: 8, opset_import: ["": 17]> loops (float[n,3] x, int64 trips)
=> (float[n,3] y, float[k,n,3] all, int64[k] steps) <bool go = {1}> {
    y, all, steps = Loop (trips, go, x) <body = body (int64 i, bool c, float[n,3] s) =>
    (bool more, float[n,3] t, float[n,3] seen, int64 at) {
        more = Identity(c) t = Add(s, s) seen = Identity(s) at = Identity(i) }> }"""


def test_a_loop_stacks_what_each_iteration_gives(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(LOOP), tmp_path / "loop.onnx")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for target in ("reference", "onnxruntime"):
        with edgerun.load(tmp_path / "loop.onnx", target, ONE) as session:
            found = session.run({"x": x, "trips": np.array(3)})
        np.testing.assert_array_equal(found["y"], 8 * x)
        np.testing.assert_array_equal(found["all"], [x, 2 * x, 4 * x])
        np.testing.assert_array_equal(found["steps"], [0, 1, 2])


def test_a_loop_without_an_iteration_is_refused(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(LOOP), tmp_path / "loop.onnx")
    with (
        edgerun.load(tmp_path / "loop.onnx", "reference", ONE) as session,
        pytest.raises(EdgerunError, match="no known shape"),
    ):
        session.run({"x": np.ones((2, 3), np.float32), "trips": np.array(0)})
