"""Where two models of one network differ in time: two lists of kernels aligned, and the difference given to causes.

Pure functions on `NodeTime`: `before` are the kernels of the float model, `after` those of the quantized one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from edgerun.errors import EdgerunError
from edgerun.passes import NodeTime

INTEGER_FASTER = "integer kernel faster"
INTEGER_SLOWER = "integer kernel slower than float"
CONVERSION = "Q/DQ conversion"
REORDER = "reorder"
FUSION_LOST = "fusion lost"
STAYS_FLOAT = "stays float: no integer kernel or rule"
REMOVED = "folded or fused away"
ADDED = "added"

Kernels = Sequence[NodeTime]
Key = tuple[str, int]  # side and order of a kernel


@dataclass(frozen=True)
class Region:
    """Kernels of both models that do the same part of the network; every kernel is in exactly one region.

    `nodes` are the model's nodes that it computes, those that both models have first. `work` is 'compute', 'convert'
    or 'reorder'; the latter two are regions of their own, and `layer` is the number of the compute region that they
    are there for (its own, for a compute region).
    """

    nodes: tuple[str, ...]
    work: str
    layer: int
    before: tuple[NodeTime, ...]
    after: tuple[NodeTime, ...]

    @property
    def saved(self) -> float:
        """Seconds per run that the quantized model takes less here; negative where it takes more."""
        return sum(k.seconds for k in self.before) - sum(k.seconds for k in self.after)

    @property
    def integer(self) -> bool:
        """Whether the quantized model computes on integers here."""
        return self.work == "compute" and any(kernel.integer for kernel in self.after)

    def timed(self, before: Mapping[int, float], after: Mapping[int, float]) -> Region:
        """The same kernels with other seconds, by `order`."""
        return replace(
            self,
            before=tuple(replace(k, seconds=before[k.order]) for k in self.before),
            after=tuple(replace(k, seconds=after[k.order]) for k in self.after),
        )


def align(before: Kernels, after: Kernels) -> list[Region]:
    """Group the kernels of both models into regions, in the order in which they run.

    Kernels that compute a node in common belong together, over both models: a node that one runtime session fuses
    and the other does not joins them. One that covers no node goes where its result goes. Q/DQ and layout changes
    stay apart, one region of each kind at every layer.
    """
    kernels = {("before", k.order): k for k in before} | {("after", k.order): k for k in after}
    if len(kernels) != len(before) + len(after):
        raise EdgerunError("kernels of one model share a place", got="a doubled order", wanted="one kernel at each")
    leaders = _joined(kernels)
    readers = _readers(kernels)
    for key, kernel in kernels.items():
        if kernel.work == "compute" and not kernel.covers:
            served = _served(key, kernels, readers)
            if served is not None:
                leaders[_leader(leaders, key)] = _leader(leaders, served)
    grouped: dict[tuple[Key | None, str], list[Key]] = {}
    for key, kernel in kernels.items():
        served = key if kernel.work == "compute" else _served(key, kernels, readers)
        place = None if served is None else _leader(leaders, served)
        grouped.setdefault((place, _kind(kernel)), []).append(key)
    return _numbered(grouped, kernels)


def causes(region: Region) -> dict[str, float]:
    """Seconds saved (negative: lost) by cause; they add up to `region.saved`.

    Where the quantized model runs more kernels than the float one does, as many of the cheapest as are surplus are
    what a lost fusion costs; the rest is compared with the float kernels as a whole.
    """
    if region.work != "compute":
        return {CONVERSION if region.work == "convert" else REORDER: region.saved}
    if not region.before or not region.after:
        return {REMOVED if region.before else ADDED: region.saved}
    surplus = max(0, len(region.after) - len(region.before))
    lost = sum(sorted(kernel.seconds for kernel in region.after)[:surplus])
    rest = region.saved + lost
    cause = STAYS_FLOAT if not region.integer else INTEGER_FASTER if rest >= 0 else INTEGER_SLOWER
    return {cause: rest, FUSION_LOST: -lost} if surplus else {cause: rest}


def main_cause(region: Region) -> str:
    """The cause with the largest part, in either direction."""
    parts = causes(region)
    return max(parts, key=lambda cause: abs(parts[cause]))


def totals(regions: Sequence[Region]) -> dict[str, float]:
    """Seconds saved by cause over all regions; they add up to the sum of `saved`."""
    found: dict[str, float] = {}
    for region in regions:
        for cause, seconds in causes(region).items():
            found[cause] = found.get(cause, 0.0) + seconds
    return found


def layers(regions: Sequence[Region]) -> dict[int, list[Region]]:
    """The regions of every layer: what computes, and the conversions and reorders that are there for it."""
    found: dict[int, list[Region]] = {}
    for region in regions:
        found.setdefault(region.layer, []).append(region)
    return found


def _kind(kernel: NodeTime) -> str:
    return "convert" if kernel.work in ("quantize", "dequantize") else kernel.work


def _joined(kernels: Mapping[Key, NodeTime]) -> dict[Key, Key]:
    """Union-find over compute kernels that cover a common node: each key's parent."""
    leaders = {key: key for key in kernels}
    first: dict[str, Key] = {}
    for key, kernel in kernels.items():
        if kernel.work == "compute":
            for node in kernel.covers:
                leaders[_leader(leaders, key)] = _leader(leaders, first.setdefault(node, key))
    return leaders


def _leader(leaders: dict[Key, Key], key: Key) -> Key:
    while leaders[key] != key:
        leaders[key] = leaders[leaders[key]]
        key = leaders[key]
    return key


def _readers(kernels: Mapping[Key, NodeTime]) -> dict[Key, list[Key]]:
    found: dict[Key, list[Key]] = {key: [] for key in kernels}
    for (side, order), kernel in kernels.items():
        for source in kernel.reads:
            if (side, source) in found:
                found[side, source].append((side, order))
    return {key: sorted(keys, key=lambda k: k[1]) for key, keys in found.items()}


def _served(key: Key, kernels: Mapping[Key, NodeTime], readers: Mapping[Key, Sequence[Key]]) -> Key | None:
    """The compute kernel that this one is there for: the first behind it that covers a node; a dequantizer is there for
    the one before it, whose result it takes out of the integers."""
    directions: list[Mapping[Key, Sequence[Key]]] = [readers, _sources(kernels)]
    if kernels[key].work == "dequantize":
        directions.reverse()
    for direction in directions:
        for found in _onward(key, direction):
            if kernels[found].work == "compute" and kernels[found].covers:
                return found
    return None


def _sources(kernels: Mapping[Key, NodeTime]) -> dict[Key, list[Key]]:
    return {key: [(key[0], source) for source in kernel.reads if (key[0], source) in kernels]
            for key, kernel in kernels.items()}  # fmt: skip


def _onward(key: Key, direction: Mapping[Key, Sequence[Key]]) -> Iterator[Key]:
    """The kernels in one direction, nearest first."""
    seen, waiting = {key}, [key]
    while waiting:
        for found in direction[waiting.pop(0)]:
            if found not in seen:
                seen.add(found)
                waiting.append(found)
                yield found


def _numbered(grouped: Mapping[tuple[Key | None, str], list[Key]], kernels: Mapping[Key, NodeTime]) -> list[Region]:
    def start(keys: list[Key]) -> tuple[int, str]:
        after = [order for side, order in keys if side == "after"]
        return (min(after or [order for _, order in keys]), keys[0][0])

    ordered = sorted(grouped.items(), key=lambda item: start(item[1]))
    numbers: dict[Key | None, int] = {}
    for (place, _), _ in ordered:
        numbers.setdefault(place, len(numbers))
    regions = []
    for (place, work), keys in ordered:
        sides = {
            side: tuple(kernels[key] for key in sorted(keys, key=lambda k: k[1]) if key[0] == side)
            for side in ("before", "after")
        }
        regions.append(Region(_nodes(*sides.values()), work, numbers[place], sides["before"], sides["after"]))
    return regions


def _nodes(before: Kernels, after: Kernels) -> tuple[str, ...]:
    ours, theirs = ([node for k in kernels for node in k.covers] for kernels in (before, after))
    both = set(ours) & set(theirs)
    return tuple(dict.fromkeys([*(node for node in ours if node in both), *ours, *theirs]))
