"""What to leave in float next: sets of nodes, proposed from where the time of a quantized model went.

Pure functions on `Region`. A profile sees kernels, not what surrounds them, so that these are guesses: each is to be
timed before anyone believes it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from edgerun.measure import attribution
from edgerun.measure.attribution import Region

WORTH = 0.005  # of the quantized model's time: a smaller loss is no reason
TOO_LITTLE = "gains less than what surrounds its integers costs"


@dataclass(frozen=True)
class Layer:
    """Nodes that run on integers together, the seconds per run that this saves (negative: costs), conversions and
    reorders included, and the cause with the largest part in it."""

    nodes: tuple[str, ...]
    saved: float
    cause: str


def layers(regions: Sequence[Region], names: Collection[str]) -> list[Layer]:
    """The layers that hold nodes in `names`, the largest loss first."""
    found = []
    for parts in attribution.layers(regions).values():
        nodes = dict.fromkeys(n for part in parts if part.work == "compute" for n in part.nodes if n in names)
        if nodes:
            worst = min(parts, key=lambda part: part.saved)
            found.append(Layer(tuple(nodes), sum(part.saved for part in parts), attribution.main_cause(worst)))
    return sorted(found, key=lambda layer: layer.saved)


def proposals(found: Sequence[Layer], total: float, most: int, *, bold: bool) -> list[dict[str, str]]:
    """At most `most` sets of nodes to leave in float, each node with the reason; `found` as `layers` gives it.

    First all layers that lose more than WORTH of `total` seconds, then the worst alone, the worse half of them, and all
    that lose anything.
    `bold` adds sets that leave only the best half, quarter, … of all layers on integers, since what a layer gains may
    be less than the runtime's own time around its kernels.
    """
    losing = [layer for layer in found if layer.saved < -WORTH * total]
    cuts = [losing, losing[:1], losing[: -(-len(losing) // 2)], [layer for layer in found if layer.saved < 0]]
    left = len(found)
    while bold and (left := left // 2):
        cuts.append(list(found[: len(found) - left]))
    sets = ({n: layer.cause if layer.saved < 0 else TOO_LITTLE for layer in cut for n in layer.nodes} for cut in cuts)
    unique: dict[frozenset[str], dict[str, str]] = {}
    for kept in sets:
        if kept:
            unique.setdefault(frozenset(kept), kept)
    return list(unique.values())[:most]
