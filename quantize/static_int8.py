"""Static INT8: per-channel weights, per-tensor activations from calibration, equalized, bias corrected, and checked.

Each stage is kept only if it pays on the calibration data: the range estimator is the one whose quantized stream is
nearest to the float one at the model's outputs, and bias correction stays when the finished model is nearer with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgerun.errors import EdgerunError, Unsupported
from edgerun.metrics import Difference
from edgerun.quantize import fold
from edgerun.quantize.graphs import edit, equalize, placement, qdq, statistics, twin
from edgerun.quantize.numerics import grid, ranges
from edgerun.quantize.numerics.grid import Grid

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Feeds, Request

summary = "static INT8 (Q/DQ): per-channel weights, per-tensor activations, equalized and bias corrected"
needs_calibration = True
scheme = "w8a8"

SAMPLE_BUDGET = 1 << 18  # elements kept of each activation over all batches
EQUALIZE_SAMPLES, SEARCH_SAMPLES, CORRECT_SAMPLES, PROOF_SAMPLES = 16, 8, 32, 16
SEARCH = ("minmax", "shrink90", "shrink80", "mse", "percentile")  # what `auto` tries, in this order


def apply(model: ir.Model, request: Request) -> ir.Model:
    """Quantize `model`. Raises Unsupported when nothing in it has an integer kernel on the target."""
    fold.apply(model)
    _equalize(model, request)
    plan = placement.plan(model.graph, request.rules, request.keep_float)
    if not plan.compute:
        wanted = ", ".join(sorted(request.rules.compute))
        raise Unsupported(
            "nothing in this model runs on integers on the target", wanted=f"float32 {wanted} with constant weights"
        )
    observed = _observe(model, plan, request)
    name, grids, shifts = _choose(model, plan, observed, request)
    plain = _quantized(model, grids, None, request)
    corrected = _quantized(model, grids, shifts, request)
    reached = {"plain": _sqnr(model, plain, request), "bias corrected": _sqnr(model, corrected, request)}
    kept = max(reached, key=lambda key: reached[key])
    request.found |= {
        "ranges": name,
        "bias correction": kept != "plain",
        "calibration SQNR (dB)": round(reached[kept], 2),
    }
    request.found |= {"integer nodes": len(plan.compute), "quantized activations": len(plan.points)}
    return plain if kept == "plain" else corrected


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


def _equalize(model: ir.Model, request: Request) -> None:
    plan = placement.plan(model.graph, request.rules, request.keep_float)
    chains = equalize.chains(model.graph)
    tied = {value.name for chain in chains for value in chain.values}
    names = [str(value.name) for value in plan.points if value.name in tied]
    if not names:
        return
    with request.open(statistics.with_channel_probes(model, names)) as session:
        batches = _batches(request, EQUALIZE_SAMPLES, "channels")
        changed = equalize.equalize(model.graph, chains, *statistics.observe_channels(session.run, batches, names))
    fold.infer_shapes(model)
    request.found["equalized"] = changed


def _observe(model: ir.Model, plan: placement.Plan, request: Request) -> dict[str, statistics.Observed]:
    names = [str(value.name) for value in plan.points]
    total = len(request.calibration or ())
    per_batch = max(statistics.LEAST, SAMPLE_BUDGET // max(total, 1))
    with request.open(statistics.with_probes(model, names, per_batch)) as session:
        observed = statistics.observe(session.run, _batches(request, None, "ranges"), names)
    for name, seen in observed.items():
        if not np.isfinite([seen.low, seen.high]).all():
            raise EdgerunError(f"activation {name!r} is not finite on the calibration data", got=(seen.low, seen.high),
                               do="check the preprocessing; run the float model on the same data")  # fmt: skip
    return observed


def _grids(
    plan: placement.Plan, observed: Mapping[str, statistics.Observed], estimator: str, dtype: str
) -> dict[str, Grid]:
    """One grid per scale group; a cap (Clip, per-channel Min) ends the range, so that the quantizer can do its work."""
    grids: dict[str, Grid] = {}
    for group, values in plan.groups().items():
        seen = [observed[str(value.name)] for value in values]
        sample = np.concatenate([s.sample for s in seen])
        low, high = ranges.ESTIMATORS[estimator](min(s.low for s in seen), max(s.high for s in seen), sample)
        cap = min(qdq.upper(value.producer()) for value in values)
        grids[group] = grid.asymmetric(low, min(high, cap), dtype)
    return grids


def _choose(
    model: ir.Model, plan: placement.Plan, observed: Mapping[str, statistics.Observed], request: Request
) -> tuple[str, dict[str, Grid], dict[str, np.ndarray]]:
    """The estimator (asked for, or the best of SEARCH), its grids, and each layer's bias shift by its bias holder."""
    names = SEARCH if request.ranges == "auto" else (request.ranges,)
    weights = {str(node.name): grid.dequantize(grid.quantize(w)) for node, w, grid in _weights(plan)}
    dtype = request.rules.activation
    tried: dict[str, float] = {}
    for name in names if len(names) > 1 else ():
        grids = _grids(plan, observed, name, dtype)
        tried[name], _ = _twin(model, plan, grids, weights, SEARCH_SAMPLES, f"trying {name}", request)
        if name.startswith("shrink") and tried[name] < max(tried.values()):
            # Tighter ranges have stopped paying: a still tighter one will not either.
            tried |= {later: -np.inf for later in names if later.startswith("shrink") and later not in tried}
    best = max(tried, key=lambda key: tried[key]) if tried else names[0]
    if tried:
        request.found["tried (dB)"] = {name: round(db, 2) for name, db in tried.items() if np.isfinite(db)}
    grids = _grids(plan, observed, best, dtype)
    _, shifts = _twin(model, plan, grids, weights, CORRECT_SAMPLES, "bias correction", request)
    return best, grids, shifts


def _twin(
    model: ir.Model, plan: placement.Plan, grids: Mapping[str, Grid], weights: Mapping[str, np.ndarray], samples: int,
    stage: str, request: Request,
) -> tuple[float, dict[str, np.ndarray]]:  # fmt: skip
    """SQNR (dB, mean over outputs) of the corrected quantized stream, and the mean shift by bias holder's name."""
    built = twin.build(model, plan, grids, weights)
    totals = [Difference() for _ in built.outputs]
    sums: dict[str, np.ndarray] = {}
    count = 0
    with request.open(built.model) as session:
        for feeds in _batches(request, samples, stage):
            out = session.run(feeds)
            for holder, probe in built.shifts.items():
                sums[holder] = sums.get(holder, np.float64(0)) + out[probe].reshape(-1).astype(np.float64) * _rows(
                    feeds
                )
            totals = [t + Difference.of(out[a], out[b]) for t, (a, b) in zip(totals, built.outputs, strict=True)]
            count += _rows(feeds)
    return _decibels(totals), {holder: total / count for holder, total in sums.items()}


def _decibels(totals: list[Difference]) -> float:
    """The mean over outputs; an exact output counts as 120 dB."""
    return float(np.mean([min(total.sqnr_db, 120.0) for total in totals]))


def _weights(plan: placement.Plan) -> Iterator[tuple[ir.Node, np.ndarray, Grid]]:
    """Each weighted node with its float weight and its per-channel grid."""
    for node in plan.weights:
        weight = edit.constant(node.inputs[1])
        assert weight is not None
        axis = placement.weight_axis(node)
        yield node, weight, grid.symmetric(grid.channel_bounds(weight, axis), axis=axis)


def _quantized(
    model: ir.Model, grids: Mapping[str, Grid], shifts: Mapping[str, np.ndarray] | None, request: Request
) -> ir.Model:
    """A Q/DQ clone of the float `model`, with biases moved by `shifts`."""
    result = model.clone()
    graph = result.graph
    plan = placement.plan(graph, request.rules, request.keep_float)
    if shifts:
        for layer in twin.correctable(plan):
            bias = edit.constant(layer.bias)
            moved = shifts[str(layer.holder.name)] + (0.0 if bias is None else bias)
            edit.set_constant(
                graph, layer.holder, layer.index, moved.astype(np.float32), name=f"{layer.holder.name}/bias"
            )
    scale = {str(value.name): grids[group].scale for value, group in plan.points.items()}
    for node, weight, weight_grid in list(_weights(plan)):
        input_scale = scale[str(node.inputs[0].name)]  # type: ignore[union-attr]
        bias = edit.constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is not None:
            weight_grid = grid.widen(weight_grid, bias.reshape(-1), input_scale)
            qdq.store_bias(graph, node, bias.reshape(-1), input_scale, weight_grid)
        qdq.store_weight(graph, node, weight_grid, weight_grid.quantize(weight))
    qdq.absorb(graph, plan, grids)
    qdq.insert_points(graph, plan, grids)
    edit.drop_unused(result)
    return result


def _sqnr(model: ir.Model, quantized: ir.Model, request: Request) -> float:
    """SQNR (dB, mean over outputs) of the finished model against the float one, on calibration data."""
    names = [str(value.name) for value in model.graph.outputs]
    totals = [Difference() for _ in names]
    with request.open(model) as reference, request.open(quantized) as session:
        for feeds in _batches(request, PROOF_SAMPLES, "checking"):
            wanted, got = reference.run(feeds), session.run(feeds)
            totals = [t + Difference.of(wanted[n], got[n]) for t, n in zip(totals, names, strict=True)]
    return _decibels(totals)
