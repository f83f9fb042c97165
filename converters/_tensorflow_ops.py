"""Which TensorFlow operators may be in a signature: those that only compute and have a way to ONNX."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from edgerun.errors import EdgerunError, Unsupported

NEWEST_OPSET = 18  # that tf2onnx writes
# Operators that TensorFlow folds, inlines or freezes away, or that are written otherwise; tf2onnx knows the others.
_GOES_AWAY = frozenset(
    "Assert BroadcastArgs BroadcastGradientArgs Case ConcatOffset ControlTrigger EmptyTensorList Enter Erfc Exit Expm1 "
    "LinSpace ListDiff Log1p LoopCond Merge NextIteration PartitionedCall Placeholder PreventGradient Rank "
    "ReadVariableOp ResourceGather ResourceGatherNd StatefulPartitionedCall StatelessCase Switch TensorListConcatV2 "
    "TensorListElementShape TensorListPushBack TensorArrayConcatV3 TensorArrayGatherV3 TensorArrayReadV3 "
    "TensorArrayScatterV3 TensorArraySizeV3 TensorArrayV3 TensorArrayWriteV3 Unbatch VarHandleOp Variable VariableV2 "
    "VarIsInitializedOp VariableShape".split()
)
# Why an operator is refused, by its name; tf2onnx takes some of them and gives something else than the source.
_HOSTILE = (
    (re.compile("PyFunc"), "runs Python"),
    (re.compile("Send|Recv|Rpc|DataService|Collective|Distributed"), "uses the network"),
    (re.compile("File|Read|Writ|Sav|Restore|Checkpoint|Dataset|Summary|Print|Debug|Proto|LoadAndRemap"), "uses files"),
)
_WITHOUT_FORM = (
    (re.compile("^Assign|^Resource(Apply|Scatter)|^Scatter(Add|Sub|Mul|Div|Min|Max|Update|NdUpdate)$|^Apply"),
     "changes a variable while it runs"),
    (re.compile("Table|String|Regex|Decode|Encode|^AsString"), "works on text or tables"),
    (re.compile("Random|Multinomial|SampleDistorted"), "draws random numbers, so that nothing can be compared"),
    (re.compile("Queue|Iterator|Stage|Barrier"), "waits for data"),
)  # fmt: skip


def refuse(nodes: Iterable[tuple[str, Any]], what: str) -> None:
    """Raise for (place, NodeDef) pairs that do more than compute, or that have no way to ONNX; name them all."""
    from tf2onnx import convert, handler  # type: ignore[import-untyped]  # noqa: F401  (the first fills the second)

    known = _GOES_AWAY | set(handler.tf_op.create_mapping(NEWEST_OPSET, None))
    pairs = list(nodes)
    functions = {place for place, _ in pairs}
    hostile, without = dict[str, str](), dict[str, str]()
    for place, node in pairs:
        if node.op in functions:
            continue
        named = next((reason for word, reason in _WITHOUT_FORM if word.search(node.op)), "")
        if not named and node.op in known:
            continue
        bad = next((reason for word, reason in _HOSTILE if not named and word.search(node.op)), "")
        line = f"{node.op}: {bad or named or 'has no ONNX form here'} ({place or 'graph'}: {node.name})"
        (hostile if bad else without).setdefault(node.op, line)
    if hostile:
        raise EdgerunError(f"{what} asks for more than to compute; it is not run", got=_lines(hostile.values()),
                           do="use a model whose operators only compute")  # fmt: skip
    if without:
        raise Unsupported(f"{what} has operators that cannot be converted", got=_lines(without.values()),
                          do="export a signature without them")  # fmt: skip


def _lines(lines: Iterable[str]) -> str:
    return "\n    " + "\n    ".join(sorted(lines))


def reached(graph: Any, roots: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Every NodeDef that the named nodes need, with its place: "" in the graph, else the function's name."""
    nodes = {node.name: node for node in graph.node}
    functions = {function.signature.name: function for function in graph.library.function}
    waiting, seen = list(roots), set[str]()
    entries: list[str] = []
    while waiting:
        name = waiting.pop()
        if name not in seen and name in nodes:
            seen.add(name)
            yield "", nodes[name]
            waiting += [node_of(source) for source in nodes[name].input]
            entries += called(nodes[name])
    entered = set[str]()
    while entries:
        name = entries.pop()
        if name not in entered and name in functions:
            entered.add(name)
            for node in functions[name].node_def:
                yield name, node
                entries += called(node)


def called(node: Any) -> Iterator[str]:
    """The functions that a node may run: its operator when that is one, and those among its attributes."""
    yield node.op
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)


def node_of(name: str) -> str:
    """The node that an input names, as `node:1` or `^node`."""
    return name.removeprefix("^").partition(":")[0]
