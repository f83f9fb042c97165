"""Exact changes of a float model that make its activations easier to round: moved, scaled, smoothed, evened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize import _steps
from edgerun.quantize.graphs import centre, correction, equalize, factors, placement, smooth
from edgerun.quantize.graphs.activation import Activation, Channels

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

Seen = Mapping[str, Activation]
Moves = dict[str, tuple[np.ndarray | float, np.ndarray | float]]


def apply(
    model: ir.Model, plan: placement.Plan, seen: Seen, request: Request, without: frozenset[str] = frozenset()
) -> tuple[dict[str, Activation], Moves]:
    """Change `model` in place; what was seen of its activations, as they are now, and how layers' means moved.

    `without`: the names of steps (`_steps`) that are left out.

    A mean m is now (m − offset)·factor, by the layer's name of it.
    """
    now = dict(seen)
    chains = equalize.chains(model.graph)
    offsets = _centred(model, plan, [] if _steps.CENTRED in without else chains, now, request)
    scales = _equalized(model, plan, [] if _steps.EQUALIZED in without else chains, now, request)
    if _steps.SMOOTHED not in without:
        _smoothed(model, plan, now, request)
    if _steps.EVENED not in without:
        scales |= _evened(model, chains, now, request)
    outputs = {layer.mean: str(layer.holder.outputs[0].name) for layer in correction.layers(plan)}
    return now, {mean: (offsets.get(name, 0.0), scales.get(name, 1.0)) for mean, name in outputs.items()}


def _spanned(channels: Channels, request: Request) -> Channels:
    """The extremes that a grid of the target's kind must span."""
    return channels.mirrored() if request.rules.symmetric else channels


def _centred(
    model: ir.Model, plan: placement.Plan, chains: list[equalize.Chain], now: dict[str, Activation], request: Request
) -> dict[str, np.ndarray]:
    points = {str(value.name) for value in plan.points}
    offsets = centre.centre(model.graph, chains, {name: now[name].channels for name in points})
    request.found["centred"] = sorted(moved := offsets.keys() & points)
    gains = [_narrower(now[name].channels, offsets[name]) for name in moved]
    _predicted(request, _steps.CENTRED, gains)
    now |= {name: now[name].moved(offset) for name, offset in offsets.items() if name in now}
    return offsets


def _equalized(
    model: ir.Model, plan: placement.Plan, chains: list[equalize.Chain], now: dict[str, Activation], request: Request
) -> dict[str, np.ndarray]:
    quantized = {str(value.name): _spanned(now[str(value.name)].varying, request) for value in plan.points}
    changed, gains, scales = equalize.equalize(model.graph, chains, quantized)
    request.found["equalized"] = changed
    _predicted(request, _steps.EQUALIZED, gains)
    now |= {name: now[name].scaled(by) for name, by in scales.items() if name in now}
    return scales


def _smoothed(model: ir.Model, plan: placement.Plan, now: dict[str, Activation], request: Request) -> None:
    sites = smooth.sites(plan, request.rules)
    spanned = {name: _spanned(now[name].varying, request) for name in (str(site.value.name) for site in sites)}
    gains, made = smooth.apply(model.graph, sites, spanned, request.lanes)
    request.found["smoothed (dB)"] = gains
    _predicted(request, _steps.SMOOTHED, gains.values())
    now |= {new: now[old].scaled(by) for new, (old, by) in made.items()}


def _evened(
    model: ir.Model, chains: list[equalize.Chain], now: dict[str, Activation], request: Request
) -> dict[str, np.ndarray]:
    plan = placement.plan(model.graph, request.rules, request.keep_float)
    lying = {name for name, activation in now.items() if activation.own is not None}
    sites = factors.sites(plan, lying | {str(value.name) for chain in chains for value in chain.values})
    spanned = {name: _spanned(activation.channels, request) for name, activation in now.items()}
    gains, written, made = factors.apply(model.graph, sites, spanned, request.rules)
    request.found["evened (dB)"] = gains
    _predicted(request, _steps.EVENED, gains.values())
    now |= {name: now[name].scaled(by) for name, by in written.items()}
    now |= {new: now[old].scaled(by) for new, (old, by) in made.items()}
    return written


def _narrower(channels: Channels, offset: np.ndarray) -> float:
    """By how many dB less a grid that spans a value rounds once `offset` `[C]` is taken off: noise goes as span²."""
    before, after = (_span(channels.low - off, channels.high - off) for off in (0.0, offset))
    return 20 * float(np.log10(before / after)) if before > 0 and after > 0 else 0.0


def _span(low: np.ndarray, high: np.ndarray) -> float:
    return float(max(high.max(), 0.0) - min(low.min(), 0.0))


def _predicted(request: Request, step: str, gains: Iterable[float]) -> None:
    """The gains (dB) that a step is predicted to bring, one for each value that it changed."""
    if told := list(gains):
        _steps.tell(request, step, float(np.median(told)), n=len(told), measured=_steps.PREDICTED, kept=True)
