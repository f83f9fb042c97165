"""Outputs that hold values of several kinds side by side: a detector's boxes in pixels beside scores below one.

Judged as one, the loud kind hides what is lost of the quiet one: the scores may all be zero at 40 dB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

APART = 10.0  # times the root mean square of another side: of one kind they would not be
SAME = frozenset({"Identity", "Cast"})
RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Sides:
    """Where a Concat joined an output: the `axis`, where each side ends there, and what each is in the graph."""

    axis: int
    ends: Sizes
    sources: tuple[ir.Value, ...] = ()

    def slices(self, name: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """What to call every side of the output `name`, and its place."""
        start, lead = 0, ":, " * self.axis
        for end in self.ends:
            yield f"{name}[{lead}{start}:{end}]", (*[slice(None)] * self.axis, slice(start, end))
            start = end


def of(graph: ir.Graph) -> dict[str, Sides]:
    """The sides of every output that has some, by name."""
    found = {str(value.name): _behind(value, list(range(len(value.shape or ())))) for value in graph.outputs}
    return {name: sides for name, sides in found.items() if sides is not None}


def different(found: Mapping[str, Sides], outputs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Sides]:
    """Those whose sides are of different kinds, by what they hold in a float model's `outputs`."""
    kept: dict[str, Sides] = {}
    for name, sides in found.items():
        whole = [out[name] for out in outputs if name in out]
        if not whole or any(a.ndim <= sides.axis or a.shape[sides.axis] != sides.ends[-1] for a in whole):
            continue
        sizes = [_power([array[place] for array in whole]) ** 0.5 for _, place in sides.slices(name)]
        if max(sizes) > APART * min(sizes) > 0:
            kept[name] = sides
    return kept


def cut(arrays: Mapping[str, np.ndarray], found: Mapping[str, Sides]) -> dict[str, np.ndarray]:
    """The outputs, and in place of one that has sides these, by what they are called."""
    told: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if name in found:
            told |= {label: array[place] for label, place in found[name].slices(name)}
        else:
            told[name] = array
    return told


def _power(arrays: Sequence[np.ndarray]) -> float:
    return float(sum(np.square(a, dtype=np.float64).sum() for a in arrays) / max(1, sum(a.size for a in arrays)))


def _behind(value: ir.Value, axes: Sequence[int | None]) -> Sides | None:
    """The sides of what comes out of `value`, whose own axes are those `axes` of the output (None: no axis of it)."""
    node = value.producer()
    if node is None or node.domain != "" or not node.inputs or node.inputs[0] is None:
        return None
    source = node.inputs[0]
    if node.op_type == "Concat":
        return _joined(node, axes)
    if node.op_type in SAME:
        return _behind(source, axes)
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", [*range(len(axes))][::-1])
        told: list[int | None] = [None] * len(axes)
        for place, axis in zip(order, axes, strict=True):
            told[place] = axis
        return _behind(source, told)
    if node.op_type in RESHAPES and source.shape is not None and value.shape is not None:
        return _behind(source, _kept(list(source.shape), list(value.shape), axes))
    return None


def _kept(before: Sequence[Any], after: Sequence[Any], axes: Sequence[int | None]) -> list[int | None]:
    """The axes of what is reshaped: those in front and at the end that keep their size."""
    told: list[int | None] = [None] * len(before)
    for sign in (1, -1):
        for place in range(min(len(before), len(after))):
            at = place if sign > 0 else -1 - place
            if not isinstance(before[at], int) or before[at] != after[at]:
                if sign > 0 and place == 0:
                    continue  # the samples, whose number is open
                break
            told[at] = axes[at]
    return told


def _joined(node: ir.Node, axes: Sequence[int | None]) -> Sides | None:
    """Of a Concat: what its parts have alike, else the parts."""
    parts = [part for part in node.inputs if part is not None]
    inner = [_behind(part, axes) for part in parts]
    given = node.attributes.get_int("axis", 0)
    axis = given % len(axes) if axes else 0
    first = inner[0]
    if first is not None and all(i is not None and (i.axis, i.ends) == (first.axis, first.ends) for i in inner):
        return first
    shapes = [list(part.shape) for part in parts if part.shape is not None and len(part.shape) > axis]
    sizes = [size for shape in shapes if isinstance(size := shape[axis], int)]
    place = axes[axis] if axes else None
    if place is None or axis == 0 or len(parts) < 2 or len(sizes) < len(parts):
        return None
    return Sides(place, tuple(np.cumsum(sizes).tolist()), tuple(parts))
