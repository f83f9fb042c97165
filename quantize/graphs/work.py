"""The layers that go on integers, and how much of the model's work each one is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from edgerun.quantize import _sequences, fold
from edgerun.quantize.graphs import edit, placement, recurrent

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.model import Model
    from edgerun.passes import Quantization


def layers(
    model: Model, rules: Quantization, keep_float: frozenset[str] = frozenset(), names: Iterable[str] | None = None
) -> dict[str, float]:
    """The layers that a pass puts on integers, in graph order, each with its share of their multiply-accumulates.

    `names` are the nodes that it does (None: those of the placement), layers among them the recurrent ones and the
    `compute` of the rules. Symbolic dimensions count as 1. Where shapes are unknown every layer counts the same.
    """
    graph = fold.apply(model.clone()).graph
    if names is None:
        names = [str(node.name) for node in placement.plan(graph, rules, keep_float).compute]
    ops, chosen = {*rules.compute, *recurrent.OPS}, set(names)
    found = {str(node.name): _macs(node) for node in graph if node.name in chosen and node.op_type in ops}
    total = sum(found.values())
    if not math.isfinite(total) or total == 0:
        return dict.fromkeys(found, 1 / max(1, len(found)))
    return {name: macs / total for name, macs in found.items()}


def integers(model: Model, rules: Quantization, keep_float: frozenset[str] = frozenset()) -> list[str]:
    """The nodes that `static_int8` puts on integers and that may be kept in float, in graph order."""
    folded = fold.apply(model.clone())
    found = placement.plan(folded.graph, rules, keep_float).integer
    ops, loops = rules.compute | rules.join, set(_sequences.integers(folded.graph, rules)) - keep_float
    return [str(n.name) for n in folded.graph if n.name in loops or (n.name in found and n.op_type in ops)]


def keepable(graph: ir.Graph, rules: Quantization) -> set[str]:
    """The nodes of a folded graph that `static_int8` takes to be kept in float: all of a kind that it quantizes."""
    ops = rules.compute | rules.join | ({"Gather"} if rules.tables else set())
    ops |= {node.op_type for node in _sequences.found(graph)}
    return {str(node.name) for node in graph if node.op_type in ops}


FRONT = (frozenset({"Conv"}), frozenset({"Gemm", "MatMul"}))


def stem(plan: placement.Plan, share: float) -> frozenset[str]:
    """The first of the plan's integer layers, in graph order: as many as are at most `share` of the work of all."""
    return _within(plan, plan.compute, share)


def front(plan: placement.Plan, share: float) -> frozenset[str]:
    """The same of the convolutions, or products with a matrix, that all other kinds come behind."""
    kind = next((kind for kind in FRONT for node in plan.compute[:1] if node.op_type in kind), frozenset[str]())
    return _within(plan, list(itertools.takewhile(lambda node: node.op_type in kind, plan.compute)), share)


def depthwise(plan: placement.Plan, share: float) -> frozenset[str]:
    """The plan's depthwise layers, in graph order: as many as are at most `share` of the work of all its layers."""
    return _within(plan, [node for node in plan.weights if placement.depthwise(node)], share)


def _within(plan: placement.Plan, nodes: Sequence[ir.Node], share: float) -> frozenset[str]:
    total, done, found = sum(map(_macs, plan.compute)), 0.0, set[str]()
    for node in nodes:
        done += _macs(node)
        if not done <= share * total:  # NaN where a shape is unknown
            break
        found.add(str(node.name))
    return frozenset(found)


def _macs(node: ir.Node) -> float:
    """Multiply-accumulates of one run with every symbolic dimension 1; NaN when a shape is unknown."""
    first, second = node.inputs[:2]
    if node.op_type in recurrent.OPS:  # W and R in every step
        return _size(first) / _last(first) * (_size(second) + _size(node.inputs[2]))
    out, source, weight = (_size(value) for value in (node.outputs[0], first, second))
    channels = _last(first) if edit.constant(second) is None else math.nan
    if node.op_type == "Conv":
        return out * weight / _axis(second, 0)
    if node.op_type == "ConvTranspose":
        return source * weight / _axis(second, 0)
    if edit.constant(second) is None:
        return out * channels
    return out * weight / _axis(second, placement.weight_axis(node))


def _size(value: ir.Value | None) -> float:
    if value is None or value.shape is None:
        return math.nan
    return math.prod(float(dim) if isinstance(dim, int) else 1.0 for dim in value.shape)


def _axis(value: ir.Value | None, axis: int) -> float:
    if value is None or value.shape is None:
        return math.nan
    dim = value.shape[axis]
    return float(dim) if isinstance(dim, int) else 1.0


def _last(value: ir.Value | None) -> float:
    return _axis(value, -1)
