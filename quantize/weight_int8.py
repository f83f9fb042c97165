"""Weight-only INT8: a file a quarter the size; activations and arithmetic stay float."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize import _recurrent, _spare, _weights
from edgerun.quantize.graphs import compressed, dynamic, edit, recurrent
from edgerun.quantize.graphs.compressed import Blocks
from edgerun.quantize.numerics import blocks
from edgerun.quantize.numerics.half import halved

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

summary = "weight-only INT8: per-channel weights, one scale per table row; float arithmetic, so smaller but no faster"
needs_calibration = False
scheme = "w8a16"

FLOOR_DB = 30.0  # of the outputs on data kept apart: weights stay float16 until it is met
BLOCK = 128  # inputs for one scale and zero point, of the products of a large model
LEAST = 256  # elements below which a scale and two nodes are no saving
LEAST_TABLE = 1 << 14  # the same for the tables of the schemes that are about other weights
WHAT = "Conv, Gemm, MatMul, LSTM, GRU, RNN or Gather with a constant float32 weight of at least 256 elements"


Rounded = Mapping[str, np.ndarray]  # codes by the name of the weight


def apply(model: ir.Model, request: Request) -> ir.Model:
    """Store the weights of matrix products, convolutions, recurrent layers and tables as int8."""
    from edgerun import external

    original = _weights.begin(model, request)
    large = external.weight_bytes(original) > external.ABOVE
    nodes = _weights.chosen([node for node in model.graph.all_nodes() if _size(node) >= LEAST], request, WHAT)
    halves: list[str] = []
    rounded = _recurrent.codes(model, nodes, request)
    if request.calibration is not None:
        sizes = {str(node.name): _size(node) for node in nodes}
        few, judge = (_weights.truths(original, data, request) for data in _spare.apart(request))
        trial = functools.partial(_trial, model, large, rounded)
        halves = _spare.spared(sizes, trial, FLOOR_DB, (few, judge), request, "layers in 8 bits")
    counts = [0, 0]
    for done, node in enumerate(nodes, 1):
        half = str(node.name) in halves
        counts[half] += _stored(model, node, request.keep_float, rounded, large=large, half=half)
        request.progress("rounding", done, len(nodes))
    request.found |= {"weights in 8 bits": counts[0], "weights in 16 bits": counts[1]}
    edit.drop_unused(model)
    _weights.evidence(original, model, request)
    return model


def _trial(model: ir.Model, large: bool, rounded: Rounded, names: Iterable[str]) -> ir.Model:
    """A clone in which only the nodes `names` have int8 weights."""
    result, chosen = model.clone(), set(names)
    kept = frozenset(str(node.name) for node in result.graph.all_nodes()) - chosen
    for node in list(result.graph.all_nodes()):
        if str(node.name) in chosen:
            _stored(result, node, kept, rounded, large=large)
    return result


def _stored(
    model: ir.Model, node: ir.Node, keep_float: frozenset[str], rounded: Rounded, *, large: bool, half: bool = False
) -> int:
    """Store the weights of `node`; products of a `large` model are unpacked while it runs, not when it is opened."""
    if large and not half and node.graph is model.graph and dynamic.weight(node) is not None:
        store_blocked(model, node, BLOCK)
        return 1
    return store(node, LEAST, keep_float, half, rounded)


def _size(node: ir.Node) -> int:
    """How many elements its weights have in all."""
    weights = [edit.constant(node.inputs[index]) for index, _ in compressed.weight_inputs(node)]
    return sum(weight.size for weight in weights if weight is not None)


def others(graph: ir.Graph) -> list[ir.Node]:
    """What schemes about other weights store in 8 bits too: large tables, and recurrent layers."""
    loops = [node for node in graph if node.op_type in recurrent.OPS and _size(node) >= LEAST]
    return loops + [node for node in graph if node.op_type == "Gather" and _size(node) >= LEAST_TABLE]


def tables(graph: ir.Graph, keep_float: frozenset[str]) -> int:
    """Store the large tables that schemes about other weights leave, one scale per row; return how many there were."""
    gathers = [node for node in graph if node.op_type == "Gather" and node.name not in keep_float]
    return sum(store(node, LEAST_TABLE, keep_float) for node in gathers)


def store(
    node: ir.Node,
    least: int,
    keep_float: frozenset[str],
    half: bool = False,
    rounded: Rounded | None = None,
    *,
    qdq: bool = False,
) -> int:
    """Replace the weights of `node` that have `least` elements or more by int8; return how many there were.

    With `half` they become float16, where that holds them; `rounded` has codes that are not those to nearest; `qdq` as
    in `compressed.expand`.
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
        codes = (rounded or {}).get(str(value.name), codes)
        if node.op_type == "Gather":
            compressed.expand_rows(node, codes, scale)
        else:
            compressed.expand(value, codes, scale, qdq=qdq)
        found += 1
    return found


def store_blocked(model: ir.Model, node: ir.Node, block: int, bits: int = 8, *, integer: bool = False) -> None:
    """A product with its weight as MatMulNBits has it, in codes of 8 bits, of which `bits` are used.

    With `integer` its inputs are rounded to int8 while it runs, by blocks.
    """
    grid = blocks.fitted(weight := _weights.finite(node, matrix(node)), block, bits)
    edit.forget(node.inputs[1])
    codes = Blocks.of(grid.quantize(weight), replace(grid, bits=8))
    compressed.blocked_product(model, node, codes, integer=integer)


def matrix(node: ir.Node) -> np.ndarray:
    """The weight of a product (`dynamic.weight`) as `[N, K]`, in memory."""
    weight = dynamic.weight(node)
    assert weight is not None
    return np.ascontiguousarray(weight.T)
