"""The CUDA driver by ctypes on libcuda.so.1: one device, its memory and a stream. Nothing is linked or installed."""

# Names and signatures are NVIDIA's CUDA Driver API's; functions with `_v2` are what its header means by the name.

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError, Unsupported

LIBRARY = "libcuda.so.1"
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}


@functools.cache
def missing() -> str | None:
    """None, or why no GPU can be used here. Asked before any library that would crash without a driver."""
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError:
        return f"no NVIDIA driver answers ({LIBRARY} is not here)"
    if code := driver.cuInit(0):
        return f"no NVIDIA driver answers (cuInit gives error {code})"
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver has no GPU to give"
    return None


@dataclass(frozen=True)
class Gpu:
    """The first device: its name, compute capability (as 8.9), memory in bytes, and the driver's CUDA version."""

    name: str
    capability: tuple[int, int]
    memory: int
    cuda: tuple[int, int]


def gpu() -> Gpu:
    """The device that engines run on. Raises Unsupported where there is none."""
    driver, device = _driver(), ctypes.c_int()
    name, memory, version = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.c_int()
    _call("cuDeviceGet", ctypes.byref(device), 0)
    _call("cuDeviceGetName", name, len(name), device)
    _call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    if code := driver.cuDriverGetVersion(ctypes.byref(version)):
        raise _failed("cuDriverGetVersion", code)
    major, minor = (_attribute(device, which) for which in (MAJOR, MINOR))
    return Gpu(name.value.decode(), (major, minor), memory.value, (version.value // 1000, version.value % 1000 // 10))


class Device:
    """The first device's primary context (which TensorRT uses too), and one stream. Close it when done."""

    def __init__(self) -> None:
        device = ctypes.c_int()
        self._context, self._stream = ctypes.c_void_p(), ctypes.c_void_p()
        _call("cuDeviceGet", ctypes.byref(device), 0)
        self._device = device
        _call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        with self.use():
            _call("cuStreamCreate", ctypes.byref(self._stream), 1)  # CU_STREAM_NON_BLOCKING

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream.value or 0)

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """The context is that of this thread within the block; after it, the thread has what it had: another library's,
        of another GPU perhaps, or none."""
        before = ctypes.c_void_p()
        _call("cuCtxGetCurrent", ctypes.byref(before))
        if before.value == self._context.value:
            yield
            return
        _call("cuCtxSetCurrent", self._context)
        try:
            yield
        finally:
            _driver().cuCtxSetCurrent(before)  # where that fails, what went wrong before it is told

    def wait(self) -> None:
        """Until all that was put on the stream is done."""
        _call("cuStreamSynchronize", self._stream)

    def settle(self) -> None:
        """Until all is done that anybody in this process put on any stream of the device."""
        _call("cuCtxSynchronize")

    def move(self, place: int, source: int, count: int) -> None:
        """Copy `count` bytes from one address on the device to another."""
        if count:
            addresses = ctypes.c_uint64(place), ctypes.c_uint64(source)
            _call("cuMemcpyDtoDAsync_v2", *addresses, _size(count), self._stream)

    def put(self, memory: Memory, array: np.ndarray) -> None:
        """Copy a contiguous array to the device; it must live until `wait`."""
        if array.nbytes:
            _call("cuMemcpyHtoDAsync_v2", memory.address, _pointer(array), _size(array.nbytes), self._stream)

    def fill(self, memory: Memory, count: int, value: int) -> None:
        """Set the first `count` bytes to `value`."""
        _call("cuMemsetD8Async", memory.address, ctypes.c_ubyte(value), _size(count), self._stream)

    def get(self, array: np.ndarray, memory: Memory) -> None:
        """Fill a contiguous array from the device; it is full after `wait`."""
        if array.nbytes:
            _call("cuMemcpyDtoHAsync_v2", _pointer(array), memory.address, _size(array.nbytes), self._stream)

    def captured(self, work: Callable[[], object]) -> Graph:
        """What `work` puts on the stream as a graph; none of it is done yet. Raises EdgerunError for what cannot be."""
        _call("cuStreamBeginCapture_v2", self._stream, 1)  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        try:
            work()
        finally:  # a stream that stays in capture is lost
            code = _driver().cuStreamEndCapture(self._stream, ctypes.byref(graph))
        if code:
            raise _failed("cuStreamEndCapture", code)
        try:
            _call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        finally:
            _call("cuGraphDestroy", graph)
        return Graph(executable, self._stream)

    def close(self) -> None:
        """Give the stream and the context back."""
        if self._stream:
            with self.use():
                _call("cuStreamDestroy_v2", self._stream)
            self._stream = ctypes.c_void_p()
            _call("cuDevicePrimaryCtxRelease_v2", self._device)


class Graph:
    """Work that is sent to the GPU at once, on the stream that it was captured from."""

    def __init__(self, executable: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:
        self._executable, self._stream = executable, stream

    def launch(self) -> None:
        """Put all of it on the stream, with the addresses that it was captured with."""
        _call("cuGraphLaunch", self._executable, self._stream)

    def close(self) -> None:
        """Give it back."""
        if self._executable:
            _call("cuGraphExecDestroy", self._executable)
            self._executable = ctypes.c_void_p()


class Memory:
    """Device memory that grows when it has to; what was in it is lost then."""

    def __init__(self) -> None:
        self.address, self.bytes = ctypes.c_uint64(), 0

    def hold(self, count: int) -> int:
        """The address of at least `count` bytes (1 at least: a tensor without elements has an address too)."""
        if count > self.bytes or not self.bytes:
            self.free()
            count = max(count, 1)
            _call("cuMemAlloc_v2", ctypes.byref(self.address), _size(count))
            self.bytes = count
        return self.address.value

    def free(self) -> None:
        """Give it back."""
        if self.bytes:
            release(self.address)
            self.address, self.bytes = ctypes.c_uint64(), 0


def release(address: ctypes.c_uint64) -> None:
    """Give device memory back."""
    _call("cuMemFree_v2", address)


def page_locked(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An array, not initialized, in host memory that stays where it is: the GPU copies from and to it by itself. It
    goes back with the last view of it."""
    device, address = Device(), ctypes.c_void_p()
    count = max(1, math.prod(shape) * dtype.itemsize)
    try:
        with device.use():
            _call("cuMemHostAlloc", ctypes.byref(address), _size(count), ctypes.c_uint(1))  # CU_MEMHOSTALLOC_PORTABLE
    except EdgerunError:
        device.close()
        raise
    buffer = (ctypes.c_ubyte * count).from_address(address.value or 0)
    weakref.finalize(buffer, _unlock, device, address)
    return np.ndarray(shape, dtype, memoryview(buffer))


def _unlock(device: Device, address: ctypes.c_void_p) -> None:
    with device.use():
        _call("cuMemFreeHost", address)
    device.close()


def free_bytes() -> int:
    """Memory of the current context's device that nobody holds."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value


def _size(count: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(count)


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _attribute(device: ctypes.c_int, which: int) -> int:
    found = ctypes.c_int()
    _call("cuDeviceGetAttribute", ctypes.byref(found), which, device)
    return found.value


def _driver() -> Any:
    if reason := missing():
        raise Unsupported("there is no GPU to run on", got=reason, do="run it on a machine with an NVIDIA GPU")
    return _opened(LIBRARY)


_opened = functools.cache(ctypes.CDLL)  # opening it again costs more than most calls


def _call(function: str, *arguments: object) -> None:
    if code := getattr(_driver(), function)(*arguments):
        raise _failed(function, code)


def _failed(function: str, code: int) -> EdgerunError:
    name = ctypes.c_char_p()
    _driver().cuGetErrorName(code, ctypes.byref(name))
    told = name.value.decode() if name.value else str(code)
    do = "use smaller batches, or a smaller model" if told == "CUDA_ERROR_OUT_OF_MEMORY" else None
    return EdgerunError(f"the GPU's driver refuses {function}", got=told, do=do)
