"""Whole numbers that a TFLite net computes from sizes: an element is an int, the name of an open size, or None.

Files with one open size compute others from it and reshape by what they computed. What moves elements moves names and
None too; arithmetic is done where all is known.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerun.converters._tflite_parts import FAR, entries

Size = int | str | None
Sizes = tuple[Size, ...]
MOST = 1 << 20  # elements that are followed


@dataclass(frozen=True)
class Known:
    """One operator, and of each thing that it reads the sizes and, where they are followed, the contents.

    `made` are the sizes that the file declares of what it makes. Functions of it raise ValueError, TypeError or
    IndexError where they cannot tell.
    """

    options: Any
    sizes: Sequence[Sizes]
    contents: Sequence[np.ndarray | None]
    made: Sequence[Sizes]

    def content(self, index: int) -> np.ndarray:
        """What is known of an input's elements."""
        found = self.contents[index]
        if found is None:
            raise ValueError("not known")
        return found

    def whole(self, index: int) -> list[int]:
        """An input's elements, all known."""
        found = self.content(index).reshape(-1).tolist()
        if not all(isinstance(number, int) for number in found):
            raise ValueError("not known")
        return found

    def axis(self, axis: int) -> int:
        """An axis of the first input, counted from the front."""
        return axis % max(len(self.sizes[0]), 1)


def _known(function: Callable[[int, int], int]) -> Callable[[Size, Size], Size]:
    def found(a: Size, b: Size) -> Size:
        number = function(a, b) if isinstance(a, int) and isinstance(b, int) else None
        return number if number is not None and abs(number) < FAR else None

    return found


def _times(a: Size, b: Size) -> Size:
    return b if a == 1 else a if b == 1 else _known(operator.mul)(a, b)


_PAIRS: dict[str, Callable[[Size, Size], Size]] = {
    "ADD": _known(operator.add), "SUB": _known(operator.sub), "MUL": _times, "MAXIMUM": _known(max),
    "MINIMUM": _known(min), "FLOOR_DIV": _known(operator.floordiv), "FLOOR_MOD": _known(operator.mod),
}  # fmt: skip
_REDUCED = {"REDUCE_PROD": "MUL", "SUM": "ADD", "REDUCE_MAX": "MAXIMUM", "REDUCE_MIN": "MINIMUM"}


def _pair(kind: str) -> Callable[[Known], list[np.ndarray]]:
    compute = np.frompyfunc(_PAIRS[kind], 2, 1)

    def found(known: Known) -> list[np.ndarray]:
        if getattr(known.options, "fusedActivationFunction", 0):
            raise ValueError("an activation")
        return [np.asarray(compute(known.content(0), known.content(1)), object)]

    return found


def _reduced(kind: str) -> Callable[[Known], list[np.ndarray]]:
    compute = np.frompyfunc(_PAIRS[_REDUCED[kind]], 2, 1)

    def found(known: Known) -> list[np.ndarray]:
        axes = sorted({known.axis(axis) for axis in known.whole(1)})
        array = known.content(0)
        for axis in reversed(axes):
            array = np.asarray(compute.reduce(array, axis=axis), object)
        return [np.expand_dims(array, tuple(axes)) if known.options.keepDims else array]

    return found


def _shape(known: Known) -> list[np.ndarray]:
    return [np.array(known.sizes[0], object)]


def _view(known: Known) -> list[np.ndarray]:
    return [known.content(0).reshape(_whole(known.made[0]))]


def _whole(sizes: Sizes) -> list[int]:
    found = [size for size in sizes if isinstance(size, int)]
    if len(found) != len(sizes):
        raise ValueError("not known")
    return found


def _pack(known: Known) -> list[np.ndarray]:
    return [np.stack([known.content(i) for i in range(len(known.contents))], known.options.axis)]


def _unpack(known: Known) -> list[np.ndarray]:
    return list(np.moveaxis(known.content(0), known.options.axis, 0))


def _concatenation(known: Known) -> list[np.ndarray]:
    return [np.concatenate([known.content(i) for i in range(len(known.contents))], known.options.axis)]


def _split(known: Known) -> list[np.ndarray]:
    (axis,) = known.whole(2)
    parts = known.whole(1)
    return np.split(known.content(0), np.cumsum(parts)[:-1].tolist(), axis)


def _gather(known: Known) -> list[np.ndarray]:
    if known.options.batchDims:
        raise ValueError("batches")
    indices = np.array(known.whole(1), np.int64).reshape(known.content(1).shape)
    return [np.asarray(np.take(known.content(0), indices, known.options.axis), object)]


def cut(begin: int, end: int, step: int) -> slice:
    """The slice of `entries`' begin, end and step."""
    low, high = (None if abs(place) == FAR else place for place in (begin, end))
    return slice(low, high, step)


def _strided(known: Known) -> list[np.ndarray]:
    array = known.content(0)
    begins, ends, strides = (known.whole(index) for index in (1, 2, 3))
    cuts, gone, new = entries(known.options, begins, ends, strides, array.ndim)
    places = [slice(None)] * array.ndim
    for axis, *place in cuts:
        places[axis] = cut(*place)
    return [np.expand_dims(array[tuple(places)].squeeze(tuple(gone)), tuple(new))]


def _slice(known: Known) -> list[np.ndarray]:
    places = zip(known.whole(1), known.whole(2), strict=True)
    return [known.content(0)[tuple(slice(at, None if size < 0 else at + size) for at, size in places)]]


def _range(known: Known) -> list[np.ndarray]:
    return [np.array(range(*(known.whole(index)[0] for index in range(3))), object)]


def _fill(known: Known) -> list[np.ndarray]:
    return [np.full(known.whole(0), known.content(1).reshape(())[()], object)]


def _spread(known: Known) -> list[np.ndarray]:
    return [np.broadcast_to(known.content(0), known.whole(1))]


def _transposed(known: Known) -> list[np.ndarray]:
    return [known.content(0).transpose(known.whole(1))]


CONTENTS: dict[str, Callable[[Known], list[np.ndarray]]] = {
    **{kind: _pair(kind) for kind in _PAIRS}, **{kind: _reduced(kind) for kind in _REDUCED},
    **dict.fromkeys(("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "CAST"), _view),
    "SHAPE": _shape, "PACK": _pack, "UNPACK": _unpack, "CONCATENATION": _concatenation, "SPLIT_V": _split,
    "GATHER": _gather, "STRIDED_SLICE": _strided, "SLICE": _slice, "RANGE": _range, "FILL": _fill,
    "BROADCAST_TO": _spread, "TRANSPOSE": _transposed,
}  # fmt: skip
