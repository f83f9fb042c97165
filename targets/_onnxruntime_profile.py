"""ONNX Runtime's profile as kernels: the events of its trace, and the graph that its optimizer made."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.passes import NodeTime
from edgerun.targets._onnxruntime_overhead import Overhead
from edgerun.targets._profile import TICK, covers, typical

if TYPE_CHECKING:
    import onnx

ROUNDS = "DynamicQuantizeLSTM"
QUANTIZE = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
DEQUANTIZE = "DequantizeLinear"
REORDER = frozenset({"ReorderInput", "ReorderOutput"})
# What the optimizer puts around the name of the node or value that it works on.
_MARKS = re.compile(r"^fused |_token_\d+$|/duplicated$|_nchwc$|_nhwc$|_bn$|_pre_q$|_q_to_dq$|_q$|/\w+Fusion/?$|/$")
Trace = list[dict[str, Any]]


def watched(settings: Any, folder: str) -> Any:
    """Settings of a session whose profile goes into a file in `folder`."""
    settings.enable_profiling, settings.profile_file_prefix = True, str(Path(folder, "profile"))
    return settings


def events(session: Any) -> Trace:
    """The trace of a session so far, which is profiled no more."""
    found: Trace = json.loads(Path(session.end_profiling()).read_text())
    return found


def kernels(
    trace: Trace, source: bytes | Path | None, optimized: Path, measured: Callable[[], Overhead]
) -> list[NodeTime]:
    """Typical seconds per run of each kernel, slowest first; the first run of the trace is the warm-up.

    What the profiler adds to them, as `measured`, is taken off; what the runtime needs to come to them is left.

    `source` is the model, `optimized` the file that the optimizer wrote. Both are looked at only where onnx is
    installed: elsewhere, as on a device, and without a model (None) kernels have times but cover nothing.
    """
    counts, first = _counts(trace)
    added = measured()
    orders = {name: order for order, name in enumerate(counts)}
    graph = _Executed(source, optimized, orders) if source is not None and importlib.util.find_spec("onnx") else None
    times = [
        NodeTime(
            name,
            first[name]["op_name"],
            added.without(typical(microseconds), len(first[name].get("input_type_shape") or ())),
            _precision(first[name]),
            order=orders[name],
            integer=_integer(first[name]),
            work=_work(first[name]["op_name"]) if graph is None else graph.work[name],
            covers=() if graph is None else graph.covers.get(orders[name], ()),
            reads=() if graph is None else graph.reads[name],
            dispatched=True,
        )
        for name, microseconds in counts.items()
    ]
    return sorted(times, key=lambda t: -t.seconds)


def by_run(session: Any) -> np.ndarray:
    """What each run's kernels took, seconds `[runs, kernels]`, the first run left out: that of a model whose kernels
    all run every time. The session is profiled no more."""
    counts, _ = _counts(events(session))
    taken: np.ndarray = (np.array(list(counts.values())).T + 0.5) * TICK
    return taken


def _counts(trace: Trace) -> tuple[dict[str, list[float]], dict[str, dict[str, Any]]]:
    """Microseconds of each run by kernel, in the order in which kernels run, and the arguments of each."""
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in trace if e["name"] == "model_run")[1:]
    if not runs:
        raise EdgerunError("nothing to profile", got="no feeds", wanted="at least one")
    nodes = [e for e in trace if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    nodes = _outermost(sorted((e for e in nodes if e["ts"] >= runs[0][0]), key=lambda e: (e["ts"], -e["dur"])))
    counts: dict[str, list[float]] = {}
    arguments: dict[str, dict[str, Any]] = {}
    run = 0
    for event in nodes:
        while run + 1 < len(runs) and event["ts"] >= runs[run + 1][0]:
            run += 1
        name = event["name"].removesuffix("_kernel_time")
        counts.setdefault(name, [0.0] * len(runs))[run] += event["dur"]
        arguments.setdefault(name, event["args"])
    return counts, arguments


def _outermost(nodes: Trace) -> Trace:
    """Without the kernels inside an If or Loop, whose time is part of that node's. By start; one runs at a time."""
    found: Trace = []
    end = -1
    for event in nodes:
        if event["ts"] + event["dur"] > end or event["ts"] >= end:
            found.append(event)
            if event["args"]["op_name"] in ("If", "Loop", "Scan"):
                end = event["ts"] + event["dur"]
    return found


def _precision(arguments: Mapping[str, Any]) -> str:
    first = next(iter(arguments.get("input_type_shape") or [{}]))
    return str(next(iter(first), ""))


def _integer(arguments: Mapping[str, Any]) -> bool:
    """Whether it computes on quantized values: 8-bit data comes in (its first input is an index nowhere), or it rounds
    what comes in itself."""
    return arguments["op_name"] == ROUNDS or (
        _precision(arguments) in ("uint8", "int8") and arguments["op_name"] != DEQUANTIZE
    )


def _work(op: str) -> str:
    if op in QUANTIZE:
        return "quantize"
    return "dequantize" if op == DEQUANTIZE else "reorder" if op in REORDER else "compute"


class _Executed:
    """The optimized graph beside the model: by kernel what work it does, what it reads, and the nodes it covers."""

    def __init__(self, source: bytes | Path, optimized: Path, orders: Mapping[str, int]) -> None:
        model, executed = _graph(source), _graph(optimized)
        named = {n.name or n.output[0]: n for n in model.node}
        maker = {value: name for name, n in named.items() for value in n.output if value}
        apart = {name for name, n in named.items() if _work(n.op_type) != "compute"}
        ran = {n.name: n for n in executed.node if n.name in orders}
        self.work = {name: "compute" for name in orders}
        self.work |= {name: _work_of(n, set(named) | set(maker)) for name, n in ran.items()}
        known = {orders[name]: _known_by(n, self.work[name], named, maker) for name, n in ran.items()}
        made_by = {value: orders[name] for name, n in ran.items() for value in n.output if value}
        reads = {name: {made_by[v] for v in n.input if v in made_by} for name, n in ran.items()}
        self.reads = {name: tuple(sorted(reads.get(name, ()))) for name in orders}
        known = {kernel: nodes - apart or nodes for kernel, nodes in known.items()}
        by_order = {orders[name]: kernels for name, kernels in self.reads.items()}
        self.covers = covers(_readers(named, maker), known, apart, by_order)


def _graph(source: bytes | Path) -> onnx.GraphProto:
    import onnx

    if isinstance(source, bytes):
        return onnx.load_model_from_string(source).graph
    return onnx.load(source, load_external_data=False).graph


def _readers(named: Mapping[str, Any], maker: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in named}
    for name, node in named.items():
        for value in node.input:
            if value in maker:
                found[maker[value]].append(name)
    return found


def _work_of(node: onnx.NodeProto, model: Iterable[str]) -> str:
    """As `_work`; a Transpose that the model does not have is the optimizer's change of layout."""
    return "reorder" if node.op_type == "Transpose" and _root(node.name, model) is None else _work(node.op_type)


def _known_by(node: onnx.NodeProto, work: str, named: Mapping[str, Any], maker: Mapping[str, str]) -> set[str]:
    """The nodes whose names, or whose outputs' names, an executed node carries."""
    if work == "reorder":
        return set()
    own = [_root(node.name, {**named, **maker})]
    own += [root for value in node.output if (root := _root(value, maker)) is not None]
    found = {name if name in named else maker[name] for name in own if name is not None}
    return {name for name in found if work == "compute" or _work(named[name].op_type) == work}


def _root(name: str, known: Iterable[str]) -> str | None:
    """`name` without the optimizer's marks, one after the other until it is known; None when it never is."""
    while name not in known:
        shorter = _MARKS.sub("", name, count=1)
        if shorter == name:
            return None
        name = shorter
    return name
