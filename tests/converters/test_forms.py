"""Operators written with others compute what ONNX's evaluator computes of the operators themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import edgerun
from edgerun import registry
from edgerun.converters import _forms, _lower
from edgerun.converters._ort import runner
from edgerun.errors import Unsupported
from edgerun.model import Model
from edgerun.runtime import Options

FLOAT, INT64, ONE = TensorProto.FLOAT, TensorProto.INT64, Options(threads=1)
OPENVINO = pytest.mark.skipif(registry.target("openvino", usable=False).available() is not None, reason="no openvino")
Feeds = Mapping[str, np.ndarray]


def made(node: onnx.NodeProto, feeds: Feeds, outputs: Mapping[str, int], opset: int = 26) -> onnx.ModelProto:
    """`node` as a model whose inputs are `feeds`, its outputs of these types and unknown sizes."""
    number = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info(n, number(a.dtype), a.shape) for n, a in feeds.items()],
        [helper.make_tensor_value_info(n, kind, None) for n, kind in outputs.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=13)


def evaluated(proto: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray]:
    """What ONNX's evaluator makes of it."""
    results: Any = ReferenceEvaluator(proto).run(None, dict(feeds))
    return list(results)


def agree(proto: onnx.ModelProto, feeds: Feeds, atol: float = 0, scan: bool = False) -> onnx.ModelProto:
    """The model with its one operator written otherwise, which gives what the evaluator gives of the operator.

    The evaluator knows `Scan` along the first axis alone: ONNX Runtime runs what has one.
    """
    ops = {proto.graph.node[0].op_type}
    found = _lower.expanded(proto, ops)
    assert found is not None and f"{next(iter(ops))} (1)" in found[1]
    wanted = evaluated(proto, feeds)
    if scan:
        results = list(runner(found[0].SerializeToString())(feeds).values())
    else:
        results = evaluated(found[0], feeds)
    for got, want in zip(results, wanted, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=0, atol=atol)
    return found[0]


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_unsqueeze_with_computed_axes(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
    n = len(shape) + data.draw(st.integers(1, 3))
    at = data.draw(st.permutations(range(n)))[: n - len(shape)]
    axes = np.array([a - n * data.draw(st.booleans()) for a in at], np.int64)
    feeds: Feeds = {"x": np.arange(np.prod(shape), dtype=np.float32).reshape(shape), "axes": axes}
    agree(made(helper.make_node("Unsqueeze", ["x", "axes"], ["y"]), feeds, {"y": FLOAT}), feeds)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_cumulative_products(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    flags: dict[str, Any] = {name: int(data.draw(st.booleans())) for name in ("exclusive", "reverse")}
    x = np.random.default_rng(len(shape)).uniform(0.5, 2, shape).astype(np.float32)
    feeds: Feeds = {"x": x, "axis": np.array(axis, np.int64)}
    node = helper.make_node("CumProd", ["x", "axis"], ["y"], **flags)
    agree(made(node, feeds, {"y": FLOAT}), feeds, atol=1e-5, scan=True)  # of at most 2⁴


@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize(("axis", "indices"), [(-2, [1, 0]), (1, None), (2, [2, 1])])
def test_caches_that_are_written_to(mode: str, axis: int, indices: list[int] | None) -> None:
    small = [2, 3, 4]
    small[axis] = 2
    feeds: dict[str, np.ndarray] = {
        "cache": np.zeros((2, 3, 4), np.float32),
        "update": np.arange(1, np.prod(small) + 1, dtype=np.float32),
    }
    feeds["update"] = feeds["update"].reshape(small)
    if indices is not None:
        feeds["at"] = np.array(indices, np.int64)
    agree(made(helper.make_node("TensorScatter", list(feeds), ["y"], mode=mode, axis=axis), feeds, {"y": FLOAT}), feeds)


@pytest.mark.parametrize("given", [{"strides": [2, 2]}, {"strides": [2, 1], "pads": [0, 1, 0, 0]}, {}])
def test_unpooling(given: dict[str, Any]) -> None:
    feeds: Feeds = {"x": np.array([[[[1, 2], [3, 4]]]], np.float32), "at": np.array([[[[3, 0], [5, 7]]]], np.int64)}
    node = helper.make_node("MaxUnpool", ["x", "at"], ["y"], kernel_shape=[2, 2], **given)
    if "pads" not in given:  # which the evaluator refuses
        agree(made(node, feeds, {"y": FLOAT}), feeds)
        return
    found = _lower.expanded(made(node, feeds, {"y": FLOAT}), {"MaxUnpool"})
    assert found is not None
    (y,) = evaluated(found[0], feeds)
    assert y.shape == (1, 1, 4, 2) and y.reshape(-1).tolist() == [2, 0, 0, 1, 0, 3, 0, 4]


@pytest.mark.parametrize("size", [(4, 4), (5, 4), (7, 9)])
def test_unpooling_to_a_size(size: tuple[int, int]) -> None:
    """Places are those of the output that kernel and strides make; what is asked for beyond is zeros behind it."""
    feeds: Feeds = {"x": np.array([[[[1, 2], [3, 4]]]], np.float32), "at": np.array([[[[5, 7], [13, 15]]]], np.int64),
                    "size": np.array([1, 1, *size], np.int64)}  # fmt: skip
    node = helper.make_node("MaxUnpool", ["x", "at", "size"], ["y"], kernel_shape=[2, 2], strides=[2, 2])
    proto = made(node, feeds, {"y": FLOAT}, opset=22)
    agree(proto, feeds)
    (y,) = evaluated(proto, feeds)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, [1, 1, *size]))
    engine = edgerun.compile(Model.from_proto(proto), "onnxruntime", ONE, feeds=[feeds])
    with edgerun.load(engine, options=ONE) as session:  # which on its own reads places as those of the larger output
        np.testing.assert_array_equal(session.run(feeds)["y"], y)
    assert y.shape == (1, 1, *size) and y[0, 0, 1::2, 1::2][:2, :2].tolist() == [[1, 2], [3, 4]] and y.sum() == 10


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 3, 3), (2, 3, 4, 4)])
def test_determinants(shape: tuple[int, ...]) -> None:
    feeds = {"x": np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)}
    agree(made(helper.make_node("Det", ["x"], ["y"]), feeds, {"y": FLOAT}), feeds, atol=1e-5)
    larger = {"x": np.eye(5, dtype=np.float32)}
    assert _lower.expanded(made(helper.make_node("Det", ["x"], ["y"]), larger, {"y": FLOAT}), {"Det"}) is None


@pytest.mark.parametrize("told", [
    {}, {"strides": [2, 1], "pads": [1, 0, 2, 1]}, {"dilations": [2, 2], "pads": [1, 1, 1, 1]},
    {"group": 2, "offset_group": 2}, {"group": 1, "offset_group": 4},
])  # fmt: skip
@pytest.mark.parametrize("rest", [0, 1, 2])
def test_bent_windows(told: dict[str, Any], rest: int) -> None:
    """Without bias and mask, with a bias, with both."""
    random, (n, c, h, w) = np.random.default_rng(4), (2, 4, 6, 5)
    strides, pads = told.get("strides", [1, 1]), told.get("pads", [0] * 4)
    reach, groups = told.get("dilations", [1, 1]), told.get("offset_group", 1)
    out = [(size + pads[i] + pads[i + 2] - reach[i] - 1) // strides[i] + 1 for i, size in enumerate((h, w))]
    shapes = {
        "x": (n, c, h, w), "w": (6, c // told.get("group", 1), 2, 2), "offset": (n, groups * 8, *out), "b": (6,),
        "mask": (n, groups * 4, *out),
    }  # fmt: skip
    feeds = {n: random.uniform(-1, 1, shapes[n]).astype(np.float32) for n in list(shapes)[: 3 + rest]}
    node = helper.make_node("DeformConv", list(feeds), ["y"], kernel_shape=[2, 2], **told)
    agree(made(node, feeds, {"y": FLOAT}), feeds, atol=1e-5)


@pytest.mark.parametrize(
    ("of", "to"), [("int8", "uint8"), ("uint16", "int16"), ("uint32", "int32"), ("int64", "uint64")]
)
def test_the_bits_of_integers(of: str, to: str) -> None:
    info = np.iinfo(of)
    feeds = {"x": np.array([info.min, info.max, 0, 1, info.max // 2 + 1], of)}
    number = helper.np_dtype_to_tensor_dtype(np.dtype(to))
    agree(made(helper.make_node("BitCast", ["x"], ["y"], to=number), feeds, {"y": number}), feeds)


def test_floats_have_no_such_form() -> None:
    feeds = {"x": np.ones(2, np.float32)}
    node = helper.make_node("BitCast", ["x"], ["y"], to=TensorProto.INT32)
    assert _lower.expanded(made(node, feeds, {"y": TensorProto.INT32}), {"BitCast"}) is None


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("op", ["Cast", "CastLike"])
def test_saturation(name: str, op: str) -> None:
    """Also in two steps: CastLike is written as Cast, which saturates and is written otherwise in its turn."""
    dtype = np.dtype(getattr(ml_dtypes, name))
    number = helper.np_dtype_to_tensor_dtype(dtype)
    x = np.array([0, 1, -3.3, 447, 449, 57344, 60000, 1e30, -1e30, np.inf, -np.inf, np.nan], np.float32)
    feeds: dict[str, np.ndarray] = {"x": x}
    told: dict[str, Any] = {"to": number} if op == "Cast" else {}
    if op == "CastLike":
        feeds["like"] = np.zeros(1, dtype)
    proto = made(helper.make_node(op, list(feeds), ["y"], **told), feeds, {"y": number}, opset=25)
    proto = agree(proto, feeds)
    if op == "CastLike":
        proto = agree(proto, {"x": x})
    plain = [onnx.helper.get_node_attr_value(n, "saturate") for n in proto.graph.node if n.op_type == "Cast"]
    assert plain == [0] and _lower.expanded(proto, {"Cast"}) is None
    assert np.array([_forms.FLOAT8[number]]).astype(dtype).astype(float) == _forms.FLOAT8[number]


@OPENVINO
@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("outputs", [["y", "y_h"], ["", "y_h"], ["y"]])
def test_batch_first(op: str, outputs: list[str]) -> None:
    """OpenVINO has no such layout; ONNX's evaluator is what it is compared with."""
    gates, random = {"RNN": 1, "GRU": 3, "LSTM": 4}[op], np.random.default_rng(1)
    shapes = {"x": (3, 2, 4), "w": (1, 5 * gates, 4), "r": (1, 5 * gates, 5), "b": (1, 10 * gates)}
    feeds = {name: random.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    proto = made(
        helper.make_node(op, list(feeds), outputs, "r", hidden_size=5, layout=1),
        feeds,
        {n: FLOAT for n in outputs if n},
        22,
    )
    proto.ir_version = 10
    model = Model.from_proto(onnx.shape_inference.infer_shapes(proto))
    engine = edgerun.compile(model, "openvino", ONE, feeds=[feeds])
    assert engine.check is not None and engine.check.relative_error < 1e-5
    with edgerun.load(engine, options=ONE) as session:
        got = session.run(feeds)
    assert got[outputs[-1]].shape == ((3, 1, 5) if outputs[-1] == "y_h" else (3, 2, 1, 5))


@OPENVINO
def test_uses_that_openvino_computes_wrongly_are_refused_by_name() -> None:
    random = np.random.default_rng(1)
    shapes = {"x": (2, 3, 4), "w": (1, 20, 4), "r": (1, 20, 5), "p": (1, 15)}
    feeds = {name: random.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    node = helper.make_node("LSTM", ["x", "w", "r", "", "", "", "", "p"], ["", "h"], "cell", hidden_size=5)
    proto = made(node, feeds, {"h": FLOAT}, 22)
    proto.ir_version = 10
    with pytest.raises(Unsupported, match=r"cell \(LSTM\): OpenVINO ignores peepholes"):
        edgerun.compile(Model.from_proto(onnx.shape_inference.infer_shapes(proto)), "openvino", ONE, feeds=[feeds])
