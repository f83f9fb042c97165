"""Weight-only INT8: a file a quarter the size; activations and arithmetic stay float."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgerun.quantize import _spare, _weights
from edgerun.quantize.graphs import compressed, edit
from edgerun.quantize.numerics.half import halved

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

summary = "weight-only INT8: per-channel weights, one scale per table row; float arithmetic, so smaller but no faster"
needs_calibration = False
scheme = "w8a16"

FLOOR_DB = 30.0  # of the outputs on data kept apart: weights stay float16 until it is met
LEAST = 256  # elements below which a scale and two nodes are no saving
LEAST_TABLE = 1 << 14  # the same for the tables of the schemes that are about other weights
WHAT = "Conv, Gemm, MatMul, LSTM, GRU, RNN or Gather with a constant float32 weight of at least 256 elements"


def apply(model: ir.Model, request: Request) -> ir.Model:
    """Store the weights of matrix products, convolutions, recurrent layers and tables as int8."""
    original = _weights.begin(model, request)
    nodes = _weights.chosen([node for node in model.graph.all_nodes() if _size(node) >= LEAST], request, WHAT)
    halves: list[str] = []
    if request.calibration is not None:
        sizes = {str(node.name): _size(node) for node in nodes}
        few, judge = (_weights.truths(original, data, request) for data in _spare.apart(request))
        halves = _spare.spared(original, sizes, functools.partial(_trial, model), FLOOR_DB, (few, judge), request)
    counts = [sum(store(node, LEAST, request.keep_float) for node in nodes if str(node.name) not in halves)]
    counts.append(sum(store(node, LEAST, request.keep_float, half=True) for node in nodes if str(node.name) in halves))
    request.found |= {"weights in 8 bits": counts[0], "weights in 16 bits": counts[1]}
    edit.drop_unused(model)
    _weights.evidence(original, model, request)
    return model


def _trial(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """A clone in which only the nodes `names` have int8 weights."""
    result, chosen = model.clone(), set(names)
    kept = frozenset(str(node.name) for node in result.graph.all_nodes()) - chosen
    for node in list(result.graph.all_nodes()):
        if str(node.name) in chosen:
            store(node, LEAST, kept)
    return result


def _size(node: ir.Node) -> int:
    """How many elements its weights have in all."""
    weights = [edit.constant(node.inputs[index]) for index, _ in compressed.weight_inputs(node)]
    return sum(weight.size for weight in weights if weight is not None)


def tables(graph: ir.Graph, keep_float: frozenset[str]) -> int:
    """Store the large tables that schemes about other weights leave, one scale per row; return how many there were."""
    gathers = [node for node in graph if node.op_type == "Gather" and node.name not in keep_float]
    return sum(store(node, LEAST_TABLE, keep_float) for node in gathers)


def store(node: ir.Node, least: int, keep_float: frozenset[str], half: bool = False) -> int:
    """Replace the weights of `node` that have `least` elements or more by int8; return how many there were.

    With `half` they become float16, where that holds them.
    A weight that a node of `keep_float` reads too stays as it is.
    """
    found = 0
    for index, axes in list(compressed.weight_inputs(node)):
        value = node.inputs[index]
        weight = edit.constant(value)
        if value is None or weight is None or weight.size < least or value.is_graph_output():
            continue
        if any(user.name in keep_float for user, _ in value.uses()):
            continue
        if half:
            short = halved(weight)
            if short is not None:
                compressed.expand(value, short)
                found += 1
            continue
        codes, scale = _weights.per_channel(_weights.finite(node, weight), axes)
        if node.op_type == "Gather":
            compressed.expand_rows(node, codes, scale)
        else:
            compressed.expand(value, codes, scale)
        found += 1
    return found
