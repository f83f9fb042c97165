"""What a TensorRT session does with memory of the GPU: which addresses it gives to the engine, and what it copies.

A driver of some lines of C stands for libcuda.so.1 (`cuda_driver.py`). The engine beside it doubles what lies at the
addresses that it was given. What a GPU computes, and what torch makes of it, is in test_tensorrt_gpu.py.
"""

from __future__ import annotations

import copy
import gc
import shutil
import subprocess
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerun.errors import EdgerunError
from edgerun.runtime import HotSwapSession, TensorSpec
from edgerun.runtime.dlpack import DeviceArray
from edgerun.targets import _cuda as cuda
from edgerun.targets._tensorrt_session import TensorrtSession
from tests.targets.cuda_driver import DRIVER, Driver

STREAM = 0x5354


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is on this machine")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    made = folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(made), str(folder / "driver.c")], check=True)
    return made


class Tensor:
    """Another library's tensor on the device, `skip` bytes into its memory."""

    def __init__(self, driver: Driver, values: np.ndarray, skip: int = 0, number: int = 0) -> None:
        self.memory, self.driver, self.shape, self.number = cuda.Memory(), driver, values.shape, number
        self.address = self.memory.hold(values.nbytes + skip) + skip
        self.values[:] = values

    @property
    def values(self) -> np.ndarray:
        return self.driver.at(self.address, self.shape)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.number

    def __dlpack__(self, *, stream: int, max_version: tuple[int, int], copy: bool) -> Any:
        assert stream == STREAM and copy is False
        array = DeviceArray(self.address, self.shape, np.dtype(np.float32), (2, self.number), self)
        return array.__dlpack__(max_version=max_version)

    def __del__(self) -> None:
        self.memory.free()


class Engine:
    """y = 2·x and z = x + 1, for x float32 [batch, 3]; runtime and engine in one, and the execution context a copy.

    `ranges` are the batches that its optimization profiles hold. `switched` are those that were asked for.
    """

    def __init__(self, driver: Driver, ranges: Sequence[tuple[int, int]] = ((1, 99),)) -> None:
        self.driver, self.places, self.shape = driver, dict[str, int](), (0, 0)
        self.ranges, self.profile, self.switched = ranges, 0, list[int]()
        self.num_optimization_profiles, self.context = len(ranges), False
        self.num_io_tensors = 3
        self.get_tensor_name = "xyz".__getitem__

    def deserialize_cuda_engine(self, plan: bytes) -> Engine:
        return self

    def create_execution_context(self) -> Engine:
        context = copy.copy(self)
        context.shape, context.context = (0, 0), True
        self.made = context
        return context

    def get_tensor_location(self, name: str) -> str:
        return "DEVICE"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, int]]:
        least, most = self.ranges[profile]
        return [(least, 3), (least, 3), (most, 3)]

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == STREAM
        self.profile, self.shape = profile, (0, 0)
        self.switched.append(profile)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, int]) -> bool:
        self.shape = shape
        least, most = self.ranges[self.profile]
        return least <= shape[0] <= most

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return self.shape if self.context else (-1, 3)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0, "what TensorRT says of addresses"
        self.places[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        x, y, z = (self.driver.at(self.places[name], self.shape) for name in "xyz")
        y[:], z[:] = 2 * x, x + 1
        return stream == STREAM


@pytest.fixture
def driver(library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    monkeypatch.setattr(cuda, "LIBRARY", str(library))
    cuda.missing.cache_clear()
    found = Driver(library)
    found.counts()
    yield found
    gc.collect()
    assert found.living() == 0, "device memory was not given back"
    monkeypatch.undo()
    cuda.missing.cache_clear()


@pytest.fixture
def session(driver: Driver) -> Iterator[TensorrtSession]:
    with opened(driver) as session:
        yield session


def opened(driver: Driver, engine: Engine | None = None) -> TensorrtSession:
    logger = type("ILogger", (), {"Severity": types.SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, VERBOSE=4)})
    trt = types.SimpleNamespace(
        __name__="tensorrt", ILogger=logger, Runtime=lambda log: engine or Engine(driver),
        TensorLocation=types.SimpleNamespace(HOST="HOST"),
    )  # fmt: skip
    specs = [TensorSpec(name, "float32", ("batch", 3)) for name in "xyz"]
    return TensorrtSession(trt, b"", tuple(specs[:1]), tuple(specs[1:]))


def drawn(batch: int = 2) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 3)).astype(np.float32)


def test_arrays_of_the_host_are_copied(session: TensorrtSession, driver: Driver) -> None:
    x = drawn()
    found = session.run({"x": x})
    np.testing.assert_array_equal(found["y"], 2 * x)
    np.testing.assert_array_equal(found["z"], x + 1)
    assert driver.counts() == [1, 2, 0, 0]
    y = np.zeros_like(x)
    assert session.run({"x": x}, {"y": y})["y"] is y
    np.testing.assert_array_equal(y, 2 * x)
    assert driver.counts() == [1, 2, 0, 0]


def test_the_profile_is_one_that_holds_the_shapes(driver: Driver) -> None:
    """That in use stays where it does; a size between two ranges is refused with both."""
    engine = Engine(driver, [(1, 4), (3, 8), (20, 30)])
    with opened(driver, engine) as session:
        for batch, switched in ((2, []), (4, []), (8, [1]), (3, [1]), (25, [1, 2]), (1, [1, 2, 0]), (1, [1, 2, 0])):
            x = drawn(batch)
            np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
            assert engine.made.switched == switched, batch
        with pytest.raises(EdgerunError, match="outside the sizes") as error:
            session.run({"x": drawn(9)})
        wanted = "between [1, 3] and [4, 3], or another of its ranges"
        assert (error.value.got, error.value.wanted) == ("[9, 3]", wanted)
        np.testing.assert_array_equal(session.run({"x": drawn(4)})["y"], 2 * drawn(4))


def test_tensors_on_the_device_are_used_where_they_lie(session: TensorrtSession, driver: Driver) -> None:
    for batch in (2, 5, 2):
        x, y, z = (Tensor(driver, values) for values in (drawn(batch), 0 * drawn(batch), 0 * drawn(batch)))
        driver.counts()
        found: Any = session.run({"x": x}, {"y": y, "z": z})
        assert found["y"] is y and found["z"] is z and driver.counts() == [0, 0, 0, 0]
        np.testing.assert_array_equal(y.values, 2 * drawn(batch))
        np.testing.assert_array_equal(z.values, drawn(batch) + 1)


def test_host_and_device_together(session: TensorrtSession, driver: Driver) -> None:
    x, y = Tensor(driver, drawn()), Tensor(driver, 0 * drawn())
    found = session.run({"x": x}, {"y": y})
    np.testing.assert_array_equal(found["z"], drawn() + 1)
    np.testing.assert_array_equal(y.values, 2 * drawn())
    assert driver.counts() == [0, 1, 0, 0]
    np.testing.assert_array_equal(session.run({"x": 3 * drawn()}, {"y": y})["z"], 3 * drawn() + 1)
    np.testing.assert_array_equal(y.values, 6 * drawn())
    assert driver.counts() == [1, 1, 0, 0]
    np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * drawn())
    assert driver.counts() == [0, 2, 0, 0]


def test_an_address_that_no_kernel_takes_is_copied_on_the_device(session: TensorrtSession, driver: Driver) -> None:
    x, y = Tensor(driver, drawn(), skip=12), Tensor(driver, 0 * drawn(), skip=4)
    session.run({"x": x}, {"y": y})
    np.testing.assert_array_equal(y.values, 2 * drawn())
    assert driver.counts() == [0, 1, 2, 0]  # z goes to the host


def test_memory_of_ours(session: TensorrtSession, driver: Driver) -> None:
    """It outlives the session, and is waited for once somebody else has it."""
    array = session.empty("y", (2, 3), device=True)
    assert array.__dlpack_device__() == (2, 0) and array.shape == (2, 3) and array.dtype == np.float32
    found: Any = session.run({"x": drawn()}, {"y": array})
    assert found["y"] is array and driver.counts() == [1, 1, 0, 0]
    np.testing.assert_array_equal(driver.at(array.address, (2, 3)), 2 * drawn())
    capsule = array.__dlpack__(stream=7, max_version=(1, 0))
    session.run({"x": array}, {"z": Tensor(driver, drawn())})
    assert driver.counts() == [0, 1, 0, 1]
    session.close()
    address = array.address
    del array
    np.testing.assert_array_equal(driver.at(address, (2, 3)), 2 * drawn())
    del capsule


def test_a_swapped_session_has_it_too(session: TensorrtSession, driver: Driver) -> None:
    with HotSwapSession(session) as held:
        array = held.empty("x", (1, 3), device=True)
        driver.at(array.address, (1, 3))[:] = 4
        assert held.run({"x": array})["y"].tolist() == [[8, 8, 8]]


def test_the_door_is_that_of_arrays(session: TensorrtSession, driver: Driver) -> None:
    x = Tensor(driver, drawn())
    for feeds, out, message in (
        ({"x": Tensor(driver, drawn(2)[:, :2].copy())}, {}, "input 'x' has the wrong shape"),
        ({"x": Tensor(driver, drawn()[0])}, {}, "input 'x' has the wrong shape"),
        ({"x": x}, {"y": Tensor(driver, drawn()[:, :1].copy())}, "output 'y' has the wrong shape"),
        ({"x": x}, {"y": Tensor(driver, drawn(3))}, "output 'y' has another shape than its place"),
        ({"x": x}, {"y": x}, "output 'y' shares memory"),
        ({"x": Tensor(driver, drawn(), number=1)}, {}, "(?s)'x' lies on another GPU.*CUDA device 1.*CUDA device 0"),
    ):
        with pytest.raises(EdgerunError, match=message):
            session.run(feeds, out)
    np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * drawn())


def test_what_the_other_library_refuses_is_one_clear_error(session: TensorrtSession, driver: Driver) -> None:
    class Refusing(Tensor):
        def __dlpack__(self, **asked: Any) -> Any:
            raise BufferError("it requires a gradient")

    with pytest.raises(EdgerunError, match="(?s)'x' cannot be read where it lies.*it requires a gradient.*detach"):
        session.run({"x": Refusing(driver, drawn())})


def test_tensors_of_the_host_are_read_as_ever(session: TensorrtSession, driver: Driver) -> None:
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(session.run({"x": torch.from_numpy(drawn())})["y"], 2 * drawn())
    assert driver.counts() == [1, 2, 0, 0]


@pytest.mark.parametrize("context", [0, 0x77, 1], ids=["none", "another GPU's", "the same"])
def test_the_thread_keeps_the_context_that_it_had(driver: Driver, context: int) -> None:
    """Whoever works on another GPU beside us goes on there; all that we do meets the first GPU's context."""
    driver.current = context
    session = opened(driver)
    assert driver.current == context
    session.run({"x": drawn()})
    assert driver.current == context
    with pytest.raises(EdgerunError):
        session.run({"x": drawn()}, {"y": np.zeros((3, 3), np.float32)})
    assert driver.current == context
    array, pinned = session.empty("y", (2, 3), device=True), session.empty("x", (2, 3))
    assert driver.current == context
    pinned[:] = drawn()
    session.run({"x": pinned}, {"y": array})
    np.testing.assert_array_equal(driver.at(array.address, (2, 3)), 2 * drawn())
    session.close()
    assert driver.current == context
    del array, pinned
    gc.collect()
    assert driver.current == context and driver.strange() == 0
