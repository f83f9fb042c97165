"""Second-order rounding of recurrent weights: an error of R comes back in every step, so that it pays most there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize import _resumed, _spare, _steps, _weights
from edgerun.quantize.graphs import recurrent
from edgerun.quantize.graphs.edit import constant
from edgerun.quantize.numerics import gptq

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

Moments = dict[tuple[str, int, int], np.ndarray]  # X·Xᵀ [K, K] by node, input (W or R) and direction
INPUTS = 1536  # of a layer, at most


def codes(model: ir.Model, nodes: Iterable[ir.Node], request: Request, steps: int = 127) -> dict[str, np.ndarray]:
    """int8 codes like the weight, by initializer, of W and R of the recurrent layers among `nodes`.

    H = X·Xᵀ is that of the float model on the calibration data: for R of its own states, one step late. Every fourth
    batch is kept apart, and an output for which rounding to nearest loses less there keeps that. Without data, nothing.
    """
    if request.calibration is None or not request.effort.second:
        return {}
    layers = {str(node.name): node for node in nodes if _fits(model, node)}
    if not layers:
        return {}
    fit, judge = _moments(model, layers, request)
    found: dict[str, np.ndarray] = {}
    gains: list[float] = []
    for name, node in layers.items():
        for index in (recurrent.W, recurrent.R):
            weight = constant(node.inputs[index])
            assert weight is not None
            stored, scale = _weights.per_channel(_weights.finite(node, weight), (2,), steps)
            kept = lost = 0.0
            for direction, own in enumerate(weight):
                where, row = (name, index, direction), scale[direction]
                rows = recurrent.reading(node, weight.shape[2]) if index == recurrent.R else slice(None)
                before = gptq.lost(own[rows] - stored[direction][rows] * row[rows], judge[where])
                other = gptq.symmetric(own[rows], row[rows].reshape(-1), fit[where], steps)
                after = gptq.lost(own[rows] - other * row[rows], judge[where])
                stored[direction][rows] = np.where((after < before)[:, None], other, stored[direction][rows])
                kept, lost = kept + float(np.minimum(before, after).sum()), lost + float(before.sum())
            found[str(node.inputs[index].name)] = stored  # type: ignore[union-attr]
            gains.append(10 * float(np.log10(lost / kept)) if kept > 0 else 0.0)
    request.found["recurrent weights rounded to the second order"] = {
        "weights": len(gains),
        "less noise of weights, on data kept apart (median dB)": round(median := float(np.median(gains)), 1),
    }
    _steps.tell(request, _steps.RECURRENT, median, n=len(gains), measured=_steps.LAYER, kept=True)
    return found


def _fits(model: ir.Model, node: ir.Node) -> bool:
    """Whether a node is a recurrent layer of the main graph whose weights nobody else reads, and not too wide."""
    if node.op_type not in recurrent.OPS or node.domain != "" or node.graph is not model.graph:
        return False
    weights = [node.inputs[index] for index in (recurrent.W, recurrent.R)]
    arrays = [constant(value) for value in weights]
    alone = all(value is not None and len(value.uses()) == 1 for value in weights)
    return alone and all(a is not None and a.dtype == np.float32 and a.shape[2] <= INPUTS for a in arrays)


def _moments(model: ir.Model, names: Iterable[str], request: Request) -> tuple[Moments, Moments]:
    """Of the data that rounding may see, and of what is kept apart; the same, where there is too little for both."""
    graph, layers = recurrent.watched(model, names)
    sums = _resumed.Sums(request, "second moments of recurrent layers", [layer.node for layer in layers])
    with request.open(graph) as session:
        for number, feeds in sums.over(enumerate(request.calibration or ())):
            seen = {**feeds, **session.run(feeds)}
            held = number % _spare.APART == _spare.APART - 1
            for layer in layers:
                read = [(recurrent.R, direction, x) for direction, x in enumerate(layer.states(seen))]
                read += [(recurrent.W, direction, layer.inputs(seen)) for direction in range(len(layer.backwards))]
                for index, direction, rows in read:
                    key = json.dumps([held, layer.node, index, direction])
                    sums.found[key] = sums.found.get(key, 0.0) + (rows.T @ rows).astype(np.float64)
            request.progress("rounding", number + 1, 0)
    parts: tuple[Moments, Moments] = {}, {}
    for key, second in sums.found.items():
        held, node, index, direction = json.loads(key)
        parts[held][node, index, direction] = second
    return parts[0], parts[1] or parts[0]
