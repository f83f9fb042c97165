"""OpenVINO on the CPU; compiled models are IR, a graph (.xml) beside its weights (.bin)."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import re
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import files, registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.passes import Feeds, Issue, Limits, NodeTime, Quantization
from edgerun.runtime import Engine, Options, Session, TensorSpec, machine

if TYPE_CHECKING:
    import onnx

    from edgerun.model import Model

summary = "OpenVINO on the CPU"
requires = ("openvino",)
extra = "openvino"
suffixes = (".xml", ".onnx")

MAGIC = (
    b"edgerun/IR\n"  # an engine in memory: MAGIC, the graph's length as 8 bytes little endian, the graph, the weights
)
DIGEST = "@sha256-of-the-weights@"
# OpenVINO takes any IR version and opset without a word, so the newest ones come from the ONNX that each release is
# built with (2024.5: ONNX 1.16, 2025.0: 1.17; 2026.4's ONNX frontend library carries the schemas of opset 26).
READS = {(2026, 4): Limits(13, 26), (2025, 0): Limits(10, 22), (0, 0): Limits(10, 21)}
_SUMMARY = (
    (r"-- No conversion rule found for operations: (.*)", "OpenVINO has no translation of this op"),
    (r"-- Conversion is failed for: (.*)", "OpenVINO cannot translate this use of the op"),
)


def available() -> str | None:
    """None, or what to install."""
    return registry.missing(requires, extra)


def device() -> Mapping[str, str]:
    """Runtime, version, architecture, CPU, instruction sets, threads, and the precision of float kernels."""
    return {**machine.fingerprint("openvino", _version()), "precision": "f32"}


def limits() -> Limits:
    """What the installed version was built to read."""
    major, minor = (int(part) for part in _version().split(".")[:2])
    return READS[max(release for release in READS if release <= (major, minor))]


def check(model: Model) -> list[Issue]:
    """Nodes that OpenVINO does not translate, or the CPU plugin's reason when it cannot compile the rest."""
    if found := limits().exceeded(model):
        return found
    try:
        _compiled(_read(model.to_bytes()), Options(1))
    except EdgerunError as error:
        return list(_untranslated(model.to_proto(), str(error.__cause__))) or [Issue("", "", str(error.got))]
    return []


def compile(model: Model, options: Options) -> Engine:
    """Translate to IR, with the model's door, history, contract and digest in `rt_info/edgerun`. Deterministic."""
    graph, digest = _read(model.to_bytes()), model.digest()
    told = {
        "inputs": [asdict(spec) for spec in model.inputs],
        "outputs": [asdict(spec) for spec in model.outputs],
        "preprocessing": model.preprocessing,
        "history": [asdict(step) for step in model.history],
        "digest": digest,
        "weights": DIGEST,
    }
    graph.set_rt_info(json.dumps(told, sort_keys=True), ["edgerun"])
    xml, weights = _serialized(graph)
    payload = MAGIC + len(xml).to_bytes(8, "little") + xml + weights
    return Engine("openvino", payload, model.inputs, model.outputs, device(), digest)


def save(engine: Engine, path: Path) -> None:
    """Write `NAME.xml` and `NAME.bin`, the weights in place before the graph.

    The graph names the weights' SHA-256, and `load` compares it: a pair of different ages never runs.
    """
    if path.suffix != ".xml":
        raise EdgerunError("OpenVINO writes IR", got=path.name, wanted="-o NAME.xml (weights go to NAME.bin beside it)")
    if not isinstance(engine.payload, bytes):
        raise EdgerunError("the engine is a file already", got=engine.payload, do="copy the .xml and its .bin")
    xml, weights = _split(engine.payload)
    files.write_bytes(path.with_suffix(".bin"), weights)
    files.write_bytes(path, xml)


def load(engine: Engine, options: Options) -> Session:
    """A session with one request, in f32 where the model is float. Raises EdgerunError when the model is refused."""
    graph = _read(engine.payload)
    return _Session(_compiled(graph, options), *_door(graph))


def profile(engine: Engine, feeds: Iterable[Feeds], options: Options) -> list[NodeTime]:
    """Mean time of every executed kernel over `feeds` (after one warm-up run), slowest first, from PERF_COUNT."""
    graph, total, runs = _read(engine.payload), dict[tuple[str, str, str], float](), 0
    with _Session(
        _compiled(graph, Options(options.threads, {**options.extra, "PERF_COUNT": "YES"})), *_door(graph)
    ) as session:
        for feed in feeds:
            if runs == 0:
                session.run(feed)
            session.run(feed)
            runs += 1
            for ran in session.kernels():
                key = (ran.node_name, ran.node_type, ran.exec_type)
                total[key] = total.get(key, 0.0) + ran.real_time.total_seconds()
    if runs == 0:
        raise EdgerunError("nothing to profile", got="no feeds", wanted="at least one")
    return sorted(
        (NodeTime(*key[:2], seconds / runs, key[2]) for key, seconds in total.items()), key=lambda t: -t.seconds
    )


class _Session(Session):
    """One request; inputs are shared with the caller for the time of a run, outputs are copied out of its buffers."""

    def __init__(self, compiled: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        super().__init__(inputs, outputs)
        self._tensor, self._lock = _runtime().Tensor, threading.Lock()
        self._request: Any = compiled.create_infer_request()
        kept = {name: index for index, port in enumerate(compiled.inputs) for name in port.names}
        self._feeds = [
            (kept[spec.name], spec.name) for spec in inputs if spec.name in kept
        ]  # unused inputs were dropped
        self._results = [(index, spec.name, np.dtype(spec.dtype)) for index, spec in enumerate(outputs)]

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        with self._lock:
            request, shared = self._request, []
            for index, name in self._feeds:
                array = feeds[name]
                if not (array.flags.c_contiguous and array.flags.writeable):
                    array = np.array(array, order="C")
                shared.append(array)
                request.set_input_tensor(index, self._tensor(array, shared_memory=True))
            try:
                request.infer(None, share_outputs=True)
            except RuntimeError as error:
                raise EdgerunError("OpenVINO could not run these feeds", got=_reason(error)) from error
            return {name: np.array(request.get_output_tensor(i).data, dtype) for i, name, dtype in self._results}

    def kernels(self) -> Iterator[Any]:
        """The kernels that the last run executed."""
        executed = [kernel for kernel in self._request.profiling_info if kernel.status.name == "EXECUTED"]
        return (kernel for kernel in executed if kernel.real_time.total_seconds() > 0)

    def _close(self) -> None:
        with self._lock:
            self._request = None


@functools.cache
def _runtime() -> Any:
    """The openvino module. Its telemetry package is hidden while it is imported: OpenVINO then uses its mute stub."""
    hidden = "openvino_telemetry"
    kept = sys.modules.get(hidden)
    if kept is None:
        sys.modules[hidden] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        if kept is None:
            del sys.modules[hidden]


@functools.cache
def _core() -> Any:
    return _runtime().Core()


def _version() -> str:
    return str(_runtime().get_version()).split("-")[0]


def _compiled(graph: Any, options: Options) -> Any:
    """Compile for the CPU, saying every choice that OpenVINO would otherwise make by the machine."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": str(machine.threads(options.threads)),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # never quantize activations that the model leaves in float
        **options.extra,
    }
    try:
        compiled = _core().compile_model(graph, "CPU", settings)
    except RuntimeError as error:
        raise EdgerunError("OpenVINO cannot compile the model", got=_reason(error)) from error
    ran = [
        str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()),
        *compiled.get_property("EXECUTION_DEVICES"),
    ]
    if ran != [settings["INFERENCE_PRECISION_HINT"], "CPU"]:
        raise Unsupported(
            "OpenVINO chose another precision or device",
            got=ran,
            wanted=f"{settings['INFERENCE_PRECISION_HINT']} on CPU",
        )
    return compiled


def _read(payload: bytes | Path) -> Any:
    """An ov.Model from IR or ONNX, in memory or in a file."""
    try:
        if isinstance(payload, bytes):
            return _core().read_model(*_split(payload)) if payload.startswith(MAGIC) else _core().read_model(payload)
        graph = _core().read_model(str(payload))
    except RuntimeError as error:
        raise EdgerunError("OpenVINO refuses the model", got=_reason(error), do="edgerun convert it first") from error
    wanted = _told(graph).get("weights")
    if wanted and hashlib.sha256(payload.with_suffix(".bin").read_bytes()).hexdigest() != wanted:
        raise EdgerunError(
            "the weights are not this graph's",
            got=payload.with_suffix(".bin"),
            do="write the model again: edgerun compress --force",
        )
    return graph


def _split(payload: bytes) -> tuple[bytes, bytes]:
    start = len(MAGIC) + 8
    end = start + int.from_bytes(payload[len(MAGIC) : start], "little")
    return payload[start:end], payload[end:]


def _serialized(graph: Any) -> tuple[bytes, bytes]:
    """Graph and weights as the same bytes every time: names that OpenVINO made up count per process, ours per model."""
    for index, op in enumerate(graph.get_ordered_ops()):
        if op.get_friendly_name() == op.get_name():
            op.set_friendly_name(f"{op.get_type_name()}.{index}")
    with tempfile.TemporaryDirectory() as folder:
        xml, weights = Path(folder, "model.xml"), Path(folder, "model.bin")
        _runtime().serialize(graph, str(xml), str(weights))
        data = weights.read_bytes()
        return xml.read_bytes().replace(DIGEST.encode(), hashlib.sha256(data).hexdigest().encode()), data


def _told(graph: Any) -> dict[str, Any]:
    """What `compile` wrote into rt_info; empty for a file from elsewhere."""
    if not graph.has_rt_info(["edgerun"]):
        return {}
    try:
        told: dict[str, Any] = json.loads(graph.get_rt_info(["edgerun"]).value)
        return told
    except ValueError as error:
        raise EdgerunError("the model's rt_info/edgerun is damaged", got=str(error), do="compile it again") from error


def _door(graph: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as the ONNX model had them, or else as OpenVINO names them."""
    told = _told(graph)
    if told:
        inputs, outputs = told["inputs"], told["outputs"]
        return tuple(_spec(**spec) for spec in inputs), tuple(_spec(**spec) for spec in outputs)
    return tuple(map(_port, graph.inputs)), tuple(map(_port, graph.outputs))


def _spec(name: str, dtype: str, shape: list[int | str]) -> TensorSpec:
    return TensorSpec(name, dtype, tuple(shape))


def _port(port: Any) -> TensorSpec:
    name = min(port.names) if port.names else port.node.get_friendly_name()
    if port.partial_shape.rank.is_dynamic:
        raise Unsupported(f"{name!r} has no fixed number of dimensions", do="convert the model with --input")
    dims = (f"{name}_{i}" if dim.is_dynamic else dim.get_length() for i, dim in enumerate(port.partial_shape))
    return TensorSpec(name, np.dtype(port.element_type.to_dtype()).name, tuple(dims))


def _untranslated(proto: onnx.ModelProto, report: str) -> Iterator[Issue]:
    """Nodes whose ops stand in the summary of the frontend's report, which writes them as `Op-opset` or `domain.Op`."""
    reasons = {}
    for pattern, fixed in _SUMMARY:
        for names in re.findall(pattern, report):
            for name in names.split(", "):
                detail = re.search(rf"-- {re.escape(name)} with a message:\n(.*?)\n(?:\n|-- )", report, re.DOTALL)
                reasons[name.rpartition("-")[0] or name] = f"{fixed}: {_reason(detail[1])}" if detail else fixed
    for node in proto.graph.node:
        kind = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        if kind in reasons:
            yield Issue(node.name or node.output[0], node.op_type, reasons[kind])


def _reason(error: object) -> str:
    """The message without the lines that only name OpenVINO's sources."""
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line and not line.startswith(("Exception from src", "Check '")))[:500]


def quantization() -> Quantization:
    """What the CPU plugin's low-precision transformations turn into integer kernels."""
    flags = machine.isa()
    dot = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"} & set(flags)
    return Quantization(
        schemes=("w8a8",),
        activation="uint8",
        weight="int8",
        reduced_range=not dot and "avx2" in flags,
        compute=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
        through=frozenset({"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split"}),
        join=frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"}),
        absorbed=frozenset({"Relu", "Clip"}),
        float_output=frozenset({"Conv", "Gemm", "MatMul"}),
    )
