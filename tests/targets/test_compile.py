"""The self-check of compile: it passes what is right and names what is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference.ops import op_loop

import edgerun
from edgerun import registry
from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.model import Model
from edgerun.runtime import Engine, Options
from edgerun.verbs import work

ONE = Options(1)
TARGETS = [n for n in ("onnxruntime", "openvino") if registry.target(n, usable=False).available() is None]


def _altered(model: Model, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Model:
    proto = model.to_proto()
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    return Model.from_proto(proto)


def _sabotage(monkeypatch: pytest.MonkeyPatch, target: str, wrong: Model) -> None:
    module = registry.target(target)
    honest = module.compile
    monkeypatch.setattr(module, "compile", lambda model, options: honest(wrong, options))


@pytest.mark.parametrize("target", TARGETS)
def test_a_small_error_passes_and_is_told(dense: Model, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _sabotage(monkeypatch, target, _altered(dense, "w", lambda w: w * np.float32(1.0005)))
    check = edgerun.compile(dense, target, ONE).check
    assert check is not None
    assert check.relative_error == pytest.approx(5e-4, rel=0.01)
    assert check.sqnr_db == pytest.approx(-20 * math.log10(5e-4), abs=0.1)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("change", [lambda w: w * np.float32(1.002), lambda w: w * 0, lambda w: w + np.float32("nan")])
def test_a_wrong_engine_fails_the_gate(
    dense: Model, target: str, change: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    _sabotage(monkeypatch, target, _altered(dense, "w", change))
    with pytest.raises(GateFailed, match="output 'y'") as caught:
        edgerun.compile(dense, target, ONE)
    assert target in str(caught.value) and caught.value.exit_code == 1


def test_the_worst_output_is_named(build: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [helper.make_node("Mul", ["x", name], [f"by_{name}"], name) for name in ("p", "q")]
    weights = {name: np.array([2], np.float32) for name in ("p", "q")}
    model = build(nodes, {"x": ["batch"]}, {"by_p": ["batch"], "by_q": ["batch"]}, weights)
    _sabotage(monkeypatch, "onnxruntime", _altered(model, "q", lambda w: w + 1))
    with pytest.raises(GateFailed, match="by_q"):
        edgerun.compile(model, "onnxruntime", ONE)


@pytest.mark.parametrize("target", TARGETS)
def test_models_that_round_are_judged_by_sqnr(rounded: Model, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = edgerun.compile(rounded, target, ONE).check
    assert check is not None and check.sqnr_db >= 20 and check.reference.startswith("reference")
    _sabotage(monkeypatch, target, _altered(rounded, "w", lambda w: w[::-1].copy()))
    with pytest.raises(GateFailed, match="SQNR"):
        edgerun.compile(rounded, target, ONE)


@pytest.mark.parametrize("target", TARGETS)
def test_real_feeds_are_used_when_given(dense: Model, target: str) -> None:
    feeds = [{"x": np.full((n, 6), n, np.float32)} for n in (1, 2, 5)]
    check = edgerun.compile(dense, target, ONE, feeds=feeds).check
    assert check is not None and check.runs == 3 and check.shapes == ("x[1, 6]", "x[2, 6]", "x[5, 6]")


def test_what_the_reference_lacks_is_compared_with_unoptimized_runtime(build: Callable[..., Model]) -> None:
    node = helper.make_node("BiasGelu", ["x", "b"], ["y"], "gelu", domain="com.microsoft")
    weights = {"b": np.ones(4, np.float32)}
    model = build([node], {"x": ["batch", 4]}, {"y": ["batch", 4]}, weights, domains=("com.microsoft",))
    check = edgerun.compile(model, "onnxruntime", ONE).check
    assert check is not None and check.reference.endswith("graph_optimization_level=off")


def test_heavy_models_are_compared_with_unoptimized_runtime(build: Callable[..., Model]) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 64, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 1, 1, 1])
    for size, heavy in ((8, False), (32, True)):  # 2.4 and 38 million multiply-accumulates
        model = build([node], {"x": ["n", 64, size, size]}, {"y": ["n", 64, size, size]}, {"w": weight})
        assert work._macs(model) == 64 * size * size * 64 * 9
        check = edgerun.compile(model, "onnxruntime", ONE).check
        assert check is not None and ("off" in check.reference) == heavy


def test_indices_stay_inside_their_table(build: Callable[..., Model]) -> None:
    table = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    model = build(
        [helper.make_node("Gather", ["table", "ids"], ["y"], "gather")], {}, {"y": ["n", "t", 4]}, {"table": table}
    )
    proto = model.to_proto()
    proto.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "t"]))
    for target in TARGETS:
        assert edgerun.compile(Model.from_proto(proto), target, ONE).check is not None


def test_no_feeds_fit(build: Callable[..., Model]) -> None:
    """Two inputs whose sizes must differ by one: no random draw can know."""
    nodes = [
        helper.make_node("Concat", ["a", "one"], ["c"], "grow", axis=0),
        helper.make_node("Add", ["c", "b"], ["y"], "add"),
    ]
    model = build(nodes, {"a": ["n"], "b": ["m"]}, {"y": ["m"]}, {"one": np.ones(1, np.float32)})
    with pytest.raises(EdgerunError, match="real inputs"):
        edgerun.compile(model, "onnxruntime", ONE)
    feeds = {"a": np.ones(3, np.float32), "b": np.ones(4, np.float32)}
    assert edgerun.compile(model, "onnxruntime", ONE, feeds=[feeds]).check is not None


def test_unsupported_nodes_are_told(build: Callable[..., Model]) -> None:
    model = build([helper.make_node("Frobnicate", ["x"], ["y"], "odd")], {"x": [2]}, {"y": [2]})
    with pytest.raises(Unsupported, match=r"odd \(Frobnicate\)") as caught:
        edgerun.compile(model, "onnxruntime", ONE)
    assert caught.value.exit_code == 3


def test_compile_takes_a_file(dense: Model, tmp_path: Path) -> None:
    dense.save(tmp_path / "dense.onnx")
    assert edgerun.compile(tmp_path / "dense.onnx", "onnxruntime", ONE).digest == dense.digest()


def test_an_engine_runs_where_it_was_compiled_for(dense: Model) -> None:
    engine = edgerun.compile(dense, "onnxruntime", ONE)
    assert isinstance(engine, Engine) and edgerun.load(engine).inputs == dense.inputs
    with pytest.raises(EdgerunError, match="another target"):
        edgerun.load(engine, "openvino")


def test_a_reference_that_contradicts_the_model_is_no_truth(
    build: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnx's own Loop stacks scalar scan outputs as [trips, 1]; the model says [trips]."""
    theirs = type("Loop", (op_loop.Loop,), {"op_domain": ""})
    monkeypatch.setattr("edgerun.targets.reference._loop", lambda: theirs)
    inner = [
        helper.make_node("Add", ["total", "one"], ["next"], "add"),
        helper.make_node("Identity", ["go"], ["on"], "on"),
        helper.make_node("ReduceSum", ["next"], ["sum"], "sum", keepdims=0),
    ]
    body = helper.make_graph(
        inner,
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, [2]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, []),
        ],
    )
    weights = {"trips": np.array(3), "yes": np.array(True), "one": np.ones(2, np.float32)}
    loop = helper.make_node("Loop", ["trips", "yes", "x"], ["last", "sums"], "loop", body=body)
    model = build([loop], {"x": [2]}, {"last": [2], "sums": ["k"]}, weights)
    for target in TARGETS:
        engine = edgerun.compile(model, target, ONE)
        assert engine.check is not None and engine.check.reference.startswith("onnxruntime")
        assert edgerun.load(engine).run({"x": np.zeros(2, np.float32)})["sums"].tolist() == [2, 4, 6]
        assert engine.payload == edgerun.compile(model, target, ONE).payload, "bodies are named by place too"


def test_another_runtime_may_correct_the_evaluator(build: Callable[..., Model]) -> None:
    """onnx's evaluator sums x, not |x|, for the L1 norm: ONNX Runtime and OpenVINO agree on what the standard says."""
    node = helper.make_node("LpNormalization", ["x"], ["y"], "norm", axis=1, p=1)
    model = build([node], {"x": ["batch", 4]}, {"y": ["batch", 4]})
    x = np.array([[1, -2, 3, -4]], np.float32)
    for target in TARGETS:
        with edgerun.load(registry.target(target).compile(model, ONE)) as session:
            np.testing.assert_allclose(session.run({"x": x})["y"], x / 10, rtol=1e-6)
    if "openvino" not in TARGETS:
        with pytest.raises(GateFailed, match="against reference"):  # its own runtime is no second opinion
            edgerun.compile(model, "onnxruntime", ONE)
        return
    for target, other in (("openvino", "onnxruntime"), ("onnxruntime", "openvino")):
        check = edgerun.compile(model, target, ONE).check
        assert check is not None and check.reference.startswith(other)


def test_strings_are_drawn_or_given(build: Callable[..., Model]) -> None:
    node = helper.make_node("StringConcat", ["a", "b"], ["c"], "concat")
    model = build([node], {"a": [2], "b": [2]}, {"c": [2]}, opset=20, dtype=TensorProto.STRING)
    drawn = edgerun.compile(model, "onnxruntime", ONE).check
    assert drawn is not None and drawn.relative_error == 0 and drawn.runs == 4
    feeds = {name: np.array(["x", "ü"], dtype=object) for name in ("a", "b")}
    engine = edgerun.compile(model, "onnxruntime", ONE, feeds=[feeds])
    assert engine.check is not None and engine.check.relative_error == 0
    assert edgerun.load(engine).run(feeds)["c"].tolist() == ["xx", "üü"]


def test_the_first_node_that_differs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node and its operator are told, not those before it, which agree, nor those behind it, which have its
    differences."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        net (float[1,64] x) => (float[1,64] y) <float two = {2.0}>
        { r = Relu(x) m = Mul(r, two) d = Sin(m) s = Sigmoid(d) y = Add(s, m) }"""
    proto = parser.parse_model(text)
    for node in proto.graph.node:
        node.name = f"the_{node.output[0]}"
    module = registry.target("onnxruntime")
    honest = module.compile

    def wrong(model: Model, options: Options) -> Engine:
        other = model.to_proto()
        for node in other.graph.node:
            node.op_type = "Cos" if node.op_type == "Sin" else node.op_type
        return honest(Model.from_proto(other), options)

    monkeypatch.setattr(module, "compile", wrong)
    with pytest.raises(GateFailed, match=r"first at the_d \(Sin\)"):
        edgerun.compile(Model.from_proto(proto), "onnxruntime", output=tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())
