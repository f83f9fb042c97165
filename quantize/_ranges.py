"""Choosing the grid of every activation by what it does to the model's outputs, in one emulated session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgerun.metrics import Difference
from edgerun.quantize._observation import Truth, batches
from edgerun.quantize.graphs import correction, placement, qdq
from edgerun.quantize.graphs.statistics import Activation
from edgerun.quantize.numerics import grid, ranges
from edgerun.quantize.numerics.grid import Grid

if TYPE_CHECKING:
    from edgerun.passes import Request
    from edgerun.runtime import Session

CAP_SLACK = 1.25
SEARCH = ("minmax", "shrink90", "shrink80", "mse", "percentile")  # what `auto` tries, in this order
FACTORS = (0.9, 0.8, 0.65, 0.5)  # of a range that was chosen, one after the other while they pay
LEAST_GAIN = 0.01  # dB on the samples of the search
Intervals = dict[str, tuple[float, float]]


def intervals(plan: placement.Plan, seen: Mapping[str, Activation], estimator: str) -> Intervals:
    """What each scale group's grid shall span; a cap (Clip, per-channel Min) ends it, so that the quantizer clips."""
    found: Intervals = {}
    for group, values in plan.groups().items():
        members = [seen[str(value.name)] for value in values]
        low = min(float(m.channels.low.min()) for m in members)
        high = max(float(m.channels.high.max()) for m in members)
        low, high = ranges.ESTIMATORS[estimator](low, high, np.concatenate([m.sample for m in members]))
        cap = min(qdq.upper(value.producer()) for value in values)
        # A cap per channel that lies far below what other channels reach is no end for the whole tensor.
        found[group] = low, min(high, cap) if high <= CAP_SLACK * cap else high
    return found


class Stream:
    """Runs the emulated model on the first batches, each layer moved onto its float mean on the way."""

    def __init__(self, session: Session, layers: list[correction.Layer], truths: list[Truth], request: Request) -> None:
        self._session, self._layers, self._truths, self._request = session, layers, truths, request

    def grids(self, spans: Intervals) -> dict[str, Grid]:
        """The grids that span these intervals."""
        return {
            group: grid.asymmetric(low, high, self._request.rules.activation) for group, (low, high) in spans.items()
        }

    def run(self, spans: Intervals, samples: int, stage: str) -> tuple[float, dict[str, np.ndarray]]:
        """SQNR (dB) of the outputs with grids over `spans`, and the mean shift by bias holder's name."""
        given = qdq.open_feeds(self.grids(spans))
        shifts = {str(layer.holder.name): np.zeros(1) for layer in self._layers}
        totals, rows = dict.fromkeys(self._truths[0].outputs, Difference()), 0
        for feeds, truth in zip(batches(self._request, samples, stage), self._truths, strict=False):
            means = {layer.mean: truth.means[layer.mean] for layer in self._layers}
            out = self._session.run({**feeds, **means, **given})
            for layer in self._layers:
                name = str(layer.holder.name)
                shifts[name] = shifts[name] + truth.rows * out[layer.shift].reshape(-1)
            rows += truth.rows
            totals = {name: total + Difference.of(truth.outputs[name], out[name]) for name, total in totals.items()}
        return decibels(totals), {name: shift / rows for name, shift in shifts.items()}


def choose(
    plan: placement.Plan, seen: Mapping[str, Activation], stream: Stream, request: Request
) -> tuple[str, Intervals]:
    """The estimator (asked for, or the best of SEARCH on a few samples) and its intervals; `best` looks at each."""
    name, samples = request.ranges, request.effort.search
    if name == "auto" and not samples:
        name = "minmax"
    if name != "auto":
        return name, intervals(plan, seen, name)
    tried, spans = dict[str, float](), dict[str, Intervals]()
    for name in SEARCH:
        # Tighter ranges have stopped paying: a still tighter one will not start to.
        if name == "shrink80" and tried["shrink90"] < tried["minmax"]:
            continue
        spans[name] = intervals(plan, seen, name)
        tried[name], _ = stream.run(spans[name], samples, f"trying {name}")
    best = max(tried, key=lambda key: tried[key])
    request.found["tried (dB)"] = {name: round(db, 2) for name, db in tried.items()}
    return best, _refined(spans[best], tried[best], stream, request) if request.effort.refine else spans[best]


def _refined(spans: Intervals, reached: float, stream: Stream, request: Request) -> Intervals:
    """Tighten one group after the other as long as the outputs come nearer; kept if that holds on all samples.

    Coordinate descent: groups × FACTORS runs at most over the samples of the search.
    """
    found, changed = dict(spans), dict[str, float]()
    for index, (group, (low, high)) in enumerate(spans.items(), 1):
        for factor in FACTORS:
            trial = found | {group: (low * factor, high * factor)}
            db, _ = stream.run(trial, request.effort.search, f"refining range {index} of {len(spans)}")
            if db < reached + LEAST_GAIN:
                break
            found, reached, changed[group] = trial, db, factor
    before, _ = stream.run(spans, request.effort.first, "checking ranges")
    after, _ = stream.run(found, request.effort.first, "checking ranges")
    request.found["refined"] = {"dB before": round(before, 2), "dB after": round(after, 2), "ranges": changed}
    return found if after > before else spans


def decibels(totals: Mapping[str, Difference]) -> float:
    """The mean over outputs; an exact output counts as 120 dB."""
    return float(np.mean([min(total.sqnr_db, 120.0) for total in totals.values()]))
