"""The CUDA driver by ctypes, on any NVIDIA GPU: memory, copies, and work that is captured as a graph."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest

from edgerun.errors import EdgerunError
from edgerun.targets import _cuda as cuda

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(cuda.missing() is not None, reason=str(cuda.missing()))]


@pytest.fixture
def device() -> Iterator[cuda.Device]:
    made = cuda.Device()
    with made.use():
        yield made
    made.close()


def test_the_thread_keeps_the_context_that_it_had() -> None:
    def current() -> int | None:
        found = ctypes.c_void_p()
        cuda._call("cuCtxGetCurrent", ctypes.byref(found))
        return found.value

    before, device = current(), cuda.Device()
    assert current() == before
    with device.use():
        mine = current()
        assert mine is not None
        with device.use():
            assert current() == mine
        assert current() == mine
    assert current() == before
    device.close()


def test_the_gpu_tells_of_itself() -> None:
    gpu = cuda.gpu()
    assert gpu.name and gpu.capability >= (5, 0) and gpu.memory > 1 << 30 and gpu.cuda >= (11, 4)


def test_memory_grows_and_comes_back(device: cuda.Device) -> None:
    before, memory = cuda.free_bytes(), cuda.Memory()
    first = memory.hold(1000)
    assert memory.hold(10) == first and memory.bytes == 1000
    memory.hold(256 << 20)
    assert cuda.free_bytes() <= before - (256 << 20)
    memory.free()
    assert cuda.free_bytes() > before - (16 << 20)


def test_arrays_come_back_as_they_went(device: cuda.Device) -> None:
    memory, array = cuda.Memory(), np.random.default_rng(0).standard_normal((300, 70)).astype(np.float32)
    memory.hold(array.nbytes)
    found = np.empty_like(array)
    device.put(memory, array)
    device.get(found, memory)
    device.wait()
    np.testing.assert_array_equal(found, array)
    memory.free()


def test_page_locked_arrays_are_arrays(device: cuda.Device) -> None:
    """As any other to numpy, also a view of it alone; the driver knows the memory as its own, and gets it back."""
    flags, memory = ctypes.c_uint(), cuda.Memory()
    array = cuda.page_locked((30, 7), np.dtype(np.float32))
    array[:] = np.random.default_rng(0).standard_normal((30, 7))
    cuda._call("cuMemHostGetFlags", ctypes.byref(flags), ctypes.c_void_p(array.ctypes.data))
    memory.hold(array.nbytes)
    found = cuda.page_locked((30, 7), np.dtype(np.float32))
    device.put(memory, array)
    device.get(found, memory)
    device.wait()
    np.testing.assert_array_equal(found, array)
    row, address = array[3], array.ctypes.data
    del array
    assert row.base is not None and np.isfinite(row).all()
    del row
    with pytest.raises(EdgerunError):
        cuda._call("cuMemHostGetFlags", ctypes.byref(flags), ctypes.c_void_p(address))
    assert cuda.page_locked((0, 3), np.dtype(np.int64)).shape == (0, 3)
    memory.free()


def test_a_graph_does_its_work_when_it_is_launched(device: cuda.Device) -> None:
    """Nothing while it is captured; then as often as it is launched, on what is there then."""
    memory, found = cuda.Memory(), np.empty(64, np.uint8)
    memory.hold(64)

    def now() -> list[int]:
        device.get(found, memory)
        device.wait()
        return sorted(set(found.tolist()))

    def work() -> None:
        device.fill(memory, 64, 7)
        device.fill(memory, 32, 9)

    device.fill(memory, 64, 1)
    graph = device.captured(work)
    assert now() == [1]
    graph.launch()
    assert now() == [7, 9]
    device.fill(memory, 64, 2)
    assert now() == [2]
    graph.launch()
    assert now() == [7, 9]
    graph.close()
    graph.close()
    memory.free()


def test_what_cannot_be_captured_is_an_error_and_the_stream_lives(device: cuda.Device) -> None:
    """Waiting inside a capture is refused by the driver; the stream works afterwards."""
    memory, found = cuda.Memory(), np.empty(8, np.uint8)
    memory.hold(8)
    with pytest.raises(EdgerunError):
        device.captured(device.wait)
    device.fill(memory, 8, 3)
    device.get(found, memory)
    device.wait()
    assert set(found.tolist()) == {3}
    memory.free()
