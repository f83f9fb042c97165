"""ONNX functions that would never end, or unfold into more than memory holds: both are small files."""

from __future__ import annotations

from edgerun import _wire

MOST = 1_000_000  # nodes that one function may unfold into


def fault(functions: list[memoryview]) -> tuple[str, str] | None:
    """What is wrong with how a model's FunctionProtos call each other, and which; None where nothing is.

    A circle never ends, and forty functions that call the next one twice each are a trillion nodes.
    """
    inside = dict(_wire.function(data) for data in functions)
    sizes: dict[_wire.Name, int] = {}
    under_way: list[tuple[_wire.Name, bool]] = [(key, False) for key in inside]
    opened: set[_wire.Name] = set()
    while under_way:
        key, done = under_way.pop()
        known = [call for call in inside[key] if call in inside]
        if done:
            opened.discard(key)
            sizes[key] = len(inside[key]) + sum(sizes[call] for call in known)
            if sizes[key] > MOST:
                return "functions unfold into too many nodes", f"{'.'.join(key[:2])}: {sizes[key]}, over {MOST}"
        elif key not in sizes:
            opened.add(key)
            under_way.append((key, True))
            if circle := [call for call in known if call in opened]:
                return "functions call each other in a circle", ".".join(circle[0][:2])
            under_way.extend((call, False) for call in known if call not in sizes)
    return None
