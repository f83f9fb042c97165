"""From timings to claims: quantiles with intervals, the ratio of two models, and the verdict.

One model's timings are a sequence of sessions, each float64 [rounds, repetitions] in seconds. Timings within a session
hang together (the same memory addresses, frequency, neighbours), so the session is the unit: every session gives one
number, and the interval is that of their median by the sign test, which assumes nothing about how they scatter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.metrics import Interval

MARGIN = 0.01  # less than this is not worth being called a difference
FEWEST_SESSIONS = 6  # below this no 95 % interval of a median exists: 2·0.5^6 = 3.1 %

Sessions = Sequence[np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, in the same unit."""

    value: float
    interval: Interval


def quantile(sessions: Sessions, q: float, confidence: float = 0.95) -> Estimate:
    """The q-quantile (0..1) of a session, typically: the median over sessions, with its interval; seconds."""
    return median([float(np.quantile(samples, q)) for samples in sessions], confidence)


def speedup(baseline: Sessions, other: Sessions, confidence: float = 0.95) -> Estimate:
    """How many times faster `other` is than `baseline`, 1 for equal, with its interval.

    Both were timed in the same rounds of the same sessions. A session's ratio is the median over its rounds of
    median(baseline) / median(other); the estimate is the median over sessions.

    False alarms: both were opened in an order drawn for every session and run in one drawn for every round. Where
    both are the same model, the draw alone decides which of the two gets the better addresses and moments, so every
    session's ratio falls above or below 1 by a fair coin, whatever the machine does and however its timings hang
    together. The interval then lies above 1 with a probability of at most (1 - confidence) / 2, and below 1 too.
    """
    if [len(b) for b in baseline] != [len(o) for o in other]:
        raise EdgerunError(
            "two models were not timed in the same rounds",
            got=[len(o) for o in other],
            wanted=f"{[len(b) for b in baseline]}",
        )
    pairs = zip(baseline, other, strict=True)
    return median([float(np.median(np.median(b, axis=1) / np.median(o, axis=1))) for b, o in pairs], confidence)


def verdict(interval: Interval, margin: float = MARGIN) -> str:
    """'faster', 'slower' or 'no difference', from the interval of a `speedup`; `margin` as a fraction of 1."""
    if interval.low > 1 + margin:
        return "faster"
    return "slower" if interval.high < 1 / (1 + margin) else "no difference"


def median(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The median with the sign test's interval: from the k-th smallest to the k-th largest value.

    k is the largest number with 2·P(B < k) <= 1 - confidence, B binomial(n, 1/2): 2 for nine values.
    """
    n, tail, k = len(values), 0.0, 0
    if n < FEWEST_SESSIONS:
        raise EdgerunError("too few sessions for an interval", got=n, wanted=f"at least {FEWEST_SESSIONS}")
    while (tail := tail + 2 * math.comb(n, k) / 2**n) <= 1 - confidence:
        k += 1
    if k == 0:
        raise EdgerunError("too few sessions for this confidence", got=f"{n} at {confidence:g}")
    ordered = sorted(values)
    return Estimate(float(np.median(ordered)), Interval(ordered[k - 1], ordered[-k], confidence))
