"""All nodes that a target refuses, of one that stops at the first: it is asked again about the model without those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgerun.model import Model
from edgerun.passes import Issue
from edgerun.verbs import subgraph

if TYPE_CHECKING:
    import onnx

MOST = 50  # times that a target is asked
PLAIN = frozenset({1, 10})  # float32 and float16 of onnx.TensorProto, which every target takes at its door


def every(model: Model, issues: Callable[[Model], Sequence[Issue]]) -> list[Issue]:
    """What `issues` says of the model, then of what is left without the nodes that it names, until it names none
    or was asked MOST times.

    Where the cut shows at a node it is not accused: as an input of the part, what was computed from constants, or is no
    float, may be what the target refuses.
    """
    found = list(dict.fromkeys(issues(model)))
    if not any(issue.node for issue in found):
        return found
    whole = next(subgraph.graphs(model.to_proto()))
    nodes, new, cut = list(whole.graph.node), found, set[int]()
    for _ in range(MOST):
        accused = {place: issue for issue in new for place, node in enumerate(nodes) if _is(issue, node)}
        if not accused.keys() - cut:
            break
        cut |= accused.keys()
        _spread(whole, nodes, cut)
        part = whole.part(set(range(len(nodes))) - cut)
        if part is None:
            break
        new = list(issues(part))
        strange = _strange(whole, nodes, cut)
        for place, node in enumerate(nodes):
            if place not in cut and not strange & {*node.input, *node.output}:
                found += [issue for issue in new if _is(issue, node) and issue not in found]
    return found


def _is(issue: Issue, node: onnx.NodeProto) -> bool:
    return issue.op == node.op_type and issue.node in (node.name, *node.output) and bool(issue.node)


def _spread(whole: subgraph.Graph, nodes: Sequence[onnx.NodeProto], cut: set[int]) -> None:
    """Cut what reads a value of `cut` whose type nobody knows: it could not be an input."""
    unknown = set[str]()
    for place, node in enumerate(nodes):  # in order
        if place in cut or unknown & set(subgraph.reads(node)):
            cut.add(place)
            unknown |= {name for name in node.output if not subgraph.known(whole.types.get(name))}


def _strange(whole: subgraph.Graph, nodes: Sequence[onnx.NodeProto], cut: set[int]) -> set[str]:
    """The values at the cut that are no floats, or computed from constants alone."""
    fixed, at_cut = set(whole.constants), set[str]()
    for place, node in enumerate(nodes):
        if set(filter(None, node.input)) <= fixed:
            fixed |= set(node.output)
        if place in cut:
            at_cut |= {*node.input, *node.output} - {""}
    plain = {name for name, kind in whole.types.items() if kind.tensor_type.elem_type in PLAIN}
    return at_cut - (plain - fixed) - set(whole.constants)
