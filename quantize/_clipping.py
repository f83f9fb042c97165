"""What ranges clip that ends before the extremes, in samples that were not among the few which judged them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.metrics import Difference
from edgerun.quantize._scores import counted, gained, sqnr

if TYPE_CHECKING:
    from edgerun.quantize._stream import Intervals, Totals
    from edgerun.quantize.graphs.activation import Activation
    from edgerun.quantize.graphs.placement import Plan

FARTHER = 0.05  # of a range: where so much more is clipped than in judged samples, these say nothing of it
NEAR, MAY_LOSE = 20.0, 3.0  # dB of all samples together, and what these may lose below


def farther(
    plan: Plan, seen: Mapping[str, Activation], pair: tuple[Intervals, Intervals], judged: Collection[int]
) -> list[int]:
    """The batches in which the second of the `pair` clips farther than in the `judged` ones, the farthest first; what
    the first clips too does not count.

    Of each value and batch: by how much of the range its extreme lies outside.
    """
    wider, spans = pair
    beyond = list[np.ndarray]()
    for group, values in plan.groups().items():
        (low, high), (lowest, highest) = spans[group], wider[group]
        for value in values:
            ends = seen[str(value.name)]
            over = np.maximum(np.minimum(ends.highs, highest) - high, low - np.maximum(ends.lows, lowest))
            beyond.append(np.maximum(over, 0.0) / max(high - low, np.finfo(np.float64).tiny))
    if not beyond:
        return []
    told = np.stack(beyond)  # [values, batches]
    known = [batch for batch in judged if batch < told.shape[1]]
    more = (told - told[:, known].max(axis=1, keepdims=True, initial=0.0)).max(axis=0)
    return [int(batch) for batch in np.argsort(-more, kind="stable") if more[batch] > FARTHER]


def strata(batches: Sequence[int]) -> dict[int, int]:
    """One of every part of them, in the middle, and how many are in it: each part is twice as long as that before."""
    found, start, size = dict[int, int](), 0, 1
    while start < len(batches):
        part = batches[start : start + size]
        found[part[len(part) // 2]] = len(part)
        start, size = start + size, 2 * size
    return found


@dataclass(frozen=True)
class Verdict:
    """dB in all data: what spans bring over the extremes to a sample on average, and how near to float all samples
    together come, `before` and with them."""

    mean: float
    before: float
    after: float

    @property
    def gain(self) -> float:
        """Half of what a sample gains, and half of what the sum does."""
        return (self.mean + self.after - self.before) / 2

    @property
    def holds(self) -> bool:
        """Whether both together say so: many gain little where few lose all, and the loudest few decide a sum, which
        may not lose much where it is not near."""
        kept = self.after >= min(self.before, NEAR) - MAY_LOSE
        return self.mean > 0 and self.gain > 0 and kept


def weighed(extremes: list[Totals], spans: list[Totals], between: Sequence[tuple[float, list[Totals]]]) -> Verdict:
    """The verdict from what both lose of judged samples, and from what lies `between` their outputs where more is
    clipped: in samples of each share of the data.

    What the float model gives there is not known. Steps of a grid are as long everywhere, and so extremes lose there
    what they lose of a judged sample, N. Two errors N and M are at most (√N + √M)² apart, and a sample with no more
    than that between its outputs lies as near as a judged one; of one with more, D, the spans lose D − N.
    """
    usual, own = _noise(extremes), _noise(spans)
    parts = [(1.0 - sum(share for share, _ in between), extremes, spans)]
    for share, samples in between:
        before = [{name: Difference(d.signal, usual[name]) for name, d in sample.items()} for sample in samples]
        after = [
            {name: Difference(d.signal, _lost(d.noise, usual[name], own[name])) for name, d in sample.items()}
            for sample in samples
        ]
        parts.append((share, before, after))
    mean = sum(weight * gained(b, a)[0] for weight, b, a in parts)
    first, second = ([_mean(part[i], weight) for weight, *part in parts] for i in (0, 1))
    over = counted(first, second)
    return Verdict(mean, sqnr(first, over), sqnr(second, over))


def _mean(scores: Sequence[Totals], weight: float) -> Totals:
    """What the samples lose on average, `weight` times."""
    factor = weight / len(scores)
    whole = {name: sum((score[name] for score in scores), Difference()) for name in scores[0]}
    return {name: Difference(factor * total.signal, factor * total.noise) for name, total in whole.items()}


def _noise(scores: Sequence[Totals]) -> dict[str, float]:
    """The noise of a typical sample by output: the geometric mean, which the loudest do not decide."""
    return {name: _geometric([score[name].noise for score in scores]) for name in scores[0]}


def _geometric(noises: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(np.maximum(noises, np.finfo(np.float64).tiny)))))


def _lost(between: float, usual: float, own: float) -> float:
    return own if between <= (math.sqrt(usual) + math.sqrt(own)) ** 2 else between - usual
