"""Which layers to keep in float: what each one's rounding does to the output, against what its float costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

BORDER = 0.005  # share of the model's work that a float layer costs beside its own: rounding at its borders
HALVINGS = 7  # of the noise, between the lowest rung and the highest but one: 21 dB
NET = 0.25  # of the answers that change, lost on balance where there are labels: some were wrong, or become right


def ladder(noise: Mapping[str, float], cost: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Sets of layers to keep in float, from nearly all of them down to few.

    `noise` is what each layer adds to the output when it alone is quantized (Σe²/Σr², taken as additive), `cost` its
    share of the work. Every rung may leave twice the noise of the rung above it; the highest keeps all layers but one.
    """
    order = sorted(noise, key=lambda name: (-noise[name] / (cost[name] + BORDER), name))
    rungs = [tuple(order[:-1])]
    total = math.fsum(noise.values())
    for halvings in range(HALVINGS, 0, -1):
        rungs.append(_kept(order, noise, total / 2**halvings))
    return [kept for kept in dict.fromkeys(rungs) if 0 < len(kept) < len(order)]


def _kept(order: Sequence[str], noise: Mapping[str, float], allowed: float) -> tuple[str, ...]:
    """Layers to keep so that the others' noise is `allowed` at most: a knapsack, solved greedily.

    Layers are kept in `order`, the most noise per cost first, until enough are; then, the least noise per cost first,
    every one is let go that is not needed any more (a layer that makes most of the noise spares all cheap ones).
    """
    kept = list(order)
    for count in range(len(order) + 1):
        if math.fsum(noise[name] for name in order[count:]) <= allowed:
            kept = list(order[:count])
            break
    for name in reversed(kept.copy()):
        rest = [other for other in kept if other != name]
        if math.fsum(noise[other] for other in order if other not in rest) <= allowed:
            kept = rest
    return tuple(kept)


def changed(margins: np.ndarray, noise: float) -> float:
    """The share of samples whose answer changes, when every logit has normal noise of the variance `noise`.

    `margins` `[n]`: the largest logit less the next. Mean of Φ(−m/√(2·noise)): the difference of two logits has twice
    the variance, and no third one is looked at.
    """
    if noise <= 0:
        return 0.0
    spread = math.sqrt(2 * noise)
    return math.fsum(NormalDist().cdf(-float(m) / spread) for m in margins) / max(len(margins), 1)


def holds(share: float, n: int, bound: float, critical: float, net: float = NET) -> bool:
    """Whether `n` labelled samples would likely show a drop below `bound`, if a `share` of the answers changes.

    net·f + z·√(f/n) ≤ δ: the variance of the drop that is seen is at most f/n.
    """
    return net * share + critical * math.sqrt(share / n) <= bound
