"""Which repairs fit a cause, and what each brings when it is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.diagnosis.evidence import Evidence
from edgerun.quantize.diagnosis.trials import Measured, Trials
from edgerun.quantize.graphs import repairs, switches
from edgerun.quantize.graphs.align import Counterpart
from edgerun.quantize.graphs.edit import drop_unused
from edgerun.quantize.graphs.overflow import Risk
from edgerun.quantize.graphs.quantizers import Activation, Constant, Quantizer, Running
from edgerun.quantize.numerics import causes, equalization, grid
from edgerun.quantize.numerics.grid import Grid
from edgerun.quantize.numerics.ranges import ESTIMATORS

if TYPE_CHECKING:
    import onnx_ir as ir

TRIED_RANGES = ("minmax", "shrink90", "mse", "percentile")
ENOUGH = 0.8  # of the damage recovered: the next, dearer fix is not tried
MOVE = "move its bias"
MOVED = 1e-3  # of the largest bias: less is the rounding of an int32
FULL, REDUCED = 127, 63  # steps of an int8 weight; REDUCED keeps pairs of products inside 16 bits

# Edits a graph in place, its counterpart too; False when it does not apply there.
Edit = Callable[["ir.Graph", Counterpart], bool]


@dataclass(frozen=True)
class Fix:
    """A repair by what it does to the model, e.g. `new range (mse)`; `remake` makes the whole model anew instead.

    `trade`: it leaves something in float, or stores more bits, which the device pays for.
    """

    name: str
    edit: Edit
    remake: Callable[[], ir.Model] | None = None
    trade: bool = False


@dataclass(frozen=True)
class Tried:
    """A fix and what the whole quantized model measured with it: on the samples it was chosen on, and on others."""

    fix: Fix
    measured: Measured
    apart: Measured


@dataclass(frozen=True)
class Case:
    """What a fix needs to know: the quantized graph, its float counterpart, the evidence, and where to measure.

    `trials` find what is wrong and choose fixes; `apart` holds samples that neither saw, which say what a fix brings
    (the same, where the data has no others).
    """

    model: ir.Model
    counterpart: Counterpart
    quantizers: tuple[Quantizer, ...]
    evidence: Evidence
    trials: Trials
    apart: Trials
    weight_steps: int = FULL
    remake: Callable[[], ir.Model] | None = None


def applied(case: Case, model: ir.Model, counterpart: Counterpart, fix: Fix) -> tuple[ir.Model, Counterpart] | None:
    """Clones with the fix, or None where it does not apply (any more)."""
    if fix.remake is not None:
        return fix.remake(), counterpart
    told = model.clone()
    other = replace(counterpart, constants=dict(counterpart.constants))
    try:
        done = fix.edit(told.graph, other)
    except (KeyError, StopIteration):  # an earlier fix took the node away
        return None
    if not done:
        return None
    drop_unused(told)
    return told, other


def best(case: Case, fixes: Iterator[Fix], before: Measured, possible: float, enough: float = ENOUGH) -> Tried | None:
    """The first fix that removes `enough` of the noise that could be removed (`possible`), else the best of all."""
    found: tuple[Fix, Measured, ir.Model] | None = None
    for fix in fixes:
        made = applied(case, case.model, case.counterpart, fix)
        if made is None:
            continue
        measured = case.trials.measure(made[0])
        if found is None or measured.noise.mean() < found[1].noise.mean():
            found = fix, measured, made[0]
        if before.noise.mean() - found[1].noise.mean() >= enough * possible > 0:
            break
    if found is None:
        return None
    fix, measured, model = found
    return Tried(fix, measured, measured if case.apart is case.trials else case.apart.measure(model))


def for_cause(case: Case, quantizer: Quantizer, cause: str) -> Iterator[Fix]:
    """The repairs of a quantizer for that cause, the cheapest for the device first.

    Where biases of the layers behind were moved, each also with the float model's: a bias that was corrected for a
    fault is wrong without it.
    """
    near = moved_biases(case.quantizers, case.counterpart, quantizer)
    every = moved_biases(case.quantizers, case.counterpart)
    for fix in _of_cause(case, quantizer, cause):
        yield fix
        if near and cause != causes.ROUNDING:
            yield _restored(fix, near, "the float bias behind")
            yield _restored(fix, every, "all biases the float model's")


def moved_biases(
    quantizers: Sequence[Quantizer], counterpart: Counterpart, of: Quantizer | None = None
) -> list[Constant]:
    """The biases that are not the float model's: of the layers that read an activation or hold a weight, or of all."""
    layers: Sequence[str] = ()
    if of is not None:
        layers = of.readers if isinstance(of, Activation | Running) else (of.layer,) if of.kind == "weight" else ()
    found = []
    for q in quantizers:
        meant = isinstance(q, Constant) and q.kind == "bias" and (of is None or q.layer in layers)
        if meant and isinstance(q, Constant) and q.key in counterpart.constants:
            apart = np.abs(counterpart.constants[q.key] - q.values).max(initial=0.0)
            if apart > MOVED * np.abs(q.values).max(initial=0.0):
                found.append(q)
    return found


def _restored(fix: Fix, biases: Sequence[Constant], name: str) -> Fix:
    def edit(graph: ir.Graph, counterpart: Counterpart) -> bool:
        if not fix.edit(graph, counterpart):
            return False
        for bias in biases:
            repairs.set_bias(graph, bias.layer, bias.index, counterpart.constants[bias.key])
        return True

    return replace(fix, name=f"{fix.name}, {name}", edit=edit)


def _of_cause(case: Case, quantizer: Quantizer, cause: str) -> Iterator[Fix]:
    if isinstance(quantizer, Activation):
        evens = cause in (causes.OUTLIER, causes.CONCAT, causes.ROUNDING)
        if evens and (fix := _equalized(case, quantizer)) is not None:
            yield fix
        if quantizer.grid.scale.size == 1:
            tried = TRIED_RANGES if cause != causes.ROUNDING else ("mse",)
            yield from (ranged(case, (quantizer,), name) for name in tried)
        yield Fix("leave it in float", lambda graph, counter: _left(graph, counter, quantizer), trade=True)
        return
    if isinstance(quantizer, Running):
        yield Fix("leave it in float", lambda graph, counter: _left(graph, counter, quantizer), trade=True)
        return
    assert isinstance(quantizer, Constant)  # `diagnosis.recurrent` has the others'
    if quantizer.kind == "bias":
        yield from _biases(case, quantizer)
        return
    weight = case.counterpart.constants.get(quantizer.key)
    if weight is not None and quantizer.index == 1:
        if cause != causes.ROUNDING:
            yield Fix("one weight scale per channel", lambda graph, counter: _stored(graph, counter, quantizer, case))
        yield Fix(MOVE, lambda graph, counter: _moved(graph, quantizer.layer, case))
        yield Fix("leave its weights in float", lambda graph, counter: _left(graph, counter, quantizer), trade=True)


def smaller_weights(case: Case, risk: Risk) -> Iterator[Fix]:
    """Half the weight steps in the channels that can saturate, no others."""

    def edit(graph: ir.Graph, counterpart: Counterpart) -> bool:
        weight = counterpart.constants[f"{risk.layer}:1"]
        steps = np.full(len(risk.step), FULL, np.float64)
        steps[risk.channels] = REDUCED
        repairs.requantize(graph, risk.layer, weight, steps)
        return True

    yield Fix(f"half the weight steps in {len(risk.channels)} channels", edit)


def grid_for(seen: causes.Seen, estimator: str, like: Grid) -> Grid:
    """A per-tensor grid for what was seen, of the kind (dtype, symmetric or not) that `like` is."""
    low, high = ESTIMATORS[estimator](seen.low, seen.high, seen.sample)
    dtype = like.zero_point.dtype.name
    if dtype == "int8" and int(like.zero_point) == 0:
        return grid.symmetric(max(-low, high), dtype)
    return grid.asymmetric(low, high, dtype)


def ranged(case: Case, activations: Sequence[Activation], estimator: str) -> Fix:
    """New ranges for `activations` from what was seen of them."""
    ranges = {a.name: grid_for(case.evidence.seen[a.name], estimator, a.grid) for a in activations}

    def edit(graph: ir.Graph, counterpart: Counterpart) -> bool:
        repairs.set_ranges(graph, ranges, activations)
        return True

    return Fix(f"new range ({estimator})", edit)


def _equalized(case: Case, activation: Activation) -> Fix | None:
    """Even the channels out: factors that fill the range with every channel."""
    channels, axis = case.evidence.channels[activation.name], case.evidence.axis[activation.name]
    if len(channels.peak) < 2 or len(activation.pairs) != 1:
        return None
    factors = 1 / np.maximum(channels.peak / max(float(channels.peak.max()), 1e-30), equalization.FLOOR)
    after = channels.scaled(factors)
    new = grid_for(
        causes.Seen(float(after.low.min()), float(after.high.max()), after.peak, np.zeros(1, np.float32), ""),
        "minmax", activation.grid,
    )  # fmt: skip

    def edit(graph: ir.Graph, counterpart: Counterpart) -> bool:
        if not repairs.equalize(graph, activation, factors.astype(np.float32), counterpart, axis):
            return False
        repairs.set_ranges(graph, {activation.name: new}, [activation])
        return True

    return Fix("even out its channels", edit)


def _left(graph: ir.Graph, counterpart: Counterpart, quantizer: Quantizer) -> bool:
    if isinstance(quantizer, Activation | Running):
        repairs.leave_float(graph, counterpart, [quantizer])
    else:
        switches.take_out(graph, counterpart, [quantizer])
    return True


def _stored(graph: ir.Graph, counterpart: Counterpart, quantizer: Constant, case: Case) -> bool:
    repairs.requantize(graph, quantizer.layer, counterpart.constants[quantizer.key], case.weight_steps)
    return True


def _biases(case: Case, quantizer: Constant) -> Iterator[Fix]:
    bias = case.counterpart.constants.get(quantizer.key)
    if bias is not None:

        def restore(graph: ir.Graph, counterpart: Counterpart) -> bool:
            repairs.set_bias(graph, quantizer.layer, quantizer.index, counterpart.constants[quantizer.key])
            return True

        yield Fix("the float model's bias", restore)
    yield Fix(MOVE, lambda graph, counter: _moved(graph, quantizer.layer, case))


def _moved(graph: ir.Graph, layer: str, case: Case) -> bool:
    """Move the layer's output onto the float mean, as measured in the model that the graph belongs to now."""
    import onnx_ir as ir

    nodes = {str(node.name): node for node in graph}
    if layer not in nodes or nodes[layer].op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return False
    now = ir.Model(graph.clone(), ir_version=case.model.ir_version)
    wanted = _means(switches.off(case.model, case.counterpart, case.quantizers), layer, case.trials)
    shift = wanted - _means(now, layer, case.trials)
    repairs.move_bias(graph, layer, shift.astype(np.float32))
    return True


def _means(model: ir.Model, layer: str, trials: Trials) -> np.ndarray:
    """Mean of a layer's output over samples and positions, per channel (axis 1) `[C]`, float64."""
    node = next(n for n in model.graph if n.name == layer)
    value = node.outputs[0]
    model.graph.outputs[:] = [value]
    drop_unused(model)
    total, count = np.zeros(1), 0
    with trials.open(model) as session:
        for feeds in trials.feeds:
            kept = {spec.name: feeds[spec.name] for spec in session.inputs}
            out = np.asarray(session.run(kept)[str(value.name)], np.float64)
            axes = tuple(i for i in range(out.ndim) if i != 1)
            total, count = total + out.sum(axis=axes), count + out.size // out.shape[1]
    return total / count
