"""Choosing the grid of every activation by what it does to the model's outputs, in one emulated session."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import cache
from edgerun.checkpoint import Memo
from edgerun.metrics import Difference
from edgerun.quantize._lanes import in_lanes
from edgerun.quantize._observation import Truth, batches
from edgerun.quantize.graphs import correction, placement, qdq
from edgerun.quantize.graphs.activation import Activation
from edgerun.quantize.numerics import grid, paired, ranges
from edgerun.quantize.numerics.grid import Grid
from edgerun.quantize.numerics.running import Running

if TYPE_CHECKING:
    from edgerun.passes import Feeds, Request
    from edgerun.runtime import Session

CAP_SLACK = 1.25
SEARCH = ("minmax", "shrink90", "shrink80", "mse", "percentile")  # what `auto` tries, in this order
FACTORS = (0.9, 0.8, 0.65, 0.5)  # of a range that was chosen, one after the other while they pay
LIGHT = 1e6  # elements of all activations of a sample: below, every candidate can see more of them
HEAVY = 8e6  # above, fewer of them tell as much
KEPT = 16  # spans whose shifts and scores are remembered
RACE = 4  # every candidate sees this part of the search's samples; those that are CLEAR dB behind by then are out
CLEAR = 0.5
UNLIKELY = 0.25  # error of being better halfway that ends a trial
ERROR = 0.05  # of taking a candidate that is no better than the extremes
LEAST_GAIN = 0.01  # dB, the same
Intervals = dict[str, tuple[float, float]]
Shifts = dict[correction.Layer, np.ndarray]
Totals = dict[str, Difference]
# By what was run, and on how many samples: by layer, means; and what was lost of each sample.
Begun = dict[tuple[object, int], tuple[dict[str, Running], list["Totals"]]]


def intervals(
    plan: placement.Plan, seen: Mapping[str, Activation], estimator: str, symmetric: bool = False
) -> Intervals:
    """What each scale group's grid shall span; a cap (Clip, per-channel Min) ends it, so that the quantizer clips.

    `symmetric` intervals are estimated on the values and their negatives, and end at ±high.
    """
    found: Intervals = {}
    for group, values in plan.groups().items():
        members = [seen[str(value.name)] for value in values]
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
        if group in plan.centred and not symmetric:
            found[group] = grid.centred(low, high)
    return found


class Stream:
    """Runs the emulated model on the first batches, each layer moved onto its float mean on the way."""

    def __init__(
        self, session: Session, layers: list[correction.Layer], truths: list[Truth], request: Request,
        begun: Begun | None = None,
    ) -> None:  # fmt: skip
        self._session, self._layers, self._truths, self._request = session, layers, truths, request
        # Shared by the streams of one model, of which some have the same layers on integers.
        self._begun: Begun = {} if begun is None else begun
        assert request.calibration is not None
        about = request.calibration.digest, *sorted(request.keep_float)
        self._memo = Memo(request.checkpoint, "trials of ranges", *about)
        # By spans and how many samples their shifts are of, what is lost of the samples of each batch behind these.
        self._scored: dict[tuple[object, int], list[list[Totals]]] = {}

    @property
    def samples(self) -> int:
        """How many samples it can run at most."""
        return sum(truth.rows for truth in self._truths)

    def _whole(self, samples: int) -> int:
        """The samples of as many whole batches as hold so many."""
        ends = itertools.accumulate((truth.rows for truth in self._truths), initial=0)
        return next((end for end in ends if end >= samples), self.samples)

    def grids(self, spans: Intervals) -> dict[str, Grid]:
        """The grids that span these intervals."""
        rules = self._request.rules
        if rules.symmetric:
            return {group: grid.symmetric(high, rules.activation) for group, (_, high) in spans.items()}
        return {group: grid.asymmetric(low, high, rules.activation) for group, (low, high) in spans.items()}

    def missing(self, spans: Intervals, samples: int, stage: str) -> Shifts:
        """What rounding takes from each layer's mean, averaged over `samples`, with the layers before it put right.

        Every batch's means are put right on the way: what is then missing at a layer is its own doing, and varies
        little from one sample to the next.
        """
        found, _ = self._righted(spans, samples, stage)
        return {layer: found[layer.mean].shrunk() for layer in self._layers}

    def righted(self, spans: Intervals, samples: int, stage: str) -> list[Totals]:
        """What is lost of each sample meanwhile: what a bias can make good is not in it, nor chance in finding that."""
        return self._righted(spans, samples, stage)[1]

    def _righted(self, spans: Intervals, samples: int, stage: str) -> tuple[dict[str, Running], list[Totals]]:
        key = tuple(spans.items()), tuple(layer.mean for layer in self._layers)
        known = max((count for about, count in list(self._begun) if about == key and count <= samples), default=0)
        before, lost = self._begun.get((key, known), ({}, []))
        found, lost = {layer.mean: before.get(layer.mean, Running()) for layer in self._layers}, list(lost)
        zeros: Shifts = {layer: np.zeros(self._truths[0].means[layer.mean].shape, np.float32) for layer in self._layers}
        # More samples of the same spans go on from here.
        for truth, out in self._outputs(spans, zeros, 1.0, samples, stage, skip=self._whole(known)):
            for layer in self._layers:
                found[layer.mean] = found[layer.mean].with_(out[layer.missing], truth.rows)
            lost += by_sample(truth, out)
        self._begun[key, samples] = found, lost
        if len(self._begun) > KEPT:
            self._begun.pop(next(iter(self._begun)), None)
        return found, lost

    def scores(self, spans: Intervals, shifts: Shifts, samples: int, stage: str, skip: int = 0) -> list[Totals]:
        """What is lost of each sample with grids over `spans` and every layer moved by its shift, `skip` samples on."""
        found: list[Totals] = []
        for truth, out in self._outputs(spans, shifts, 0.0, samples, stage, skip):
            found += by_sample(truth, out)
        return found

    def judged(self, spans: Intervals, samples: int, stage: str, apart: int) -> list[Totals]:
        """`scores` that `spans` reach on `samples` with shifts found on `apart` others before them, if there are others.

        On the same samples, shifts make up for clipping that no other sample has. More samples go on from fewer.
        """
        ends = (f"{name} {float(a).hex()} {float(b).hex()}" for name, (a, b) in spans.items())
        used = self._whole(apart)
        skip = used if used < self.samples else 0
        known = self._scored.setdefault((tuple(spans.items()), apart), [])
        if len(self._scored) > KEPT:
            self._scored.pop(next(iter(self._scored)))

        def find() -> np.ndarray:
            ends = list(itertools.accumulate(truth.rows for truth in self._truths))
            before = next((i for i, end in enumerate(ends, 1) if end >= skip), 0) if skip else 0
            batches = next((i for i, end in enumerate(ends, 1) if end >= skip + samples), len(ends)) - before
            if len(known) < batches:
                done, shifts = before + len(known), self.missing(spans, apart, stage)
                later = self._outputs(spans, shifts, 0.0, skip + samples, stage, ends[done - 1] if done else 0)
                known.extend([*by_sample(truth, out)] for truth, out in later)
            return _array(list(itertools.chain.from_iterable(known[:batches])))

        return _scores(self._memo.get(cache.key(f"{samples} {apart}", *ends), find), list(self._truths[0].outputs))

    def _outputs(
        self, spans: Intervals, shifts: Shifts, share: float, samples: int, stage: str, skip: int = 0
    ) -> Iterator[tuple[Truth, dict[str, np.ndarray]]]:
        given, seen = qdq.open_feeds(self.grids(spans)) | {correction.SHARE: np.array(share, np.float32)}, 0
        fixed = {layer.fixed: (1 - share) * shift for layer, shift in shifts.items()}

        def run(item: tuple[Feeds, Truth]) -> dict[str, np.ndarray]:
            means = {layer.mean: item[1].means[layer.mean] for layer in shifts}
            return self._session.run({**item[0], **means, **given, **fixed})

        def wanted() -> Iterator[tuple[Feeds, Truth]]:
            nonlocal seen
            for feeds, truth in zip(batches(self._request, samples, stage), self._truths, strict=False):
                seen += truth.rows
                if seen > skip:
                    yield feeds, truth

        for (_, truth), out in in_lanes(run, wanted(), self._request.lanes):
            yield truth, out


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
        spans = intervals(plan, seen, name, request.rules.symmetric)
    return name, _refined(spans, stream, request) if request.effort.refine else spans


def _tried(
    plan: placement.Plan, seen: Mapping[str, Activation], stream: Stream, request: Request
) -> tuple[str, Intervals]:
    samples = looked_at(seen, stream, request)
    spans = {name: intervals(plan, seen, name, request.rules.symmetric) for name in SEARCH}
    few, half = few_of(samples), max(1, samples // 2)

    def judged(name: str, count: int, apart: int) -> list[Totals]:
        return stream.judged(spans[name], count, f"trying {name}", apart)

    tried = {name: judged(name, few, few) for name in SEARCH if name != "shrink80"}
    # Who loses by a range that is a tenth shorter wins nothing by one that is two.
    if gained(tried["minmax"], tried["shrink90"])[0] > -CLEAR:
        tried["shrink80"] = judged("shrink80", few, few)
    request.found["tried (dB)"] = {name: round(sqnr(scores), 2) for name, scores in tried.items()}
    left = [name for name in SEARCH[1:] if name in tried and gained(tried["minmax"], tried[name])[0] > -CLEAR]
    gains: dict[str, tuple[float, float]] = {}
    for seen_by in (half, samples):
        if not left:
            return "minmax", spans["minmax"]
        again = {name: judged(name, seen_by, half) for name in ("minmax", *left)}
        gains = {name: gained(again["minmax"], again[name], ERROR / len(SEARCH[1:])) for name in left}
        request.found["gain over minmax, surely (dB)"] = {n: [round(db, 2) for db in gain] for n, gain in gains.items()}
        left = [name for name in left if gained(again["minmax"], again[name], UNLIKELY)[1] > 0]
    # What is not surely better is taken for chance: extremes clip nothing of what was seen.
    sure = {name: gain for name, (gain, surely) in gains.items() if surely > 0}
    best = max(sure, key=lambda name: sure[name], default="minmax")
    return best, spans[best]


def _refined(spans: Intervals, stream: Stream, request: Request) -> Intervals:
    """Tighten one group after the other as long as the outputs come nearer; kept if that holds on later samples.

    Coordinate descent: groups × FACTORS runs at most over the samples of the search.
    """
    found, changed = dict(spans), dict[str, float]()
    search, later = request.effort.search, request.effort.first // 2
    reached = sqnr(stream.judged(spans, search, "refining ranges", search))
    for index, (group, (low, high)) in enumerate(spans.items(), 1):
        for factor in FACTORS:
            trial = found | {group: (low * factor, high * factor)}
            db = sqnr(stream.judged(trial, search, f"refining range {index} of {len(spans)}", search))
            if db < reached + LEAST_GAIN:
                break
            found, reached, changed[group] = trial, db, factor
    before, after = (stream.judged(s, later, "checking ranges", later) for s in (spans, found))
    gain, surely = gained(before, after, ERROR)
    request.found["refined"] = {"dB before": round(sqnr(before), 2), "dB after": round(sqnr(after), 2),
                                "gain, surely (dB)": [round(gain, 2), round(surely, 2)], "ranges": changed}  # fmt: skip
    return found if surely > 0 else spans


def by_sample(truth: Truth, out: Mapping[str, np.ndarray]) -> Iterator[Totals]:
    """The Difference of every sample's outputs; of the whole batch where an output has no row for each."""
    rows = truth.rows if all(np.shape(array)[:1] == (truth.rows,) for array in truth.outputs.values()) else 1
    for part in range(rows):
        own: Any = ... if rows == 1 else slice(part, part + 1)
        yield {name: Difference.of(array[own], out[name][own]) for name, array in truth.outputs.items()}


def _array(scores: list[Totals]) -> np.ndarray:
    """`[samples, outputs, sums]` of a Difference each, for a checkpoint."""
    return np.array([[astuple(total) for total in score.values()] for score in scores], np.float64)


def _scores(array: np.ndarray, outputs: list[str]) -> list[Totals]:
    """What `_array` was made of."""
    return [dict(zip(outputs, (Difference(*sums) for sums in sample.tolist()), strict=True)) for sample in array]


def gained(before: list[Totals], after: list[Totals], error: float = 0.5) -> tuple[float, float]:
    """How many dB nearer to float a sample is on average, and surely."""
    first, second = (np.clip([decibels(total) for total in scores], -120, 120) for scores in (before, after))
    return paired.gain(first, second, error)


def reached(scores: list[Totals], error: float) -> tuple[float, float]:
    """Between what `sqnr` is over all data, each end but for `error`."""
    return paired.bounds(_sums(scores, "signal"), _sums(scores, "noise"), error)


def won(before: list[Totals], after: list[Totals], error: float) -> tuple[float, float]:
    """The same of sqnr(after) − sqnr(before), by the same samples."""
    return paired.bounds(_sums(before, "noise"), _sums(after, "noise"), error)


def _sums(scores: list[Totals], of: str) -> np.ndarray:
    return np.array([[getattr(total, of) for total in score.values()] for score in scores])


def sqnr(scores: list[Totals]) -> float:
    """SQNR (dB) over all samples, the mean over outputs."""
    return decibels({name: sum((score[name] for score in scores), Difference()) for name in scores[0]})


def decibels(totals: Mapping[str, Difference]) -> float:
    """The mean over outputs; an exact output counts as 120 dB."""
    return float(np.mean([min(total.sqnr_db, 120.0) for total in totals.values()]))
