"""What an InferenceSession is asked for, beside onnxruntime's own: the same calls, the same values and kinds."""

from __future__ import annotations

import time
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun import registry
from edgerun.compat._binding import IOBinding
from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import InferenceSession

CPU = ["CPUExecutionProvider"]
X = np.ones((1, 2), np.float32)
BOTH: Any = (onnxruntime.InferenceSession, InferenceSession)
openvino = pytest.mark.skipif(registry.target("openvino", usable=False).available() is not None, reason="no openvino")
value = helper.make_tensor_value_info


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: tuple[Any, ...] = ()) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(proto.SerializeToString())


@pytest.fixture
def scaled() -> bytes:
    """y = x·w, w = [2, 3]: float32[n, 2], whose n is DATA_BATCH."""
    weight = numpy_helper.from_array(np.array([2, 3], np.float32), "w")
    inputs, outputs = [value("x", 1, ["n", 2])], [value("y", 1, ["n", 2])]
    inputs[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    return _model([helper.make_node("Mul", ["x", "w"], ["y"])], inputs, outputs, (weight,))


@pytest.fixture
def overridable() -> bytes:
    """y = x·w, where w = [2, 3] is an input too."""
    weight = numpy_helper.from_array(np.array([2, 3], np.float32), "w")
    doors = [value("x", 1, [None, 2]), value("w", 1, [2])]
    return _model([helper.make_node("Mul", ["x", "w"], ["y"])], doors, [value("y", 1, [None, 2])], (weight,))


def _doors(found: Any) -> list[tuple[Any, ...]]:
    return [(door.name, door.type, door.shape) for door in found]


def test_initializers_that_were_added_are_used(scaled: bytes, tmp_path: Path) -> None:
    given = onnxruntime.OrtValue.ortvalue_from_numpy(np.array([5, 7], np.float32))
    proto = onnx.load_from_string(scaled)
    onnx.save_model(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    for session in BOTH:
        settings, external = onnxruntime.SessionOptions(), onnxruntime.SessionOptions()
        settings.add_initializer("w", given)
        external.add_external_initializers(["w"], [given])
        for source, asked in ((scaled, settings), (tmp_path / "m.onnx", external)):
            assert session(source, asked, providers=CPU).run(None, {"x": X})[0].tolist() == [[5, 7]]


def test_sizes_and_entries_that_were_added_count(scaled: bytes) -> None:
    for session in BOTH:
        by_name, by_kind = onnxruntime.SessionOptions(), onnxruntime.SessionOptions()
        by_name.add_free_dimension_override_by_name("n", 3)
        by_kind.add_free_dimension_override_by_denotation("DATA_BATCH", 3)
        for asked in (by_name, by_kind):
            assert session(scaled, asked, providers=CPU).get_inputs()[0].shape == [3, 2]
        entry = onnxruntime.SessionOptions()
        entry.add_session_config_entry("session.load_model_format", "ORT")
        with pytest.raises(Exception, match="ORT model verification failed"):
            session(scaled, entry, providers=CPU)
    by_name = onnxruntime.SessionOptions()
    by_name.add_free_dimension_override_by_name("n", 3)
    with pytest.raises(EdgerunError, match="'x' has the wrong shape"):
        InferenceSession(scaled, by_name).run(None, {"x": X})
    entry = onnxruntime.SessionOptions()
    entry.add_session_config_entry("session.disable_prepacking", "1")
    kept = InferenceSession(scaled, entry).get_session_options()
    assert kept.get_session_config_entry("session.disable_prepacking") == "1"
    crashing = onnxruntime.SessionOptions()
    crashing.add_session_config_entry("session.use_ort_model_bytes_directly", "1")
    with pytest.raises(Unsupported, match="not safe from Python"):
        InferenceSession(scaled, crashing)
    added = onnxruntime.SessionOptions()
    added.add_provider(CPU[0], {})
    with pytest.raises(Unsupported, match="providers in SessionOptions cannot be honoured"):
        InferenceSession(scaled, added)


def test_what_is_left_open_is_set_and_no_more(scaled: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    settings = onnxruntime.SessionOptions()
    for _ in range(2):
        InferenceSession(scaled, settings)
    assert "already exists" not in capfd.readouterr().err  # as the runtime says of an entry that is set twice
    assert settings.intra_op_num_threads >= 1 and settings.log_severity_level == -1
    said = onnxruntime.SessionOptions()
    said.intra_op_num_threads = 2
    said.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    InferenceSession(scaled, said)
    assert said.intra_op_num_threads == 2
    assert said.get_session_config_entry("session.qdq_matmulnbits_accuracy_level") == "4"


def test_profiles_and_optimized_models_are_written(scaled: bytes, tmp_path: Path) -> None:
    for number, session in enumerate(BOTH):
        settings = onnxruntime.SessionOptions()
        settings.enable_profiling, settings.profile_file_prefix = True, str(tmp_path / f"profile{number}")
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        settings.optimized_model_filepath = str(tmp_path / f"{number}.onnx")
        settings.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        opened = session(scaled, settings, providers=CPU)
        assert opened.run(None, {"x": X})[0].tolist() == [[2, 3]]
        assert Path(opened.end_profiling()).name.startswith(f"profile{number}")
        assert (tmp_path / f"{number}.onnx").exists()
        assert 0 < time.time_ns() - opened.get_profiling_start_time_ns() < 60e9


def test_run_options_are_honoured(scaled: bytes) -> None:
    shrinking, terminated, wrong = (onnxruntime.RunOptions() for _ in range(3))
    shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    shrinking.only_execute_path_to_fetches = True
    terminated.terminate = True
    wrong.add_run_config_entry("memory.enable_memory_arena_shrinkage", "nonsense")
    place = np.zeros((1, 2), np.float32)
    for kind in BOTH:
        session = kind(scaled, providers=CPU)
        assert session.run(["y", "y"], {"x": X}, shrinking)[1].tolist() == [[2, 3]]
        for refused, told in ((terminated, "terminate flag"), (wrong, "memory arena shrink")):
            with pytest.raises(Exception, match=told):
                session.run(None, {"x": X}, refused)
        bound, place[:] = session.io_binding(), 0
        bound.bind_cpu_input("x", X)
        bound.bind_output("y", "cpu", 0, np.float32, place.shape, place.ctypes.data)
        with pytest.raises(Exception, match="terminate flag"):
            session.run_with_iobinding(bound, terminated)
        session.run_with_iobinding(bound, shrinking)
        assert place.tolist() == [[2, 3]]
        told_of: Queue[tuple[Any, ...]] = Queue()
        session.run_async(["y"], {"x": X}, lambda *words, queue=told_of: queue.put(words), None, terminated)
        assert "terminate flag" in told_of.get(timeout=30)[2]


def test_initializers_that_are_inputs_are_fed_or_left_out(overridable: bytes) -> None:
    theirs, ours = (kind(overridable, providers=CPU) for kind in BOTH)
    assert _doors(ours.get_inputs()) == _doors(theirs.get_inputs()) == [("x", "tensor(float)", [None, 2])]
    assert _doors(ours.get_overridable_initializers()) == _doors(theirs.get_overridable_initializers())
    assert _doors(ours.get_outputs()) == _doors(theirs.get_outputs())
    weight = np.array([10, 20], np.float32)
    for feeds, found in (({}, [[2, 3]]), ({"w": weight}, [[10, 20]]), ({"w": None}, [[2, 3]]), ({}, [[2, 3]])):
        for session in (theirs, ours):
            assert session.run(None, {"x": X, **feeds})[0].tolist() == found
    for session in (theirs, ours):
        bound = session.io_binding()
        bound.bind_cpu_input("x", X)
        bound.bind_ortvalue_input("w", onnxruntime.OrtValue.ortvalue_from_numpy(weight))
        bound.bind_output("y")
        session.run_with_iobinding(bound)
        assert bound.copy_outputs_to_cpu()[0].tolist() == [[10, 20]]
        with pytest.raises(Exception, match=r"invalid dimensions for input: w|'w' has the wrong shape"):
            session.run(None, {"x": X, "w": np.ones(3, np.float32)})
    old = onnx.load_from_string(overridable)
    old.ir_version = 3  # in which every initializer has to be an input, and none can be fed
    theirs, ours = (kind(old.SerializeToString(), providers=CPU) for kind in BOTH)
    assert ours.get_overridable_initializers() == theirs.get_overridable_initializers() == []
    for session in (theirs, ours):
        assert session.run(None, {"x": X})[0].tolist() == [[2, 3]]
        with pytest.raises(Exception, match=r"Invalid input name: w|unknown input 'w'"):
            session.run(None, {"x": X, "w": weight})


def test_sessions_take_defaults_too(overridable: bytes) -> None:
    """The session of `edgerun.load`: fed, left out, into given arrays, in turns; other names are not taken."""
    weight, place = np.array([10, 20], np.float32), np.empty((1, 2), np.float32)
    with edgerun.load(overridable) as session:
        assert [str(spec) for spec in session.inputs] == ["x:float32[x_0,2]"]
        assert [str(spec) for spec in session.defaults] == ["w:float32[2]"]
        for feeds, found in (({"x": X}, [[2, 3]]), ({"x": X, "w": weight}, [[10, 20]])) * 3:
            assert session.run(feeds)["y"].tolist() == found
            for _ in range(3):  # the third time they would be bound, if they could
                place[:] = 0
                assert session.run(feeds, {"y": place})["y"] is place and place.tolist() == found
        with pytest.raises(EdgerunError, match="unknown input 'v'"):
            session.run({"x": X, "v": weight})
        with pytest.raises(EdgerunError, match="'w' is missing"):
            session.run({"x": X, "w": None})


def test_narrow_defaults_are_fed_or_left_out() -> None:
    narrow = pytest.importorskip("ml_dtypes").bfloat16
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [2], [2.0, 3.0])
    nodes = [helper.make_node("Cast", ["w"], ["f"], to=1), helper.make_node("Mul", ["x", "f"], ["y"])]
    doors = [value("x", 1, [1, 2]), value("w", TensorProto.BFLOAT16, [2])]
    session = InferenceSession(_model(nodes, doors, [value("y", 1, [1, 2])], (weight,)))
    assert session.get_overridable_initializers()[0].type == "tensor(bfloat16)"
    assert session.run(None, {"x": X})[0].tolist() == [[2, 3]]
    assert session.run(None, {"x": X, "w": np.array([4, 8], narrow)})[0].tolist() == [[4, 8]]


def test_optional_inputs_are_left_out_or_none() -> None:
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(1, ["n"]))
    nodes = [helper.make_node("OptionalHasElement", ["o"], ["y"]), helper.make_node("Identity", ["x"], ["z"])]
    doors = [helper.make_value_info("o", optional), value("x", 1, [1, 2])]
    model = _model(nodes, doors, [value("y", TensorProto.BOOL, []), value("z", 1, [1, 2])])
    for kind in BOTH:
        session = kind(model, providers=CPU)
        assert _doors(session.get_inputs())[0] == ("o", "optional(tensor(float))", ["n"])
        given: list[tuple[dict[str, Any], bool]] = [({}, False), ({"o": None}, False), ({"o": X[0]}, True),
                                                    ({"o": [1.0]}, True)]  # fmt: skip
        for feeds, found in given:
            has, same = session.run(None, {"x": X, **feeds})
            assert bool(has) is found and has.dtype == np.bool_ and same.tolist() == [[1, 1]]
    with pytest.raises(EdgerunError, match="unknown input 'p'"):
        InferenceSession(model).run(None, {"x": X, "p": X})


def test_lists_words_and_sequences_go_in_and_out() -> None:
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None))
    nodes = [helper.make_node("SequenceInsert", ["s", "x"], ["t"]), helper.make_node("SequenceLength", ["s"], ["n"]),
             helper.make_node("Identity", ["w"], ["v"])]  # fmt: skip
    doors = [helper.make_value_info("s", sequence), value("x", 1, [None]), value("w", TensorProto.STRING, [None])]
    outputs = [helper.make_value_info("t", sequence), value("n", TensorProto.INT64, []),
               value("v", TensorProto.STRING, [None])]  # fmt: skip
    theirs, ours = (kind(_model(nodes, doors, outputs), providers=CPU) for kind in BOTH)
    assert _doors(ours.get_inputs()) == _doors(theirs.get_inputs())
    words = (["a", "ü"], np.array(["a", "ü"]), np.array(["a", "ü"], object), np.array([b"a", 7], object))
    for word in words:
        for parts in ([X[0], X[0] * 2], []):
            feeds = {"s": parts, "x": [3, 4.5], "w": word}
            other, own = theirs.run(None, feeds), ours.run(None, feeds)
            assert type(own[0]) is type(other[0]) is list and len(own[0]) == len(parts) + 1
            for one, two in zip((*own[0], *own[1:]), (*other[0], *other[1:]), strict=True):
                assert type(one) is type(two) and one.dtype == two.dtype
                np.testing.assert_array_equal(one, two)


def test_provider_options_go_with_providers(scaled: bytes, tmp_path: Path) -> None:
    for kind in BOTH:
        assert kind(scaled, None, CPU, [{}]).get_provider_options() == {CPU[0]: {}}
        assert kind(scaled, providers=[(CPU[0], {})]).get_providers() == CPU
    with pytest.raises(Unsupported, match="use_arena=1"):
        InferenceSession(scaled, None, CPU, [{"use_arena": 1}])
    with pytest.raises(EdgerunError, match="one dict for each provider"):
        InferenceSession(scaled, None, CPU, [{}, {}])
    (tmp_path / "m.onnx").write_bytes(scaled)
    for kind in BOTH:
        session = kind(tmp_path / "m.onnx", providers=CPU)
        session.set_providers(CPU, [{}])
        assert session.run(None, {"x": X})[0].tolist() == [[2, 3]]
        session.enable_fallback()
        session.disable_fallback()
    with pytest.raises(Unsupported, match="bytes of the model are not kept"):
        InferenceSession(scaled).set_providers(CPU)


def test_every_name_is_there(scaled: bytes) -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(onnxruntime.InferenceSession) <= public(InferenceSession)
    assert public(onnxruntime.IOBinding) <= public(IOBinding)
    recorded = onnxruntime.SessionOptions()
    recorded.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    theirs, ours = (kind(scaled, recorded, providers=CPU) for kind in BOTH)
    infos = ("input_memory_infos", "output_memory_infos", "input_epdevices", "provider_graph_assignment_info")
    for name in (*(f"get_{info}" for info in infos), "get_tuning_results", "release_captured_graph"):
        own, other = getattr(ours, name)(), getattr(theirs, name)()
        assert type(own) is type(other) and (
            not isinstance(own, list) or list(map(type, own)) == list(map(type, other))
        )
    assert ours.get_profiling_start_time_ns() == 0
    with pytest.raises(RuntimeError, match="No options were provided"):
        ours.set_ep_dynamic_options({})
    made = ours.create_ortvalue_from_shape_and_type([1, 2], np.float32, "cpu")
    made.update_inplace(X)
    assert ours.run(None, {"x": made})[0].tolist() == [[2, 3]]


def test_outputs_are_bound_to_ort_values(scaled: bytes) -> None:
    for kind in BOTH:
        session, place = kind(scaled, providers=CPU), np.zeros((1, 2), np.float32)
        bound = session.io_binding()
        bound.bind_input("x", "cpu", 0, np.float32, X.shape, X.ctypes.data)
        bound.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(place))
        bound.synchronize_inputs()
        session.run_with_iobinding(bound)
        bound.synchronize_outputs()
        assert place.tolist() == bound.copy_outputs_to_cpu()[0].tolist() == [[2, 3]]
        assert bound.get_outputs()[0].data_ptr() == place.ctypes.data
    bound = InferenceSession(scaled).io_binding()
    with pytest.raises(Unsupported, match=r"get_outputs\(\)"):
        bound.get_outputs_as_ortvaluevector()
    with pytest.raises(Unsupported, match="no type of this number"):
        bound.bind_input("x", "cpu", 0, 99, X.shape, X.ctypes.data)


@openvino
def test_what_is_onnxruntime_s_alone_is_told_elsewhere(overridable: bytes) -> None:
    asked, elsewhere = onnxruntime.SessionOptions(), ["OpenVINOExecutionProvider"]
    asked.intra_op_num_threads = 1
    with pytest.warns(UserWarning, match="openvino takes the threads"):
        session = InferenceSession(overridable, asked, elsewhere)
    assert session.get_session_options() is asked and session.get_provider_options() == {elsewhere[0]: {}}
    assert session.get_overridable_initializers() == []
    assert session.run(None, {"x": X})[0].tolist() == [[2, 3]]
    with pytest.raises(Unsupported, match="RunOptions is onnxruntime's alone"):
        session.run(None, {"x": X}, onnxruntime.RunOptions())
    with pytest.raises(EdgerunError, match="unknown input 'w'"):
        session.run(None, {"x": X, "w": X[0]})
    for name in ("end_profiling", "run_with_ort_values", "get_modelmeta"):
        with pytest.raises(Unsupported, match="onnxruntime's alone.*\n?.*OpenVINOExecutionProvider"):
            getattr(session, name)()
    with pytest.raises(Unsupported, match="never falls back"):
        session.enable_fallback()
