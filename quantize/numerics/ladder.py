"""Which layers to keep in float first: what each one's rounding does to the output, against what its float costs."""

from __future__ import annotations

import math
from collections.abc import Mapping

BORDER = 0.005  # share of the model's work that a float layer costs beside its own: rounding at its borders


def ladder(noise: Mapping[str, float], cost: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Sets of layers to keep in float, from nearly all of them down to few: each the start of one order.

    `noise` is what each layer adds to the output when it alone is quantized (Σe²/Σr², taken as additive), `cost` its
    share of the work. The order is by noise per cost, the dearest noise first: the greedy solution of the knapsack
    problem. Every rung leaves half of the noise that the rung below it leaves; the highest keeps all layers but one.
    """
    order = sorted(noise, key=lambda name: (-noise[name] / (cost[name] + BORDER), name))
    left = [math.fsum(noise[name] for name in order[kept:]) for kept in range(len(order))]
    rungs, allowed = {len(order) - 1}, left[0] / 2
    for kept in range(1, len(order)):
        if left[kept] <= allowed:
            rungs.add(kept)
            allowed = left[kept] / 2
    return [tuple(order[:kept]) for kept in sorted(rungs - {0}, reverse=True)]
