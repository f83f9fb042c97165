"""OpenVINO's module and its IR: a graph (.xml) beside its weights (.bin), read and written with what edgerun tells."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import onnx_file
from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import TensorSpec

if TYPE_CHECKING:
    from edgerun.contents import Contents

# An engine in memory: MAGIC, the graph's length as 8 bytes little endian, the graph, the weights.
MAGIC = b"edgerun/IR\n"
# OpenVINO's own types where numpy has none: their tensors are made of bytes, 4 bits packed.
NARROW = {
    "bf16": "bfloat16", "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "f8e8m0": "float8_e8m0fnu",
    "f4e2m1": "float4_e2m1fn", "i4": "int4", "u4": "uint4",
}  # fmt: skip
MOVES = frozenset({"Convert", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
SOURCES = re.compile(r"(?:Check '[^']*' failed at|Exception from) \S+:\d+:\s*")
_PLACE = rb'<data [^>]*\boffset="(\d+)"[^>]*\bsize="(\d+)"'  # of a constant, in the weights
AGAIN = "copy NAME.xml and NAME.bin again, both from one place, or edgerun compile the model again, with --force"
DIGEST = "@sha256-of-the-weights@"


@functools.cache
def runtime() -> Any:
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
def core() -> Any:
    """The one Core of this process."""
    return runtime().Core()


def version() -> str:
    """The release, as 2026.4.1."""
    return str(runtime().get_version()).split("-")[0]


def read(payload: bytes | Path) -> Any:
    """An ov.Model from IR or ONNX, in memory or in a file. Raises EdgerunError, which says what is wrong with it."""
    if not isinstance(payload, bytes) and payload.suffix == ".xml":
        with payload.open("rb") as file:
            if b"<net" not in file.read(4096):  # OpenVINO would try every format that it knows
                raise EdgerunError(
                    "this is no OpenVINO IR", got=payload, wanted="XML that begins with <net …>", do=AGAIN
                )
    try:
        if isinstance(payload, bytes):
            return core().read_model(*split(payload)) if payload.startswith(MAGIC) else core().read_model(payload)
        graph = core().read_model(str(payload))
    except RuntimeError as error:
        raise _refused(payload, error) from error
    wanted, weights = told(graph).get("weights"), payload.with_suffix(".bin")
    if wanted and hashlib.sha256(weights.read_bytes()).hexdigest() != wanted:
        raise EdgerunError("the weights are not this graph's", got=weights, do=AGAIN)
    return graph


def _refused(payload: bytes | Path, error: RuntimeError) -> EdgerunError:
    """What keeps it from being read: of IR the file that is damaged, where its size or end shows that."""
    if is_onnx(payload):
        return EdgerunError("OpenVINO refuses the model", got=reason(error), do="edgerun check names the node")
    if not isinstance(payload, bytes):
        text, weights = payload.read_bytes(), payload.with_suffix(".bin")
        if not text.rstrip().endswith(b"</net>"):
            got = f"{payload}: {len(text)} bytes, without </net> at their end"
            return EdgerunError("the graph of the IR is cut off", got=got, do=AGAIN)
        needed = max((int(at) + int(size) for at, size in re.findall(_PLACE, text)), default=0)
        if not weights.is_file() and needed:
            return EdgerunError("the weights of the IR are missing", got=f"no {weights}", wanted="both files", do=AGAIN)
        if weights.is_file() and (size := weights.stat().st_size) < needed:
            got, wanted = f"{weights}: {size} bytes", f"{needed} bytes, as {payload.name} says"
            return EdgerunError(
                "the weights of the IR are cut off, or another graph's", got=got, wanted=wanted, do=AGAIN
            )
    do = f"edgerun compile it again with the OpenVINO that is here, {version()}"
    return EdgerunError("OpenVINO refuses the IR", got=reason(error), do=do)


def by_kind(graph: Any) -> dict[str, list[Any]]:
    """The ops of a graph by the name of their type, in order."""
    found: dict[str, list[Any]] = {}
    for op in graph.get_ordered_ops():
        found.setdefault(op.get_type_name(), []).append(op)
    return found


def is_onnx(payload: bytes | Path) -> bool:
    """Whether it is an ONNX model, and so no IR, whose operators mean OpenVINO's own."""
    return not payload.startswith(MAGIC) if isinstance(payload, bytes) else payload.suffix == ".onnx"


def origin(value: Any) -> str:
    """The kind of what makes it, which is moved at most behind that: a Parameter is an input of the model."""
    while (node := value.get_node()).get_type_name() in MOVES:
        value = node.input_value(0)
    return str(node.get_type_name())


def split(payload: bytes) -> tuple[bytes, bytes]:
    """Graph and weights of an engine in memory."""
    start = len(MAGIC) + 8
    end = start + int.from_bytes(payload[len(MAGIC) : start], "little")
    return payload[start:end], payload[end:]


def serialized(graph: Any) -> tuple[bytes, bytes]:
    """Graph and weights as the same bytes every time: names that OpenVINO made up count per process, ours per model."""
    _name_by_place(graph)
    try:
        with tempfile.TemporaryDirectory() as folder:
            xml, weights = Path(folder, "model.xml"), Path(folder, "model.bin")
            runtime().serialize(graph, str(xml), str(weights))
            data = weights.read_bytes()
            return xml.read_bytes().replace(DIGEST.encode(), hashlib.sha256(data).hexdigest().encode()), data
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "iostream" not in str(error):  # what its streams say of a full disk
            raise
        do = "free space, or set TMPDIR to a folder that has some"
        raise EdgerunError("could not write temporary files", got=error, do=do) from error


def _name_by_place(graph: Any) -> None:
    for index, op in enumerate(graph.get_ordered_ops()):
        if op.get_friendly_name() == op.get_name():
            op.set_friendly_name(f"{op.get_type_name()}.{index}")
        for body in bodies(op):
            _name_by_place(body)


def bodies(op: Any) -> list[Any]:
    """The graphs of its branches, or of its loop."""
    if op.get_type_name() == "If":
        return [op.get_then_body(), op.get_else_body()]
    return [op.get_function()] if op.get_type_name() in ("Loop", "TensorIterator") else []


def told(graph: Any) -> dict[str, Any]:
    """What `compile` wrote into rt_info, with the door as specs; empty for a file from elsewhere."""
    if not graph.has_rt_info(["edgerun"]):
        return {}
    try:
        known: dict[str, Any] = json.loads(graph.get_rt_info(["edgerun"]).value)
        for door in ("inputs", "outputs"):
            known[door] = tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in known[door])
        known["usual"] = {name: tuple(shape) for name, shape in known.get("usual", {}).items()}
        return known
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EdgerunError("the model's rt_info/edgerun is damaged", got=repr(error), do="compile it again") from error


def of_onnx(payload: bytes | Path) -> onnx_file.Told:
    """What an ONNX model says that OpenVINO's graph does not keep; nothing where it is IR."""
    return onnx_file.told(payload) if is_onnx(payload) else onnx_file.Told()


def metadata(graph: Any, onnx: onnx_file.Told) -> dict[str, str]:
    """What the file says of the model: all that ONNX does, or the contracts that `compile` wrote into IR."""
    known = told(graph)
    names = ("preprocessing", "postprocessing")
    contracts = {f"edgerun.{name}": json.dumps(known[name]) for name in names if known.get(name) is not None}
    return {**onnx.metadata, **contracts}


def door(graph: Any, onnx: onnx_file.Told) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as the ONNX model had them, or else as OpenVINO names them."""
    if known := told(graph):
        return known["inputs"], known["outputs"]
    inputs, outputs = (tuple(port(found, onnx.dims) for found in side) for side in (graph.inputs, graph.outputs))
    return inputs, outputs


def contents(path: Path) -> Contents:
    """What an IR's two files hold. Raises EdgerunError where they are no pair, or OpenVINO refuses them."""
    from edgerun.contents import Contents, Weights, steps

    graph, beside = read(path), path.with_suffix(".bin")
    known, ops, weights = told(graph), Counter[str](), dict[str, Weights]()
    for op in _every(graph):
        ops[op.get_type_name()] += 1
        if op.get_type_name() == "Constant":
            kind, count = op.get_element_type(), int(np.prod(op.get_output_shape(0)))
            name = _dtype(kind)
            weights[name] = weights.get(name, Weights(0, 0, 0)) + Weights(1, count, -(-count * kind.bitwidth // 8))
    version = graph.get_rt_info(["version"]).value if graph.has_rt_info(["version"]) else ""
    return Contents(
        str(path), "openvino", f"OpenVINO IR {version}".strip(),
        path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0), known.get("digest", ""),
        *door(graph, onnx_file.Told()), known.get("preprocessing"), known.get("postprocessing"),
        steps(known.get("history", ())),
        {kind: count for kind, count in ops.most_common() if kind not in ("Constant", "Parameter", "Result")}, weights,
    )  # fmt: skip


def _every(graph: Any) -> Iterator[Any]:
    for op in graph.get_ordered_ops():
        yield op
        for body in bodies(op):
            yield from _every(body)


def port(found: Any, dims: Mapping[str, Sequence[str]] = MappingProxyType({})) -> TensorSpec:
    """An input or output as OpenVINO names it, its open dimensions as `dims` does, by tensor."""
    names = found.names & dims.keys() or found.names
    name = min(names) if names else found.node.get_friendly_name()
    if found.partial_shape.rank.is_dynamic:
        raise Unsupported(f"{name!r} has no fixed number of dimensions", do="convert the model with --input")
    told, places = dims.get(name, ()), list(found.partial_shape)
    called = told if len(told) == len(places) else [""] * len(places)
    shape = ((called[i] or f"{name}_{i}") if place.is_dynamic else place.get_length() for i, place in enumerate(places))
    return TensorSpec(name, _dtype(found.element_type), tuple(shape))


def _dtype(kind: Any) -> str:
    """numpy's name of one of OpenVINO's types."""
    own = kind.get_type_name()
    return "object" if own == "string" else NARROW.get(own) or np.dtype(kind.to_dtype()).name


def reason(error: object) -> str:
    """The message without what only names OpenVINO's sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from src", "Check '"))]
    return SOURCES.sub("", " ".join(told or lines[-1:]))[:500]
