"""Recurrent layers whose weights or inputs are rounded: which of the two does the damage, and what repairs it.

On integers a layer rounds W, R, its input and its state, and its kernel does nothing of that alone. So the layer is
also run in float with the weights as they are stored: what is lost then is the weights' doing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize import _weights
from edgerun.quantize.diagnosis import evidence
from edgerun.quantize.diagnosis.fixes import Case, Edit, Fix
from edgerun.quantize.graphs import compressed, dynamic, loops, recurrent, switches
from edgerun.quantize.graphs.edit import initializer
from edgerun.quantize.graphs.quantizers import Constant, Loop, Quantizer
from edgerun.quantize.numerics import causes, smoothing
from edgerun.quantize.numerics.half import halved

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.quantize.diagnosis.trials import Measured
    from edgerun.quantize.graphs.align import Counterpart
    from edgerun.quantize.numerics.causes import Cause

ENOUGH = 0.98  # of the damage: in float, more bits for the weights cost no time
WEIGHTS = (causes.SPREAD, causes.DEAD, causes.CLIPPING)  # that new scales may cure


def meant(quantizer: Quantizer) -> bool:
    """Whether it is a recurrent layer, or a weight of one."""
    return isinstance(quantizer, Loop) or (isinstance(quantizer, Constant) and quantizer.op in recurrent.OPS)


def cause(case: Case, loop: Loop, before: Measured, without: Measured) -> Cause:
    """The cause of a layer's damage: its weights', where they make half of it or more, else its input's.

    `before` is the model as it is, `without` with the layer in float.
    """
    model = case.model.clone()
    loops.to_float(model.graph, _node(model.graph, loop.layer), (loop.weights[0].values, loop.weights[1].values))
    left = float(case.trials.measure(model).noise.mean() - without.noise.mean())
    if left >= causes.LOST * float(before.noise.mean() - without.noise.mean()):
        found = [evidence.cause(weight, case.evidence, case.counterpart) for weight in loop.weights]
        return max(found, key=lambda one: (one.name != causes.ROUNDING, one.number))
    return causes.of_input(case.evidence.seen[loop.key])


def fixes(case: Case, quantizer: Quantizer, cause: str) -> Iterator[Fix]:
    """The repairs of a recurrent layer, or of one of its stored weights, the cheapest for the device first."""
    if isinstance(quantizer, Loop):
        if cause == causes.OUTLIER and (fix := _evened(case, quantizer)) is not None:
            yield fix
        if cause in WEIGHTS:
            yield Fix("one weight scale per channel", _integers(case, quantizer))
        else:
            yield Fix("run it in float, weights in 8 bits", _in_float(quantizer, 8), trade=True)
        yield Fix("run it in float, weights in 16 bits", _in_float(quantizer, 16), trade=True)
        yield Fix("leave it in float", _in_float(quantizer, 32), trade=True)
    elif isinstance(quantizer, Constant) and quantizer.key in case.counterpart.constants:
        if cause in WEIGHTS and quantizer.stored.ndim == 3:
            yield Fix("one weight scale per channel", _stored(quantizer, 8))
        yield Fix("its weights in 16 bits", _stored(quantizer, 16), trade=True)
        yield Fix("leave its weights in float", _stored(quantizer, 32), trade=True)


def _in_float(loop: Loop, bits: int) -> Edit:
    """The layer as a float LSTM whose weights are stored in so many bits: 8, as they are now."""

    def edit(graph: ir.Graph, counterpart: Counterpart) -> bool:
        floats = switches.floats(loop, counterpart)
        halves = [halved(array) for array in floats]
        moved = any(weight.grid is None or weight.grid.zero_point.any() for weight in loop.weights)
        if (bits == 16 and any(half is None for half in halves)) or (bits == 8 and moved):
            return False
        node = loops.to_float(graph, _node(graph, loop.layer), floats)
        for weight, half in zip(loop.weights, halves, strict=True):
            value = node.inputs[weight.index]
            assert value is not None and weight.grid is not None
            if bits == 8:
                compressed.expand(value, weight.stored, weight.grid.broadcast(3)[0])
            elif bits == 16 and half is not None:
                compressed.expand(value, half)
        return True

    return edit


def _integers(case: Case, loop: Loop, factors: np.ndarray | None = None) -> Edit:
    """The layer on integers as its float weights have it, its input times `factors` `[inputs]` where there are some."""

    def edit(graph: ir.Graph, counterpart: Counterpart) -> bool:
        w, r = switches.floats(loop, counterpart)
        node = loops.to_float(graph, _node(graph, loop.layer), (w, r))
        if factors is not None:
            loops.scale_input(graph, node, factors)
            counterpart.constants[loop.weights[0].key] = w = (w / factors).astype(np.float32)
        steps = case.weight_steps
        dynamic.lstm(graph, node, [_weights.per_channel(w, (2,), steps), _weights.per_channel(r, (2,), steps)])
        return True

    return edit


def _evened(case: Case, loop: Loop) -> Fix | None:
    """Even out the input's channels, as far as W bears it."""
    channels = case.evidence.channels[loop.key]
    weight, _ = switches.floats(loop, case.counterpart)
    rows = weight.reshape(-1, weight.shape[2])
    if len(channels.power) != rows.shape[1]:
        return None
    factors, gain = smoothing.factors(channels.lows, channels.highs, channels.power, [rows], channels.count)
    return Fix("even out its input's channels", _integers(case, loop, factors)) if gain > 0 else None


def _stored(weight: Constant, bits: int) -> Edit:
    """One weight of a layer in float, stored in so many bits."""

    def edit(graph: ir.Graph, counterpart: Counterpart) -> bool:
        node, array = _node(graph, weight.layer), counterpart.constants[weight.key]
        half = halved(array)
        if bits == 16 and half is None:
            return False
        value = initializer(graph, f"{weight.layer}/{'XWRB'[weight.index]}", array)
        node.replace_input_with(weight.index, value)
        if bits == 8:
            compressed.expand(value, *_weights.per_channel(array, (2,)))
        elif bits == 16 and half is not None:
            compressed.expand(value, half)
        return True

    return edit


def _node(graph: ir.Graph, name: str) -> ir.Node:
    return next(node for node in graph if node.name == name)
