"""From timings to claims: quantiles with intervals, the ratio of two models, and the verdict.

Timings stand as float64 [rounds, repetitions] in seconds. Timings of one machine resemble their neighbours
(frequency, other work), so nothing here treats two single runs as independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.metrics import Interval

# Two sessions of one model differ by where their memory happens to lie; less than this is never called a difference.
MARGIN = 0.01
FEWEST_ROUNDS = 6  # below this no 95 % interval of a median exists: 2·0.5^6 = 3.1 %
_RESAMPLES = 400


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, in the same unit."""

    value: float
    interval: Interval


def quantile(samples: np.ndarray, q: float, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The q-quantile (0..1) of [rounds, repetitions], with a moving-block bootstrap interval over rounds.

    Blocks of ⌈√rounds⌉ neighbouring rounds are drawn together (circular), which keeps their dependence
    (H. R. Künsch, Ann. Stat. 17, 1989; D. N. Politis and J. P. Romano, 1992). Deterministic for one `seed`.
    """
    rounds = len(samples)
    _check_rounds(samples, 1)
    generator = np.random.default_rng(seed)
    block = math.ceil(math.sqrt(rounds))
    starts = generator.integers(0, rounds, (_RESAMPLES, -(-rounds // block)))
    draws = (starts[:, :, None] + np.arange(block)).reshape(_RESAMPLES, -1)[:, :rounds] % rounds
    values = [float(np.quantile(samples[draw], q)) for draw in draws]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(np.quantile(samples, q)), Interval(float(low), float(high), confidence))


def speedup(baseline: np.ndarray, other: np.ndarray, confidence: float = 0.95) -> Estimate:
    """How many times faster `other` is: the median over rounds of median(baseline) / median(other), 1 for equal.

    Both [rounds, repetitions] come from one interleaved run whose order was drawn anew in every round. The interval
    is the sign test's: the k-th smallest to the k-th largest ratio, k from the binomial distribution. Where both are
    the same model, the drawn order alone decides which one gets the slower half of a round, so every ratio lies
    above or below 1 by a fair coin: whatever the machine did, and however its timings hang together, the interval
    misses 1 with a probability of at most 1 - `confidence`.
    """
    if baseline.shape[0] != other.shape[0]:
        raise EdgerunError("two models were not timed in the same rounds", got=(len(baseline), len(other)))
    _check_rounds(baseline, FEWEST_ROUNDS)
    ratios = np.sort(np.median(baseline, axis=1) / np.median(other, axis=1))
    k = _sign_rank(len(ratios), confidence)
    return Estimate(float(np.median(ratios)), Interval(float(ratios[k - 1]), float(ratios[-k]), confidence))


def verdict(interval: Interval, margin: float = MARGIN) -> str:
    """'faster', 'slower' or 'no difference', from the interval of a `speedup`; `margin` as a fraction of 1."""
    if interval.low > 1 + margin:
        return "faster"
    return "slower" if interval.high < 1 / (1 + margin) else "no difference"


def _sign_rank(n: int, confidence: float) -> int:
    """The largest k with 2·P(B < k) <= 1 - confidence, B binomial(n, 1/2)."""
    tail, k = 0.0, 0
    while True:
        # comb / 2^n as exact integers first: 2^n alone leaves float64 at n = 1024
        tail += 2 * math.comb(n, k) / 2**n
        if tail > 1 - confidence:
            return k
        k += 1


def _check_rounds(samples: np.ndarray, fewest: int) -> None:
    if samples.ndim != 2 or len(samples) < fewest or samples.shape[1] < 1:
        raise EdgerunError("too few timings", got=list(samples.shape), wanted=f"[rounds >= {fewest}, repetitions >= 1]")
