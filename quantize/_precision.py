"""Layers that cost little time and bring much precision: kept in float where a model would else be too far off."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize import _ranges, _scores, _steps
from edgerun.quantize._stream import Stream, Totals, telling
from edgerun.quantize.graphs import edit, equalize, factors, lattice, placement, work
from edgerun.quantize.graphs.activation import Activation
from edgerun.quantize.numerics.grid import Grid

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

    Judge = Callable[["Placed", Request, "Lost"], list[Totals]]
    Finish = Callable[["Placed"], ir.Model]

# dB: a model that is farther off gets float layers, until it is surely as near. On samples that its ranges were not
# taken from it is 0.7 dB less near (PP-OCR, six placements by four halves of its calibration data).
FLOOR = 21.0
MARGIN = 3.0  # dB above it, up to which a model still gets those that take no time at all
SHARE = 0.06  # of all multiply-accumulates that a kind of layers may have
WIDER = (0.1, 0.2, 0.4)  # that the first layers may have of a model that is not there yet
FREE = 1.05  # times as long a run may take for as many of them as there are: no more than two sessions differ by
WORTH = 0.5  # dB that it must bring: a tenth of the noise
LIKELY = 0.25 / len(WIDER)  # of being wrong about that: a quarter, in all that are tried of the first layers


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
class Lost:
    """What a placement loses of each sample, `scores`, of as many `samples` as judge it."""

    scores: list[Totals]
    samples: int

    @property
    def near(self) -> float:
        """dB, of which it must be sure where less than half of the samples tell anything."""
        return _near(self.scores)


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
        kinds |= {f"first {share:.0%}": work.front(plan, share) for share in WIDER}
        sets = {names | other for names in kinds.values() for other in (frozenset(), kinds["depthwise"])}
        plans = {
            names: placement.plan(model.graph, request.rules, request.keep_float | names) for names in sets if names
        }
        plans = {names: shorter for names, shorter in plans.items() if shorter.compute}
        named = frozenset().union(*plans)
        weights = {
            str(node.name): weight
            for nodes in plan.sharing()
            if nodes[0].name in named and (weight := edit.constant(nodes[0].inputs[1])) is not None
            for node in nodes
        }
        return cls(kinds, plans, weights)

    def needed(
        self, plan: placement.Plan, seen: Mapping[str, Activation], stream: Stream, request: Request
    ) -> Lost | None:
        """What the model loses of each sample, where it is less than FLOOR dB near the float one, or MARGIN above and a
        clock may say what takes no time; else None.

        A few samples may surely say that it is nearer.
        """
        if not self.plans:
            return None
        # Where short sums are faster in float, first layers may be as fast.
        enough = FLOOR if request.pace is None or not request.rules.thin else FLOOR + MARGIN
        samples = _ranges.looked_at(seen, stream, request) or _ranges.RACE
        scores = reached(plan, seen, stream, request, samples)
        if (surely := _scores.surely(scores)) < FLOOR:
            samples = _ranges.corrected_on(seen, stream, request)
            surely = _near(scores := reached(plan, seen, stream, request, samples))
        return Lost(scores, samples) if surely < enough else None

    def free(self, made: Placed, lost: Lost, judge: Judge, finish: Finish, request: Request) -> Placed | None:
        """`made`, which loses that, with its depthwise layers in float and the most of the first ones that take next to
        no time there, by the target's clock, or none at all where it is FLOOR dB near; None where there are none, or no
        clock.

        Integers pay little in layers of few channels, and what they cost is as much as anywhere. It must bring WORTH dB
        by the `judge`; both are timed as `finish` makes them.
        """
        if request.pace is None:
            return None
        near = lost.near >= FLOOR
        most = 1.0 if near else FREE
        beside = request.pace(finish(replace(made, model=made.model.clone())), most)
        first = {kind: names for kind, names in self.kinds.items() if names and _wider(kind)}
        wider = {names | self.kinds["depthwise"]: kind for kind, names in first.items()}
        trials = [(kind, names, self._without(made, names)) for names, kind in wider.items() if names in self.plans]

        def fast(trial: tuple[str, frozenset[str], Placed]) -> bool:
            ratio = beside(finish(replace(trial[2], model=trial[2].model.clone())))
            return ratio is not None and ratio <= most

        # Where nothing may be paid, most trials are in vain: the least is asked first, and more where that is free.
        found = reversed([*itertools.takewhile(fast, trials)]) if near else filter(fast, reversed(trials))
        for kind, names, other in found:
            after = judge(other, replace(request, keep_float=request.keep_float | names, found={}), lost)
            gain = _Gain.of(lost.scores, after)
            if gain.told(kind, gain.over_all >= WORTH, request):
                request.found["float layers"] = sorted(names)
                return other
        return None

    def spared(self, made: Placed, lost: Lost, judge: Judge, request: Request) -> Placed:
        """`made`, which loses that, with each kind of layers in float that brings WORTH dB by the `judge`, one kind
        after the other; as it is where that is FLOOR dB near.

        Ever more of the first layers are tried as long as the model is not surely FLOOR dB near; they are no longer
        cheap, and so must likely bring something: a few samples, of which one may be far off, can say neither.
        """
        best, kept = made, frozenset[str]()
        if lost.near >= FLOOR:
            return best
        for kind, names in self.kinds.items():
            trial = kept | names
            if trial == kept or trial not in self.plans:
                continue
            wider = _wider(kind)
            if wider and _scores.surely(lost.scores) >= FLOOR:
                break
            own = replace(request, keep_float=request.keep_float | trial, found={})
            other = self._without(made, trial)
            after = judge(other, own, lost)
            gain = _Gain.of(lost.scores, after)
            if gain.told(kind, gain.over_all >= WORTH and (not wider or gain.likely > 0), request):
                best, kept, lost = other, trial, Lost(after, lost.samples)
        if kept:
            request.found["float layers"] = sorted(kept)
        return best

    def _without(self, made: Placed, names: frozenset[str]) -> Placed:
        """A clone whose layers `names` are as they were."""
        model = made.model.clone()
        plan = self.plans[names].on(model.graph)
        scaled = lattice.release(model.graph, plan)
        held: dict[int, ir.Value | None] = {}  # by the array, which layers may share
        for node in model.graph:
            if node.name in names and (weight := self.weights.get(str(node.name))) is not None:
                if id(weight) in held:
                    node.replace_input_with(1, held[id(weight)])
                else:
                    edit.set_constant(model.graph, node, 1, weight)
                    held[id(weight)] = node.inputs[1]
        factors.release(model.graph, plan)
        for node, by in scaled:
            equalize.scale_input(model.graph, node, by)
        edit.drop_unused(model)
        return Placed(model, plan, {name: weight for name, weight in made.stored.items() if name not in names})


def _near(scores: list[Totals]) -> float:
    """dB, which must be sure where less than half of the samples tell anything."""
    few_tell = 2 * sum(telling(scores)) < len(scores)
    return (_scores.surely if few_tell else _scores.sqnr)(scores)


def _wider(kind: str) -> bool:
    return kind not in ("stem", "depthwise")


@dataclass(frozen=True)
class _Gain:
    """By how many dB what is lost becomes less: over all, and in the mean of `n` samples that were run, surely and
    likely."""

    over_all: float
    mean: float
    surely: float
    likely: float
    n: int

    @classmethod
    def of(cls, before: list[Totals], after: list[Totals]) -> _Gain:
        # Samples that say nothing are not run again.
        pairs = [(old, new) for old, new in zip(before, after, strict=True) if new is not old]
        run = [old for old, _ in pairs], [new for _, new in pairs]
        first, second = (_scores.sqnr(scores, _scores.counted(before, after)) for scores in (before, after))
        likely = _scores.gained(*run, LIKELY)[1]
        return cls(second - first, *_scores.gained(*run, _scores.ERROR), likely, len(pairs))

    def told(self, kind: str, kept: bool, request: Request) -> bool:
        """Whether layers of that `kind` are `kept` for it, which goes into the history."""
        request.found.setdefault("dB won in float", {})[kind] = round(self.over_all, 2)
        step, measured = _steps.FLOAT, _steps.OUTPUT
        _steps.tell(request, step, self.mean, self.surely, n=self.n, measured=measured, kept=kept, choice=kind)
        return kept


def reached(
    plan: placement.Plan,
    seen: Mapping[str, Activation],
    stream: Stream,
    request: Request,
    samples: int | None = None,
    beside: list[Totals] | None = None,
) -> list[Totals]:
    """What a placement loses in emulation, with grids over the extremes, of `samples` or as many as correct biases,
    with the biases of as many others.

    Samples of which another placement has nothing to lose and lost nothing, by the scores `beside`, are not run.
    """
    spans = _ranges.intervals(plan, seen, "minmax", request.rules.symmetric, request.rules.mirrored)
    samples = samples or _ranges.corrected_on(seen, stream, request)
    if beside is None:
        return stream.judged(spans, samples, "precision")
    return stream.judged_beside(spans, samples, "precision", beside)
