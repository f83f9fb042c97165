"""What a caller hands to a session, as the arrays that a runtime takes; copied only where no view can be had."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import dtypes
from edgerun.runtime.spec import TensorSpec


def taken(spec: TensorSpec, value: Any) -> np.ndarray:
    """`value` as an array: an array itself, a view of anything with `__dlpack__`, else what numpy makes of it.

    Raises EdgerunError for memory that is not the host's.
    """
    if isinstance(value, np.ndarray):
        array = value
    elif hasattr(value, "__dlpack__"):
        array = viewed(spec.name, value)
    else:
        array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "UT" and spec.dtype == "object" else array


def viewed(name: str, value: Any) -> np.ndarray:
    """The memory of an object with `__dlpack__` (a torch tensor, say) as an array; nothing is copied."""
    try:
        return np.from_dlpack(value)
    except (BufferError, TypeError, RuntimeError, ValueError) as error:
        raise EdgerunError(
            f"{name!r} cannot be read where it lies", got=f"{type(value).__module__}.{type(value).__name__}: {error}",
            wanted="memory of the host, of a type that numpy has, without a gradient",
            do="copy it to the host first; of a torch tensor, detach()",
        ) from error  # fmt: skip


def structured(spec: TensorSpec, value: Any) -> Any:
    """An input that is no plain tensor: a list of arrays for a sequence; None for an absent optional."""
    if value is None and "optional" in spec.kind:
        return None
    if "sequence" not in spec.kind:
        array = taken(spec, value)
        if array.dtype != dtypes.dtype(spec.dtype):
            spec.check(array)
        return array
    if isinstance(value, (str, bytes, np.ndarray)) or not isinstance(value, Iterable):
        raise EdgerunError(f"input {spec.name!r} is a sequence", got=type(value).__name__, wanted="a list of arrays")
    return [structured(TensorSpec(spec.name, spec.dtype, (), "optional"), item) for item in value]


def in_place(array: Any) -> bool:
    """Whether a runtime can read or write it as it lies."""
    return isinstance(array, np.ndarray) and array.flags.c_contiguous and array.size > 0 and array.dtype.kind != "O"


def places(specs: tuple[TensorSpec, ...], out: Mapping[str, Any], feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of `out`, by output: each can be written as it lies and shares no memory with another or with a feed.

    Objects with `__dlpack__` are written through a view. Raises EdgerunError for what a runtime cannot write into.
    """
    known, found = {spec.name: spec for spec in specs}, dict[str, np.ndarray]()
    for name, given in out.items():
        spec = known.get(name)
        if spec is None:
            raise EdgerunError(f"unknown output {name!r}", got=sorted(out), wanted=", ".join(map(str, specs)))
        if spec.kind != "tensor":
            raise Unsupported(f"output {name!r} is a {spec.kind}", got="a place for it", do="leave it out of `out`")
        array = given if isinstance(given, np.ndarray) else viewed(name, given)
        spec.check(array, "output")
        if not (array.flags.c_contiguous and array.flags.writeable):
            got = "read-only memory" if array.flags.c_contiguous else f"strides {array.strides}"
            raise EdgerunError(f"output {name!r} cannot be written there", got=got, wanted="a C-contiguous array")
        found[name] = array
    others = [array for array in feeds.values() if isinstance(array, np.ndarray)]
    for name, array in found.items():
        if any(np.may_share_memory(array, other) for other in others):
            raise EdgerunError(f"output {name!r} shares memory with another array of the run", do="give it its own")
        others.append(array)
    return found
