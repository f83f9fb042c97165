"""OpenVINO's kernels: their counters, and which of the model's nodes each one computes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.passes import NodeTime
from edgerun.targets._profile import covers, from_running_means

if TYPE_CHECKING:
    from edgerun.targets._openvino_session import OvSession

Reads = list[tuple[int, list[Any]]]  # of the counters: after how many runs, and what they tell of each kernel
SELDOM = 5.0  # times what a read takes are run between two

# What the ONNX frontend and the graph passes put behind a node's name.
_MARKS = re.compile(r"/(WithoutBiases|Dequantization\w+|transpose_[ab]|fq_\w+)$")
_QUANTIZER = re.compile(r"FakeQuantize_\d+")  # one that a graph pass put in another's place
_WORK = {"Reorder": "reorder", "FakeQuantize": "quantize", "Convert": "reorder"}


class Graph:
    """A model before it is compiled: its nodes by the names that OpenVINO's ops carry.

    An ONNX node becomes several ops, of which the last has its name and the others count; those belong to it.
    A FakeQuantize stands for a Q/DQ pair and is a node of its own.
    """

    def __init__(self, graph: Any) -> None:
        self._node: dict[str, str] = {}
        readers: dict[str, dict[str, None]] = {}
        ops = [op for op in graph.get_ordered_ops() if op.get_type_name() not in ("Constant", "Result", "Parameter")]
        for op in reversed(ops):
            after = [r.get_node().get_friendly_name() for out in op.outputs() for r in out.get_target_inputs()]
            behind = [self._node[name] for name in after if name in self._node]
            own = _unmarked(op.get_friendly_name())
            if _counted(op) and op.get_type_name() != "FakeQuantize" and behind:
                own = behind[0]
            self._node[op.get_friendly_name()] = own
            known = readers.setdefault(own, {})
            known.update(dict.fromkeys(name for name in behind if name != own))
        self._readers = {name: list(readers[name]) for name in reversed(list(readers))}
        pairs = [op for op in ops if op.get_type_name() == "FakeQuantize"]
        # A mover that is pulled in front of a quantizer takes its name: then the node is the one before the pair.
        self._apart = {op.get_friendly_name(): op.input_value(0).get_node().get_friendly_name() for op in pairs}

    def covers(
        self,
        known: Mapping[int, Sequence[str]],
        quantizers: Collection[int],
        reads: Mapping[int, Collection[int]],
    ) -> dict[int, tuple[str, ...]]:
        """The nodes of each kernel, from the op names that it carries."""
        named = {}
        for kernel, names in known.items():
            nodes = list(dict.fromkeys(node for name in names if (node := self._of(name)) is not None))
            if kernel not in quantizers:
                moved = [self._of(self._apart[node]) for node in nodes if node in self._apart]
                nodes = [n for n in nodes if n not in self._apart] or [n for n in moved if n is not None]
            named[kernel] = nodes
        return covers(self._readers, named, self._apart, reads)

    def quantizes(self, names: Sequence[str]) -> bool:
        """Whether a kernel of these ops only quantizes: where shapes are known, OpenVINO generates code for that."""
        return all(self._of(name) in self._apart or _QUANTIZER.fullmatch(name) for name in names)

    def _of(self, name: str) -> str | None:
        return self._node.get(name) or self._node.get(_unmarked(name))


def _unmarked(name: str) -> str:
    while (shorter := _MARKS.sub("", name)) != name:
        name = shorter
    return name


def _counted(op: Any) -> bool:
    """Whether the name says no more than the op's type: OpenVINO's own, or the place that edgerun wrote instead."""
    name, kind = op.get_friendly_name(), op.get_type_name()
    return name == op.get_name() or bool(re.fullmatch(rf"{kind}[._]\d+", name))


def reads(session: OvSession, feeds: Iterable[Mapping[str, np.ndarray]]) -> Reads:
    """Run all feeds, and read the counters after the first two runs and the last one, and in between when the runs
    since have taken much longer than to read: a kernel that runs right behind that is slower, one on integers most."""
    found: Reads = []
    done, since, took = 0, perf_counter(), 0.0
    for done, feed in enumerate(feeds, 1):
        session.run(feed)
        if done < 3 or perf_counter() - since > SELDOM * took:
            began = perf_counter()
            found.append((done, list(session.kernels())))
            since = perf_counter()
            took = since - began
    return found if found[-1][0] == done else [*found, (done, list(session.kernels()))]


def kernels(source: Graph, executed: Any, reads: Reads) -> list[NodeTime]:
    """Typical seconds per run of every kernel, slowest first.

    `executed` is the compiled model's runtime graph; `reads` are the counters, each after so many runs, of which the
    first is the warm-up.
    """
    means: dict[str, list[float]] = {}
    kinds, runs = {}, [done for done, _ in reads]
    for index, (_, read) in enumerate(reads):
        for kernel in read:
            means.setdefault(kernel.node_name, [0.0] * len(runs))[index] = round(kernel.real_time.total_seconds() * 1e6)
            kinds[kernel.node_name] = (kernel.node_type, kernel.exec_type)
    ops = [op for op in executed.get_ordered_ops() if op.get_friendly_name() in means]
    facts = {op.get_friendly_name(): op.get_rt_info() for op in ops}
    orders = {name: _place(facts, name) for name in means if name in facts}
    means = {name: values for name, values in means.items() if name in orders}
    known = {orders[name]: _told(facts, name, "originalLayersNames").split(",") for name in means}
    work = {name: _work(kinds[name][0], known[orders[name]], source) for name in means}
    reorders = {orders[name] for name in means if work[name] == "reorder"}
    quantizers = [orders[name] for name in means if work[name] == "quantize"]
    sources = {op.get_friendly_name(): _read(op, orders) for op in ops}
    carried = {order: names for order, names in known.items() if order not in reorders}
    found = source.covers(carried, quantizers, {orders[name]: kernels for name, kernels in sources.items()})
    times = [
        NodeTime(
            name,
            kinds[name][0],
            from_running_means(values, runs) if any(values) else 0.0,  # a microsecond in no run: too little to say
            kinds[name][1],
            integer=kinds[name][1].lower().endswith(("i8", "u8")),
            order=orders[name],
            work=work[name],
            covers=found.get(orders[name], ()),
            reads=sources.get(name, ()),
        )
        for name, values in means.items()
    ]
    return sorted(times, key=lambda t: -t.seconds)


def _work(kind: str, names: Sequence[str], source: Graph) -> str:
    if kind == "Subgraph" and source.quantizes(names):
        return "quantize"
    return _WORK.get(kind, "compute")


def _place(facts: Mapping[str, Any], name: str) -> int:
    return int(_told(facts, name, "execOrder"))


def _told(facts: Mapping[str, Any], name: str, key: str) -> str:
    if name not in facts or key not in facts[name]:
        return ""
    return str(facts[name][key].astype(str))


def _read(op: Any, orders: Mapping[str, int]) -> tuple[int, ...]:
    """The kernels whose results `op` takes, through ops that only look at memory differently and do not run."""
    found: set[int] = set()
    waiting = [value.get_node() for value in op.input_values()]
    while waiting:
        node = waiting.pop()
        name = node.get_friendly_name()
        if name in orders:
            found.add(orders[name])
        else:
            waiting += [value.get_node() for value in node.input_values()]
    return tuple(sorted(found))
