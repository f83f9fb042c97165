"""Tensors in and out by DLPack: torch and numpy are the other side, and memory lives exactly as long as it is used."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from edgerun.runtime import dlpack
from edgerun.runtime.dlpack import DeviceArray

DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool", "complex64")
OTHERS: Any = torch
READERS = {"torch": OTHERS.from_dlpack, "numpy": np.from_dlpack}


class Memory:
    """`count` float32 on the host, 0, 1, 2 …, as an array of DLPack's `device`."""

    def __init__(self, count: int = 6) -> None:
        self.array = np.arange(count, dtype=np.float32)

    def given(self, *shape: int, device: int = dlpack.CPU, readonly: bool = False) -> DeviceArray:
        place = self.array.ctypes.data
        return DeviceArray(place, shape or self.array.shape, self.array.dtype, (device, 0), self, readonly)


class Old:
    """A tensor whose library knows only DLPack 0.8."""

    def __init__(self, tensor: Any) -> None:
        self.tensor, self.streams = tensor, list[object]()

    def __dlpack__(self, stream: object = None) -> Any:
        self.streams.append(stream)
        return self.tensor.__dlpack__()


def values(array: DeviceArray) -> np.ndarray:
    """What lies at its address."""
    found: np.ndarray = np.frombuffer(ctypes.string_at(array.address, array.nbytes), array.dtype).reshape(array.shape)
    return found


def alive(reference: weakref.ref[Any]) -> bool:
    gc.collect()
    return reference() is not None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", READERS)
def test_tensors_are_read_where_they_lie(library: str, dtype: str) -> None:
    drawn = np.random.default_rng(0).integers(0, 2, (3, 4, 5)).astype(dtype)
    tensor = drawn if library == "numpy" else torch.from_numpy(drawn)
    for given, wanted in ((tensor, drawn), (tensor[1:], drawn[1:]), (tensor[2, 3], drawn[2, 3])):
        for array in (dlpack.read(given), dlpack.read(Old(given))):
            assert (array.address, array.shape, array.dtype) == (wanted.ctypes.data, wanted.shape, drawn.dtype)
            assert array.device == (dlpack.CPU, 0) and array.nbytes == wanted.nbytes and not array.readonly
            np.testing.assert_array_equal(values(array), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", READERS)
def test_others_read_ours_where_it_lies(library: str, dtype: str) -> None:
    drawn = np.random.default_rng(0).integers(0, 2, (3, 4)).astype(dtype)
    tensor = READERS[library](DeviceArray(drawn.ctypes.data, drawn.shape, drawn.dtype, (dlpack.CPU, 0), drawn))
    np.testing.assert_array_equal(np.asarray(tensor), drawn)
    tensor[1] = 1
    assert drawn[1].tolist() == [1] * 4


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 0), (1, 6), (6, 1), (2, 3)])
def test_shapes_come_through(shape: tuple[int, ...]) -> None:
    memory = Memory(int(np.prod(shape)) or 1)
    for read in READERS.values():
        tensor = read(memory.given(*shape)) if shape else read(DeviceArray(*_scalar(memory)))
        assert tuple(tensor.shape) == shape and dlpack.read(tensor).shape == shape


def _scalar(memory: Memory) -> tuple[Any, ...]:
    return memory.array.ctypes.data, (), memory.array.dtype, (dlpack.CPU, 0), memory


def test_an_offset_in_bytes_counts() -> None:
    """No library here uses it, so it is written into a capsule of numpy's: one element further, one less."""
    array = np.arange(4, dtype=np.int32)

    class Behind:
        def __dlpack__(self, **asked: Any) -> Any:
            capsule = array.__dlpack__(**asked)
            tensor = dlpack._opened(capsule)[0].tensor
            tensor.byte_offset, tensor.shape[0] = 4, 3
            return capsule

    assert values(dlpack.read(Behind())).tolist() == [1, 2, 3]


def test_what_is_not_contiguous_is_refused() -> None:
    tensor = torch.arange(12.0).reshape(3, 4)
    for given in (tensor.T, tensor[:, 1:3], tensor[::2], tensor[0].expand(2, 4)):
        for one in (given, Old(given)):
            with pytest.raises(BufferError, match="strides of shape"):
                dlpack.read(one)
    wide = torch.empty_strided((1, 4), (100, 1))  # no step is ever taken along an axis of 1, or of 0 elements
    assert dlpack.read(wide).address == wide.data_ptr()
    assert dlpack.read(torch.empty_strided((2, 0), (7, 9))).nbytes == 0


def test_types_that_numpy_has_not() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert dlpack.read(torch.ones(2, dtype=torch.bfloat16)).dtype == ml_dtypes.bfloat16
    with pytest.raises(BufferError, match="numpy has no elements of 8 bits"):
        dlpack.read(torch.ones(2).to(torch.float8_e4m3fn))


def test_the_stream_is_told() -> None:
    old = Old(np.ones(3))
    dlpack.read(old)
    dlpack.read(old, 12345)
    assert old.streams == [None, 12345]
    with pytest.raises(AssertionError, match="stream"):  # torch's own: a tensor of the CPU has none
        dlpack.read(torch.ones(3), 12345)


def test_memory_that_nobody_may_write_to() -> None:
    array = np.ones(3, np.float32)
    array.flags.writeable = False
    assert dlpack.read(array).readonly
    tensor = np.from_dlpack(Memory().given(readonly=True))
    assert not tensor.flags.writeable
    with pytest.raises(BufferError):  # 0.8 has no word for it
        Memory().given(readonly=True).__dlpack__()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("library", READERS)
def test_what_is_read_lives_as_long_as_it_is_held(library: str, old: bool) -> None:
    memory = Memory()
    kept = weakref.ref(memory.array)
    tensor = memory.array if library == "numpy" else torch.from_numpy(memory.array)
    array = dlpack.read(Old(tensor) if old else tensor)
    del memory, tensor
    assert alive(kept) and values(array).tolist() == [0, 1, 2, 3, 4, 5]
    again = READERS[library](array)
    del array
    assert alive(kept) and again[5] == 5
    del again
    assert not alive(kept)


@pytest.mark.parametrize("library", READERS)
def test_what_is_given_lives_as_long_as_the_last_tensor(library: str) -> None:
    memory = Memory()
    kept, array = weakref.ref(memory), memory.given()
    first, second = READERS[library](array), READERS[library](array)[4:]
    assert array.given
    del memory, array
    assert alive(kept)
    del first
    assert alive(kept) and second[1] == 5
    del second
    assert not alive(kept)


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (1, 1)])
def test_capsules_that_nobody_takes(version: tuple[int, int] | None) -> None:
    memory = Memory()
    kept, capsule = weakref.ref(memory), memory.given().__dlpack__(max_version=version)
    del memory
    assert alive(kept) and ("versioned" in repr(capsule)) == (version is not None and version >= (1, 0))
    del capsule
    assert not alive(kept)


def test_a_refusal_keeps_its_words_and_nothing_else() -> None:
    """The capsule goes while an exception is on its way: of numpy, told a device that it has not; and of ours."""
    memory = Memory()
    kept, array = weakref.ref(memory), memory.given(device=dlpack.CUDA)
    with pytest.raises((BufferError, RuntimeError), match="[Uu]nsupported device"):
        np.from_dlpack(array)
    refused: tuple[dict[str, Any], ...] = ({"copy": True}, {"dl_device": (dlpack.CPU, 0)})
    for asked in refused:
        with pytest.raises(BufferError, match="never copied"):
            array.__dlpack__(**asked)
    assert array.__dlpack_device__() == (2, 0) and dlpack.read(array).device == (2, 0)
    array.__dlpack__(copy=False, dl_device=(dlpack.CUDA, 0), stream=1)
    del memory, array
    assert not alive(kept)


def test_a_capsule_is_consumed_once_and_no_other_version_at_all() -> None:
    memory = Memory()
    kept, array = weakref.ref(memory), memory.given()
    capsules = [array.__dlpack__(max_version=(1, 0))]

    class Same:
        def __dlpack__(self, **asked: Any) -> Any:
            return capsules[0]

    dlpack._opened(capsules[0])[0].major = 2
    with pytest.raises(BufferError, match=r"DLPack 2\.0"):
        dlpack.read(Same())
    dlpack._opened(capsules[0])[0].major = 1
    first = dlpack.read(Same())
    with pytest.raises(BufferError, match="no tensor that is still to be had"):
        dlpack.read(Same())
    capsules.clear()
    del memory, array
    assert alive(kept) and values(first)[1] == 1
    del first
    assert not alive(kept)


def test_arrays_that_share_memory_know_it() -> None:
    memory = Memory()
    whole, place = memory.given(), memory.array.ctypes.data
    first, second = (DeviceArray(place + skip, (3,), memory.array.dtype, (1, 0), memory) for skip in (0, 12))
    assert whole.overlaps(first) and second.overlaps(whole) and not first.overlaps(second)
    assert not whole.overlaps(memory.given(device=dlpack.CUDA)) and not whole.overlaps(memory.given(0))


def test_nothing_is_left_behind_and_a_process_may_end_with_tensors() -> None:
    """10,000 exchanges of 1 MB in a process that ends with some of them alive: less than 64 MB more memory."""
    code = (
        "import resource, numpy as np, torch; from edgerun.runtime import dlpack; n = np.zeros(1 << 18, np.float32)\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "def one():\n"
        "    a = np.ones(1 << 18, np.float32)\n"
        "    d = dlpack.DeviceArray(a.ctypes.data, a.shape, a.dtype, (1, 0), a)\n"
        "    return dlpack.read(torch.from_dlpack(d)), np.from_dlpack(d)\n"
        "[one() for _ in range(2)]; before = peak()\n"
        "for _ in range(10000): one()\n"
        "kept = [one(), torch.from_dlpack(one()[0]), one()[0].__dlpack__()]; print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr[-1000:]
    assert int(done.stdout) < 64 << 10
