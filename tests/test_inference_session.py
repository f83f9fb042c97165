"""InferenceSession beside onnxruntime's own, call by call."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper

import edgerun
from edgerun import registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import InferenceSession

CPU = ["CPUExecutionProvider"]
FEEDS = {"a": np.ones((2, 3), np.float32), "s": np.array(["x", "ü"], object)}


@pytest.fixture(scope="module")
def model() -> bytes:
    """d = 2·a, t = s with s: float32, float64, strings, open dimensions."""
    nodes = [
        helper.make_node("Add", ["a", "a"], ["b"]),
        helper.make_node("Cast", ["b"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("StringConcat", ["s", "s"], ["t"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("a", TensorProto.FLOAT, ["batch", 3]), value("s", TensorProto.STRING, ["words"])],
        [value("d", TensorProto.DOUBLE, ["batch", 3]), value("t", TensorProto.STRING, ["words"])],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(proto.SerializeToString())


def test_it_answers_as_the_original(model: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(model)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    theirs = onnxruntime.InferenceSession(model, settings, providers=CPU)
    for source in (model, tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        ours = InferenceSession(source, settings, providers=CPU)
        assert ours.get_providers() == theirs.get_providers()
        for own, other in zip(
            (*ours.get_inputs(), *ours.get_outputs()), (*theirs.get_inputs(), *theirs.get_outputs()), strict=True
        ):
            assert (own.name, own.type, own.shape) == (other.name, other.type, other.shape)
        for names in (None, ["t"], ["t", "d"]):
            original: Any = theirs.run(names, FEEDS)
            for own, other in zip(ours.run(names, FEEDS), original, strict=True):
                assert own.dtype == other.dtype
                np.testing.assert_array_equal(own, other)


def test_what_it_does_not_do_is_refused(model: bytes) -> None:
    session = InferenceSession(model)
    with pytest.raises(EdgerunError, match="unknown output 'dd'.*"):
        session.run(["dd"], FEEDS)
    with pytest.raises(Unsupported, match="arena_extend_strategy"):
        InferenceSession(model, providers=[(CPU[0], {"arena_extend_strategy": "kSameAsRequested"})])
    with pytest.raises(EdgerunError, match="unknown execution provider 'VitisAIExecutionProvider'"):
        InferenceSession(model, providers=["VitisAIExecutionProvider"])
    with pytest.raises(EdgerunError, match="output names are a list"):
        session.run("y", FEEDS)


@pytest.mark.skipif(registry.target("openvino", usable=False).available() is not None, reason="no openvino")
def test_openvino_by_its_provider() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])], "g", [value], [helper.make_tensor_value_info("y", 1, [2])]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = InferenceSession(proto.SerializeToString(), providers=["OpenVINOExecutionProvider", *CPU])
    assert session.get_providers() == ["OpenVINOExecutionProvider"]
    assert session.run(None, {"x": np.ones(2, np.float32)})[0].tolist() == [-1, -1]


@pytest.fixture
def both(model: bytes) -> tuple[Any, InferenceSession]:
    """Theirs and ours."""
    return _two(model)


Both = tuple[Any, InferenceSession]


def test_default_run_options_are_taken(both: Both) -> None:
    theirs, ours = (session.run(["d"], FEEDS, onnxruntime.RunOptions())[0] for session in both)
    np.testing.assert_array_equal(ours, theirs)


def test_metadata_is_the_original_s(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])], "a graph", [value("x", 1, [2])], [value("y", 1, [2])]
    )
    graph.doc_string = "of the graph"
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="me", domain="org.me",
        doc_string="of the model", model_version=7,
    )  # fmt: skip
    proto.metadata_props.add(key="k", value="v")
    data = proto.SerializeToString()
    theirs, ours = onnxruntime.InferenceSession(data, providers=CPU).get_modelmeta(), InferenceSession(data)
    names = (
        "custom_metadata_map",
        "producer_name",
        "graph_name",
        "domain",
        "description",
        "graph_description",
        "version",
    )
    assert [getattr(ours.get_modelmeta(), name) for name in names] == [getattr(theirs, name) for name in names]
    assert ours.get_modelmeta().producer_name == "me" and ours.get_modelmeta().version == 7


def test_runs_go_on_beside(both: Both) -> None:
    told: dict[str, tuple[Any, ...]] = {}
    for name, session in zip(("theirs", "ours"), both, strict=True):
        done = threading.Event()

        def ended(results: Any, user: Any, error: str, *, done: threading.Event = done) -> None:
            told[user] = (list(results), error)
            done.set()

        session.run_async(["d"], FEEDS, ended, name)
        assert done.wait(30)
    assert told["ours"][1] == told["theirs"][1] == ""
    np.testing.assert_array_equal(told["ours"][0][0], told["theirs"][0][0])
    failed: Queue[tuple[Any, ...]] = Queue()
    both[1].run_async(None, {"a": FEEDS["a"]}, lambda *words: failed.put(words), "wrong")
    results, user, error = failed.get(timeout=30)
    assert results == [] and user == "wrong" and "'s'" in error
    with pytest.raises(EdgerunError, match="unknown output"):
        both[1].run_async(["dd"], FEEDS, lambda *words: None, None)


def _two(model: bytes) -> tuple[Any, InferenceSession]:
    return onnxruntime.InferenceSession(model, providers=CPU), InferenceSession(model)


@pytest.fixture
def sums() -> bytes:
    """d = 2·x in float64, y = -x: float32, open dimensions. (onnxruntime binds no strings.)"""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["b"]),
        helper.make_node("Cast", ["b"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("Neg", ["x"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    outputs = [value("d", TensorProto.DOUBLE, ["n", 3]), value("y", TensorProto.FLOAT, ["n", 3])]
    graph = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, ["n", 3])], outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(proto.SerializeToString())


def test_arrays_are_bound(sums: bytes) -> None:
    """Inputs are read as they are at every run, outputs written where asked, in the order in which they were bound."""
    for session in _two(sums):
        x, place = np.ones((2, 3), np.float32), np.zeros((2, 3))
        bound = session.io_binding()
        bound.bind_cpu_input("x", x)
        bound.bind_output("y")
        bound.bind_output("d", "cpu", 0, np.float64, place.shape, place.ctypes.data)
        for value in (1, 4):
            x[:] = value
            session.run_with_iobinding(bound)
            negated, doubled = bound.copy_outputs_to_cpu()
            assert doubled.tolist() == place.tolist() == [[2 * value] * 3] * 2
            assert negated.tolist() == [[-value] * 3] * 2
        bound.clear_binding_outputs()
        bound.bind_output("d")
        session.run_with_iobinding(bound)
        assert bound.copy_outputs_to_cpu()[0].dtype == np.float64 and bound.get_outputs()[0].numpy()[0, 0] == 8
    session, x = _two(sums)[1], np.ones((2, 3), np.float32)
    bound = session.io_binding()
    with pytest.raises(EdgerunError, match="unknown input 'b'"):
        bound.bind_cpu_input("b", x)
    with pytest.raises(Unsupported, match="host memory"):
        bound.bind_output("d", "cuda")
    with pytest.raises(EdgerunError, match="no output is bound"):
        session.run_with_iobinding(bound)


def test_addresses_and_ort_values(sums: bytes, both: Both) -> None:
    value = onnxruntime.OrtValue.ortvalue_from_numpy(FEEDS["a"])
    for session in _two(sums):
        (found,) = session.run_with_ort_values(["y"], {"x": value})
        assert isinstance(found, onnxruntime.OrtValue) and found.numpy().tolist() == [[-1.0] * 3] * 2
        bound, x = session.io_binding(), np.full((1, 3), 5, np.float32)
        bound.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
        bound.bind_output("y")
        session.run_with_iobinding(bound)
        assert bound.copy_outputs_to_cpu()[0].tolist() == [[-5.0] * 3]
        bound.clear_binding_outputs()
        bound.bind_ortvalue_input("x", value)
        bound.bind_output("y")
        session.run_with_iobinding(bound)
        assert bound.copy_outputs_to_cpu()[0].shape == (2, 3)
    bound = _strings(both[1])
    both[1].run_with_iobinding(bound)
    assert bound.copy_outputs_to_cpu()[0].tolist() == ["xx", "üü"]
    with pytest.raises(Unsupported, match="no OrtValue"):
        bound.get_outputs()


def _strings(session: InferenceSession) -> Any:
    bound = session.io_binding()
    for name, array in FEEDS.items():
        bound.bind_cpu_input(name, array)
    bound.bind_output("t")
    return bound


def test_options_are_told(model: bytes, both: Both) -> None:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    assert InferenceSession(model, settings).get_session_options().intra_op_num_threads == 1
    assert both[1].get_session_options().intra_op_num_threads >= 1
    assert set(both[1].get_provider_options()) == set(both[0].get_provider_options()) == set(CPU)


def test_one_name_for_two_sizes_runs_as_it_does_there() -> None:
    """Exports write "n" for what is not the same. It is told once; OpenVINO and our own sessions refuse it."""
    text = "g (float[n] x, float[n] z) => (float[a] y, float[b] w) { y = Relu(x)  w = Neg(z) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}').SerializeToString()
    feeds = {"x": np.ones(3, np.float32), "z": np.ones(4, np.float32)}
    theirs = onnxruntime.InferenceSession(model, providers=CPU).run(None, feeds)
    ours = InferenceSession(model, providers=CPU)
    ours.run(None, {**feeds, "z": feeds["x"]})
    with pytest.warns(UserWarning, match="different sizes of 'n' .x: 3, z: 4."):
        found = ours.run(None, feeds)
    for own, other in zip(found, theirs, strict=True):
        np.testing.assert_array_equal(own, other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.run(None, feeds)
    refusing = [edgerun.load(model, "onnxruntime")]
    if not registry.target("openvino", usable=False).available():
        refusing.append(InferenceSession(model, providers=["OpenVINOExecutionProvider"]).session)
    for session in refusing:
        with session, pytest.raises(EdgerunError, match="different sizes of 'n'"):
            session.run(feeds)


def test_outputs_keep_the_order_of_the_model(model: bytes) -> None:
    """Whatever the order of the arrays that they are written into, and however often."""
    with edgerun.load(model) as session:
        order = list(outputs := session.run(FEEDS))
        out = {name: np.empty_like(outputs[name]) for name in reversed(order)}
        assert all(list(session.run(FEEDS, out)) == order for _ in range(4))
