"""Tensors of other libraries by DLPack, and memory of ours given to them, on any device; nothing is copied.

The layouts are those of dlpack.h (github.com/dmlc/dlpack), of 1.0 and, where the other side knows no newer one, of 0.8;
who owns what is said in "Python Specification for DLPack" there.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgerun.runtime import dtypes

VERSION = (1, 0)
CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13  # DLDeviceType
KINDS = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}  # DLDataTypeCode to numpy's
READ_ONLY, COPIED = 1, 2  # flags
_BFLOAT = 4


class _Tensor(ctypes.Structure):
    """DLTensor, its DLDevice and DLDataType written out."""

    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


class _Managed(ctypes.Structure):
    """DLManagedTensor, of DLPack before 1.0."""

    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("tensor", _Tensor),
    ]  # fmt: skip


# The name of a capsule, and the one that it has from its consumer; the capsule keeps the pointer.
_NAMES = ((_Versioned, b"dltensor_versioned", b"used_dltensor_versioned"), (_Managed, b"dltensor", b"used_dltensor"))
_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # without the interpreter's lock: it may wait for a device
# Prototypes of our own: those at `ctypes.pythonapi` are shared with whoever else sets them.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))


class DeviceArray:
    """A C-contiguous tensor of `shape` and `dtype` at `address`, on `device`: DLPack's type of device, and its number.

    It has no elements for Python: `torch.from_dlpack(array)`, and the same of any other library, is a tensor on the
    same memory, which lives as long as one of the two does. `given` says that there was such a tensor.
    """

    def __init__(
        self, address: int, shape: Sequence[int], dtype: np.dtype[Any], device: tuple[int, int], owner: object,
        readonly: bool = False,
    ) -> None:  # fmt: skip
        self.address, self.shape, self.dtype, self.device = address, tuple(shape), dtype, device
        self.readonly, self.given, self._owner = readonly, False, owner

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def overlaps(self, other: DeviceArray) -> bool:
        """Whether the two share a byte."""
        ends = self.address + self.nbytes, other.address + other.nbytes
        return self.device == other.device and max(self.address, other.address) < min(ends)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(
        self, *, stream: object = None, max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None, copy: bool | None = None,
    ) -> Any:  # fmt: skip
        """A capsule for another library. Nothing of ours runs on the memory when a run is over, whatever `stream` it
        is read on. Raises BufferError for a copy, and for another device than its own."""
        if copy or (dl_device is not None and tuple(map(int, dl_device)) != self.device):
            raise BufferError(f"an array on DLPack's device {self.device} is given where it is, and never copied")
        self.given = True
        # numpy makes the capsule, so that its deleters are C: one of Python's would lose an exception that is on its
        # way when it is called, and crash a process that is ending. The address is not read.
        shadow = np.asarray(_Shadow(self))
        try:
            capsule = shadow.__dlpack__(max_version=max_version)
        except TypeError:  # before numpy 2.1
            capsule = shadow.__dlpack__()
        tensor = _opened(capsule)[0].tensor
        tensor.device_type, tensor.device_id = self.device
        return capsule


class _Shadow:
    """What numpy takes for an array that it may write to."""

    def __init__(self, array: DeviceArray) -> None:
        self._array = array
        self.__array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (array.address, array.readonly), "version": 3,
        }  # fmt: skip


class _Borrowed:
    """Another library's tensor; it is given back with the last reference to this."""

    def __init__(self, address: int, deleter: int | None) -> None:
        self._address, self._deleter = address, _DELETER(deleter) if deleter else None

    def __del__(self) -> None:
        if self._deleter is not None:
            self._deleter(self._address)


def read(value: Any, stream: int | None = None) -> DeviceArray:
    """The memory of an object with `__dlpack__`, on whatever device it is; it is kept until the array goes.

    `stream` is the handle of the CUDA stream that will use it (1 the legacy default stream, 2 that of the thread): the
    other library lets that stream wait for what it has under way. Raises BufferError for what is not C-contiguous, a
    type that numpy has not, a copy, and a DLPack that is not known here; and what the other library raises.
    """
    asked = {} if stream is None else {"stream": stream}
    try:
        capsule = value.__dlpack__(**asked, max_version=VERSION, copy=False)
    except TypeError:  # it is from before DLPack 1.0
        capsule = value.__dlpack__(**asked)
    managed, used = _opened(capsule)
    flags = 0
    if isinstance(managed, _Versioned):
        if managed.major != VERSION[0]:
            raise BufferError(f"a tensor of DLPack {managed.major}.{managed.minor}, where {VERSION[0]}.x is known")
        flags = managed.flags
    owner = _Borrowed(ctypes.addressof(managed), managed.deleter)  # from here on ours to give back
    _rename(capsule, used)
    tensor = managed.tensor
    if flags & COPIED:
        raise BufferError("a copy was made of it")
    dtype, shape = _dtype(tensor), tuple(tensor.shape[: tensor.ndim])
    if tensor.strides and not _compact(shape, strides := tuple(tensor.strides[: tensor.ndim])):
        raise BufferError(f"the strides of shape {list(shape)} are {list(strides)} elements, not C-contiguous")
    address, device = (tensor.data or 0) + tensor.byte_offset, (tensor.device_type, tensor.device_id)
    return DeviceArray(address, shape, dtype, device, owner, bool(flags & READ_ONLY))


def _opened(capsule: object) -> tuple[Any, bytes]:
    """What a capsule holds that nobody has consumed, and the name of one that somebody has."""
    for layout, name, used in _NAMES:
        if _is_valid(capsule, name):
            return layout.from_address(_pointer(capsule, name)), used
    raise BufferError("what __dlpack__ gave is no tensor that is still to be had")


def _dtype(tensor: _Tensor) -> np.dtype[Any]:
    code, bits = tensor.code, tensor.bits
    if tensor.lanes == 1 and (code, bits) == (_BFLOAT, 16):
        return dtypes.dtype("bfloat16")
    if tensor.lanes != 1 or code not in KINDS or bits % 8:
        raise BufferError(f"numpy has no elements of {bits} bits of DLPack's type {code}, {tensor.lanes} in one")
    return np.dtype(f"{KINDS[code]}{bits // 8}")


def _compact(shape: Sequence[int], strides: Sequence[int]) -> bool:
    # Whether elements follow each other with the last axis the fastest; no step along an axis of 1 is ever taken.
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return 0 in shape
        step *= size
    return True
