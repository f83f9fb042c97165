"""Static FP8: E4M3 weights with one scale per channel, E4M3 activations with one per tensor, biases corrected."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.errors import Unsupported
from edgerun.quantize import _finished, _reached, _rest, _steps, _without, static_int8
from edgerun.quantize._observation import Truth
from edgerun.quantize._prepared import Prepared
from edgerun.quantize._ranges import intervals
from edgerun.quantize._scores import ERROR, counted, gained, sqnr
from edgerun.quantize._stream import Stream
from edgerun.quantize._weights import finite
from edgerun.quantize.graphs import correction, edit, opsets, placement, qdq
from edgerun.quantize.numerics import float8, grid

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from edgerun.passes import Request
    from edgerun.quantize.numerics.grid import Grid

summary = "static FP8 (E4M3 Q/DQ): per-channel weights, per-tensor activations, centred, smoothed and bias corrected"
needs_calibration = True
scheme = "fp8"

HEADROOM = 2.0  # over the extremes that were seen: of 17 powers of two it takes the smallest, and clips nothing new
OLDEST_OPSET = 19  # the first whose Q/DQ know 8-bit floats


def apply(model: ir.Model, request: Request) -> ir.Model:
    """Quantize `model`. Raises Unsupported where no opset with 8-bit floats holds it, or nothing is to be quantized."""
    return finish(prepare(model, request), request)


def prepare(model: ir.Model, request: Request) -> Prepared:
    """As for INT8: fold, one float run, and move and smooth channels, which floats gain from too."""
    model = opsets.at_least(model, OLDEST_OPSET, "8-bit floats")
    own = replace(request, effort=replace(request.effort, second=False))
    prepared = static_int8.prepare(model, own, _without.Makes(finish, _plain))
    if not prepared.truths:  # only recurrent layers, whose weights have 8 bits elsewhere
        wanted = f"float32 {', '.join(sorted(request.rules.compute))} with constant weights"
        what, do = "nothing in this model runs on 8-bit floats on the target", "--scheme w8a8"
        raise Unsupported(what, got="recurrent layers alone", wanted=wanted, do=do)
    return prepared


def finish(prepared: Prepared, request: Request) -> ir.Model:
    """Store weights, put Q/DQ at every point, and move biases where that brings the outputs nearer.

    A range ends at the extremes unless an estimator is asked for: between them, a float's steps hardly depend on it.
    """
    model, truths = prepared.model, prepared.truths
    name = "minmax" if request.ranges == "auto" else request.ranges
    plan, grids = _placed(prepared, name, request)
    shifts = _shifts(model, plan, grids, truths, request)
    result = _quantized(model, plan, grids, shifts)
    judge = _finished.judge(truths, request.effort.check, request)
    _reached.tell(model.graph, _finished.reached(result, truths, request), request, judge)
    request.found |= {"ranges": name, "8-bit nodes": len(plan.compute), "quantized activations": len(plan.points)}
    return _rest.narrowed(result, truths, request)


def _plain(prepared: Prepared, request: Request) -> ir.Model:
    """With ranges that end at the extremes, and biases as they are."""
    return _quantized(prepared.model, *_placed(prepared, "minmax", request), {})


def _placed(prepared: Prepared, ranges: str, request: Request) -> tuple[placement.Plan, dict[str, Grid]]:
    """Where Q/DQ are to stand, and their grids; the weights are stored."""
    graph = prepared.model.graph
    plan = placement.plan(graph, request.rules, request.keep_float)
    for nodes in plan.sharing():
        _store(graph, nodes)
    spans = intervals(plan, prepared.seen, ranges, symmetric=True)
    return plan, {group: float8.spanning(HEADROOM * high) for group, (_, high) in spans.items()}


def _shifts(
    model: ir.Model, plan: placement.Plan, grids: Mapping[str, Grid], truths: list[Truth], request: Request
) -> dict[str, np.ndarray]:
    """What biases are to be moved by, `[C]` by layer: found on half of the truths, none unless it pays on the rest."""
    half, stage = max(1, request.effort.first // 2), "bias correction"
    with request.open(_emulated(model, plan, grids), emulated=True, lanes=request.lanes) as session:
        stream = Stream(session, correction.layers(plan), truths, request)
        found = stream.missing({}, half, stage)
        none = {layer: np.zeros_like(shift) for layer, shift in found.items()}
        scores = [stream.scores({}, shifts, 2 * half, stage, skip=half) for shifts in (none, found)]
    over = counted(*scores) if all(scores) else []
    pays = all(scores) and sqnr(scores[1], over) > sqnr(scores[0], over)
    if all(scores):
        gain, surely = gained(scores[0], scores[1], ERROR)
        _steps.tell(request, _steps.BIAS, gain, surely, n=len(scores[0]), measured=_steps.OUTPUT, kept=pays)
    request.found["bias correction"] = pays
    return {str(layer.holder.name): shift.reshape(-1) for layer, shift in found.items()} if pays else {}


def _store(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    node = nodes[0]
    weight = edit.constant(node.inputs[1])
    assert weight is not None
    axis = placement.weight_axis(node)
    own = float8.spanning(grid.channel_bounds(finite(node, weight), axis), axis)
    qdq.store_weight(graph, nodes, own, own.quantize(weight))


def _emulated(model: ir.Model, plan: placement.Plan, grids: Mapping[str, Grid]) -> ir.Model:
    """A clone with Q/DQ, and every layer's mean as an input that it is moved onto."""
    result = model.clone()
    own = plan.on(result.graph)
    correction.add_shifts(result.graph, {str(node.name): node for node in result.graph}, plan, own)
    qdq.insert_points(result.graph, own, grids)
    return result


def _quantized(
    model: ir.Model, planned: placement.Plan, grids: Mapping[str, Grid], shifts: Mapping[str, np.ndarray]
) -> ir.Model:
    """A clone with Q/DQ and biases moved by `shifts`."""
    result = model.clone()
    plan = planned.on(result.graph)
    correction.move(result.graph, plan, shifts)
    qdq.insert_points(result.graph, plan, grids)
    edit.drop_unused(result)
    return result
