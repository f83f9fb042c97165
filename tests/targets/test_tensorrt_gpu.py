"""TensorRT on a GPU: what it computes, how fast, and what it leaves behind. Skips where no NVIDIA driver answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

import edgerun
from edgerun.errors import EdgerunError, Unsupported
from edgerun.metrics import relative_error, sqnr_db
from edgerun.model import Model
from edgerun.runtime import Engine, Options
from edgerun.targets import _cuda as cuda
from edgerun.targets import _tensorrt_file as file
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.targets import tensorrt as target
from edgerun.verbs.compiled import compiled
from edgerun.verbs.warm import warm

WHY = target.available() or target.runnable()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(WHY is not None, reason=str(WHY))]
RNG = np.random.default_rng(11)
CHANNELS = 64
gpu: Any = torch


@pytest.fixture(scope="module")
def convolutions() -> Model:
    """Four 3x3 convolutions over 64 channels of a 64x64 picture: 0.6 GMAC, enough for a difference to be seen."""
    nodes, weights, value = [], [], "x"
    for index in range(4):
        array = RNG.standard_normal((CHANNELS, CHANNELS, 3, 3)) * np.sqrt(2 / (9 * CHANNELS))
        weights.append(numpy_helper.from_array(array.astype(np.float32), f"w{index}"))
        nodes.append(helper.make_node("Conv", [value, f"w{index}"], [f"c{index}"], f"c{index}", pads=[1, 1, 1, 1]))
        value = f"r{index}" if index < 3 else "y"
        nodes.append(helper.make_node("Relu", [f"c{index}"], [value], f"relu{index}"))
    shape: list[int | str | None] = ["batch", CHANNELS, 64, 64]
    door = [helper.make_tensor_value_info(name, 1, shape) for name in "xy"]
    graph = helper.make_graph(nodes, "convolutions", door[:1], door[1:], weights)
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return RNG.standard_normal((16, CHANNELS, 64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def small(convolutions: Model, pictures: np.ndarray) -> Model:
    """The same in INT8; `compress` has compared its engine with the reference."""
    return edgerun.compress(convolutions, target="tensorrt", calibration={"x": pictures})


def test_float32_is_float32(convolutions: Model, pictures: np.ndarray) -> None:
    """Without TF32 the engine is within 1e-5 of the reference; `edgerun.compile` compares."""
    engine = edgerun.compile(convolutions, "tensorrt", feeds=[{"x": pictures[:2]}])
    assert engine.check is not None and engine.check.relative_error < 1e-5


def test_int8_computes_what_its_graph_says(convolutions: Model, small: Model, pictures: np.ndarray) -> None:
    """25 dB to the float model, and no further from it than the Q/DQ graph on ONNX Runtime is, to 1 dB."""
    feeds = {"x": pictures[:4]}
    with edgerun.load(edgerun.compile(convolutions, "onnxruntime")) as session:
        exact = session.run(feeds)["y"]
    reached = {}
    for name in ("tensorrt", "onnxruntime"):
        with edgerun.load(edgerun.compile(small, name, feeds=[feeds])) as session:
            reached[name] = sqnr_db(exact, session.run(feeds)["y"])
    assert reached["tensorrt"] > 25 and reached["tensorrt"] > reached["onnxruntime"] - 1


def test_the_history_says_that_it_ran(small: Model) -> None:
    assert "engine" not in small.history[-1].options


def test_int8_kernels_are_profiled_by_node(small: Model, pictures: np.ndarray) -> None:
    found = target.profile(target.compile(small, Options()), [{"x": pictures[:1]}] * 5, Options())
    products = [kernel for kernel in found if kernel.integer and any(n in kernel.covers for n in ("c0", "c1", "c2"))]
    assert found[0].seconds >= found[-1].seconds > -1 and found[0].seconds > 0 and products


def test_int8_is_timed_against_float(convolutions: Model, small: Model, tmp_path: Path) -> None:
    """Latency is measured and outputs of timed runs stay what they were; which is faster is for the report to say."""
    paths = [tmp_path / "float.onnx", tmp_path / "small.onnx"]
    for path, model in zip(paths, (convolutions, small), strict=True):
        model.save(path)
    told = edgerun.benchmark(paths, target="tensorrt", seconds=3, rounds=45)
    assert [timing.runs > 0 for timing in told.timings] == [True, True]
    assert told.timings[1].verdict in ("faster", "slower", "no difference") and told.timings[1].speedup is not None


def test_sizes_within_the_range_and_beyond(convolutions: Model) -> None:
    engine = target.compile(convolutions, Options(sizes={"batch": (1, 2, 4)}))
    with target.load(engine, Options()) as session:
        for batch in (1, 4, 2):
            assert session.run({"x": np.zeros((batch, CHANNELS, 64, 64), np.float32)})["y"].shape[0] == batch
        with pytest.raises(EdgerunError, match="outside the sizes"):
            session.run({"x": np.zeros((5, CHANNELS, 64, 64), np.float32)})


def test_each_range_has_kernels_and_the_session_chooses(convolutions: Model) -> None:
    engine = target.compile(convolutions, Options(sizes={"batch": (1, 1, 2, 4, 8, 8)}))
    with target.load(engine, Options()) as session, target.load(engine, Options(extra={"CUDA_GRAPH": "1"})) as graphs:
        for batch in (1, 8, 8, 8, 2, 4, 1, 1, 1, 8):
            feeds = {"x": np.full((batch, CHANNELS, 64, 64), batch, np.float32)}
            np.testing.assert_array_equal(session.run(feeds)["y"], graphs.run(feeds)["y"])
        with pytest.raises(EdgerunError, match="outside the sizes"):
            session.run({"x": np.zeros((3, CHANNELS, 64, 64), np.float32)})


def test_an_engine_file_is_what_it_was(small: Model, pictures: np.ndarray, tmp_path: Path) -> None:
    engine = target.compile(small, Options())
    target.save(engine, tmp_path / "small.engine")
    with target.load(engine, Options()) as built, edgerun.load(tmp_path / "small.engine", "tensorrt") as loaded:
        feeds = {"x": pictures[:1]}
        assert loaded.inputs == small.inputs
        np.testing.assert_array_equal(loaded.run(feeds)["y"], built.run(feeds)["y"])


def test_an_engine_of_another_gpu_is_refused(small: Model) -> None:
    header, plan = file.unpack(target.compile(small, Options()).payload)
    header["device"]["capability"] = "1.0"
    with pytest.raises(Unsupported, match=r"capability 1\.0"):
        target.load(Engine("tensorrt", file.pack(header, plan)), Options())


def test_threads_take_turns(convolutions: Model) -> None:
    feeds = [np.full((1, CHANNELS, 64, 64), value, np.float32) for value in range(8)]
    with target.load(target.compile(convolutions, Options()), Options()) as session, ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: session.run({"x": x})["y"], feeds))
        alone = [session.run({"x": x})["y"] for x in feeds]
    np.testing.assert_array_equal(together, alone)


GRAPH = Options(extra={"CUDA_GRAPH": "1"})


def test_a_cuda_graph_computes_the_same(convolutions: Model) -> None:
    """Captured in the second run of a shape and replayed from the third on; shapes may change and come back."""
    engine = target.compile(convolutions, Options())
    with target.load(engine, Options()) as plain, target.load(engine, GRAPH) as captured:
        for number, batch in enumerate((1, 1, 1, 1, 2, 2, 2, 1, 2, 1, 1, 1, 16, 16, 16, 1, 1, 1)):
            drawn = np.random.default_rng(number).standard_normal((batch, CHANNELS, 64, 64)).astype(np.float32)
            np.testing.assert_array_equal(captured.run({"x": drawn})["y"], plain.run({"x": drawn})["y"], str(number))


def test_a_cuda_graph_is_timed_against_none(convolutions: Model, tmp_path: Path) -> None:
    target.save(target.compile(convolutions, Options()), tmp_path / "net.engine")
    told = edgerun.benchmark([tmp_path / "net.engine"] * 2, options=[Options(), GRAPH], seconds=3, rounds=45)
    assert told.timings[1].verdict in ("faster", "slower", "no difference")


@pytest.mark.skipif(tensorrt.chosen() == "tensorrt_rtx", reason="tensorrt_rtx keeps no timing cache")
def test_timings_are_kept_by_device(convolutions: Model, _timings_of_its_own: Path) -> None:
    engines = [target.compile(convolutions, Options()) for _ in range(2)]
    assert len(list((_timings_of_its_own / "tensorrt").iterdir())) == 1
    assert engines[0].payload == engines[1].payload


@pytest.mark.skipif(tensorrt.chosen() == "tensorrt", reason="tensorrt compiles its kernels while it builds")
def test_compiled_kernels_are_kept(convolutions: Model, pictures: np.ndarray, _timings_of_its_own: Path) -> None:
    engine = target.compile(convolutions, Options())
    found = []
    for _ in range(2):
        with target.load(engine, Options()) as session:
            found.append(session.run({"x": pictures[:1]})["y"])
        (kept,) = (_timings_of_its_own / "tensorrt_jit").iterdir()
        assert kept.stat().st_size
    np.testing.assert_array_equal(found[0], found[1])


def test_a_stripped_engine_takes_its_weights_back(convolutions: Model, pictures: np.ndarray, tmp_path: Path) -> None:
    """Smaller than the weights that it lacks, and the same as one that has them, to 1e-6 (kernels may differ)."""
    convolutions.save(tmp_path / "net.onnx")
    stripped, feeds = Options(extra={"WEIGHTS": "stripped"}), {"x": pictures[:1]}
    engine = edgerun.compile(convolutions, "tensorrt", stripped, output=tmp_path / "net.engine")
    assert engine.check is not None and engine.check.relative_error < 1e-5
    whole = target.compile(convolutions, Options())
    target.save(whole, tmp_path / "whole.engine")
    assert (tmp_path / "net.engine").stat().st_size < (tmp_path / "whole.engine").stat().st_size
    back = Options(extra={"REFIT": str(tmp_path / "net.onnx")})
    with edgerun.load(tmp_path / "net.engine", options=back) as session, target.load(whole, Options()) as plain:
        np.testing.assert_allclose(session.run(feeds)["y"], plain.run(feeds)["y"], rtol=1e-5, atol=1e-6)
    with pytest.raises(EdgerunError, match="no weights inside"):
        edgerun.load(tmp_path / "net.engine")


def test_other_weights_into_the_same_engine(convolutions: Model, pictures: np.ndarray, tmp_path: Path) -> None:
    """Weights twice as large in the last layer: what the engine gives is what those give."""
    proto = convolutions.to_proto()
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(array * array.dtype.type(1.5), tensor.name))
    other = Model.from_proto(proto)
    other.save(tmp_path / "other.onnx")
    engine = target.compile(convolutions, Options(extra={"WEIGHTS": "refittable"}))
    feeds = {"x": pictures[:1]}
    with (
        target.load(engine, Options(extra={"REFIT": str(tmp_path / "other.onnx")})) as session,
        target.load(target.compile(other, Options()), Options()) as wanted,
    ):
        assert relative_error(wanted.run(feeds)["y"], session.run(feeds)["y"]) < 1e-5


def test_a_recipe_is_finished_here(convolutions: Model, pictures: np.ndarray, tmp_path: Path) -> None:
    convolutions.save(tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=pictures[:2])
    compiled(tmp_path / "net.onnx", tmp_path / "net.recipe", target="tensorrt", data=tmp_path / "data.npz")
    made = warm(tmp_path / "net.recipe")
    assert made.compiled and made.check.relative_error < 1e-5 and not warm(tmp_path / "net.recipe").compiled
    with edgerun.load(tmp_path / "net.engine") as session:
        assert session.run({"x": pictures[:1]})["y"].shape == (1, CHANNELS, 64, 64)


def test_page_locked_feeds_compute_the_same(convolutions: Model, pictures: np.ndarray) -> None:
    with target.load(target.compile(convolutions, Options()), Options()) as session:
        feed = session.empty("x", pictures[:1].shape)
        feed[:] = pictures[:1]
        np.testing.assert_array_equal(session.run({"x": feed})["y"], session.run({"x": pictures[:1]})["y"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this torch sees no GPU")
@pytest.mark.parametrize("options", [Options(), GRAPH], ids=["plain", "graph"])
def test_tensors_of_torch_on_the_gpu(
    convolutions: Model, pictures: np.ndarray, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In and out without the host, the same as through it, bit for bit; the third run is replayed where there is a
    graph. Work that torch has only begun on a stream of its own is waited for, and rows at odd addresses are taken."""
    with target.load(target.compile(convolutions, Options()), options) as session:
        wanted = [session.run({"x": pictures[i : i + 1]})["y"] for i in range(4)]
        for copy in ("put", "get"):
            monkeypatch.setattr(cuda.Device, copy, lambda *arguments: pytest.fail("copied through the host"))
        x = torch.empty(1, CHANNELS, 64, 64, device="cuda")
        place = torch.zeros_like(x)
        with gpu.cuda.stream(gpu.cuda.Stream()):
            for index in (0, 1, 2, 3):
                late = torch.from_numpy(pictures[index : index + 1]).cuda()
                gpu.cuda._sleep(20_000_000)
                x.copy_(late)
                found: Any = session.run({"x": x}, {"y": place})
                assert found["y"] is place
                np.testing.assert_array_equal(place.cpu().numpy(), wanted[index])
        odd = torch.empty(x.numel() + 1, device="cuda")[1:].view_as(x).copy_(torch.from_numpy(pictures[:1]))
        behind = torch.empty(x.numel() + 1, device="cuda")[1:].view_as(x)
        session.run({"x": odd}, {"y": behind})
        np.testing.assert_array_equal(behind.cpu().numpy(), wanted[0])
        with pytest.raises(EdgerunError, match="strides"):
            session.run({"x": x.transpose(2, 3)}, {"y": place})
        with pytest.raises(EdgerunError, match="gradient"):
            session.run({"x": x.clone().requires_grad_()}, {"y": place})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this torch sees no GPU")
def test_memory_of_ours_on_the_gpu(convolutions: Model, pictures: np.ndarray) -> None:
    """torch reads and fills it, it outlives the session, and it goes back to the device with its last tensor."""
    device = cuda.Device()
    with target.load(target.compile(convolutions, Options()), Options()) as session:
        wanted = session.run({"x": pictures[:1]})["y"]
        x = session.empty("x", pictures[:1].shape, device=True)
        y = session.empty("y", pictures[:1].shape, device=True)
        gpu.from_dlpack(x).copy_(torch.from_numpy(pictures[:1]))
        found: Any = session.run({"x": x}, {"y": y})
        assert found.pop("y") is y
        large = session.empty("x", (64, CHANNELS, 64, 64), device=True)
    tensor = gpu.from_dlpack(y)
    assert tensor.data_ptr() == y.address and tensor.device == torch.device("cuda", 0)
    del y
    np.testing.assert_array_equal(tensor.cpu().numpy(), wanted)
    held = gpu.from_dlpack(large)
    with device.use():
        before, size = cuda.free_bytes(), large.nbytes
        del large
        assert cuda.free_bytes() < before + size // 2 and held.shape[0] == 64
        del held
        assert cuda.free_bytes() > before + size // 2
    device.close()


def test_memory_comes_back(convolutions: Model, pictures: np.ndarray) -> None:
    """After twenty sessions the device has as much free memory as after the first, to 16 MiB."""
    engine = target.compile(convolutions, Options())

    def left() -> int:
        with target.load(engine, Options()) as session:
            session.run({"x": pictures})
        device = cuda.Device()
        try:
            with device.use():
                return cuda.free_bytes()
        finally:
            device.close()

    first = left()
    assert min(left() for _ in range(19)) > first - (16 << 20)
