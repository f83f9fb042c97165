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
from onnx import helper, numpy_helper

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
def test_what_is_onnxruntime_s_alone_is_told_elsewhere(scaled: bytes) -> None:
    asked, elsewhere = onnxruntime.SessionOptions(), ["OpenVINOExecutionProvider"]
    asked.intra_op_num_threads = 1
    with pytest.warns(UserWarning, match="openvino takes the threads"):
        session = InferenceSession(scaled, asked, elsewhere)
    assert session.get_session_options() is asked and session.get_provider_options() == {elsewhere[0]: {}}
    assert session.get_overridable_initializers() == []
    assert session.run(None, {"x": X})[0].tolist() == [[2, 3]]
    with pytest.warns(UserWarning, match="nothing of RunOptions is seen on OpenVINO"):
        assert session.run(None, {"x": X}, onnxruntime.RunOptions())[0].tolist() == [[2, 3]]
    value = onnxruntime.OrtValue.ortvalue_from_numpy(X)
    assert session.run_with_ort_values(None, {"x": value})[0].numpy().tolist() == [[2, 3]]
    for name in ("end_profiling", "get_tuning_results", "get_modelmeta"):
        with pytest.raises(Unsupported, match="onnxruntime's alone.*\n?.*OpenVINOExecutionProvider"):
            getattr(session, name)()
    with pytest.raises(Unsupported, match="never falls back"):
        session.enable_fallback()
