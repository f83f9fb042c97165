"""Recurrent layers: on integers while they run, or with 8-bit weights, as far as the outputs bear it.

An LSTM that quantizes its input in every step (DynamicQuantizeLSTM) needs no range; whether its input bears a grid of
256 steps depends on the input: states between -1 and 1 do, a spectrogram's powers do not. So that is measured.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize import _recurrent, _spare, _weights, weight_int8
from edgerun.quantize.graphs import dynamic, edit, recurrent

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Quantization, Request

FLOOR_DB = 30.0  # of the outputs, on data kept apart: what a layer brings must leave them that near
LAYERS = "recurrent layers"  # in the history
LOSS_DB = 1.0  # or take no more away than this, where the other layers are farther off


def found(graph: ir.Graph, keep_float: frozenset[str] = frozenset()) -> list[ir.Node]:
    """The recurrent layers whose weights are constant float32."""
    return [
        node
        for node in graph
        if node.op_type in recurrent.OPS and node.domain == "" and node.name not in keep_float
        and all((w := edit.constant(value)) is not None and w.dtype == np.float32 for value in node.inputs[1:3])
    ]  # fmt: skip


def integers(graph: ir.Graph, rules: Quantization) -> list[str]:
    """The names of those with a kernel on the target that quantizes while it runs."""
    return [str(node.name) for node in found(graph) if node.op_type in rules.dynamic and dynamic.recurrent(node)]


def apply(original: ir.Model, model: ir.Model, request: Request) -> ir.Model:
    """`model`, which computes what the float `original` does, with its recurrent layers smaller; into `found`, how.

    First the integer kernels, then the weights of what is left, of which those that 8 bits harm have 16. Each layer is
    tried alone, and those that lose most for their size are spared, until the outputs keep the floor on data that the
    rounding has not seen.
    """
    nodes = [node for node in found(model.graph, request.keep_float) if _size(node) >= weight_int8.LEAST]
    if not nodes:
        return model
    few, judge = (_weights.truths(original, part, request) for part in _spare.apart(request))
    steps = 63 if request.rules.reduced_range else 127
    codes = _recurrent.codes(model, nodes, request, steps)
    sizes = {str(node.name): _size(node) for node in nodes}

    def taken(trial: _spare.Trial, names: Sequence[str]) -> list[str]:
        own = {name: sizes[name] for name in names}
        floor = min(FLOOR_DB, _weights.sqnr_db(trial(()), judge, request) - LOSS_DB) if own else 0.0
        spared = _spare.spared(own, trial, floor, (few, judge), request, most=1.0) if own else []
        return [name for name in names if name not in spared]

    able = [name for name in integers(model.graph, request.rules) if name in sizes]
    on_integers = taken(trial := functools.partial(_on_integers, model, codes, steps), able)
    model = trial(on_integers)
    left = [name for name in sizes if name not in on_integers]
    beside = any(node.op_type == "QuantizeLinear" for node in model.graph)
    trial = functools.partial(_stored, model, codes if steps == 127 else {}, left)
    stored = taken(trial, [] if beside and request.rules.float_loops else left)
    request.found["integer nodes"] = request.found.get("integer nodes", 0) + len(on_integers)
    request.found[LAYERS] = {"on integers": on_integers, "weights in 8 bits": stored}
    result = trial(stored)
    _weights.evidence(original, result, request)
    return result


def _on_integers(model: ir.Model, rounded: Mapping[str, np.ndarray], steps: int, names: Iterable[str]) -> ir.Model:
    """A clone in which the LSTMs `names` quantize while they run."""
    result, chosen = model.clone(), set(names)
    for node in [node for node in result.graph if node.name in chosen]:
        to_integers(result, node, rounded, steps)
    edit.drop_unused(result)
    return result


def _stored(model: ir.Model, rounded: Mapping[str, np.ndarray], left: Sequence[str], names: Iterable[str]) -> ir.Model:
    """A clone in which the layers `names` have int8 weights, and the others that are `left` float16."""
    result, chosen = model.clone(), set(names)
    for node in [node for node in result.graph if node.name in left]:
        weight_int8.store(node, weight_int8.LEAST, frozenset(), node.name not in chosen, rounded)
    edit.drop_unused(result)
    return result


def to_integers(model: ir.Model, node: ir.Node, rounded: Mapping[str, np.ndarray], steps: int) -> None:
    """An LSTM becomes one on integers, with the codes of `rounded`, or the nearest ones, in so many `steps`."""
    parts = []
    for value in node.inputs[1:3]:
        weight = edit.constant(value)
        assert weight is not None and value is not None
        codes, scale = _weights.per_channel(_weights.finite(node, weight), (2,), steps)
        parts.append((rounded.get(str(value.name), codes), scale))
    dynamic.lstm(model, node, parts)


def _size(node: ir.Node) -> int:
    weights = (edit.constant(value) for value in node.inputs[1:3])
    return sum(weight.size for weight in weights if weight is not None)
