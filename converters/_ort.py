"""The plainest way to run an ONNX file: ONNX Runtime on the CPU with every graph optimization off."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import guard, sandbox
from edgerun.errors import EdgerunError
from edgerun.passes import Feeds, Runner
from edgerun.taps import Tap, Taps

if TYPE_CHECKING:
    import onnx


def runner(model: Path | bytes | onnx.ModelProto) -> Runner:
    """A function from feeds to outputs. Raises EdgerunError when ONNX Runtime refuses the model.

    Weights over 1.8 GB stay in their file, which is mapped while a run is under way and no longer: so memory never
    holds more than one model's, however many runners there are.
    """
    source = _source(model)
    session: Any = _session(source)
    names = [output.name for output in session.get_outputs()]
    if source.large:
        session = None

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        results: Sequence[Any] = (session or _session(source)).run(names, dict(feeds))
        return dict(zip(names, results, strict=True))

    return sandbox.ending(run) if _loops(model) else run


def shapes(model: Path | onnx.ModelProto) -> dict[str, list[int | str | None]]:
    """The shape of every output whose number of dimensions ONNX Runtime infers, and is not 0: of no shape and of a
    scalar's it tells the same. It knows its own operators, onnx does not."""
    return {output.name: output.shape for output in _session(_source(model)).get_outputs() if output.shape}


def _loops(model: Path | bytes | onnx.ModelProto) -> bool:
    """Has the model a Loop, in a branch or a function maybe? Only one that has the word is parsed."""
    import onnx

    def found(nodes: Iterable[onnx.NodeProto]) -> bool:
        return any(
            node.op_type == "Loop" or any(found(graph.node) for a in node.attribute for graph in (a.g, *a.graphs))
            for node in nodes
        )

    if isinstance(model, Path):
        with open(model, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.find(b"Loop") < 0:
                return False
        proto = onnx.load(model, load_external_data=False)
    elif isinstance(model, bytes):
        if b"Loop" not in model:
            return False
        proto = onnx.ModelProto.FromString(model)
    else:
        proto = model
    return found(proto.graph.node) or any(found(function.node) for function in proto.functions)


@dataclass(frozen=True)
class _Source:
    """What a session opens: a file, or bytes, with the initializers that they name as external and where others lie."""

    model: str | bytes
    large: bool = False
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    folder: Path | None = None


def _source(model: Path | bytes | onnx.ModelProto) -> _Source:
    """A graph names large weights by their absolute path (`edgerun.external`), which ONNX Runtime refuses."""
    if isinstance(model, bytes):
        return _Source(model)
    import onnx_ir as ir

    from edgerun import external

    if isinstance(model, Path):
        return _Source(str(model), sum(file.stat().st_size for file in guard.beside(model)) > external.ABOVE)
    if not external.beside(model):
        return _Source(model.SerializeToString())
    graph = ir.from_proto(model)
    external.attach(graph)
    data, weights, folder = external.apart(graph)
    return _Source(data, True, weights, folder)


def _session(source: _Source) -> Any:
    import onnxruntime as ort  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # a run that fails raises what the log would say
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a thread that waits takes no time
    if source.large:  # laid out anew they would be in memory once more
        options.add_session_config_entry("session.disable_prepacking", "1")
    if source.folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(source.folder))
    if source.weights:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in source.weights.values()]
        options.add_external_initializers(list(source.weights), values)
    try:
        return ort.InferenceSession(source.model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT's exceptions share no base class but Exception
        raise EdgerunError("ONNX Runtime refuses the model", got=first_line(error)) from error


def inside(model: Path | bytes | onnx.ModelProto) -> Taps:
    """What a model computes at every value that one of its own nodes writes, branches and loops left out."""
    import onnx

    from edgerun import external

    def taps(feeds: Feeds) -> dict[str, Tap]:
        if isinstance(model, Path):
            proto = external.read(model)
        else:
            proto = onnx.ModelProto.FromString(model if isinstance(model, bytes) else model.SerializeToString())
        makers = {name: node for node in proto.graph.node for name in node.output if name}
        have = {value.name for value in proto.graph.output}
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in makers if name not in have)
        values = runner(proto)(feeds)
        told = {name: f"{node.op_type} {node.name!r} of the source" for name, node in makers.items()}
        return {name: Tap(told[name], value) for name, value in values.items() if isinstance(value, np.ndarray)}

    return taps


def first_line(error: BaseException, length: int = 300) -> str:
    """An error's first non-empty line, shortened: what a user can read of a library's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= length else text[: length - 1] + "…"
