"""How near a model's outputs come to the float one's, by what is lost of each sample: in dB, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgerun.metrics import Difference
from edgerun.quantize.numerics import paired

if TYPE_CHECKING:
    from edgerun.quantize._stream import Totals

ERROR = 0.05  # of taking a candidate that is no better than the extremes
MOST = 120.0  # dB: an exact output, among others that are not
EXACT = 100.0  # dB from which on an output is: float's own rounding leaves less than any that a scheme makes


def counted(*candidates: list[Totals]) -> list[str]:
    """The outputs whose mean says how near the `candidates` are, of one model: those of which any loses something.

    An output that is exact in all of them, a constant or an input that is passed on, would only hide what the others
    lost, and one that is zero in the float model has no SQNR. Where that leaves none, all count.
    """
    every = next((list(scores[0]) for scores in candidates if scores), [])
    wholes = [_summed(scores) for scores in candidates if scores]
    return [name for name in every if any(_loses(whole[name]) for whole in wholes)] or every


def _loses(total: Difference) -> bool:
    return not total.sqnr_db >= EXACT and (total.signal > 0 or not math.isfinite(total.noise))


def gained(before: list[Totals], after: list[Totals], error: float = 0.5) -> tuple[float, float]:
    """How many dB nearer to float a sample is on average, and surely."""
    over = counted(before, after)
    first, second = (np.clip([_decibels(total, over) for total in scores], -MOST, MOST) for scores in (before, after))
    return paired.gain(first, second, error)


def sqnr(scores: list[Totals], over: Collection[str] | None = None) -> float:
    """SQNR (dB) over all samples, the mean over the outputs `over` (None: those that are `counted` here).

    Numbers of several candidates are comparable over the same outputs.
    """
    return _decibels(_summed(scores), counted(scores) if over is None else over)


def surely(scores: list[Totals], error: float = ERROR) -> float:
    """What `sqnr` is at least on other samples, but for `error`: a few samples may make most of the noise.

    Student's bound, its standard error from leaving out one sample at a time (jackknife); −∞ for one.
    """
    n = len(scores)
    return -math.inf if n < 2 else sqnr(scores) - paired.student(1 - error, n - 1) * _spread(scores)


def interval(scores: list[Totals], confidence: float = 0.95) -> tuple[float, float] | None:
    """The two-sided interval (dB) of `sqnr` on other samples like these, by the same error; None for one sample, and
    where a sample's error is not finite."""
    n, middle = len(scores), sqnr(scores)
    if n < 2 or not math.isfinite(middle):
        return None
    reach = paired.student((1 + confidence) / 2, n - 1) * _spread(scores)
    return (middle - reach, middle + reach) if math.isfinite(reach) else None


def farther(first: list[Totals], second: list[Totals], error: float = ERROR) -> float:
    """By how many dB the second are surely farther from float than the first, of the same samples, by their `sqnr`.

    Student's bound on the difference, as in `surely`; −∞ for one sample.
    """
    n, over = len(first), counted(first, second)
    if n < 2:
        return -math.inf

    def difference(left: int | None) -> float:
        before, after = (scores if left is None else scores[:left] + scores[left + 1 :] for scores in (first, second))
        return sqnr(before, over) - sqnr(after, over)

    spread = paired.jackknife(np.array([difference(i) for i in range(n)]))
    return difference(None) - paired.student(1 - error, n - 1) * spread


def _spread(scores: list[Totals]) -> float:
    """The standard error of `sqnr`, in dB."""
    n, over = len(scores), counted(scores)
    left_out = np.array([sqnr(scores[:i] + scores[i + 1 :], over) for i in range(n)])
    return paired.jackknife(left_out)


def _summed(scores: list[Totals]) -> Totals:
    return {name: sum((score[name] for score in scores), Difference()) for name in scores[0]}


def _decibels(totals: Mapping[str, Difference], over: Collection[str]) -> float:
    return float(np.mean([min(totals[name].sqnr_db, MOST) for name in over]))
