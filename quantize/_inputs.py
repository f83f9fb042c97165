"""Pictures whose pixels have 256 values a channel: their quantizer is put onto these, and rounds nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize import _observation
from edgerun.quantize.graphs import lattice
from edgerun.quantize.graphs.activation import Activation, Own
from edgerun.quantize.graphs.placement import Plan
from edgerun.quantize.numerics import lattice as numbers

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

LOOKED = 8  # samples that show the grid
TOP = 255.0  # steps of an unsigned grid
PLACES = 1 << 18  # values of a channel that are looked at
SAME = 2e-4  # by which steps may differ, relatively: a twentieth of a step over all of the grid
SLACK = 0.25  # of a step that data may lie outside


@dataclass(frozen=True)
class _Grids:
    """The steps of each channel, the lowest value, and how many steps above it the highest lies, `[C]`."""

    steps: np.ndarray
    lowest: np.ndarray
    places: np.ndarray

    @property
    def alike(self) -> bool:
        """Whether all steps are one."""
        return bool(np.ptp(self.steps) <= SAME * self.steps.mean())


def aligned(model: ir.Model, plan: Plan, request: Request) -> dict[str, Own]:
    """Bring every picture among the inputs of `model` whose channels lie on grids onto one, in place.

    Returns the grids by the name of the value that is quantized. One for all channels that its zero falls on is taken
    as it is. Cost: a look at LOOKED samples.
    """
    found: dict[str, Own] = {}
    if request.rules.symmetric or request.calibration is None:
        return found
    for site in lattice.sites(model.graph, plan):
        grids = _grids(site, request)
        if grids is None:
            continue
        name, own = _as_it_is(site, grids) or _moved(model.graph, site, grids)
        found[name] = own
    request.found["inputs on their own grids"] = sorted(found)
    return found


def exact(seen: Mapping[str, Activation], own: Mapping[str, Own]) -> dict[str, Activation]:
    """What was `seen` of values that lie on grids of their `own`: all of the data must lie there.

    What their layers read is told less the offsets: a bias takes what does not vary.
    """
    found = {}
    for name, each in own.items():
        if name not in seen:
            continue
        assert each.span is not None
        told, (low, high) = seen[name], each.span
        slack = SLACK * (high - low) / TOP
        inside = told.channels.low.min() >= low - slack and told.channels.high.max() <= high + slack
        vectors = told.vectors.moved(np.asarray(each.offsets))
        found[name] = replace(told, own=each if inside else replace(each, span=None), vectors=vectors)
    return found


def _grids(site: lattice.Site, request: Request) -> _Grids | None:
    """Those of a picture's channels; None where one of them has none."""
    if site.known is not None:
        return _Grids(*site.known, np.full(site.channels, TOP))
    parts = [feeds[str(site.image.name)] for feeds in _observation.batches(request, LOOKED, "")]
    if any(part.ndim != 4 or part.shape[site.axis] != site.channels for part in parts):
        return None
    found = []
    for channel in range(site.channels):
        values = np.concatenate([part.take(channel, site.axis).reshape(-1) for part in parts])
        values = values[:: 1 + len(values) // PLACES]
        if (grid := numbers.found(values)) is None:
            return None
        step, lowest = grid
        found.append((step, lowest, round((float(values.max()) - lowest) / step)))
    return _Grids(*(np.array(column, np.float64) for column in zip(*found, strict=True)))


def _as_it_is(site: lattice.Site, grids: _Grids) -> tuple[str, Own] | None:
    """The grid of all channels, where there is one that zero lies on, with 256 steps at most."""
    step = float(grids.steps.mean())
    first = grids.lowest / step
    if not grids.alike or np.abs(first - np.round(first)).max() > numbers.EXACT:
        return None
    low, high = min(0.0, float(np.round(first).min())), max(0.0, float(np.round(first + grids.places).max()))
    if high - low > TOP:
        return None
    low -= 0.0 if low == 0 else (TOP - high + low) // 2
    return str(site.value.name), Own((low * step, (low + TOP) * step))


def _moved(graph: ir.Graph, site: lattice.Site, grids: _Grids) -> tuple[str, Own]:
    """Each channel's grid on one from 0 to 255 steps, in the middle of it where it has fewer."""
    spare = (TOP - grids.places) // 2
    step = float(grids.steps.mean()) if grids.alike else 1.0
    factors = np.ones_like(grids.steps) if grids.alike else 1 / grids.steps
    offsets = (spare - grids.lowest / grids.steps) * step
    value = lattice.apply(graph, site, factors, offsets)
    return str(value.name), Own((0.0, TOP * step), offsets)
