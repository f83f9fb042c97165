"""ONNX Runtime on the CPU: the runtime that every device install has."""

from __future__ import annotations

import functools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import files, registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.passes import Feeds, Issue, Limits, NodeTime, Quantization
from edgerun.runtime import Engine, Options, Session, TensorSpec, machine
from edgerun.targets import _cpu
from edgerun.targets import _onnxruntime_float8 as float8
from edgerun.targets import _onnxruntime_profile as trace

if TYPE_CHECKING:
    import onnx

    from edgerun.model import Model

summary = "ONNX Runtime on the CPU"
requires = ("onnxruntime",)
extra = ""
suffixes = (".onnx",)

PROVIDERS = ["CPUExecutionProvider"]
# Our keys in Options.extra, beside ONNX Runtime's own session.*, optimization.* and mlas.* keys.
OPTIMIZATION, PATTERN = "graph_optimization_level", "enable_mem_pattern"
LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}
DTYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bool": "bool", "string": "object",
    **{name: name for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")},
}  # fmt: skip


def available() -> str | None:
    """None, or what to install."""
    return registry.missing(requires, extra)


def runnable() -> str | None:
    """None: what compiles here runs here."""
    return None


def device() -> Mapping[str, str]:
    """Runtime, version, architecture, CPU, instruction sets, threads."""
    return machine.fingerprint("onnxruntime", str(_runtime().__version__))


@functools.cache
def limits() -> Limits:
    """What the installed version reads, found by asking it: a 65-byte model, one version newer at a time."""
    return Limits(
        ir_version=_newest(lambda v: _identity(ir_version=v, opset=13), first=7),
        opset=_newest(lambda v: _identity(ir_version=7, opset=v), first=13),
    )


def check(model: Model) -> list[Issue]:
    """Nodes that the CPU provider cannot run, each with the runtime's reason; nothing is folded or executed."""
    reason = _refusal(model.to_bytes())
    if reason is None:
        return []
    return limits().exceeded(model) or list(_blame(model.to_proto())) or [Issue("", "", reason)]


def compile(model: Model, options: Options) -> Engine:
    """The model's own bytes; ONNX Runtime optimizes for the machine when it loads them."""
    return Engine("onnxruntime", model.to_bytes(), model.inputs, model.outputs, device(), model.digest())


def save(engine: Engine, path: Path) -> None:
    """Write the engine as one `.onnx` file, atomically."""
    if not isinstance(engine.payload, bytes):
        raise EdgerunError("the engine is a file already", got=engine.payload, do="copy that file")
    if path.suffix != ".onnx":
        raise EdgerunError("ONNX Runtime reads .onnx files", got=path.name, wanted="-o NAME.onnx")
    files.write_bytes(path, engine.payload)


def load(engine: Engine, options: Options) -> Session:
    """A session on the CPU provider alone. Raises EdgerunError when the model is refused."""
    return _Session(_open(engine, _settings(options)))


def profile(engine: Engine, feeds: Iterable[Feeds], options: Options) -> list[NodeTime]:
    """Typical time of every kernel over `feeds` (after one warm-up run), slowest first, from the runtime's profiler."""
    with tempfile.TemporaryDirectory() as folder:
        settings, optimized = _settings(options), Path(folder, "optimized.onnx")
        settings.enable_profiling = True
        settings.profile_file_prefix = os.path.join(folder, "profile")
        settings.optimized_model_filepath = str(optimized)
        # Weights go to a file of their own, which nobody reads.
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "0")
        with _Session(_open(engine, settings)) as session:
            for index, feed in enumerate(feeds):
                if index == 0:
                    session.run(feed)
                session.run(feed)
            events = json.loads(Path(session.end_profiling()).read_text())
        return trace.kernels(events, engine.payload, optimized)


class _Session(Session):
    """Outputs are fresh arrays that ONNX Runtime allocates for every run."""

    def __init__(self, session: Any) -> None:
        super().__init__(_specs(session.get_inputs()), _specs(session.get_outputs()))
        self._session: Any = session
        self._names, self._errors = [spec.name for spec in self.outputs], _errors()

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        try:
            return dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        except self._errors as error:
            raise EdgerunError("ONNX Runtime could not run these feeds", got=_first_line(error)) from error

    def _close(self) -> None:
        self._session = None

    def end_profiling(self) -> str:
        return str(self._session.end_profiling())


def _runtime() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # type: ignore[import-untyped]

    return onnxruntime


@functools.cache
def _errors() -> tuple[type[Exception], ...]:
    """Every exception that ONNX Runtime raises by name."""
    state = _runtime().capi.onnxruntime_pybind11_state
    return tuple(v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception))


def _settings(options: Options) -> Any:
    runtime = _runtime()
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = machine.threads(options.threads)
    settings.inter_op_num_threads = 1
    settings.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    settings.log_severity_level = 4  # errors come back as exceptions; the log would only repeat them
    if machine.quota() < machine.visible():  # a spinning thread spends the quota that the others need
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in options.extra.items():
        if key == OPTIMIZATION and value in LEVELS:
            settings.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, LEVELS[value])
        elif key == PATTERN and value in ("0", "1"):
            settings.enable_mem_pattern = value == "1"
        elif key.startswith(("session.", "optimization.", "mlas.")):
            settings.add_session_config_entry(key, value)
        else:
            raise EdgerunError(
                f"ONNX Runtime has no option {key}={value}",
                wanted=f"{OPTIMIZATION}={'|'.join(LEVELS)}, {PATTERN}=0|1, a session.*, optimization.* or mlas.* key",
            )
    return settings


def _open(engine: Engine, settings: Any) -> Any:
    faulty = float8.tamed(settings) if float8.present(engine) else []
    source = engine.payload if isinstance(engine.payload, bytes) else str(engine.payload)
    if engine.weights:
        settings.add_external_initializers(list(engine.weights), list(map(_value, engine.weights.values())))
    try:
        session = _runtime().InferenceSession(source, settings, providers=PROVIDERS, disabled_optimizers=faulty)
    except _errors() as error:
        kind = Unsupported if type(error).__name__ == "NotImplemented" else EdgerunError
        raise kind("ONNX Runtime refuses the model", got=_first_line(error), do="edgerun convert it first") from error
    session.disable_fallback()
    machine.release()  # optimizing holds weights more than once: 158 MB of ResNet-50's 505 were free behind it
    if session.get_providers() != PROVIDERS:
        raise Unsupported("the session runs elsewhere", got=session.get_providers(), wanted=", ".join(PROVIDERS))
    return session


def _value(array: np.ndarray) -> Any:
    """An OrtValue over `array`; numpy has no name of its own for 8-bit floats."""
    made = _runtime().OrtValue
    if array.dtype.name == float8.NAME:
        return made.ortvalue_from_numpy_with_onnx_type(array.view(np.uint8), float8.NUMBER)
    return made.ortvalue_from_numpy(array)


def _specs(arguments: Any) -> tuple[TensorSpec, ...]:
    specs = []
    for argument in arguments:
        dtype = DTYPES.get(argument.type.removeprefix("tensor(").removesuffix(")"))
        if dtype is None:
            raise Unsupported(
                f"{argument.name!r} is no array", got=argument.type, do="remove it from the model's outputs"
            )
        dims = (
            d if isinstance(d, int | str) and d != "" else f"{argument.name}_{i}" for i, d in enumerate(argument.shape)
        )
        specs.append(TensorSpec(argument.name, dtype, tuple(dims)))
    return tuple(specs)


def _first_line(error: Exception) -> str:
    """The runtime's message without its build paths and C++ signatures."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"^(Load model from .*? failed:)?\s*/\S+:\d+ .*?\) ", "", text)[:500]


def _refusal(data: bytes) -> str | None:
    """Why a session with all optimizations off refuses these bytes; None when it takes them."""
    try:
        load(Engine("onnxruntime", data), Options(1, {OPTIMIZATION: "off"})).close()
    except EdgerunError as error:
        return str(error.got)
    return None


def _newest(model: Any, first: int) -> int:
    version = first
    while version < first + 100 and _refusal(model(version + 1)) is None:
        version += 1
    return version


def _identity(ir_version: int, opset: int) -> bytes:
    """A float32[1] Identity model as ONNX protobuf; both numbers below 128, so each is one varint byte."""
    graph = b'\n\x10\n\x01a\x12\x01b"\x08Identity\x12\x01g'
    for field, name in ((b"Z", b"a"), (b"b", b"b")):
        graph += field + b"\x0f\n\x01" + name + b"\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    return b"\x08" + bytes([ir_version]) + b":" + bytes([len(graph)]) + graph + b"B\x04\n\x00\x10" + bytes([opset])


def _blame(proto: onnx.ModelProto) -> Iterator[Issue]:
    """The nodes that are refused when they stand alone, with the dtypes that shape inference finds for their inputs."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(proto).graph
    types = {v.name: v.type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    for tensor in inferred.initializer:
        types.setdefault(tensor.name, onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims))
    seen: dict[tuple[object, ...], str | None] = {}
    for node in inferred.node:
        if any(name and name not in types for name in node.input):
            continue  # behind an unknown op: that one is named
        dtypes = tuple(types[name].tensor_type.elem_type if name else 0 for name in node.input)
        key = (node.domain, node.op_type, dtypes, tuple(a.SerializeToString() for a in node.attribute))
        if key not in seen:
            inputs = [onnx.ValueInfoProto(name=n, type=types[n]) for n in dict.fromkeys(node.input) if n]
            outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
            alone = onnx.ModelProto(
                ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions
            )
            alone.graph.CopyFrom(onnx.helper.make_graph([node], "alone", inputs, outputs))
            seen[key] = _refusal(alone.SerializeToString())
        if reason := seen[key]:
            yield Issue(node.name or node.output[0], node.op_type, reason)


def quantization() -> Quantization:
    """What the MLAS kernels of the CPU provider take in integers, as Q/DQ around the op."""
    flags = set(machine.isa())
    return replace(
        _cpu.RULES,
        # The kernels for SSE widen before they multiply.
        reduced_range=_cpu.saturates(flags) and "avx2" in flags,
        float_output=frozenset({"MatMul", "Gemm"}),
        float_stem=4,
        dynamic=frozenset({"MatMul", "Gemm", "LSTM"}),
        flat_rows=True,
    )
