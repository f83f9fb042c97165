"""Arrays in the GPU's memory by DLPack: those of other libraries, used where they lie, and ours for them to look at."""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.runtime import arrays, dlpack
from edgerun.runtime.dlpack import DeviceArray
from edgerun.targets import _cuda as cuda

NUMBER = 0  # of the device that all here is about, the first one
ALIGNED = 256  # bytes; what TensorRT asks of the address of a tensor (NvInferRuntime.h, setTensorAddress)


def seen(device: cuda.Device, lock: threading.Lock, name: str, value: Any) -> Any:
    """A DeviceArray on the GPU's memory of an object with `__dlpack__`, whose library lets `device.stream` wait for
    what it has under way; an array on the host's. `lock` is held while that is put on the stream.

    Raises EdgerunError for another GPU's memory, and for what cannot be read.
    """
    if isinstance(value, DeviceArray):
        return value
    try:
        place, number = map(int, value.__dlpack_device__())
        if place not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
            return arrays.viewed(name, value)
        if number == NUMBER:
            with lock, device.use():
                return dlpack.read(value, device.stream)
    except EdgerunError:
        raise
    except Exception as error:  # another library's, of any kind
        raise arrays.unreadable(name, value, error) from error
    raise EdgerunError(
        f"{name!r} lies on another GPU than the engine", got=f"CUDA device {number}", wanted=f"CUDA device {NUMBER}",
        do=f"move it there, as tensor.to('cuda:{NUMBER}')",
    )  # fmt: skip


def usable(array: DeviceArray) -> bool:
    """Whether a kernel can be given its address."""
    return array.nbytes > 0 and array.address % ALIGNED == 0


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
    """An array on the GPU, not initialized. Its memory goes back with it and the last tensor that was made of it."""
    device, memory = cuda.Device(), cuda.Memory()
    try:
        with device.use():
            address = memory.hold(math.prod(shape) * dtype.itemsize)
    except EdgerunError:
        device.close()
        raise
    weakref.finalize(memory, _free, device, memory.address).atexit = False  # others may use it to the very end
    return DeviceArray(address, shape, dtype, (dlpack.CUDA, NUMBER), memory)


def _free(device: cuda.Device, address: Any) -> None:
    with device.use():
        cuda.release(address)
    device.close()
