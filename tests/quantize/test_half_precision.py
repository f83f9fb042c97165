"""float16 arithmetic: what runs in it, what stays in float32 and why; ONNX Runtime computes both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import edgerun
from bench import gpu_nets
from edgerun import quantize, registry
from edgerun.data import open_data
from edgerun.errors import EdgerunError, Unsupported
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.passes import Request
from edgerun.runtime import Engine, Options, Session

RNG = np.random.default_rng(2)
HALF = TensorProto.FLOAT16


def _open(graph: Any, *, emulated: bool = False, lanes: int = 1) -> Session:
    import onnx_ir as ir

    return registry.target("onnxruntime").load(
        Engine("onnxruntime", ir.to_proto(graph).SerializeToString()), Options(1)
    )


def halved(model: Model, data: dict[str, np.ndarray] | None = None, kept: Sequence[str] = ()) -> Model:
    rules = registry.target("tensorrt", usable=False).quantization()
    calibration = None if data is None else open_data(data, model.inputs, batch=2)
    made = quantize.apply("half_precision", model, Request(rules, _open, calibration, keep_float=frozenset(kept)))
    onnx.checker.check_model(made.to_proto(), full_check=True)
    return made


def net(text: str, weights: dict[str, np.ndarray], opset: int = 17) -> Model:
    """A model of ONNX's textual form, nodes named after their first outputs."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    for node in proto.graph.node:
        node.name = node.output[0]
    return Model.from_proto(proto)


def dtypes(model: Model) -> dict[str, int]:
    """By node, the dtype that it computes in."""
    inferred = onnx.shape_inference.infer_shapes(model.to_proto(), strict_mode=True).graph
    known = {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    return {node.name: known[node.output[0]] for node in inferred.node}


def outputs(model: Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with edgerun.load(model.to_bytes(), options=Options(1)) as session:
        found: dict[str, np.ndarray] = session.run(feeds)
    return found


def dense(*shape: int) -> np.ndarray:
    drawn: np.ndarray = (RNG.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
    return drawn


@pytest.mark.parametrize("name", ["mobilenet", "transformer"])
def test_whole_networks(name: str) -> None:
    """Every node but a Cast at either end, half the bytes, and 60 dB: 11 bits, behind some dozen layers."""
    model = gpu_nets.mobilenet("fp32", 64) if name == "mobilenet" else gpu_nets.transformer("fp32", 16, 64, 2, 4)
    feeds = {"x": RNG.standard_normal((2, *(int(d) for d in model.inputs[0].shape[1:]))).astype(np.float32)}
    made = halved(model)
    told = dtypes(made)
    floats = [node for node, dtype in told.items() if dtype == TensorProto.FLOAT]
    assert len(floats) == 1 and floats[0].endswith("Cast") and len(made.to_bytes()) < 0.53 * len(model.to_bytes())
    assert (made.inputs, made.outputs) == (model.inputs, model.outputs)
    assert sqnr_db(outputs(model, feeds)["y"], outputs(made, feeds)["y"]) > 60


def test_what_overflows_stays_in_float32() -> None:
    """By the calibration data, with room for four times as much; nothing is known without it."""
    text = (
        "net (float[n, 8] x) => (float[n, 8] y) { a = MatMul(x, w) b = Mul(a, big) c = Mul(b, small) y = MatMul(c, w) }"
    )
    weights = {"w": dense(8, 8), "big": np.array(3e4, np.float32), "small": np.array(1 / 3e4, np.float32)}
    model, data = net(text, weights), {"x": RNG.standard_normal((8, 8)).astype(np.float32)}
    made = halved(model, data)
    told = dtypes(made)
    assert told["a"] == told["y"] == HALF and told["b"] == told["c"] == TensorProto.FLOAT
    assert made.history[-1].options["overflowing"] == ["b", "c"]
    assert sqnr_db(outputs(model, data)["y"], outputs(made, data)["y"]) > 60
    unseen = halved(model)
    assert dtypes(unseen)["b"] == HALF
    assert unseen.history[-1].options["overflowing"] == "not looked at (no data)"
    with pytest.raises(Unsupported, match="no product"):
        halved(net("net (float[n, 8] x) => (float[n, 8] y) { y = MatMul(x, w) }", {"w": dense(8, 8) * 2e4}), data)


def test_constants_that_float16_has_not_keep_their_node() -> None:
    """An attention mask of -3.4e38, with the Softmax behind it, and a divisor's 1e-12 stay in float32."""
    text = """net (float[8, 8] x) => (float[8, 8] y) {
        a = MatMul(x, w) t = Transpose(a) s = MatMul(a, t) b = Add(s, mask) p = Softmax(b) c = MatMul(p, a)
        d = Add(c, tiny) y = MatMul(d, w) }"""
    mask = np.array([0, 0, 0, -3.4e38, 0, 0, 0, -3.4e38], np.float32)
    model = net(text, {"w": dense(8, 8), "mask": mask, "tiny": np.array(1e-12, np.float32)})
    made, feeds = halved(model), {"x": RNG.standard_normal((8, 8)).astype(np.float32)}
    told = dtypes(made)
    assert {n: told[n] for n in "atsbpcd"} == {"a": HALF, "t": HALF, "s": HALF, "b": 1, "p": 1, "c": HALF, "d": 1}
    assert sqnr_db(outputs(model, feeds)["y"], outputs(made, feeds)["y"]) > 50


def test_a_clip_without_end_is_one_in_float16() -> None:
    ends = {"low": np.array(0, np.float32), "high": np.array(3.4e38, np.float32)}
    text = "net (float[n, 8] x) => (float[n, 8] y) { a = MatMul(x, w) e = Clip(a, low, high) y = MatMul(e, w) }"
    made = halved(net(text, {"w": dense(8, 8), **ends}))
    assert dtypes(made)["e"] == HALF
    (end,) = [t for t in made.to_proto().graph.initializer if t.name == "high/half"]
    assert numpy_helper.to_array(end) == np.finfo(np.float16).max


def test_nothing_is_done_in_float16_for_its_own_sake() -> None:
    """What stands before the first product, and what has no float16 product before it, stays as it is."""
    text = """net (float[n, 8] x) => (float[n, 8] y, float[n, 8] z) {
        a = Sub(x, one) b = Reshape(a, shape) c = MatMul(b, w) y = Relu(c) z = Exp(c) }"""
    weights: dict[str, np.ndarray] = {
        "one": np.array(1, np.float32),
        "shape": np.array([-1, 8], np.int64),
        "w": dense(8, 8),
    }
    told = dtypes(halved(net(text, weights)))
    assert {n: told[n] for n in "abcz"} == {"a": 1, "b": 1, "c": HALF, "z": 1}


def test_a_value_at_the_door_and_inside_is_both() -> None:
    text = "net (float[n, 8] x) => (float[n, 8] a, float[n, 8] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }"
    model, feeds = net(text, {"w": dense(8, 8)}), {"x": RNG.standard_normal((3, 8)).astype(np.float32)}
    made = halved(model)
    assert [spec.name for spec in made.outputs] == ["a", "y"] and made.outputs == model.outputs
    exact, found = outputs(model, feeds), outputs(made, feeds)
    assert all(sqnr_db(exact[name], found[name]) > 60 for name in "ay")


def test_rows_of_tables_and_integers() -> None:
    """A table of embeddings is stored in float16; indices are left alone."""
    text = "net (int64[n, 4] i) => (float[n, 4, 8] y) { a = Gather(table, i) b = Add(a, place) y = MatMul(b, w) }"
    model = net(text, {"table": dense(50, 8), "place": dense(4, 8), "w": dense(8, 8)})
    made, feeds = halved(model), {"i": RNG.integers(0, 50, (2, 4))}
    assert set(dtypes(made).values()) == {HALF, 1} and dtypes(made)["a"] == dtypes(made)["b"] == HALF
    assert not [t.name for t in made.to_proto().graph.initializer if t.data_type == 1]
    assert sqnr_db(outputs(model, feeds)["y"], outputs(made, feeds)["y"]) > 60


def test_inputs_that_are_float32_by_definition_stay() -> None:
    text = """net (float[1, 4, 8, 8] x) => (float[1, 4, 16, 16] y) {
        a = Conv(x, w) b = Resize <mode = "nearest"> (a, , scales) y = Conv(b, w) }"""
    model = net(text, {"w": dense(4, 4, 1, 1), "scales": np.array([1, 1, 2, 2], np.float32)})
    made, feeds = halved(model), {"x": RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)}
    assert dtypes(made)["b"] == HALF
    assert sqnr_db(outputs(model, feeds)["y"], outputs(made, feeds)["y"]) > 60


def test_a_value_that_a_branch_reads_is_float32_there() -> None:
    body = helper.make_graph(
        [helper.make_node("Exp", ["a"], ["inner"], "exp")], "body", [],
        [helper.make_tensor_value_info("inner", 1, ["n", 8])],
    )  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "a"),
        helper.make_node("If", ["choice"], ["y"], "y", then_branch=body, else_branch=body),
        helper.make_node("MatMul", ["a", "w"], ["z"], "z"),
    ]
    door = [helper.make_tensor_value_info(n, 1, ["n", 8]) for n in "xyz"]
    choice = helper.make_tensor_value_info("choice", TensorProto.BOOL, [])
    weights = [numpy_helper.from_array(dense(8, 8), "w")]
    graph = helper.make_graph(nodes, "g", [door[0], choice], door[1:], weights)
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    feeds = {"x": RNG.standard_normal((3, 8)).astype(np.float32), "choice": np.array(True)}
    exact, found = outputs(model, feeds), outputs(halved(model), feeds)
    assert all(sqnr_db(exact[name], found[name]) > 55 for name in "yz")


def test_nodes_can_be_kept_in_float() -> None:
    text = "net (float[n, 8] x) => (float[n, 8] y) { a = MatMul(x, w) y = MatMul(a, w) }"
    model = net(text, {"w": dense(8, 8)})
    told = dtypes(halved(model, kept=["y"]))
    assert told["a"] == HALF and told["y"] == TensorProto.FLOAT
    with pytest.raises(EdgerunError, match="has no effect"):
        halved(model, kept=["no_such_node"])


def test_a_model_without_products_is_refused() -> None:
    with pytest.raises(Unsupported):
        halved(net("net (float[n] x) => (float[n] y) { y = Relu(x) }", {}))


def test_compress_for_tensorrt(tmp_path: Path) -> None:
    target = registry.target("tensorrt", usable=False)
    if reason := target.available():
        pytest.skip(reason)
    model = gpu_nets.mobilenet("fp32", 64)
    made = edgerun.compress(model, scheme="w16a16", target="tensorrt", output=tmp_path / "half.onnx")
    assert target.check(made) == [] and made.history[-1].options["nodes in float16"] == 72
    with pytest.raises(Unsupported, match="no kernels for w16a16"):
        edgerun.compress(model, scheme="w16a16", target="onnxruntime")
