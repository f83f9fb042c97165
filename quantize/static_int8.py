"""Static INT8: per-channel weights, per-tensor activations from calibration, equalized, bias corrected, and checked.

Each stage is kept only if it pays on the calibration data: the range estimator is the one whose emulated model is
nearest to the float one at its outputs, and bias correction stays when the finished model is nearer with it.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.errors import EdgerunError, Unsupported
from edgerun.metrics import Difference
from edgerun.quantize import _evened, _observation, _rounding, fold, weight_int8
from edgerun.quantize._lanes import in_lanes
from edgerun.quantize._observation import Truth, batches, observe, with_moved_means
from edgerun.quantize._ranges import Stream, choose, decibels
from edgerun.quantize._weights import finite
from edgerun.quantize.graphs import correction, edit, factors, flatten, placement, qdq, reach, saturation, work
from edgerun.quantize.graphs.activation import Activation, Vectors
from edgerun.quantize.graphs.work import integers as integers
from edgerun.quantize.numerics import grid
from edgerun.quantize.numerics.grid import Grid

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Quantization, Request

summary = "static INT8 (Q/DQ): per-channel weights, per-tensor activations, equalized and bias corrected; INT8 tables"
needs_calibration = True
scheme = "w8a8"

REACHED = "calibration SQNR (dB)"
# A model that ends below NEEDED dB may keep its first layers in float, up to a share STEM of all multiply-accumulates,
# if that takes away a third of its noise.
NEEDED, STEM, STEM_WORTH = 16.0, 0.06, 2.0


@dataclass(frozen=True)
class Prepared:
    """A float model ready to be quantized: folded and equalized, with what was seen of its activations.

    `truths` are the float model's answers to the first batches of the calibration data; `codes`, by node name, those of
    weights that are not rounded to nearest.
    """

    model: ir.Model
    seen: Mapping[str, Activation]
    truths: list[Truth]
    codes: Mapping[str, np.ndarray]

    def copy(self) -> Prepared:
        """The same on a clone, since `finish` consumes the model; the weights are shared."""
        return replace(self, model=self.model.clone())


def apply(model: ir.Model, request: Request) -> ir.Model:
    """Quantize `model`. Raises Unsupported when nothing in it has an integer kernel on the target."""
    return finish(prepare(model, request), request)


def prepare(model: ir.Model, request: Request) -> Prepared:
    """Fold, run the float model over the calibration data once, equalize, and round weights to the second order."""
    _refuse_quantized(model)
    fold.apply(model)
    if flatten.apply(model.graph, request.rules):
        edit.drop_unused(model)
        fold.infer_shapes(model)
    gc.collect()
    _check_kept(model, request)
    plan = placement.plan(model.graph, request.rules, request.keep_float)
    if not plan.compute:
        wanted = f"float32 {', '.join(sorted(request.rules.compute))} with constant weights"
        raise Unsupported("nothing in this model runs on integers on the target", wanted=wanted)
    seen, truths = observe(model, plan, request, vectors=_rounding.wanted(plan, request))
    seen |= {name: seen[name].within(*ends) for name, ends in reach.ends(plan).items()}
    _tell_coverage({str(v.name): seen[str(v.name)] for v in plan.points}, request)
    seen, means = _evened.apply(model, plan, seen, request)
    codes = _rounding.codes(placement.plan(model.graph, request.rules, request.keep_float), seen, request)
    seen = {name: replace(activation, vectors=Vectors()) for name, activation in seen.items()}
    return Prepared(model, seen, [with_moved_means(truth, means) for truth in truths], codes)


def _tell_coverage(seen: Mapping[str, Activation], request: Request) -> None:
    """Would more calibration data move the ranges? Into `found`, and among its warnings when it would."""
    lows, highs = (np.stack(ends, 1) for ends in zip(*((a.lows, a.highs) for a in seen.values()), strict=True))
    verdict = _observation.verdict(lows, highs, request)
    told = request.found.setdefault("calibration", {})
    told["coverage"] = verdict.to_json(list(seen))
    if verdict.enough is False:
        told["warnings"] = [*told.get("warnings", ()), verdict.sentence()]


def finish(prepared: Prepared, request: Request) -> ir.Model:
    """Choose ranges, correct biases, and write the integers; `prepared.model` is consumed.

    Where that ends below NEEDED dB, the first layers are tried in float: what is lost there no later layer brings back.
    """
    model, seen, truths = prepared.model, prepared.seen, prepared.truths
    tables = weight_int8.tables(model.graph, request.keep_float) if request.rules.tables else 0
    request.found["tables in 8 bits"] = tables
    plan = placement.plan(model.graph, request.rules, request.keep_float)
    stem = work.first(plan, STEM)
    shorter = placement.plan(model.graph, request.rules, request.keep_float | stem)
    floats = {str(node.name): edit.constant(node.inputs[1]) for node in plan.weights if node.name in stem}
    stored = _store_weights(model, plan, seen, prepared.codes, request)
    spare = model.clone() if stem and shorter.compute else None
    result = _finished(model, plan, stored, seen, truths, request)
    if spare is None or request.found[REACHED] >= NEEDED:
        return result
    for node in spare.graph:
        if (weight := floats.get(str(node.name))) is not None:
            edit.set_constant(spare.graph, node, 1, weight)
    shorter = shorter.on(spare.graph)
    factors.release(spare.graph, shorter)
    edit.drop_unused(spare)
    other = replace(request, found=dict(request.found))
    kept = {name: weight for name, weight in stored.items() if name not in stem}
    better = _finished(spare, shorter, kept, seen, truths, other)
    if other.found[REACHED] < request.found[REACHED] + STEM_WORTH:
        return result
    request.found |= other.found | {"float stem": sorted(stem)}
    return better


def _finished(
    model: ir.Model,
    plan: placement.Plan,
    stored: dict[str, Stored],
    seen: Mapping[str, Activation],
    truths: list[Truth],
    request: Request,
) -> ir.Model:
    """The Q/DQ model of one placement of a model with `stored` weights."""
    layers = correction.layers(plan)
    emulated = _emulated(model, plan, request)
    with request.open(emulated, emulated=True, lanes=request.lanes) as session:
        del emulated
        gc.collect()  # graphs hold cycles
        stream = Stream(session, layers, truths, request)
        name, spans = choose(plan, seen, stream, request)
        shifts = stream.missing(spans, request.effort.first, "bias correction")
        grids = stream.grids(spans)
    named = {str(layer.holder.name): shift.reshape(-1) for layer, shift in shifts.items()}
    biased = {} if request.rules.float_bias else stored
    plain, moved = (_quantized(model, plan, grids, biased, by, request.rules) for by in ({}, named))
    del model
    reached = {False: reached_db(plain, truths, request), True: reached_db(moved, truths, request)}
    pays = reached[True] > reached[False]
    request.found |= {"ranges": name, "bias correction": pays, REACHED: round(reached[pays], 2)}
    request.found |= {"integer nodes": len(plan.compute), "quantized activations": len(plan.points)}
    result = moved if pays else plain
    repaired = sum(weight.repaired for weight in stored.values())
    request.found["saturation"] = saturation.certificate(result.graph, repaired)
    return result


def _refuse_quantized(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear") or "Integer" in node.op_type:
            raise EdgerunError("the model is quantized already", got=f"{node.op_type} {node.name!r}",
                               wanted="a float model", do="compress the model that it was made from")  # fmt: skip


def _check_kept(model: ir.Model, request: Request) -> None:
    ops = request.rules.compute | request.rules.join | ({"Gather"} if request.rules.tables else set())
    candidates = {str(n.name) for n in model.graph if n.op_type in ops}
    for name in request.keep_float:
        if name not in candidates:
            wanted = f"the name of a {', '.join(sorted(ops))} node"
            raise EdgerunError(f"keeping {name!r} in float has no effect: it is never quantized", wanted=wanted)


@dataclass(frozen=True)
class Stored:
    """How a node's weight was stored: its grid, its output channels, whether it is all zeros, channels repaired."""

    grid: Grid
    channels: int
    dead: bool
    repaired: int


def _store_weights(
    model: ir.Model,
    plan: placement.Plan,
    seen: Mapping[str, Activation],
    rounded: Mapping[str, np.ndarray],
    request: Request,
) -> dict[str, Stored]:
    """Put every weight onto its per-channel grid, as int8; by node name. The float weights are free to go."""
    found: dict[str, Stored] = {}
    repairs = request.rules.reduced_range
    for node in plan.weights:
        weight = edit.constant(node.inputs[1])
        assert weight is not None
        axis = placement.weight_axis(node)
        bounds = grid.channel_bounds(finite(node, weight), axis)
        power = seen[str(node.inputs[0].name)].channels.power  # type: ignore[union-attr]
        steps, could = saturation.repair(node, weight, power) if repairs else (127, 0)
        own = grid.symmetric(bounds, axis=axis, steps=steps)
        found[str(node.name)] = Stored(own, weight.shape[axis], not weight.any(), could)
        codes = rounded.get(str(node.name))
        if codes is None:
            codes = own.quantize(weight)
        qdq.store_weight(model.graph, node, own, saturation.fitted(node, codes) if repairs else codes)
    return found


def _emulated(model: ir.Model, plan: placement.Plan, request: Request) -> ir.Model:
    """A clone that computes in float what the quantized model will, with every grid and layer mean as an input."""
    result = model.clone()
    own = plan.on(result.graph)
    correction.add_shifts(result.graph, {str(node.name): node for node in result.graph}, plan, own)
    qdq.insert_open_points(result.graph, own, request.rules.activation)
    return result


def _quantized(
    model: ir.Model,
    planned: placement.Plan,
    grids: Mapping[str, Grid],
    stored: Mapping[str, Stored],
    shifts: Mapping[str, np.ndarray],
    rules: Quantization,
) -> ir.Model:
    """A Q/DQ clone of the `model` with stored weights, biases moved by `shifts`; as int32 at the nodes in `stored`."""
    result = model.clone()
    graph, plan = result.graph, planned.on(result.graph)
    correction.move(graph, plan, shifts)
    scale = {str(value.name): grids[group].scale for value, group in plan.points.items()}
    for node in plan.weights:
        if str(node.name) not in stored or node.op_type == "MatMul" or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        weight, input_scale = stored[str(node.name)], scale[str(node.inputs[0].name)]  # type: ignore[union-attr]
        bias = edit.row_bias(node, weight.channels)
        assert bias is not None
        wide = grid.widen(weight.grid, bias, input_scale, dead=weight.dead)
        if not np.array_equal(wide.scale, weight.grid.scale):
            qdq.rescale_weight(graph, node, weight.grid, wide)
        qdq.store_bias(graph, node, bias, input_scale, wide)
    qdq.absorb(graph, plan, grids)
    qdq.insert_points(graph, plan, grids)
    if rules.channel_scales:
        factors.fold(graph)
    edit.drop_unused(result)
    return result


def reached_db(quantized: ir.Model, truths: list[Truth], request: Request) -> float:
    """SQNR (dB) of a finished model against the float one, on calibration data."""
    totals = dict.fromkeys(truths[0].outputs, Difference())
    with request.open(quantized, lanes=request.lanes) as session:
        pairs = zip(batches(request, request.effort.check, "check"), truths, strict=False)
        for (_, truth), out in in_lanes(lambda pair: session.run(pair[0]), pairs, request.lanes):
            totals = {name: total + Difference.of(truth.outputs[name], out[name]) for name, total in totals.items()}
    return decibels(totals)
