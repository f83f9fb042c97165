"""A running ONNX Runtime session, and what its doors are called."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.runtime import Session, TensorSpec, arrays, dtypes
from edgerun.runtime.session import copied
from edgerun.runtime.spec import named

if TYPE_CHECKING:
    from edgerun.target import Issue
    from edgerun.targets._onnxruntime_graph import Graphs

HOST = ["CPUExecutionProvider"]  # sessions on these alone read and write the caller's own memory
GPUS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
DTYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bool": "bool", "string": "object",
    **{name: name for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")},
    "bfloat16": "bfloat16", "float8e4m3fn": "float8_e4m3fn", "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2", "float8e5m2fnuz": "float8_e5m2fnuz", "float8e8m0": "float8_e8m0fnu",
    "float4e2m1": "float4_e2m1fn", "int4": "int4", "uint4": "uint4", "int2": "int2", "uint2": "uint2",
}  # fmt: skip
TENSORS = {f"tensor({name})": dtype for name, dtype in DTYPES.items()}
# onnx.TensorProto.DataType of what numpy has no type for: it goes in and out as bytes.
NUMBERS = {
    "bfloat16": 16, "float8_e4m3fn": 17, "float8_e4m3fnuz": 18, "float8_e5m2": 19, "float8_e5m2fnuz": 20, "uint4": 21,
    "int4": 22, "float4_e2m1fn": 23, "float8_e8m0fnu": 24, "uint2": 25, "int2": 26,
}  # fmt: skip
# Patterns are compiled when they are asked for: the usual door needs none.
_ENDED = r"Available memory of (\d+) is smaller than requested bytes of (\d+)"
_TYPE = r"(?P<optional>optional\()?(?P<sequence>seq\()?tensor\((?P<dtype>\w+)\)+"


class OrtSession(Session):
    """Outputs are fresh arrays that ONNX Runtime allocates for every run, or the caller's.

    `graphs` are its CUDA graphs, where it has any; `left` the nodes that run elsewhere (None: nobody tells); `how` the
    runtime's RunOptions of every run.
    """

    opens = f"an .ort file (edgerun compile), which is mapped, not copied; {Session.opens}"

    def __init__(
        self, runtime: Any, session: Any, errors: tuple[type[Exception], ...], streams: int = 1,
        graphs: Graphs | None = None, left: Sequence[Issue] | None = (), how: Any = None,
    ) -> None:  # fmt: skip
        defaults = specs(session.get_overridable_initializers())
        super().__init__(specs(session.get_inputs()), specs(session.get_outputs()), streams, defaults)
        self._session: Any = session
        self._runtime, self._errors = runtime, errors
        self._names = [spec.name for spec in self.outputs]
        self._narrow = any(spec.dtype in dtypes.NARROW for spec in (*self.inputs, *defaults, *self.outputs))
        self._in_place = not self._narrow and session.get_providers() == HOST
        self._graphs, self.left, self._how = graphs, left, how

    @property
    def metadata(self) -> Mapping[str, str]:
        return dict(self.native.get_modelmeta().custom_metadata_map)

    @property
    def native(self) -> Any:
        """ONNX Runtime's own session."""
        if (session := self._session) is None:  # perhaps since another thread closed it a moment ago
            self._check_open()
        return session

    def run_by(
        self, how: Any, feeds: Mapping[str, Any], out: Mapping[str, Any], names: Sequence[str]
    ) -> dict[str, Any]:
        """`run` of the outputs `names` by the runtime's own RunOptions `how`."""
        self._check_open()
        if self._graphs:
            raise Unsupported("a CUDA graph runs as it was captured", got="RunOptions", do="leave them out")
        checked = self._door.taken(feeds)
        into = arrays.places(self.outputs, out, checked, self._door.view)
        return {**copied(self._run(checked, how, names), into), **out}

    def _run(
        self, feeds: Mapping[str, np.ndarray], how: Any = None, names: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        names, how = list(names) or self._names, how or self._how
        try:
            if self._narrow:
                return self._run_narrow(feeds, how)
            found = self._graphs.run(feeds) if self._graphs else self.native.run(names, feeds, how)
            return dict(zip(names, found, strict=True))
        except self._errors as error:
            raise refused(error) from error

    def _bind(self, feeds: Mapping[str, np.ndarray], out: Mapping[str, np.ndarray]) -> Callable[[], None] | None:
        if not self._in_place or len(feeds) > len(self.inputs):  # the runtime binds no default's place
            return None
        binding, run, how = self.native.io_binding(), self.native.run_with_iobinding, self._how
        errors: tuple[type[Exception], ...] = (*self._errors, RuntimeError)
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, array in out.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

        def call() -> None:
            try:
                run(binding, how)
            except errors as error:
                raise refused(error) from error

        return call

    def _run_narrow(self, feeds: Mapping[str, np.ndarray], how: Any) -> dict[str, np.ndarray]:
        """Values of types that numpy alone does not have go in and out as their bytes, 4 and 2 bits packed."""
        value = self._runtime.OrtValue.ortvalue_from_numpy
        given = {spec.name: self._value(spec, feeds[spec.name]) if spec.dtype in NUMBERS
                 else value(np.ascontiguousarray(feeds[spec.name]))
                 for spec in (*self.inputs, *self.defaults) if spec.name in feeds}  # fmt: skip
        results = self.native.run_with_ort_values(self._names, given, how)
        return {spec.name: _array(spec, result) for spec, result in zip(self.outputs, results, strict=True)}

    def _value(self, spec: TensorSpec, array: np.ndarray) -> Any:
        data = dtypes.packed(array, dtypes.NARROW[spec.dtype])
        made = self._runtime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), NUMBERS[spec.dtype])
        if data.size:
            ctypes.memmove(made.data_ptr(), data.ctypes.data, data.nbytes)
        return made

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        if self._session.get_providers()[0] not in GPUS:
            return super()._empty(shape, dtype)
        from edgerun.targets import _cuda as cuda

        return cuda.page_locked(shape, dtype)

    def _close(self) -> None:
        if self._graphs:
            self._graphs.close()
        self._session = self._graphs = None


def _array(spec: TensorSpec, value: Any) -> np.ndarray:
    if spec.dtype not in NUMBERS:
        return np.asarray(value.numpy())
    shape = tuple(value.shape())
    count = -(-int(np.prod(shape, dtype=np.int64)) * dtypes.NARROW[spec.dtype] // 8)
    data = np.frombuffer(ctypes.string_at(value.data_ptr(), count) if count else b"", np.uint8)
    return dtypes.unpacked(data, spec.dtype, shape)


def specs(arguments: Any) -> tuple[TensorSpec, ...]:
    """The doors of a session, from `get_inputs()` or `get_outputs()`."""
    found = []
    for argument in arguments:
        name, text = argument.name, argument.type
        dtype, kind = TENSORS.get(text), "tensor"
        if dtype is None:
            dtype, kind = _structured(text)
        if dtype is None:
            do = "edgerun convert the model: it becomes a table" if "map(" in text else "leave it out of the model"
            raise Unsupported(f"{name!r} is no array", got=text, do=do)
        sizes = enumerate(argument.shape)
        dims = [dim if isinstance(dim, int) or named(dim) else f"{name}_{i}" for i, dim in sizes]
        found.append(TensorSpec(name, dtype, tuple(dims) if "sequence" not in kind else (), kind))
    return tuple(found)


def _structured(text: str) -> tuple[str | None, str]:
    """The dtype and kind of a sequence or an optional; no dtype for what is neither."""
    match = re.fullmatch(_TYPE, text)
    if match is None:
        return None, ""
    return DTYPES.get(match["dtype"]), " ".join(word for word in ("optional", "sequence") if match[word]) or "tensor"


def too_little(error: Exception, most: int = 0) -> GateFailed | None:
    """What an arena that ends where the bound on memory does says of it, in a run, or where a model is opened within
    `most` bytes; None for other exceptions."""
    if (found := re.search(_ENDED, str(error))) is None:
        return None
    from edgerun.runtime import memory

    left, asked = (memory.text(int(number)) for number in found.groups())
    when, bound = ("opening it", f"the {memory.text(most)} of ") if most else ("a run", "")
    do = OrtSession.opens if most else f"smaller feeds, {OrtSession.opens}"
    return GateFailed(
        f"the model needs more memory than it may have: {when} was stopped", got=f"{asked} asked for, {left} left",
        wanted=f"within {bound}Options.max_rss (--max-rss)", do=do,
    )  # fmt: skip


def refused(error: Exception) -> EdgerunError:
    """What a run's exception says."""
    if short := too_little(error):
        return short
    return EdgerunError("ONNX Runtime could not run these feeds", got=first_line(error))


def first_line(error: Exception) -> str:
    """The runtime's message without its build paths and C++ signatures."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    prefix = r"^(?:Load model from .*? failed:|Exception during initialization:)?\s*/\S+:\d+ .*?\)(?:::<lambda\(\)>)? "
    return re.sub(r" node with name '[^']*'$", "", re.sub(prefix, "", text))[:500]
