"""What a caller hands to a session, as the arrays that a runtime takes; copied only where no view can be had."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import dtypes
from edgerun.runtime.spec import TensorSpec

if TYPE_CHECKING:
    from edgerun.runtime.dlpack import DeviceArray

View = Callable[[str, Any], Any]  # of an object with `__dlpack__`, by its name at the door: an array, or a DeviceArray
HOST = (1, 3, 11, 13)  # kDLCPU, kDLCUDAHost, kDLROCMHost, kDLCUDAManaged: memory that the CPU reads
DEVICES = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 14: "oneAPI", 15: "WebGPU"}


def taken(spec: TensorSpec, value: Any, view: View) -> Any:
    """`value` as an array: an array itself, a `view` of anything with `__dlpack__`, else what numpy makes of it.

    Raises EdgerunError for memory that the target does not read, and for what is no array.
    """
    if isinstance(value, np.ndarray):
        array = value
    elif hasattr(value, "__dlpack__"):
        array = view(spec.name, value)
    else:
        array = made(spec.name, value, np.dtype(object) if spec.dtype == "object" else None)
    return array.astype(object) if array.dtype.kind in "UT" and spec.dtype == "object" else array


def made(name: str, value: Any, dtype: np.dtype[Any] | None) -> np.ndarray:
    """What numpy makes of a list, say. Raises EdgerunError where it makes nothing of it."""
    try:
        return np.asarray(value, dtype)
    except (TypeError, ValueError) as error:
        raise EdgerunError(f"input {name!r} is no array", got=error) from error


def check_texts(name: str, array: np.ndarray) -> None:
    """Raise EdgerunError for other objects, of which a runtime would take what is printed."""
    if odd := {*map(type, array.flat)} - {str, np.str_}:
        raise EdgerunError(f"input {name!r} holds more than texts", got=odd.pop().__name__, wanted="str")


def viewed(name: str, value: Any) -> np.ndarray:
    """The memory of an object with `__dlpack__` (a torch tensor, say) as an array; nothing is copied."""
    try:
        return np.from_dlpack(value)
    except (BufferError, TypeError, RuntimeError, ValueError) as error:
        raise _elsewhere(name, value) or unreadable(name, value, error) from error


def unreadable(name: str, value: Any, error: Exception) -> EdgerunError:
    """The error for an object with `__dlpack__` that refuses to be read, or that nobody here can."""
    do = "of a torch tensor, detach() and contiguous(); or copy it to the host first"
    if str(getattr(value, "dtype", "")).endswith("bfloat16"):
        do = "tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16) is the same memory"
    return EdgerunError(
        f"{name!r} cannot be read where it lies", got=f"{_kind(value)}: {error}",
        wanted="contiguous memory, of a type that numpy has, without a gradient",
        do=do,
    )  # fmt: skip


def _elsewhere(name: str, value: Any) -> EdgerunError | None:
    """The error for memory of a device's; None for the host's."""
    try:
        place, number = map(int, value.__dlpack_device__())
    except Exception:  # what it said first tells more
        return None
    if place in HOST:
        return None
    device = DEVICES.get(place, f"DLPack's type {place},")
    there = "; or load the model with target='tensorrt', which reads it where it lies" if device == "CUDA" else ""
    return EdgerunError(
        f"{name!r} lies in the memory of a device", got=f"{_kind(value)} on {device} device {number}",
        wanted="memory of the host, which is all that this target reads", do=f"copy it first, as tensor.cpu(){there}",
    )  # fmt: skip


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__name__}"


def structured(spec: TensorSpec, value: Any, view: View) -> Any:
    """An input that is no plain tensor: a list of arrays for a sequence; None for an absent optional."""
    if value is None and "optional" in spec.kind:
        return None
    if "sequence" not in spec.kind:
        array = taken(spec, value, view)
        if array.dtype != dtypes.dtype(spec.dtype):
            spec.check(array)
        if spec.dtype == "object":
            check_texts(spec.name, array)
        return array
    if isinstance(value, (str, bytes, np.ndarray)) or not isinstance(value, Iterable):
        raise EdgerunError(f"input {spec.name!r} is a sequence", got=type(value).__name__, wanted="a list of arrays")
    return [structured(TensorSpec(spec.name, spec.dtype, (), "optional"), item, view) for item in value]


def in_place(array: Any) -> bool:
    """Whether a runtime can read or write it as it lies."""
    return isinstance(array, np.ndarray) and array.flags.c_contiguous and array.size > 0 and array.dtype.kind != "O"


def places(
    specs: tuple[TensorSpec, ...], out: Mapping[str, Any], feeds: Mapping[str, Any], view: View
) -> dict[str, Any]:
    """The arrays of `out`, by output: each can be written as it lies and shares no memory with another or with a feed.

    Objects with `__dlpack__` are written through a `view`. Raises EdgerunError for what a runtime cannot write into.
    """
    known, found = {spec.name: spec for spec in specs}, dict[str, Any]()
    for name, given in out.items():
        spec = known.get(name)
        if spec is None:
            raise EdgerunError(f"unknown output {name!r}", got=sorted(out, key=str), wanted=", ".join(map(str, specs)))
        if spec.kind != "tensor":
            raise Unsupported(f"output {name!r} is a {spec.kind}", got="a place for it", do="leave it out of `out`")
        if not isinstance(given, np.ndarray) and not hasattr(given, "__dlpack__"):
            what, kind = f"output {name!r} cannot be written there", type(given).__name__
            raise EdgerunError(what, got=kind, wanted="an array, or a tensor")
        array = given if isinstance(given, np.ndarray) else view(name, given)
        spec.check(array, "output")
        if got := _unwritable(array):
            what, wanted = f"output {name!r} cannot be written there", "a C-contiguous array that is not read-only"
            raise EdgerunError(what, got=got, wanted=wanted)
        found[name] = array
    others = [array for array in feeds.values() if array is not None and not isinstance(array, list)]
    for name, array in found.items():
        if any(_share(array, other) for other in others):
            raise EdgerunError(f"output {name!r} shares memory with another array of the run", do="give it its own")
        others.append(array)
    return found


def misfit(name: str, shape: Iterable[int], place: Iterable[int]) -> EdgerunError:
    """The error for an output of `shape` that was given a `place` of another."""
    what = f"output {name!r} has another shape than its place"
    return EdgerunError(what, got=list(shape), wanted=str(list(place)))


def _unwritable(array: np.ndarray | DeviceArray) -> str | None:
    if not isinstance(array, np.ndarray):
        return "read-only memory" if array.readonly else None
    if not array.flags.c_contiguous:
        return f"strides {array.strides}"
    return None if array.flags.writeable else "read-only memory"


def _share(one: np.ndarray | DeviceArray, other: np.ndarray | DeviceArray) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and np.may_share_memory(one, other)
    return one.overlaps(other)
