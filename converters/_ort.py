"""The plainest way to run an ONNX file: ONNX Runtime on the CPU with every graph optimization off."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import sandbox
from edgerun.errors import EdgerunError
from edgerun.passes import Feeds, Runner
from edgerun.taps import Tap, Taps


def runner(model: Path | bytes) -> Runner:
    """A function from feeds to outputs, of a file or its bytes. Raises EdgerunError when ONNX Runtime refuses it."""
    import onnxruntime as ort  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # a run that fails raises what the log would say
    source = model if isinstance(model, bytes) else str(model)
    try:
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT's exceptions share no base class but Exception
        raise EdgerunError("ONNX Runtime refuses the model", got=first_line(error)) from error
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        results: Sequence[Any] = session.run(names, dict(feeds))
        return dict(zip(names, results, strict=True))

    return sandbox.ending(run) if _loops(model) else run


def _loops(model: Path | bytes) -> bool:
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
    elif b"Loop" not in model:
        return False
    parse = onnx.ModelProto.FromString
    proto = parse(model) if isinstance(model, bytes) else onnx.load(model, load_external_data=False)
    return found(proto.graph.node) or any(found(function.node) for function in proto.functions)


def inside(model: Path | bytes) -> Taps:
    """What a model computes at every value that one of its own nodes writes, branches and loops left out."""
    import onnx

    def taps(feeds: Feeds) -> dict[str, Tap]:
        proto = onnx.ModelProto.FromString(model) if isinstance(model, bytes) else onnx.load(model)
        makers = {name: node for node in proto.graph.node for name in node.output if name}
        have = {value.name for value in proto.graph.output}
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in makers if name not in have)
        values = runner(proto.SerializeToString())(feeds)
        told = {name: f"{node.op_type} {node.name!r} of the source" for name, node in makers.items()}
        return {name: Tap(told[name], value) for name, value in values.items() if isinstance(value, np.ndarray)}

    return taps


def first_line(error: BaseException, length: int = 300) -> str:
    """An error's first non-empty line, shortened: what a user can read of a library's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= length else text[: length - 1] + "…"
