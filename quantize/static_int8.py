"""Static INT8: per-channel weights, per-tensor activations from calibration, equalized, bias corrected, and checked.

Each stage is kept only if it pays on the calibration data: the range estimator is the one whose emulated model is
nearest to the float one at its outputs, and bias correction stays when the finished model is nearer with it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize import (
    _finished,
    _inputs,
    _masked,
    _observation,
    _precision,
    _reached,
    _refused,
    _rest,
    _rounding,
    _sequences,
    _steps,
    _without,
    fold,
    weight_int8,
)
from edgerun.quantize._as_qdq import quantized
from edgerun.quantize._observation import Truth, observe
from edgerun.quantize._precision import Cheap, Lost, Placed, Stored
from edgerun.quantize._prepared import Observed, Prepared
from edgerun.quantize._ranges import checked, choose, corrected_on, intervals, reported
from edgerun.quantize._stream import Begun, Stream, Totals, grids_over
from edgerun.quantize._weights import finite
from edgerun.quantize.graphs import correction, edit, flatten, gelus, lattice, placement, qdq, reach, saturation
from edgerun.quantize.graphs.activation import Activation
from edgerun.quantize.graphs.work import integers as integers
from edgerun.quantize.numerics import grid
from edgerun.quantize.numerics.grid import Grid

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Quantization, Request

summary = "static INT8 (Q/DQ): per-channel weights, per-tensor activations, equalized and bias corrected; INT8 tables"
needs_calibration = True
scheme = "w8a8"


def apply(model: ir.Model, request: Request) -> ir.Model:
    """Quantize `model`. Raises Unsupported when nothing in it has an integer kernel on the target."""
    return finish(prepare(model, request), request)


def prepare(model: ir.Model, request: Request, makes: _without.Makes | None = None) -> Prepared:
    """Fold, run the float model over the calibration data once, equalize, and round weights to the second order.

    Where the effort tries each step without, `makes` finish the models that are compared (None: as INT8).
    """
    _refused.quantized(model)
    folded(model, request.rules)
    gc.collect()
    _refused.kept_in_vain(model, request)
    _masked.raised(model, request)
    plan = placement.plan(model.graph, request.rules, request.keep_float)
    original = model.clone() if _sequences.found(model.graph, request.keep_float) else None
    if not plan.compute:
        if original is not None:
            return Prepared(model, original, {}, [], {})
        raise _refused.nothing(model, request)
    own = _inputs.aligned(model, plan, request)
    plan = placement.plan(model.graph, request.rules, request.keep_float)
    seen, fit, truths = observe(model, plan, request, vectors=_rounding.wanted(plan, request))
    request.telling = _observation.telling(truths)
    request = replace(request, keep_float=request.keep_float | plan.thin)  # nothing was seen of what these read
    for told in (seen, fit):
        told |= {name: told[name].within(*ends) for name, ends in reach.ends(plan, told).items()} if told else {}
        told |= _inputs.exact(told, own)
    _observation.tell_coverage({str(v.name): seen[str(v.name)] for v in plan.points}, request)
    makes = makes or _without.Makes(_all_placed, _plain)
    return replace(_without.prepared(Observed(model, original, seen, truths, fit), makes, request), left=plan.thin)


def folded(model: ir.Model, rules: Quantization) -> ir.Model:
    """`model` itself as it is placed on: folded, and its products in the form that the target is fastest with."""
    fold.apply(model)
    if rules.fast_gelu:
        gelus.join(model)
    if flatten.apply(model.graph, rules):
        edit.drop_unused(model)
        fold.infer_shapes(model)
    return model


def finish(prepared: Prepared, request: Request) -> ir.Model:
    """Choose ranges, correct biases, and write the integers; `prepared.model` is consumed."""
    own = replace(request, keep_float=request.keep_float | prepared.left)
    model = _placed(prepared, own) if prepared.truths else prepared.model
    if prepared.original is not None:
        model = _sequences.apply(prepared.original, model, own, prepared.settled)
    request.evidence = own.evidence
    return _rest.narrowed(model, prepared.truths, request) if prepared.truths else model


def _all_placed(prepared: Prepared, request: Request) -> ir.Model:
    return _placed(prepared, request, spare=False)


def _plain(prepared: Prepared, request: Request) -> ir.Model:
    """With grids over the extremes, weights rounded to nearest, and biases moved by what that takes of known means."""
    model, seen, rules = prepared.model, prepared.seen, request.rules
    plan = placement.plan(model.graph, rules, request.keep_float)
    convolutions = [node for node in plan.weights if node.op_type == "Conv"]
    taken = {str(node.name): correction.over_taps(edit.constant(node.inputs[1])) for node in convolutions}
    read = {str(node.inputs[0].name) for node in convolutions}  # type: ignore[union-attr]
    stored = _store_weights(model, plan, seen, {}, request)
    for node in convolutions:
        taken[str(node.name)] -= correction.over_taps(qdq.stored_weight(node), stored[str(node.name)].grid.scale)
    means = {name: seen[name].unbiased for name in read if name in seen and seen[name].axis == 1}
    return _at_extremes(Placed(model, plan, stored), seen, correction.expected(plan, means, taken), request)


def _at_extremes(
    placed: Placed, seen: Mapping[str, Activation], shifts: Mapping[str, np.ndarray], request: Request
) -> ir.Model:
    """The Q/DQ model, with grids over the extremes; `placed.model` is consumed."""
    rules = request.rules
    spans = intervals(placed.plan, seen, "minmax", rules.symmetric, rules.mirrored)
    stored = {} if rules.float_bias else placed.stored
    return quantized(placed.model, placed.plan, grids_over(spans, request), stored, shifts, rules)


def _placed(prepared: Prepared, request: Request, *, spare: bool = True) -> ir.Model:
    """The model with what stands in the placement on integers, but for those to `spare` where it is far off."""
    model, seen, truths = prepared.model, prepared.seen, prepared.truths
    tables = weight_int8.tables(model.graph, request.keep_float) if request.rules.tables else 0
    request.found["tables in 8 bits"] = tables
    plan = placement.plan(model.graph, request.rules, request.keep_float)
    lattice.given_back(model.graph, plan)
    cheap = Cheap.of(model, plan, request)
    made = Placed(model, plan, _store_weights(model, plan, seen, prepared.codes, request))
    del model
    begun: Begun = {}
    with _streaming(made, truths, request, begun) as stream:
        lost = cheap.needed(plan, seen, stream, request) if spare else None
        settled = None if lost is not None else _settled(made.plan, seen, stream, request)
    if settled is None:
        assert lost is not None

        def judge(spared: Placed, own: Request, beside: Lost) -> list[Totals]:
            with _streaming(spared, truths, own, begun) as stream:
                return _precision.reached(spared.plan, seen, stream, own, beside.samples, beside.scores)

        def plain(placed: Placed) -> ir.Model:
            return _at_extremes(placed, seen, {}, request)

        made = cheap.free(made, lost, judge, plain, request) or cheap.spared(made, lost, judge, request)
        kept = frozenset(request.found.get("float layers", ()))  # what is known of ranges is of one placement
        with _streaming(made, truths, replace(request, keep_float=request.keep_float | kept), begun) as stream:
            settled = _settled(made.plan, seen, stream, request)
    samples = checked(seen, truths, request), reported(seen, truths, request) if spare else 0
    return _written(made, *settled, truths, samples, request, more=spare)


@contextmanager
def _streaming(made: Placed, truths: list[Truth], request: Request, begun: Begun) -> Iterator[Stream]:
    """The emulation of a placement, open."""
    layers, emulated = correction.layers(made.plan), _emulated(made.model, made.plan, request)
    with request.open(emulated, emulated=True, lanes=request.lanes) as session:
        del emulated
        gc.collect()  # graphs hold cycles
        yield Stream(session, layers, truths, request, begun)


def _settled(
    plan: placement.Plan, seen: Mapping[str, Activation], stream: Stream, request: Request
) -> tuple[dict[str, Grid], dict[str, np.ndarray]]:
    """The grid of every scale group, and how far each layer's bias is to be moved, by the name of what holds it."""
    name, spans = choose(plan, seen, stream, request)
    request.found["ranges"] = name
    shifts = stream.missing(spans, corrected_on(seen, stream, request), "bias correction")
    by_name = {str(layer.holder.name): shift.reshape(-1) for layer, shift in shifts.items()}
    return stream.grids(spans), correction.together(plan, by_name)


def _written(
    made: Placed,
    grids: dict[str, Grid],
    shifts: dict[str, np.ndarray],
    truths: list[Truth],
    samples: tuple[int, int],
    request: Request,
    more: bool,
) -> ir.Model:
    """The Q/DQ model, with the biases moved or not, as is nearer to the float one on the first `samples`; what it
    reaches is looked at on the second of them, and on `more`, where they are known."""
    biased = {} if request.rules.float_bias else made.stored

    def finished(by: dict[str, np.ndarray]) -> ir.Model:
        return _rest.stored(quantized(made.model.clone(), made.plan, grids, biased, by, request.rules), request)

    plain, moved = finished({}), finished(shifts)
    found = _finished.compared((plain, moved), truths, *samples, request)
    pays, n = found.pays, found.samples
    result = moved if pays else plain
    known = [*found.scores, *(_finished.later(result, truths, request) if more else ())]
    _reached.tell(made.model.graph, known, request, _finished.judge(truths, max(samples), request))
    _steps.tell(request, _steps.BIAS, found.gain, found.surely, n=n, measured=_steps.OUTPUT, kept=pays)
    request.found |= {
        "bias correction": pays,
        "integer nodes": len(made.plan.compute),
        "quantized activations": len(made.plan.points),
    }
    repaired = sum(weight.repaired for weight in made.stored.values())
    request.found["saturation"] = saturation.certificate(result.graph, repaired, request.rules.paired)
    return result


def _store_weights(
    model: ir.Model,
    plan: placement.Plan,
    seen: Mapping[str, Activation],
    rounded: Mapping[str, np.ndarray],
    request: Request,
) -> dict[str, Stored]:
    """Put every weight onto its per-channel grid, as int8, once for all layers that share it; by node name.

    The float weights are free to go.
    """
    found: dict[str, Stored] = {}
    repairs = request.rules.reduced_range
    before = lattice.taken(model.graph)
    for nodes in plan.sharing():
        node = nodes[0]
        weight = edit.constant(node.inputs[1])
        assert weight is not None
        axis = placement.weight_axis(node)
        bounds = grid.channel_bounds(finite(node, weight), axis)
        steps, could = saturation.repair(node, weight, _power(nodes, seen)) if repairs else (127, 0)
        own = grid.symmetric(bounds, axis=axis, steps=steps)
        found |= {str(n.name): Stored(own, weight.shape[axis], not weight.any(), could) for n in nodes}
        codes = rounded.get(str(node.name))
        if codes is None:
            codes = own.quantize(weight)
        qdq.store_weight(model.graph, nodes, own, saturation.fitted(node, codes) if repairs else codes)
    lattice.settle(model.graph, before)
    return found


def _power(nodes: list[ir.Node], seen: Mapping[str, Activation]) -> np.ndarray | None:
    """E[x²] by channel of what `nodes` read, all alike; None where they have not the same channels."""
    powers = [seen[str(node.inputs[0].name)].channels.power for node in nodes]  # type: ignore[union-attr]
    if any(power.shape != powers[0].shape for power in powers):
        return None
    mean: np.ndarray = np.mean(powers, axis=0)
    return mean


def _emulated(model: ir.Model, plan: placement.Plan, request: Request) -> ir.Model:
    """A clone that computes in float what the quantized model will, with every grid and layer mean as an input."""
    result = model.clone()
    own = plan.on(result.graph)
    correction.add_shifts(result.graph, {str(node.name): node for node in result.graph}, plan, own)
    qdq.insert_open_points(result.graph, own, request.rules.activation)
    return result
