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
