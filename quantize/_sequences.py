"""Recurrent layers: on integers while they run, or with 8-bit weights, as far as the outputs bear it.

An LSTM that quantizes its input in every step (DynamicQuantizeLSTM) needs no range; whether its input bears a grid of
256 steps depends on the input: states between -1 and 1 do, a spectrogram's powers do not. So that is measured.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize import _reached, _recurrent, _spare, _weights, weight_int8
from edgerun.quantize.graphs import dynamic, edit, recurrent

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Quantization, Request

FLOOR_DB = 30.0  # of the outputs, on data kept apart: what a layer brings must leave them that near
LAYERS = "recurrent layers"  # in the history
LOSS_DB = 1.0  # or take no more away than this, where the other layers are farther off


def found(graph: ir.Graph, keep_float: frozenset[str] = frozenset()) -> list[ir.Node]:
    """The recurrent layers whose weights are constant float32, and not too few to be worth it."""
    return [
        node
        for node in graph
        if node.op_type in recurrent.OPS and node.domain == "" and node.name not in keep_float
        and all((w := edit.constant(value)) is not None and w.dtype == np.float32 for value in node.inputs[1:3])
        and _size(node) > 0
    ]  # fmt: skip


def integers(graph: ir.Graph, rules: Quantization) -> list[str]:
    """The names of those with a kernel on the target that quantizes while it runs."""
    return [str(node.name) for node in found(graph) if node.op_type in rules.dynamic and dynamic.recurrent(node)]


@dataclass(frozen=True)
class Decision:
    """What was found out about the recurrent layers of a model: their codes, who bears what, and what judged that."""

    codes: Mapping[str, np.ndarray]
    on_integers: Sequence[str]
    stored: Sequence[str]
    judge: Sequence[_weights.Truth]


Settled = dict[tuple[frozenset[str], bool], Decision]  # by the layers, and whether integers are beside them


def apply(original: ir.Model, model: ir.Model, request: Request, settled: Settled) -> ir.Model:
    """`model`, which computes what the float `original` does, with its recurrent layers smaller; into `found`, how.

    First the integer kernels, then the weights of what is left, of which those that 8 bits harm have 16. Each layer is
    tried alone, and those that lose most for their size are spared, until the outputs keep the floor on data that the
    rounding has not seen. What is `settled` stays so, wherever else the model is in float.
    """
    nodes = found(model.graph, request.keep_float)
    if not nodes:
        return model
    names = [str(node.name) for node in nodes]
    beside = any(node.op_type == "QuantizeLinear" for node in model.graph)
    key = frozenset(names), beside
    if key not in settled:
        settled[key] = _decided(original, model, nodes, request, packed=beside and request.rules.float_loops)
    chosen = settled[key]
    result = _on_integers(model, chosen.codes, request, chosen.on_integers)
    left = [name for name in names if name not in chosen.on_integers]
    result = _stored(result, chosen.codes, request, left, chosen.stored)
    request.found["integer nodes"] = request.found.get("integer nodes", 0) + len(chosen.on_integers)
    request.found[LAYERS] = {"on integers": list(chosen.on_integers), "weights in 8 bits": list(chosen.stored)}
    judge = functools.partial(_weights.by, wanted=chosen.judge, request=request)
    _reached.tell(original.graph, _weights.scores(result, chosen.judge, request), request, judge)
    return result


def _decided(
    original: ir.Model, model: ir.Model, nodes: Sequence[ir.Node], request: Request, *, packed: bool
) -> Decision:
    few, judge = (_weights.truths(original, part, request) for part in _spare.apart(request))
    sizes = {str(node.name): _size(node) for node in nodes}
    able = [name for name in integers(model.graph, request.rules) if name in sizes]
    if packed and not able:
        return Decision({}, [], [], judge)
    codes = _recurrent.codes(model, nodes, request, _steps(request))

    def taken(trial: _spare.Trial, names: Sequence[str], what: str) -> list[str]:
        own = {name: sizes[name] for name in names}
        if not own:
            return []
        spared = _spare.spared(own, trial, FLOOR_DB, (few, judge), request, what, most=1.0, loss_db=LOSS_DB)
        return [name for name in names if name not in spared]

    on_integers = taken(trial := functools.partial(_on_integers, model, codes, request), able, "layers on integers")
    left = [name for name in sizes if name not in on_integers]
    stored = functools.partial(_stored, trial(on_integers), codes, request, left)
    return Decision(codes, on_integers, taken(stored, [] if packed else left, "layers in 8 bits"), judge)


def _steps(request: Request) -> int:
    return 63 if request.rules.reduced_range else 127


def _on_integers(
    model: ir.Model, rounded: Mapping[str, np.ndarray], request: Request, names: Iterable[str]
) -> ir.Model:
    """A clone in which the LSTMs `names` quantize while they run."""
    result, chosen = model.clone(), set(names)
    for node in [node for node in result.graph if node.name in chosen]:
        to_integers(result, node, rounded, _steps(request))
    edit.drop_unused(result)
    return result


def _stored(
    model: ir.Model, rounded: Mapping[str, np.ndarray], request: Request, left: Sequence[str], names: Iterable[str]
) -> ir.Model:
    """A clone in which the layers `names` have int8 weights, and the others that are `left` float16."""
    result, chosen = model.clone(), set(names)
    rounded = rounded if _steps(request) == 127 else {}  # fewer steps are for integer kernels
    for node in [node for node in result.graph if node.name in left]:
        half, qdq = node.name not in chosen, request.rules.qdq_constants
        weight_int8.store(node, weight_int8.LEAST, frozenset(), half, rounded, qdq=qdq)
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
    dynamic.lstm(model.graph, node, parts)


def _size(node: ir.Node) -> int:
    """The elements of those weights that are not too small to store."""
    weights = (edit.constant(value) for value in node.inputs[1:3])
    return sum(weight.size for weight in weights if weight is not None and weight.size >= weight_int8.LEAST)
