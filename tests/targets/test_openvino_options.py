"""OpenVINO's devices and properties: what is asked for runs, is read back, or is refused with what there is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.runtime import Options, machine
from edgerun.targets import _openvino_ir as ir
from edgerun.targets import _openvino_options as asked
from edgerun.targets import openvino as target

pytestmark = pytest.mark.skipif(target.available() is not None, reason=str(target.available()))
ROOT = Path(__file__).parents[2]
X = {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)}
BF16 = {"INFERENCE_PRECISION_HINT": "bf16"}


def _compiled(model: Model, **extra: str) -> Any:
    return target._compiled(ir.read(model.to_bytes()), Options(1, extra))


def _has(name: str) -> bool:
    return any(device.partition(".")[0] == name for device in ir.core().available_devices)


@pytest.mark.parametrize("device", ["CPU", "AUTO", "AUTO:CPU", "HETERO:CPU", "MULTI:CPU", "BATCH:CPU"])
def test_every_device_runs_in_f32(dense: Model, device: str) -> None:
    """Compared bit for bit with the CPU: one kernel runs them all."""
    if device == "AUTO" and ir.core().available_devices != ["CPU"]:
        pytest.skip("AUTO would take another device than the CPU")
    engine = target.compile(dense, Options(1, {"DEVICE": device}))
    assert engine.device["precision"] == "f32" and engine.device.get("device", "CPU") == device
    with target.load(engine, Options(1)) as plain, target.load(engine, Options(1, {"DEVICE": device})) as session:
        np.testing.assert_array_equal(session.run(X)["y"], plain.run(X)["y"])


def test_a_precision_is_said_and_read_back(dense: Model) -> None:
    for device in ("CPU", "AUTO:CPU", "HETERO:CPU"):
        compiled = _compiled(dense, DEVICE=device)
        told = compiled if device == "CPU" else compiled.get_property("DEVICE_PROPERTIES")["CPU"]
        found = told.get_property(asked.PRECISION) if device == "CPU" else told[asked.PRECISION]
        assert found.get_type_name() == "f32"


@pytest.mark.skipif(
    "BF16" not in ir.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") if target.available() is None else True,
    reason="this CPU has no bfloat16",
)
def test_bfloat16_runs_only_when_asked_for(dense: Model) -> None:
    """7 bits behind the point: 2⁻⁸ for each of three roundings."""
    engine = target.compile(dense, Options(1))
    with target.load(engine, Options(1)) as plain, target.load(engine, Options(1, BF16)) as session:
        want, got = plain.run(X)["y"], session.run(X)["y"]
    error = np.abs(want - got).max() / np.abs(want).max()
    assert 0 < error < 3 * 2**-8
    assert target.compile(dense, Options(1, BF16)).device["precision"] == "bf16"


@pytest.mark.parametrize(("cap", "precision"), [("AVX2", "bf16"), ("AVX512_CORE", "bf16"), ("AVX512_CORE", "f16")])
def test_a_precision_without_kernels_is_to_be_left_out(dense: Model, tmp_path: Path, cap: str, precision: str) -> None:
    """Whether OpenVINO tells of none, lists what has no kernel, or computes it so coarsely that the check fails."""
    (tmp_path / "dense.onnx").write_bytes(dense.to_bytes())
    option = f"INFERENCE_PRECISION_HINT={precision}"
    words = ("compile", "dense.onnx", "-o", "dense.xml", "--target", "openvino", "--option", option)
    done = subprocess.run(
        [sys.executable, "-m", "edgerun", *words], capture_output=True, text=True, cwd=tmp_path, timeout=300,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": cap, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode in (1, 3) and f"do: leave out {option}" in done.stderr, done.stderr
    assert not (tmp_path / "dense.xml").exists()


def test_a_precision_that_the_device_lacks_is_refused(dense: Model) -> None:
    """OpenVINO itself would take bfloat16 for float16, without a word."""
    if "FP16" in ir.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has float16")
    with pytest.raises(Unsupported, match="CPU does not compute in f16 here\n  got: f32"):
        _compiled(dense, INFERENCE_PRECISION_HINT="f16")


def test_another_precision_than_asked_for_is_refused(dense: Model) -> None:
    compiled = ir.core().compile_model(ir.read(dense.to_bytes()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with pytest.raises(Unsupported, match="another precision on CPU\n  got: f32\n  wanted: bf16"):
        asked.Choice(precision="bf16").check(compiled)
    with pytest.raises(Unsupported, match="another device"):
        asked.Choice(device="GPU", hardware=("GPU",)).check(compiled)


@pytest.mark.parametrize(
    "device", ["GPU", "GPU.1", "NPU", "AUTO:GPU,CPU", "HETERO:NPU,CPU", "MULTI:GPU", "BATCH:GPU(4)"]
)
def test_a_device_that_is_not_here_is_refused(dense: Model, device: str) -> None:
    name = "NPU" if "NPU" in device else "GPU"
    if _has(name):
        pytest.skip(f"there is a {name}")
    with pytest.raises(Unsupported, match=rf"no {name}\S* here\n  got: there are: CPU"):
        edgerun.load(dense.to_bytes(), "openvino", Options(1, {"DEVICE": device}))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"DEVICE": "CPUU"}, "did you mean 'CPU'"),
        ({"DEVICE": "HETERO"}, "wanted: HETERO:NAME,NAME"),
        ({"DEVICE": "CPU,GPU"}, "wanted: AUTO:CPU,GPU"),
        ({"INFERENCE_PRECISION_HINT": "dynamic"}, "one of bf16, f16, f32"),
        ({"PERFORMANCE_HINT": "FAST"}, "one of CUMULATIVE_THROUGHPUT, LATENCY, THROUGHPUT"),
        ({"PERFORMANCE_HINT": "CUMULATIVE_THROUGHPUT"}, "wanted: AUTO: or MULTI:"),
        ({"NUM_STREAMS": "many"}, "a number of runs at once"),
        ({"NUM_STREAMS": "0"}, "a number of runs at once"),
        ({"FROBNICATE": "1"}, "no option FROBNICATE=1 for CPU"),
        ({"CACHE_DIR": "/proc/none/here"}, "cannot compile"),
    ],
)
def test_misuse_is_told(dense: Model, extra: dict[str, str], message: str) -> None:
    with pytest.raises(EdgerunError, match=message) as caught:
        edgerun.load(dense.to_bytes(), "openvino", Options(1, extra))
    assert caught.value.exit_code == 2


def test_hints_and_streams(dense: Model) -> None:
    """Streams that are asked for are as many requests, by whichever name; a hint alone leaves their number open."""
    for options, streams in (
        (Options(2, streams=2), 2),
        (Options(2, {"NUM_STREAMS": "2"}), 2),
        (Options(2, {"PERFORMANCE_HINT": "LATENCY"}), 1),
        (Options(2, {"PERFORMANCE_HINT": "THROUGHPUT"}), None),
        (Options(2, {"PERFORMANCE_HINT": "CUMULATIVE_THROUGHPUT", "DEVICE": "AUTO:CPU"}), None),
    ):
        compiled = target._compiled(ir.read(dense.to_bytes()), options)
        told = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        with edgerun.load(dense.to_bytes(), "openvino", options) as session:
            assert session.streams == (streams or told) and told >= (streams or 1)
            assert [out["y"].shape for out in session.stream([X] * 5)] == [(2, 4)] * 5 or session.run(X)
    with pytest.raises(EdgerunError, match="3, with 2 streams"):
        asked.choice(Options(2, {"NUM_STREAMS": "3"}, streams=2))


def test_a_cache_is_filled_and_read(dense: Model, tmp_path: Path) -> None:
    extra = {"CACHE_DIR": str(tmp_path / "kept")}
    found = [_compiled(dense, **extra).get_property("LOADED_FROM_CACHE") for _ in range(2)]
    assert found == [False, True] and len(list((tmp_path / "kept").iterdir())) == 1
    assert not _compiled(dense).get_property("LOADED_FROM_CACHE")
    with (
        edgerun.load(dense.to_bytes(), "openvino", Options(1, extra)) as session,
        edgerun.load(dense.to_bytes(), "openvino", Options(1)) as plain,
    ):
        np.testing.assert_array_equal(session.run(X)["y"], plain.run(X)["y"])


def test_kernels_are_profiled_on_the_cpu_alone(dense: Model) -> None:
    with pytest.raises(Unsupported, match="DEVICE=CPU"):
        target.profile(target.compile(dense, Options(1)), [X], Options(1, {"DEVICE": "AUTO:CPU"}))


@pytest.mark.skipif(machine.visible() < 2, reason="one core: there is nothing to be held on")
def test_runs_on_fewer_threads_than_cores_are_not_held_on_the_first() -> None:
    """OpenVINO would hold them there: two models, or two processes, then share a core while others are idle."""
    options, feeds, ended = Options(1), {"x": np.ones((64, 512), np.float32)}, threading.Event()
    with target.load(target.compile(_wide(), options), options) as session:

        def ran() -> None:
            while not ended.is_set():
                session.run(feeds)

        thread = threading.Thread(target=ran)
        thread.start()
        seen = set[int]()
        for _ in range(1000):
            time.sleep(2e-4)  # or the run would wait for Python's lock
            seen.add(len(os.sched_getaffinity(thread.native_id or 0)))
        ended.set()
        thread.join()
    assert seen == {machine.visible()}


def _wide() -> Model:
    """y = x @ w, three times: milliseconds of work."""
    weight = np.eye(512, dtype=np.float32)
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in ("xh", "hi", "iy")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 512]) for name in "xy")
    graph = helper.make_graph(nodes, "wide", [x], [y], [numpy_helper.from_array(weight, "w")])
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
