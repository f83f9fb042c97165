"""Functions that would never end, or unfold into more than memory holds: both are small files."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from edgerun import _wire

MOST = 1_000_000  # nodes that one function may unfold into
K = TypeVar("K", bound=Hashable)


def fault(functions: list[memoryview]) -> tuple[str, str] | None:
    """What is wrong with how a model's FunctionProtos call each other, and which; None where nothing is."""
    found = unending(dict(_wire.function(data) for data in functions))
    if found is None:
        return None
    what, key, size = found
    return what, ".".join(key[:2]) + (f": {size}, over {MOST}" if size else "")


def unending(inside: Mapping[K, Sequence[K]]) -> tuple[str, K, int] | None:
    """What is wrong with functions of which each runs those that `inside` lists, a name per node, whatever it names;
    which one; and how many nodes it is, 0 for a circle.

    A circle never ends, and forty functions that call the next one twice each are a trillion nodes.
    """
    sizes: dict[K, int] = {}
    under_way: list[tuple[K, bool]] = [(key, False) for key in inside]
    opened: set[K] = set()
    while under_way:
        key, done = under_way.pop()
        known = [call for call in inside[key] if call in inside]
        if done:
            opened.discard(key)
            sizes[key] = len(inside[key]) + sum(sizes[call] for call in known)
            if sizes[key] > MOST:
                return "functions unfold into too many nodes", key, sizes[key]
        elif key not in sizes:
            opened.add(key)
            under_way.append((key, True))
            if circle := [call for call in known if call in opened]:
                return "functions call each other in a circle", circle[0], 0
            under_way.extend((call, False) for call in known if call not in sizes)
    return None
