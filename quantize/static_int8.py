"""Static INT8: per-channel weights, per-tensor activations from calibration, equalized, bias corrected, and checked.

Each stage is kept only if it pays on the calibration data: the range estimator is the one whose quantized stream is
nearest to the float one at the model's outputs, and bias correction stays when the finished model is nearer with it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.errors import EdgerunError, Unsupported
from edgerun.metrics import Difference
from edgerun.quantize import fold
from edgerun.quantize.graphs import correction, edit, equalize, placement, qdq, statistics
from edgerun.quantize.graphs.statistics import Channels, Observed
from edgerun.quantize.numerics import grid, ranges
from edgerun.quantize.numerics.grid import Grid

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Feeds, Request

summary = "static INT8 (Q/DQ): per-channel weights, per-tensor activations, equalized and bias corrected"
needs_calibration = True
scheme = "w8a8"

SAMPLE_BUDGET = 1 << 16  # elements kept of each activation
SAMPLE_SAMPLES, SEARCH_SAMPLES, CORRECT_SAMPLES = 32, 8, 48
CAP_SLACK = 1.25
SEARCH = ("minmax", "shrink90", "shrink80", "mse", "percentile")  # what `auto` tries, in this order


@dataclass(frozen=True)
class Truth:
    """What the float model computes on a batch: its outputs, and each correctable layer's mean."""

    feeds: Feeds
    outputs: dict[str, np.ndarray]
    means: dict[str, np.ndarray]


def apply(model: ir.Model, request: Request) -> ir.Model:
    """Quantize `model`. Raises Unsupported when nothing in it has an integer kernel on the target."""
    _refuse_quantized(model)
    fold.apply(model)
    gc.collect()
    _check_kept(model, request)
    if not placement.plan(model.graph, request.rules, request.keep_float).compute:
        wanted = f"float32 {', '.join(sorted(request.rules.compute))} with constant weights"
        raise Unsupported("nothing in this model runs on integers on the target", wanted=wanted)
    channels = _equalize(model, request)
    plan = placement.plan(model.graph, request.rules, request.keep_float)
    observed = _observe(model, plan, channels, request)
    truths = _truths(model, plan, request)
    name, grids = _choose(model, plan, observed, truths, request)
    _, shifts = _stream(model, plan, grids, truths, "bias correction", request)
    plain, moved = _quantized(model, grids, {}, request), _quantized(model, grids, shifts, request)
    reached = {False: _sqnr(plain, truths, request), True: _sqnr(moved, truths, request)}
    pays = reached[True] > reached[False]
    request.found |= {"ranges": name, "bias correction": pays, "calibration SQNR (dB)": round(reached[pays], 2)}
    request.found |= {"integer nodes": len(plan.compute), "quantized activations": len(plan.points)}
    return moved if pays else plain


def _refuse_quantized(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear") or "Integer" in node.op_type:
            raise EdgerunError("the model is quantized already", got=f"{node.op_type} {node.name!r}",
                               wanted="a float model", do="compress the model that it was made from")  # fmt: skip


def _check_kept(model: ir.Model, request: Request) -> None:
    candidates = {str(n.name) for n in model.graph if n.op_type in request.rules.compute | request.rules.join}
    for name in request.keep_float:
        if name not in candidates:
            wanted = f"the name of a {', '.join(sorted(request.rules.compute | request.rules.join))} node"
            raise EdgerunError(f"keeping {name!r} in float has no effect: it is never quantized", wanted=wanted)


def _batches(request: Request, samples: int | None, stage: str) -> Iterator[Feeds]:
    """Calibration batches, `samples` of them at most counted in rows, reporting progress after each."""
    assert request.calibration is not None
    seen = 0
    for feeds in request.calibration:
        yield feeds
        seen += _rows(feeds)
        request.progress(stage, seen, samples or 0)
        if samples is not None and seen >= samples:
            return


def _rows(feeds: Feeds) -> int:
    first = next(iter(feeds.values()))
    return int(first.shape[0]) if first.ndim else 1


def _equalize(model: ir.Model, request: Request) -> dict[str, Channels]:
    """Observe every point on all calibration data, rescale what can be rescaled; the extremes of the result by name."""
    plan = placement.plan(model.graph, request.rules, request.keep_float)
    names = [str(value.name) for value in plan.points]
    with request.open(statistics.with_channel_probes(model, names)) as session:
        seen = statistics.observe_channels(session.run, _batches(request, None, "ranges"), names)
    for name, channels in seen.items():
        if not np.isfinite([channels.low, channels.high, channels.power]).all():
            raise EdgerunError(f"activation {name!r} is not finite on the calibration data",
                               do="check the preprocessing; run the float model on the same data")  # fmt: skip
    changed, factors = equalize.equalize(model.graph, equalize.chains(model.graph), seen)
    fold.infer_shapes(model)
    request.found["equalized"] = changed
    return {name: channels.scaled(factors[name]) if name in factors else channels for name, channels in seen.items()}


def _observe(
    model: ir.Model, plan: placement.Plan, channels: Mapping[str, Channels], request: Request
) -> dict[str, Observed]:
    """Add to the extremes of all data a sample from part of it, for the estimators that look at more than extremes."""
    names = [str(value.name) for value in plan.points]
    per_batch = SAMPLE_BUDGET // SAMPLE_SAMPLES
    with request.open(statistics.with_samples(model, names, per_batch)) as session:
        samples = statistics.sample(session.run, _batches(request, SAMPLE_SAMPLES, "samples"), names)
    return {
        name: Observed(float(channels[name].low.min()), float(channels[name].high.max()), samples[name])
        for name in names
    }


def _grids(plan: placement.Plan, observed: Mapping[str, Observed], estimator: str, dtype: str) -> dict[str, Grid]:
    """One grid per scale group; a cap (Clip, per-channel Min) ends the range, so that the quantizer can do its work."""
    grids: dict[str, Grid] = {}
    for group, values in plan.groups().items():
        seen = [observed[str(value.name)] for value in values]
        sample = np.concatenate([s.sample for s in seen])
        low, high = ranges.ESTIMATORS[estimator](min(s.low for s in seen), max(s.high for s in seen), sample)
        cap = min(qdq.upper(value.producer()) for value in values)
        # A cap per channel that lies far below what other channels reach is no end for the whole tensor.
        grids[group] = grid.asymmetric(low, min(high, cap) if high <= CAP_SLACK * cap else high, dtype)
    return grids


def _truths(model: ir.Model, plan: placement.Plan, request: Request) -> list[Truth]:
    """The float model on the batches that the search, the correction and the check share."""
    names = _numeric_outputs(model)
    found: list[Truth] = []
    with request.open(correction.with_means(model, plan)) as session:
        for feeds in _batches(request, CORRECT_SAMPLES, "float reference"):
            out = session.run(feeds)
            means = {name: array for name, array in out.items() if name.startswith(correction.MEANS)}
            found.append(Truth(feeds, {name: out[name] for name in names}, means))
    return found


def _numeric_outputs(model: ir.Model) -> list[str]:
    """The outputs that have an SQNR. Raises Unsupported when there is none."""
    import onnx_ir as ir

    names = [str(value.name) for value in model.graph.outputs if value.dtype != ir.DataType.STRING]
    if not names:
        raise Unsupported("the model has no numeric output to compare", do="add the scores as an output")
    return names


def _choose(
    model: ir.Model,
    plan: placement.Plan,
    observed: Mapping[str, Observed],
    truths: Sequence[Truth],
    request: Request,
) -> tuple[str, dict[str, Grid]]:
    """The estimator (asked for, or the best of SEARCH on a few samples) and its grids."""
    dtype = request.rules.activation
    if request.ranges != "auto":
        return request.ranges, _grids(plan, observed, request.ranges, dtype)
    few = truths[: max(1, -(-SEARCH_SAMPLES // _rows(truths[0].feeds)))]
    tried: dict[str, float] = {}
    for name in SEARCH:
        # Tighter ranges have stopped paying: a still tighter one will not start to.
        if name == "shrink80" and tried["shrink90"] < tried["minmax"]:
            continue
        grids = _grids(plan, observed, name, dtype)
        tried[name], _ = _stream(model, plan, grids, few, f"trying {name}", request)
    best = max(tried, key=lambda key: tried[key])
    request.found["tried (dB)"] = {name: round(db, 2) for name, db in tried.items()}
    return best, _grids(plan, observed, best, dtype)


def _stream(
    model: ir.Model,
    plan: placement.Plan,
    grids: Mapping[str, Grid],
    truths: Sequence[Truth],
    stage: str,
    request: Request,
) -> tuple[float, dict[str, np.ndarray]]:
    """SQNR (dB) of the corrected quantized stream, and the mean shift by bias holder's name."""
    weights = {str(node.name): grid.dequantize(grid.quantize(w)) for node, w, grid in _weights(plan, request)}
    found = correction.layers(plan)
    shifts = {str(layer.holder.name): np.zeros(1) for layer in found}
    totals = dict.fromkeys(truths[0].outputs, Difference())
    rows = [_rows(truth.feeds) for truth in truths]
    with request.open(correction.corrected(model, plan, grids, weights, rows[0])) as session:
        del weights
        gc.collect()  # graphs hold cycles; the session has its own copy of what this one held
        for index, truth in enumerate(truths):
            out = session.run({**truth.feeds, **truth.means})
            for layer in found:
                share = rows[index] / sum(rows)
                shifts[str(layer.holder.name)] = shifts[str(layer.holder.name)] + share * out[layer.shift].reshape(-1)
            totals = {name: total + Difference.of(truth.outputs[name], out[name]) for name, total in totals.items()}
            request.progress(stage, sum(rows[: index + 1]), sum(rows))
    return _decibels(totals), shifts


def _decibels(totals: Mapping[str, Difference]) -> float:
    """The mean over outputs; an exact output counts as 120 dB."""
    return float(np.mean([min(total.sqnr_db, 120.0) for total in totals.values()]))


def _weights(plan: placement.Plan, request: Request) -> Iterator[tuple[ir.Node, np.ndarray, Grid]]:
    """Each weighted node with its float weight and its per-channel grid."""
    for node in plan.weights:
        weight = edit.constant(node.inputs[1])
        assert weight is not None
        axis = placement.weight_axis(node)
        bounds = grid.channel_bounds(weight, axis)
        if not np.isfinite(bounds).all():
            raise EdgerunError(f"the weight of {node.name!r} is not finite", do="repair the float model")
        yield node, weight, grid.symmetric(bounds, axis=axis, steps=63 if request.rules.reduced_range else 127)


def _quantized(
    model: ir.Model, grids: Mapping[str, Grid], shifts: Mapping[str, np.ndarray], request: Request
) -> ir.Model:
    """A Q/DQ clone of the float `model`, with biases moved by `shifts`."""
    result = model.clone()
    graph = result.graph
    plan = placement.plan(graph, request.rules, request.keep_float)
    if shifts:
        for layer in correction.layers(plan):
            bias = edit.constant(layer.bias)
            moved = shifts[str(layer.holder.name)] + (0.0 if bias is None else bias.reshape(-1))
            edit.set_constant(
                graph, layer.holder, layer.index, moved.astype(np.float32), name=f"{layer.holder.name}/bias"
            )
    scale = {str(value.name): grids[group].scale for value, group in plan.points.items()}
    for node, weight, weight_grid in list(_weights(plan, request)):
        input_scale = scale[str(node.inputs[0].name)]  # type: ignore[union-attr]
        if node.op_type != "MatMul" and len(node.inputs) > 2 and node.inputs[2] is not None:
            bias = edit.row_bias(node, weight.shape[placement.weight_axis(node)])
            assert bias is not None
            weight_grid = grid.widen(weight_grid, bias, input_scale, dead=not weight.any())
            qdq.store_bias(graph, node, bias, input_scale, weight_grid)
        qdq.store_weight(graph, node, weight_grid, weight_grid.quantize(weight))
    qdq.absorb(graph, plan, grids)
    qdq.insert_points(graph, plan, grids)
    edit.drop_unused(result)
    return result


def _sqnr(quantized: ir.Model, truths: Sequence[Truth], request: Request) -> float:
    """SQNR (dB) of a finished model against the float one, on calibration data."""
    totals = dict.fromkeys(truths[0].outputs, Difference())
    with request.open(quantized) as session:
        for truth in truths:
            out = session.run(truth.feeds)
            totals = {name: total + Difference.of(truth.outputs[name], out[name]) for name, total in totals.items()}
    return _decibels(totals)
