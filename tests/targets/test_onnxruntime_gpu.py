"""ONNX Runtime's CUDA provider: what it computes, what it leaves to the CPU, how fast, and what it leaves behind.

Skips, with the reason, where this build of ONNX Runtime cannot run on a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import edgerun
from bench import gpu_nets as nets
from edgerun.cli import edgerun as command
from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.metrics import relative_error, sqnr_db
from edgerun.model import Model
from edgerun.runtime import Engine, Options
from edgerun.targets import _cuda as cuda
from edgerun.targets import _onnxruntime_graph as graph
from edgerun.targets import _onnxruntime_providers as providers
from edgerun.targets import onnxruntime as target
from edgerun.targets._onnxruntime_session import OrtSession

WHY = providers.missing(target._runtime(), providers.PROVIDERS["CUDA"])
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(WHY is not None, reason=f"no CUDA provider: {WHY}")]
CUDA = {"PROVIDER": "CUDA"}
GRAPH = {**CUDA, "CUDA_GRAPH": "1"}
SMALL: dict[str, Callable[[str], Model]] = {
    "mobilenet": lambda precision: nets.mobilenet(precision, 96),
    "resnet": lambda precision: nets.resnet(precision, 96),
    "transformer": lambda precision: nets.transformer(precision, 32, 128, 3, 4),
}
NAMES = sorted(SMALL)


@cache
def model(name: str, precision: str = "fp32") -> Model:
    return SMALL[name](precision)


@cache
def feeds(name: str, batch: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    shape = model(name).inputs[0].shape[1:]
    drawn = np.random.default_rng(seed).standard_normal((batch, *(int(dim) for dim in shape)))
    return {"x": drawn.astype(np.float32)}


def opened(name: str, precision: str = "fp32", extra: dict[str, str] = CUDA) -> Any:
    """A session of the target's own kind, which knows what is left to the CPU."""
    options = Options(extra=extra)
    return target.load(target.compile(model(name, precision), options), options)


@cache
def exact(name: str, batch: int = 2) -> np.ndarray:
    """fp32 on the CPU, nothing optimized."""
    with opened(name, "fp32", {"graph_optimization_level": "off"}) as session:
        found: np.ndarray = session.run(feeds(name, batch))["y"]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_float32(name: str) -> None:
    """Without TF32 the GPU is within 1e-5 of the reference, on several batches; `edgerun.compile` compares."""
    engine = edgerun.compile(model(name), "onnxruntime", Options(extra=CUDA))
    assert engine.check is not None and engine.check.relative_error < 1e-5 and engine.check.runs == 4
    gpu = cuda.gpu()
    assert engine.device["provider"] == "CUDA" and engine.device["gpu"] == gpu.name
    assert (
        engine.device["capability"] == "{}.{}".format(*gpu.capability)
        and engine.device["flags"] == "tf32=0 cuda_graph=0"
    )


@pytest.mark.parametrize("name", NAMES)
def test_no_node_is_left_to_the_cpu(name: str) -> None:
    for precision in ("fp32", "fp16"):
        with opened(name, precision) as session:
            assert session.left == (), precision


def test_what_is_left_to_the_cpu_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Det has no kernel on the GPU: it is named, told once, and refused where the CPU is forbidden."""
    nodes = [helper.make_node("Relu", ["x"], ["r"], "relu"), helper.make_node("Det", ["r"], ["y"], "det")]
    shapes: dict[str, list[int | str | None]] = {"x": ["n", 3, 3], "y": ["n"]}
    door = [helper.make_tensor_value_info(n, 1, shape) for n, shape in shapes.items()]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", door[:1], door[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    mixed = Model.from_proto(proto)
    feed = {"x": np.abs(np.random.default_rng(0).standard_normal((4, 3, 3))).astype(np.float32)}
    providers._tell.cache_clear()
    with caplog.at_level(logging.WARNING, "edgerun"):
        for _ in range(2):
            session: Any = target.load(target.compile(mixed, Options()), Options(extra=CUDA))
            with session:
                assert [(issue.node, issue.op) for issue in session.left] == [("det", "Det")]
                np.testing.assert_allclose(session.run(feed)["y"], np.linalg.det(feed["x"]), rtol=1e-4, atol=1e-4)
    told = [
        record.message for record in caplog.records if "nodes do not run on CUDA but on CPU: Det 1" in record.message
    ]
    assert len(told) == 1
    for extra in ({**CUDA, "session.disable_cpu_ep_fallback": "1"}, GRAPH):
        with pytest.raises(EdgerunError):
            target.load(target.compile(mixed, Options()), Options(extra=extra))


def test_tf32_is_only_what_was_asked_for() -> None:
    """10 bits of mantissa in products: errors between 1e-5 and 1e-2, and fp32's are far below."""
    truth = exact("transformer")
    errors = []
    for extra in (CUDA, {**CUDA, "TF32": "1"}):
        with opened("transformer", extra=extra) as session:
            errors.append(relative_error(truth, session.run(feeds("transformer"))["y"]))
    assert errors[0] < 1e-5 < errors[1] < 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_float16_is_as_near_as_its_mantissa_lets_it_be(name: str) -> None:
    """11 bits: 50 dB and more behind these nets; on the CPU they keep 60."""
    with opened(name, "fp16") as session:
        value = session.run(feeds(name))["y"]
    assert value.dtype == np.float32 and sqnr_db(exact(name), value) > 50
    engine = edgerun.compile(model(name, "fp16"), "onnxruntime", Options(extra=CUDA), original=model(name))
    assert engine.check is not None and engine.check.sqnr_db > 40


@pytest.mark.parametrize("name", NAMES)
def test_int8_computes_what_its_graph_says(name: str) -> None:
    """As far from the float model as on the CPU, to 1 dB: Q/DQ run as they stand."""
    reached = []
    for extra in (CUDA, {"graph_optimization_level": "off"}):
        with opened(name, "int8", extra) as session:
            reached.append(sqnr_db(exact(name), session.run(feeds(name))["y"]))
    assert abs(reached[0] - reached[1]) < 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("extra", [CUDA, GRAPH], ids=["plain", "graph"])
def test_any_batch(name: str, extra: dict[str, str]) -> None:
    """Batches may come in any order; each row is what it is alone, to 1e-5."""
    rows = feeds(name, 16)["x"]
    with opened(name, extra=extra) as session:
        alone = np.concatenate([session.run({"x": rows[i : i + 1]})["y"] for i in range(3)])
        for batch in (3, 16, 2, 3):
            found = session.run({"x": rows[:batch]})["y"]
            assert len(found) == batch and relative_error(alone[:2], found[:2]) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_every_session_gives_the_same_bits(name: str) -> None:
    """Kernels are chosen by rule, not by a race; a benchmark compares outputs between sessions."""
    found = []
    for _ in range(3):
        with opened(name) as session:
            found.append(session.run(feeds(name))["y"])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_cuda_graph_computes_the_same(name: str, precision: str) -> None:
    """New feeds in captured graphs, several shapes, outputs that are the caller's: all as without graphs, to 1e-6."""
    with opened(name, precision) as plain, opened(name, precision, GRAPH) as captured:
        kept = []
        for batch, seed in ((2, 1), (2, 2), (1, 3), (2, 4), (1, 5)):
            feed = feeds(name, batch, seed)
            wanted, found = plain.run(feed)["y"], captured.run(feed)["y"]
            assert relative_error(wanted, found) < 1e-6, (batch, seed)
            kept.append((found, found.copy()))
        for found, copy in kept:
            np.testing.assert_array_equal(found, copy)


def test_shapes_beyond_those_that_are_captured_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "MOST", 2)
    with opened("transformer", extra=GRAPH) as session:
        for batch in (1, 2, 3, 4, 1, 3):
            assert relative_error(exact("transformer", batch), session.run(feeds("transformer", batch))["y"]) < 1e-5


@pytest.mark.parametrize("extra", [CUDA, GRAPH], ids=["plain", "graph"])
def test_threads(extra: dict[str, str]) -> None:
    """Four threads on one session: each has its own answer, that of a run alone, to 1e-6."""
    given = [feeds("transformer", 2, seed) for seed in range(8)]
    with opened("transformer", extra=extra) as session, ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda feed: session.run(feed)["y"], given))
        alone = [session.run(feed)["y"] for feed in given]
    for one, other in zip(alone, together, strict=True):
        assert relative_error(one, other) < 1e-6


@pytest.mark.parametrize("extra", [CUDA, GRAPH], ids=["plain", "graph"])
def test_memory_comes_back(extra: dict[str, str]) -> None:
    """After ten sessions the device has as much free memory as after the second, to 16 MiB."""

    def free() -> int:
        with opened("resnet", extra=extra) as session:
            session.run(feeds("resnet", 16))
        device = cuda.Device()
        try:
            with device.use():
                return cuda.free_bytes()
        finally:
            device.close()

    free()
    first = free()
    assert min(free() for _ in range(8)) > first - (16 << 20)


def test_a_bad_feed_is_one_clear_error_and_the_session_lives() -> None:
    with opened("transformer") as session:
        with pytest.raises(EdgerunError, match="shape"):
            session.run({"x": np.zeros((2, 32, 127), np.float32)})
        assert session.run(feeds("transformer"))["y"].shape == (2, 32, 128)


def test_kernels_are_not_profiled() -> None:
    engine = target.compile(model("transformer"), Options(extra=CUDA))
    with pytest.raises(Unsupported, match="launches") as error:
        target.profile(engine, [feeds("transformer")], Options(extra=CUDA))
    assert error.value.do


def test_a_wrong_computation_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-check runs on the provider that was asked for: an engine that is 1 % off there fails."""
    run = OrtSession._run

    def off(self: OrtSession, feed: Any) -> dict[str, np.ndarray]:
        found = run(self, feed)
        moved = 1.01 if self._session.get_providers()[0].startswith("CUDA") else 1.0
        return {name: value * np.float32(moved) for name, value in found.items()}

    monkeypatch.setattr(OrtSession, "_run", off)
    with pytest.raises(GateFailed, match="does not compute"):
        edgerun.compile(model("transformer"), "onnxruntime", Options(extra=CUDA))


def test_formats_are_timed_against_each_other(tmp_path: Path) -> None:
    """fp32, fp16 and a CUDA graph interleaved: outputs of timed runs stay what they were, so the speeds count."""
    paths = []
    for precision in ("fp32", "fp16"):
        paths.append(tmp_path / f"{precision}.onnx")
        nets.resnet(precision).save(paths[-1])
    told = edgerun.benchmark(
        [*paths, paths[0]], options=[Options(extra=CUDA), Options(extra=CUDA), Options(extra=GRAPH)],
        batch=8, seconds=3, rounds=45,
    )  # fmt: skip
    for timing in told.timings:
        ratio = timing.speedup
        print(timing.model, dict(timing.device).get("CUDA_GRAPH", "0"), timing.p50, ratio)  # for the report
        assert timing.runs > 0 and timing.verdict in ("baseline", "faster", "slower", "no difference")
        assert timing.device["PROVIDER"] == "CUDA"


def test_the_command_line(tmp_path: Path) -> None:
    model("transformer").save(tmp_path / "net.onnx")
    np.savez(tmp_path / "feeds.npz", **feeds("transformer"))  # type: ignore[arg-type]
    told = CliRunner().invoke(
        command,
        ["run", str(tmp_path / "net.onnx"), "--feeds", str(tmp_path / "feeds.npz"), "-o", str(tmp_path / "out.npz"),
         "--option", "PROVIDER=CUDA"],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    with np.load(tmp_path / "out.npz") as arrays:
        assert relative_error(exact("transformer"), arrays["y"]) < 1e-5


def test_weights_that_are_given_apart_run_there_too() -> None:
    """What a compressor does: initializers from memory beside a graph that names them as external."""
    weight = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    x = np.ones((2, 6), np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "dense")
    door = [helper.make_tensor_value_info(n, 1, ["n", size]) for n, size in (("x", 6), ("y", 4))]
    tensor = numpy_helper.from_array(weight, "w")
    proto = helper.make_model(
        helper.make_graph([node], "g", door[:1], door[1:], [tensor]), opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )  # fmt: skip
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    engine = Engine("onnxruntime", proto.SerializeToString(), weights={"w": weight})
    with target.load(engine, Options(extra=CUDA)) as session:
        assert relative_error(x @ weight, session.run({"x": x})["y"]) < 1e-5
