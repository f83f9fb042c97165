"""`onnxruntime.IOBinding` on a CPU, and OrtValues: for InferenceSession."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.runtime import TensorSpec


class IOBinding:
    """Arrays in host memory that a session reads and writes: `bind_…`, then `InferenceSession.run_with_iobinding`.

    Raises EdgerunError for names that there are none of, Unsupported for memory elsewhere than on the CPU.
    """

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self._names = {"input": [door.name for door in inputs], "output": [door.name for door in outputs]}
        self.feeds: dict[str, Any] = {}
        self.places: dict[str, np.ndarray | None] = {}  # None: a fresh array in every run
        self.results: list[Any] = []

    def bind_cpu_input(self, name: str, arr_on_cpu: Any) -> None:
        """Read this array in every run, as it is then."""
        self.feeds[self._known("input", name)] = arr_on_cpu

    def bind_ortvalue_input(self, name: str, ortvalue: Any) -> None:
        """Read an OrtValue on the CPU."""
        self.feeds[self._known("input", name)] = array(ortvalue)

    def bind_ortvalue_output(self, name: str, ortvalue: Any) -> None:
        """Write to the memory of an OrtValue on the CPU."""
        if ortvalue.data_type() == "tensor(string)":
            raise Unsupported("strings have no address", got=name, do="bind_output(name)")
        self.places[self._known("output", name)] = array(ortvalue)

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int
    ) -> None:
        """Read `shape` elements of `element_type`, a numpy type, at this address, as it is in every run."""
        self.feeds[self._known("input", name)] = _at(device_type, element_type, shape, buffer_ptr)

    def bind_output(
        self, name: str, device_type: str = "cpu", device_id: int = 0, element_type: Any = None,
        shape: Sequence[int] | None = None, buffer_ptr: int | None = None,
    ) -> None:  # fmt: skip
        """Ask for this output: as a fresh array, or written to the address."""
        if buffer_ptr is not None and (element_type is None or shape is None):
            raise EdgerunError("a buffer has a type and a shape", got=f"{name}: {element_type}, {shape}")
        _on_cpu(device_type)
        place = None if buffer_ptr is None else _at(device_type, element_type, shape or (), buffer_ptr)
        self.places[self._known("output", name)] = place

    def synchronize_inputs(self) -> None:
        """Nothing to wait for: what is in host memory is there."""

    def synchronize_outputs(self) -> None:
        """Nothing to wait for: a run ends when its outputs are there."""

    def clear_binding_inputs(self) -> None:
        """Forget the inputs."""
        self.feeds.clear()

    def clear_binding_outputs(self) -> None:
        """Forget the outputs, and what the last run gave."""
        self.places.clear()
        self.results = []

    def copy_outputs_to_cpu(self) -> list[Any]:
        """What the last run gave, in the order in which the outputs were bound; copies."""
        return [np.array(result) if isinstance(result, np.ndarray) else result for result in self.results]

    def get_outputs(self) -> list[Any]:
        """The same as OrtValues."""
        return [ort_value(result) for result in self.results]

    def get_outputs_as_ortvaluevector(self) -> list[Any]:
        """Raises Unsupported: such a vector does not hold the arrays that it points to."""
        raise Unsupported("outputs are arrays, which no OrtValueVector holds", do="get_outputs()")

    def _known(self, door: str, name: str) -> str:
        if name not in self._names[door]:
            raise unknown(door, name, self._names[door])
        return name


def array(value: Any) -> Any:
    """The array of an OrtValue. Raises Unsupported where it lies elsewhere than in host memory."""
    _on_cpu(str(value.device_name()))
    return value.numpy()


def ort_value(result: Any) -> Any:
    """An array as onnxruntime's OrtValue. Raises Unsupported where that is not installed, or has none of the kind."""
    try:
        from onnxruntime import OrtValue  # type: ignore[import-untyped]
    except ImportError as error:
        raise Unsupported("an OrtValue is onnxruntime's", got=str(error), do="run() gives arrays") from error
    if not isinstance(result, np.ndarray):
        raise Unsupported("no OrtValue is made of a sequence", got=type(result).__name__, do="run() gives arrays")
    try:
        return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(result))
    except (RuntimeError, ValueError, TypeError) as error:
        raise Unsupported("onnxruntime has no OrtValue of this", got=str(error), do="run() gives arrays") from error


def _on_cpu(device_type: str) -> None:
    if device_type.lower() not in ("cpu", "default"):
        raise Unsupported("only arrays in host memory can be bound", got=device_type, wanted="cpu",
                          do="edgerun copies to and from a GPU itself")  # fmt: skip


def _at(device_type: str, element_type: Any, shape: Sequence[int], address: int) -> np.ndarray:
    """The caller's memory as an array."""
    _on_cpu(device_type)
    if isinstance(element_type, int):
        raise Unsupported("numpy has no type of this number", got=f"element_type {element_type}", wanted="a numpy type")
    dtype = np.dtype(element_type)
    if dtype.hasobject:
        raise Unsupported("strings have no address", got=str(dtype), do="bind_cpu_input")
    size = dtype.itemsize * int(np.prod(tuple(shape)))
    memory: Any = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(memory, dtype).reshape(tuple(shape))
