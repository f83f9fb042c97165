"""Choosing the grid of every activation by what it does to the model's outputs, in one emulated session."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize import _clipping, _steps
from edgerun.quantize._observation import LIGHT, Truth
from edgerun.quantize._scores import ERROR, counted, gained, sqnr
from edgerun.quantize._stream import Intervals, Stream, Totals
from edgerun.quantize.graphs import placement, qdq
from edgerun.quantize.graphs.activation import Activation
from edgerun.quantize.numerics import grid, ranges

if TYPE_CHECKING:
    from edgerun.passes import Request

CAP_SLACK = 1.25
SEARCH = ("minmax", "shrink90", "shrink80", "mse", "percentile")  # what `auto` tries, in this order
FACTORS = (0.9, 0.8, 0.65, 0.5)  # of a range that was chosen, one after the other while they pay
REPORTED = 3e8  # activations that are computed to tell what a finished model reaches
HEAVY = 8e6  # above, fewer of them tell as much
RACE = 4  # every candidate sees this part of the search's samples; those that are CLEAR dB behind by then are out
CLEAR = 0.5
UNLIKELY = 0.25  # error of being better halfway that ends a trial
LEAST_GAIN = 0.01  # dB, the same


def intervals(
    plan: placement.Plan,
    seen: Mapping[str, Activation],
    estimator: str,
    symmetric: bool = False,
    mirrored: float = 1.0,
) -> Intervals:
    """What each scale group's grid shall span; a cap (Clip, per-channel Min) ends it, so that the quantizer clips.

    `symmetric` intervals are estimated on the values and their negatives, and end at ±high. Others have their zero in
    the middle where the plan says so, or the shorter side of what a layer reads is more than `mirrored` of the longer.
    What has a grid of its own keeps that.
    """
    found: Intervals = {}
    layers = set(plan.compute)
    for group, values in plan.groups().items():
        members = [seen[str(value.name)] for value in values]
        own = members[0].own if len(members) == 1 else None
        if own is not None and own.span is not None:
            found[group] = own.span
            continue
        low = min(float(m.channels.low.min()) for m in members)
        high = max(float(m.channels.high.max()) for m in members)
        sample = np.concatenate([m.sample for m in members])
        cap = min(qdq.upper(value.producer()) for value in values)
        if symmetric:
            cap, high = max(cap, -low), max(high, -low)
            low, sample = -high, np.concatenate([sample, -sample])
        low, high = ranges.ESTIMATORS[estimator](low, high, sample)
        # A cap per channel that lies far below what other channels reach is no end for the whole tensor.
        high = min(high, cap) if high <= CAP_SLACK * cap else high
        found[group] = -high if symmetric else low, high
        read = any(user in layers for value in values for user, _ in value.uses())
        near = read and min(-low, high) > mirrored * max(-low, high)
        if (near or group in plan.centred) and not symmetric:
            found[group] = grid.centred(low, high)
    return found


def activations(seen: Mapping[str, Activation], samples: int) -> float:
    """How many numbers the activations of a sample have: what a run costs, and how much one sample says."""
    return sum(activation.size for activation in seen.values()) / samples


def looked_at(seen: Mapping[str, Activation], stream: Stream, request: Request) -> int:
    """The samples on which the search judges: more of a light model; none where nothing is searched."""
    light = activations(seen, stream.samples) < LIGHT
    return request.effort.first // 2 if light and request.effort.search else request.effort.search


def checked(seen: Mapping[str, Activation], truths: list[Truth], request: Request) -> int:
    """The samples on which the finished model is judged: of a light model, all whose truth is known."""
    light = activations(seen, sum(truth.rows for truth in truths)) < LIGHT
    return request.effort.first if light else request.effort.check


def reported(seen: Mapping[str, Activation], truths: list[Truth], request: Request) -> int:
    """The samples on which what the finished model reaches is told: more of them where a run takes little."""
    size = activations(seen, sum(truth.rows for truth in truths))
    return min(request.effort.first, max(request.effort.check, int(REPORTED / max(size, 1))))


def corrected_on(seen: Mapping[str, Activation], stream: Stream, request: Request) -> int:
    """The samples by which biases are corrected: all that are known of the float model, of a heavy one half.

    What differs between samples is noise that no bias takes away; by n of them, chance adds 1/n of it.
    """
    heavy = activations(seen, stream.samples) > HEAVY
    return max(1, request.effort.first // 2) if heavy else request.effort.first


def few_of(samples: int) -> int:
    """The part of them that every candidate sees."""
    return max(1, samples // RACE)


def choose(
    plan: placement.Plan, seen: Mapping[str, Activation], stream: Stream, request: Request
) -> tuple[str, Intervals]:
    """The estimator (asked for, or the best of SEARCH on a few samples) and its intervals, refined where asked for."""
    name = "minmax" if request.ranges == "auto" and not request.effort.search else request.ranges
    if name == "auto":
        name, spans = _tried(plan, seen, stream, request)
    else:
        spans = intervals(plan, seen, name, request.rules.symmetric, request.rules.mirrored)
    return name, _refined(plan, seen, spans, stream, request) if request.effort.refine else spans


def _tried(
    plan: placement.Plan, seen: Mapping[str, Activation], stream: Stream, request: Request
) -> tuple[str, Intervals]:
    samples = looked_at(seen, stream, request)
    rules = request.rules
    spans = {name: intervals(plan, seen, name, rules.symmetric, rules.mirrored) for name in SEARCH}
    few = few_of(samples)

    def judged(name: str, count: int, apart: int) -> list[Totals]:
        return stream.judged(spans[name], count, f"trying {name}", apart)

    tried = {name: judged(name, few, few) for name in SEARCH if name != "shrink80"}
    # Who loses by a range that is a tenth shorter wins nothing by one that is two.
    if gained(tried["minmax"], tried["shrink90"])[0] > -CLEAR:
        tried["shrink80"] = judged("shrink80", few, few)
    over = counted(*tried.values())
    request.found["tried (dB)"] = {name: round(sqnr(scores, over), 2) for name, scores in tried.items()}
    left = [name for name in SEARCH[1:] if name in tried and gained(tried["minmax"], tried[name])[0] > -CLEAR]
    others = [name for name in tried if name != "minmax"]
    told = {name: (*gained(tried["minmax"], tried[name], ERROR), len(tried[name])) for name in others}
    gains: dict[str, tuple[float, float]] = {}
    for seen_by in (max(1, samples // 2), samples):
        if not left:
            _tell(told, "minmax", request)
            return "minmax", spans["minmax"]
        again = {name: judged(name, seen_by, samples) for name in ("minmax", *left)}
        gains = {name: gained(again["minmax"], again[name], ERROR / len(SEARCH[1:])) for name in left}
        request.found["gain over minmax, surely (dB)"] = {n: [round(db, 2) for db in gain] for n, gain in gains.items()}
        told |= {name: (*gained(again["minmax"], again[name], ERROR), len(again[name])) for name in left}
        left = [name for name in left if gained(again["minmax"], again[name], UNLIKELY)[1] > 0]
    # What is not surely better is taken for chance: extremes clip nothing of what was seen.
    best, sure = "minmax", [name for name, (_, surely) in gains.items() if surely > 0]
    for name in sorted(sure, key=lambda name: -gains[name][0]):
        pair, scores = (spans["minmax"], spans[name]), (again["minmax"], again[name])
        verdict = _everywhere(plan, seen, pair, scores, samples, stream, request)
        if verdict.holds:
            best = name
            break
        told[name] = min(verdict.mean, verdict.gain), -math.inf, told[name][2]
    _tell(told, best, request)
    return best, spans[best]


def _everywhere(
    plan: placement.Plan,
    seen: Mapping[str, Activation],
    pair: tuple[Intervals, Intervals],
    scores: tuple[list[Totals], list[Totals]],
    samples: int,
    stream: Stream,
    request: Request,
) -> _clipping.Verdict:
    """Does what the second of the `pair` gains over the first on the `samples` that judged them hold in all data? A
    few batches are run of those where it clips more than in these."""
    far = _clipping.farther(plan, seen, pair, stream.judging(samples, samples))
    strata, batches = _clipping.strata(far), len(next(iter(seen.values())).highs)
    between = stream.between(pair, strata, samples, "looking at what is clipped") if strata else {}
    shares = [(count / batches, between[batch]) for batch, count in strata.items()]
    verdict = _clipping.weighed(*scores, shares)
    request.found["clipped farther"] = {"batches": len(far), "of": batches, "holds": verdict.holds,
                                        "gain (dB)": [round(verdict.mean, 2), round(verdict.after - verdict.before, 2)],
                                        "all (dB)": round(verdict.after, 2)}  # fmt: skip
    return verdict


def _tell(told: Mapping[str, tuple[float, float, int]], best: str, request: Request) -> None:
    """The gain over the extremes of the estimator that was taken, else of the nearest of those that were not."""
    nearest = best if best in told else max(told, key=lambda name: told[name][0])
    gain, surely, n = told[nearest]
    _steps.tell(request, _steps.RANGES, gain, surely, n=n, measured=_steps.OUTPUT, kept=nearest == best, choice=nearest)


def _refined(
    plan: placement.Plan, seen: Mapping[str, Activation], spans: Intervals, stream: Stream, request: Request
) -> Intervals:
    """Tighten one group after the other as long as the outputs likely come nearer; kept if that holds on later samples.

    Coordinate descent: groups × FACTORS runs at most over the samples of the search.
    """
    found, changed = dict(spans), dict[str, float]()
    reached, stage = stream.judged(spans, request.effort.search, "judging ranges"), "refining ranges"
    request.progress(stage, 0, len(spans))
    for index, (group, (low, high)) in enumerate(spans.items(), 1):
        for factor in FACTORS:
            trial = found | {group: (low * factor, high * factor)}
            scores = stream.judged(trial, request.effort.search, "")
            gain, likely = gained(reached, scores, UNLIKELY)
            if gain < LEAST_GAIN or likely <= 0:
                break
            found, reached, changed[group] = trial, scores, factor
        request.progress(stage, index, len(spans))
    later = request.effort.first // 2
    before, after = (stream.judged(s, later, "checking ranges") for s in (spans, found))
    gain, surely = gained(before, after, ERROR)
    pays = surely > 0 and _everywhere(plan, seen, (spans, found), (before, after), later, stream, request).holds
    if changed:
        _steps.tell(request, _steps.REFINED, gain, surely, n=len(before), measured=_steps.OUTPUT, kept=pays)
    over = counted(before, after)
    request.found["refined"] = {"dB before": round(sqnr(before, over), 2), "dB after": round(sqnr(after, over), 2),
                                "gain, surely (dB)": [round(gain, 2), round(surely, 2)], "ranges": changed}  # fmt: skip
    return found if pays else spans
