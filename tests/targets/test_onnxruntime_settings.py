"""ONNX Runtime's options: memory that goes back, keys of ARM's kernels, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.runtime import Options, machine
from edgerun.targets import _onnxruntime_arm as arm
from edgerun.targets import _onnxruntime_session as ort_session
from edgerun.targets import _onnxruntime_settings as setting
from edgerun.targets import onnxruntime as target

X = {"x": np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)}


def test_little_memory_changes_no_result(dense: Model) -> None:
    engine = target.compile(dense, Options(1))
    with (
        target.load(engine, Options(1)) as plain,
        target.load(engine, Options(1, {"MEMORY": "small"})) as small,
        target.load(engine, Options(1, {"enable_cpu_mem_arena": "0"})) as bare,
    ):
        wanted, out = plain.run(X)["y"], {"y": np.zeros((3, 4), np.float32)}
        for session in (small, bare):
            np.testing.assert_array_equal(session.run(X)["y"], wanted)
            np.testing.assert_array_equal(session.run(X, out)["y"], wanted)
            np.testing.assert_array_equal(session.run(X, out)["y"], wanted)


def test_a_bound_on_memory_chooses_the_arena(dense: Model) -> None:
    """One of its own that ends, exact steps, what a run took given back; none where the arena is off or on a GPU."""
    runtime, engine = target._runtime(), target.compile(dense, Options(1))
    for extra, wanted in (({}, "1"), ({"enable_cpu_mem_arena": "0"}, ""), ({"PROVIDER": "XNNPACK"}, "")):
        options = Options(1, extra, max_rss=1 << 34)
        settings = setting.settings(runtime, options)
        with setting.bounded(runtime, settings, options, engine.payload):
            pass
        try:
            shared = settings.get_session_config_entry(setting.SHARED)
        except RuntimeError:  # nobody has said it
            shared = ""
        assert shared == wanted
    bounded, plain = (edgerun.load(engine, options=Options(1, max_rss=most)) for most in (1 << 34, 0))
    np.testing.assert_array_equal(bounded.run(X)["y"], plain.run(X)["y"])
    off = edgerun.load(engine, options=Options(1, {"enable_cpu_mem_arena": "0", "MEMORY": "small"}, max_rss=1 << 34))
    np.testing.assert_array_equal(off.run(X)["y"], plain.run(X)["y"])


def test_the_runtime_is_told(dense: Model) -> None:
    runtime = target._runtime()
    asked = setting.runs(runtime, Options(1, {"MEMORY": "small"}))
    assert asked.get_run_config_entry("memory.enable_memory_arena_shrinkage") == "cpu:0"
    assert setting.runs(runtime, Options(1)) is None
    assert setting.settings(runtime, Options(1, {"enable_cpu_mem_arena": "0"})).enable_cpu_mem_arena is False
    for value in "01":
        said = setting.settings(runtime, Options(2, {"SPINNING": value}))
        for pool in ("intra_op", "inter_op"):
            assert said.get_session_config_entry(f"session.{pool}.allow_spinning") == value
    spinning = Options(2, {"session.intra_op.allow_spinning": "0"})
    assert setting.settings(runtime, spinning).get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize(
    ("extra", "kind", "message"),
    [
        ({"MEMORY": "tiny"}, EdgerunError, "MEMORY=tiny"),
        ({"SPINNING": "off"}, EdgerunError, "SPINNING=0|1"),
        ({"enable_cpu_mem_arena": "no"}, EdgerunError, "enable_cpu_mem_arena=0|1"),
        ({"FORMAT": "tflite"}, EdgerunError, "FORMAT=tflite"),
        ({"MEMORY": "small", "PROVIDER": "XNNPACK"}, Unsupported, "XNNPACK"),
    ],
)
def test_what_there_is_none_of(dense: Model, extra: dict[str, str], kind: type[EdgerunError], message: str) -> None:
    with pytest.raises(kind, match=message.replace("|", r"\|")):
        edgerun.load(target.compile(dense, Options(1)), options=Options(1, extra))


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """An ARM64 CPU with these flags, and a runtime whose library holds these bytes."""

    def made(flags: set[str], library: bytes) -> Any:
        monkeypatch.setattr("platform.machine", lambda: "aarch64")
        monkeypatch.setattr(machine, "flags", lambda: frozenset(flags))
        (tmp_path / "capi").mkdir()
        (tmp_path / "capi/onnxruntime_pybind11_state.so").write_bytes(b"\0" + library)
        return SimpleNamespace(__file__=str(tmp_path / "__init__.py"), __version__="1.0")

    return made


BF16, KLEIDI = arm.KEYS


@pytest.mark.parametrize("key", [BF16, KLEIDI])
def test_keys_of_arm_kernels_mean_nothing_on_x86(key: str, dense: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(Unsupported, match=r"kernels.*\n.*this CPU is x86_64"):
        edgerun.load(target.compile(dense, Options(1)), options=Options(1, {key: "1"}))


@pytest.mark.parametrize(
    ("key", "flags", "library", "message"),
    [
        (BF16, {"asimd", "asimddp"}, BF16.encode(), "none of bf16"),
        (BF16, {"asimd", "bf16"}, b"ArmKleidiAI", "without them"),
        (KLEIDI, {"asimd"}, b"ArmKleidiAI", "none of asimddp, i8mm, sme, sme2"),
        (KLEIDI, {"asimd", "asimddp"}, KLEIDI.encode(), "without them"),
        (BF16, {"asimd", "bf16"}, BF16.encode(), ""),
        (KLEIDI, {"asimd", "sme"}, b"14ArmKleidiAI", ""),
    ],
)
def test_keys_of_arm_kernels_are_taken_where_there_are_any(
    board: Any, key: str, flags: set[str], library: bytes, message: str
) -> None:
    runtime = board(flags, library)
    if not message:
        arm.require(runtime, key, "1")
        return
    with pytest.raises(Unsupported, match=message):
        arm.require(runtime, key, "1")


@pytest.mark.parametrize(
    ("key", "do"),
    [
        ("session.intra_op.allow_spining", "did you mean session.intra_op.allow_spinning"),
        ("optimization.enable_gelu_aproximation", "did you mean optimization.enable_gelu_approximation?"),
        ("session.nothing_like_it", "leave it out"),
    ],
)
def test_a_key_that_the_runtime_has_not_is_refused(dense: Model, key: str, do: str) -> None:
    """ONNX Runtime takes every key without a word, and does nothing."""
    with pytest.raises(EdgerunError, match="has no option") as error:
        edgerun.load(target.compile(dense, Options(1)), options=Options(1, {key: "1"}))
    assert str(error.value.do).startswith(do)


# Of ONNX Runtime's onnxruntime_session_options_config_keys.h: those of every release from 1.20 on.
KNOWN = """session.disable_prepacking session.use_env_allocators session.load_model_format session.save_model_format
session.set_denormal_as_zero session.disable_quant_qdq session.disable_double_qdq_remover
session.enable_quant_qdq_cleanup optimization.enable_gelu_approximation session.disable_aot_function_inlining
optimization.disable_specified_optimizers session.use_device_allocator_for_initializers
session.inter_op.allow_spinning session.intra_op.allow_spinning session.use_ort_model_bytes_for_initializers
session.qdqisint8allowed optimization.minimal_build_optimizations session.dynamic_block_base
session.force_spinning_stop session.strict_shape_type_inference session.allow_released_opsets_only
session.node_partition_config_file session.intra_op_thread_affinities session.debug_layout_transformation
session.disable_cpu_ep_fallback session.optimized_model_external_initializers_file_name
session.optimized_model_external_initializers_min_size_in_bytes session.use_memory_mapped_ort_model
session.model_external_initializers_file_folder_path session.qdq_matmulnbits_accuracy_level"""


def test_every_key_that_it_has_is_taken() -> None:
    runtime = target._runtime()
    for key in KNOWN.split():
        said = setting.settings(runtime, Options(1, {key: "0"}))
        assert said.get_session_config_entry(key) == "0"


def test_a_library_that_tells_of_no_keys_refuses_none(board: Any) -> None:
    setting._require_known(board(set(), b"built elsewhere"), "session.nothing_like_it")


def test_an_arena_that_ends_while_a_model_opens_names_the_bound() -> None:
    """Nothing was fed then, so that smaller feeds are no advice; in a run they are."""
    ended = RuntimeError("Available memory of 2000000 is smaller than requested bytes of 36000000")
    opening, running = ort_session.too_little(ended, 300_000_000), ort_session.too_little(ended)
    assert opening is not None and "opening it was stopped" in opening.what and "feeds" not in str(opening.do)
    assert opening.wanted == "within the 300.0 MB of Options.max_rss (--max-rss)"
    assert opening.got == "36.0 MB asked for, 2.0 MB left"
    assert running is not None and "a run was stopped" in running.what and "smaller feeds" in str(running.do)
