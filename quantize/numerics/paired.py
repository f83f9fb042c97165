"""Is one candidate better than another on data that neither has seen? Paired over samples; and how sure that is."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from edgerun.errors import EdgerunError


def gain(before: np.ndarray, after: np.ndarray, error: float) -> tuple[float, float]:
    """The mean of d = after − before over samples `[n]`, and the bound above which the true mean lies but for `error`.

    Student's one-sided bound, mean(d) − t_{n−1}(1 − error)·sd(d)/√n. Samples differ in how hard they are far more than
    candidates do; that falls out of the difference. One sample has no spread, and the bound −∞.
    """
    if before.shape != after.shape or before.ndim != 1 or not before.size:
        raise EdgerunError("candidates must be seen on the same samples", got=f"{before.shape} and {after.shape}")
    d = np.asarray(after, np.float64) - before
    mean = float(d.mean())
    if len(d) < 2:
        return mean, -math.inf
    return mean, mean - student(1 - error, len(d) - 1) * float(d.std(ddof=1)) / math.sqrt(len(d))


def student(share: float, freedom: int) -> float:
    """The quantile of Student's t with ν degrees of freedom, from that of the normal.

    Exact for ν ≤ 2; else four terms of its expansion in 1/ν (Abramowitz and Stegun, 26.7.5), to 1 % for shares up to
    .995.
    """
    if freedom == 1:
        return math.tan(math.pi * (share - 0.5))
    if freedom == 2:
        return (2 * share - 1) * math.sqrt(2 / (4 * share * (1 - share)))
    z, v = NormalDist().inv_cdf(share), float(freedom)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / v**power for power, term in enumerate(terms))


def jackknife(left_out: np.ndarray) -> float:
    """Standard error of a statistic from its values without each of n samples, `[n]` (Quenouille, 1956; Tukey, 1958).

    √((n−1)/n · Σ(θ_i − θ̄)²); infinite for a single sample.
    """
    n = len(left_out)
    return float(np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2))) if n > 1 else math.inf
