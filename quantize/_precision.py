"""Layers that cost little time and bring much precision: kept in float where a model would else be too far off."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize import _ranges
from edgerun.quantize._stream import Stream, Totals
from edgerun.quantize.graphs import correction, edit, factors, placement, work
from edgerun.quantize.graphs.activation import Activation
from edgerun.quantize.numerics.grid import Grid

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request


# A judge tells what is lost of each sample by a placement, on more and more of them until it is enough.
Enough = Callable[[list[Totals]], bool]
Judge = Callable[["Placed", "Request", Enough], list[Totals]]
NEEDED = 20.0  # dB: below, layers are tried in float
CLEARLY = 3.0
ERROR = 0.05  # of each look at more samples, on either side
SHARE = 0.06  # of all multiply-accumulates that a kind of layers may have
WORTH = 0.5  # dB that it must bring: a tenth of the noise


@dataclass(frozen=True)
class Stored:
    """How a node's weight was stored: its grid, its output channels, whether it is all zeros, channels repaired."""

    grid: Grid
    channels: int
    dead: bool
    repaired: int


@dataclass(frozen=True)
class Placed:
    """A model with `stored` weights, by node name, and where its Q/DQ are to stand."""

    model: ir.Model
    plan: placement.Plan
    stored: Mapping[str, Stored]


@dataclass(frozen=True)
class Cheap:
    """Sets of layers that may stay float: the kinds of them, the placement without each set, and their float weights.

    The first layers have few channels in high resolution, and what is lost there no later layer brings back; a
    depthwise layer's sums are of 9 or 25 products, in which little averages out.
    """

    kinds: dict[str, frozenset[str]]
    plans: dict[frozenset[str], placement.Plan]
    weights: dict[str, np.ndarray]

    @classmethod
    def of(cls, model: ir.Model, plan: placement.Plan, request: Request) -> Cheap:
        """Those of a float model."""
        kinds = {"stem": work.stem(plan, SHARE), "depthwise": work.depthwise(plan, SHARE)}
        sets = {kinds["stem"], kinds["depthwise"], kinds["stem"] | kinds["depthwise"]} - {frozenset()}
        plans = {names: placement.plan(model.graph, request.rules, request.keep_float | names) for names in sets}
        plans = {names: shorter for names, shorter in plans.items() if shorter.compute}
        named = frozenset().union(*plans)
        weights = {
            str(n.name): w for n in plan.weights if n.name in named and (w := edit.constant(n.inputs[1])) is not None
        }
        return cls(kinds, plans, weights)

    def lacking(self, judge: Callable[[Enough], list[Totals]]) -> list[Totals] | None:
        """What the model as it is placed loses by the `judge`, if it is less than NEEDED dB from the float one.

        Its first samples say that it is not, where it is CLEARLY nearer on these.
        """
        if not self.plans:
            return None

        def enough(scores: list[Totals]) -> bool:
            low, high = _ranges.reached(scores, ERROR)
            return _ranges.sqnr(scores) >= NEEDED + CLEARLY or low > NEEDED or high < NEEDED

        lost = judge(enough)
        return lost if _ranges.sqnr(lost) < NEEDED else None

    def spared(self, made: Placed, before: list[Totals], judge: Judge, request: Request) -> Placed:
        """`made`, which loses what is in `before`, with each kind of layers in float that brings WORTH dB by the
        `judge`, one kind after the other."""
        best, kept, asked = made, frozenset[str](), request
        for kind, names in self.kinds.items():
            trial = kept | names
            if trial == kept or trial not in self.plans:
                continue
            own = replace(request, keep_float=request.keep_float | trial, found={})
            other = self._without(made, trial)
            after = judge(other, own, functools.partial(_told_apart, before))
            if len(after) > len(before):
                before = judge(best, asked, functools.partial(_as_many, len(after)))
            won = _ranges.sqnr(after) - _ranges.sqnr(before[: len(after)])
            request.found.setdefault("dB won in float", {})[kind] = round(won, 2)
            if won >= WORTH:
                best, kept, asked, before = other, trial, own, after
        if kept:
            request.found["float layers"] = sorted(kept)
        return best

    def _without(self, made: Placed, names: frozenset[str]) -> Placed:
        """A clone whose layers `names` are as they were."""
        model = made.model.clone()
        for node in model.graph:
            if node.name in names and (weight := self.weights.get(str(node.name))) is not None:
                edit.set_constant(model.graph, node, 1, weight)
        plan = self.plans[names].on(model.graph)
        factors.release(model.graph, plan)
        edit.drop_unused(model)
        return Placed(model, plan, {name: weight for name, weight in made.stored.items() if name not in names})


def _as_many(count: int, scores: list[Totals]) -> bool:
    return len(scores) >= count


def _told_apart(before: list[Totals], after: list[Totals]) -> bool:
    """Whether the samples of `after` say surely that WORTH dB are won, or that they are not."""
    if len(after) > len(before):
        return False
    least, most = _ranges.won(before[: len(after)], after, ERROR)
    return least > WORTH or most < WORTH


def lost(
    plan: placement.Plan, seen: Mapping[str, Activation], stream: Stream, request: Request, enough: Enough
) -> list[Totals]:
    """What a placement loses in emulation of each sample, with grids over the extremes, until it is `enough`, or on all
    that correct biases; every look is at twice as many samples.

    Every mean is put right on the way, where one says nothing of a single value: what these runs tell of a bias is
    asked for later. Elsewhere biases are those of other samples.
    """
    spans = _ranges.intervals(plan, seen, "minmax", request.rules.symmetric)
    search, most = _ranges.looked_at(seen, stream, request) or _ranges.RACE, _ranges.corrected_on(seen, stream, request)
    righted = all(map(correction.spread, correction.layers(plan)))
    samples, found = _ranges.few_of(search), list[Totals]()
    while not found or (samples < most and not enough(found)):
        samples = min(most, 2 * samples) if found else samples
        found = (
            stream.righted(spans, samples, "precision")
            if righted
            else stream.judged(spans, samples, "precision", max(1, search // 2))
        )
    return found
