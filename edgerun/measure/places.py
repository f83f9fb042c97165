"""The same kernel at the same place in every session: a runtime may run what does not hang together in any order."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgerun.passes import NodeTime

Like = tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]]


def alike(sessions: Sequence[Sequence[NodeTime]]) -> list[list[NodeTime]]:
    """The kernels of every session, numbered (`order`, `reads`) as those that do the same in the first one.

    ONNX Runtime's optimizer orders a few kernels anew in every session. A session whose kernels are others stays as it
    is, as does one that runs in the first one's order with fewer kernels told.
    """
    first = {kernel.order: kernel for kernel in sessions[0]}
    return [list(found) if _in_order(found, first) else _renumbered(found, first) for found in sessions]


def _in_order(found: Sequence[NodeTime], first: Mapping[int, NodeTime]) -> bool:
    return all(k.order not in first or (k.op, k.covers) == (first[k.order].op, first[k.order].covers) for k in found)


def _renumbered(found: Sequence[NodeTime], first: Mapping[int, NodeTime]) -> list[NodeTime]:
    own = {kernel.order: kernel for kernel in found}
    places: dict[Like, deque[int]] = defaultdict(deque)
    for order in sorted(first):
        places[_like(first[order], first)].append(order)
    numbers = dict[int, int]()
    for order in sorted(own):
        left = places[_like(own[order], own)]
        if not left:
            return list(found)
        numbers[order] = left.popleft()
    return [replace(k, order=numbers[k.order], reads=tuple(numbers[r] for r in k.reads if r in numbers)) for k in found]


def _like(kernel: NodeTime, all_of_it: Mapping[int, NodeTime]) -> Like:
    """What two sessions tell alike of a kernel: names that a runtime makes up are others each time."""
    sources = sorted(all_of_it[order].covers for order in kernel.reads if order in all_of_it)
    return kernel.op, kernel.covers, tuple(sources)
