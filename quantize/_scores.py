"""How near a model's outputs come to the float one's, by what is lost of each sample: in dB, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgerun.metrics import Difference
from edgerun.quantize.numerics import paired

if TYPE_CHECKING:
    from edgerun.quantize._stream import Totals

ERROR = 0.05  # of taking a candidate that is no better than the extremes
MOST = 120.0  # dB: an exact output


def gained(before: list[Totals], after: list[Totals], error: float = 0.5) -> tuple[float, float]:
    """How many dB nearer to float a sample is on average, and surely."""
    first, second = (np.clip([decibels(total) for total in scores], -MOST, MOST) for scores in (before, after))
    return paired.gain(first, second, error)


def sqnr(scores: list[Totals]) -> float:
    """SQNR (dB) over all samples, the mean over outputs."""
    return decibels({name: sum((score[name] for score in scores), Difference()) for name in scores[0]})


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


def _spread(scores: list[Totals]) -> float:
    """The standard error of `sqnr`, in dB."""
    n = len(scores)
    left_out = np.array([sqnr(scores[:i] + scores[i + 1 :]) for i in range(n)])
    return paired.jackknife(left_out)


def decibels(totals: Mapping[str, Difference]) -> float:
    """The mean over outputs; an exact output counts as MOST."""
    return float(np.mean([min(total.sqnr_db, MOST) for total in totals.values()]))
