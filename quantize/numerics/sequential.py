"""Is an accuracy drop below a bound? Tests on paired counts, for all data at once and for data that still comes in.

Counts may be sums of scores between 0 and 1: variance and evidence are then those of samples that are wholly lost,
gained or neither in these proportions, which vary more and tell less.

Letters: δ the bound (a share), n the samples seen, b of them lost (only the baseline has them right), c gained (only
the other model has), p₁₂ and p₂₁ the rates behind b and c, H₀: p₁₂ − p₂₁ ≥ δ, the drop is not below the bound.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from edgerun.errors import EdgerunError

STAKES = 0.999 * 2.0 ** -np.arange(10)  # shares of the largest stake that cannot lose more than there is


def score(lost: float, gained: float, n: int, bound: float) -> float:
    """Standard normal score of H₀, negative where the drop is below `bound`; reject H₀ at z_α when it is ≤ −z_α.

    z = (b − c − nδ) / √(n(2q + δ(1 − δ))), where q is the likeliest p₂₁ if the drop were δ: the larger root of
    2n·q² + (δ(2n − b + c) − b − c)·q − c·δ(1 − δ) = 0. T. Tango, Stat. Med. 17, 1998. With few differing samples it
    keeps its error, where Wald intervals do not: the variance is the one that the bound itself implies.
    """
    _check(lost, gained, n, bound)
    linear = bound * (2 * n - lost + gained) - lost - gained
    q = (math.sqrt(linear * linear + 8 * n * gained * bound * (1 - bound)) - linear) / (4 * n)
    return (lost - gained - n * bound) / math.sqrt(n * (2 * q + bound * (1 - bound)))


def log_evidence(lost: float, gained: float, n: int, bound: float) -> float:
    """ln of an e-value against H₀: at log(1/α) or more, at any moment, H₀ may be rejected with error α.

    Capital of a player who stakes λ on "the drop is below δ" in every round: Π(1 + λ(δ − dᵢ)), dᵢ = 1 for a lost, −1
    for a gained and 0 for any other sample; here the mean over fixed stakes λ ≤ 1/(1 − δ), so that counts are enough:
    e = mean over λ of (1 − λ(1 − δ))ᵇ · (1 + λ(1 + δ))ᶜ · (1 + λδ)ⁿ⁻ᵇ⁻ᶜ. Under H₀ no strategy expects to gain, so the
    capital ever reaches 1/α with probability ≤ α (Ville), however often one looks. I. Waudby-Smith and A. Ramdas,
    J. R. Stat. Soc. B 86, 2024. It wants samples that come in random order.
    """
    _check(lost, gained, n, bound)
    stakes = STAKES / (1 - bound)
    capital = lost * np.log1p(-stakes * (1 - bound)) + gained * np.log1p(stakes * (1 + bound))
    capital = capital + (n - lost - gained) * np.log1p(stakes * bound)
    return float(np.logaddexp.reduce(capital) - math.log(len(stakes)))


def prospect(z: float, share: float, critical: float) -> float:
    """Probability that the score over all samples will be ≤ −`critical`, when it is `z` on a share t (0 < t < 1).

    Φ((−z_α·√t − z) / √(1 − t)): the predictive power, with nothing known of the drop but what was seen. D. J.
    Spiegelhalter, L. S. Freedman and P. R. Blackburn, Control. Clin. Trials 7, 1986. Giving up where it is small costs
    chances, never error.
    """
    if not 0 < share < 1:
        raise EdgerunError("a prospect needs a part of the samples", got=share, wanted="between 0 and 1")
    return NormalDist().cdf((-critical * math.sqrt(share) - z) / math.sqrt(1 - share))


def samples_to_hold(lost: float, gained: float, n: int, bound: float, critical: float) -> int | None:
    """About how many samples, at the rates seen, take the score to −`critical`; None when these rates never would."""
    _check(lost, gained, n, bound)
    if lost - gained >= n * bound:
        return None
    z = score(lost, gained, n, bound)  # grows with √n at equal rates
    return max(n, math.ceil(n * (critical / z) ** 2))


def fewest_samples(bound: float, critical: float) -> int:
    """Samples without which even two models that never differ are not surely within `bound`: z_α²(1 − δ)/δ."""
    _check(0, 0, 1, bound)
    return math.ceil(critical**2 * (1 - bound) / bound)


def critical_value(error: float) -> float:
    """z_α with Φ(z_α) = 1 − α."""
    return NormalDist().inv_cdf(1 - error)


def _check(lost: float, gained: float, n: int, bound: float) -> None:
    if min(lost, gained) < 0 or n <= 0 or lost + gained > n:
        raise EdgerunError("a test needs counts that fit", got=f"n={n}, lost={lost}, gained={gained}")
    if not 0 < bound < 1:
        raise EdgerunError("the bound on the drop is no share", got=bound, wanted="between 0 and 100 points")
