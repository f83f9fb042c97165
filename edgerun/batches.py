"""Rows of samples cut and joined to batches, and their digest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgerun.runtime.spec import TensorSpec

Feeds = dict[str, np.ndarray]
LENGTH = re.compile("(?i)[lt]|(?!.*batch).*(len|seq|time|frame|step|tok).*").fullmatch


def rebatched(chunks: Iterator[Feeds], size: int) -> Iterator[Feeds]:
    """Chunks cut and joined to `size` rows; the last batch, or one before samples change shape, may be smaller."""
    pieces: list[Feeds] = []
    have = 0
    for chunk in chunks:
        if pieces and any(pieces[0][name].shape[1:] != array.shape[1:] for name, array in chunk.items()):
            yield _joined(pieces)
            pieces, have = [], 0
        total = len(next(iter(chunk.values())))
        start = 0
        while start < total:
            stop = min(total, start + size - have)
            pieces.append({name: array[start:stop] for name, array in chunk.items()})
            start, have = stop, have + stop - start
            if have == size:
                yield _joined(pieces)
                pieces, have = [], 0
    if pieces:
        yield _joined(pieces)


def _joined(pieces: list[Feeds]) -> Feeds:
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def fitted(feeds: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]], place: int = 0) -> Feeds:
    """`feeds` in these shapes, by name: of a longer axis the `place`-th piece of that length, a shorter one repeats."""
    found = dict(feeds)
    for name, shape in shapes.items():
        for axis, size in enumerate(shape):
            if (have := found[name].shape[axis]) != size:
                found[name] = found[name].take((place * size + np.arange(size)) % have, axis)
    return found


def cuttable(
    feeds: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]], inputs: Sequence[TensorSpec]
) -> bool:
    """Whether `fitted` leaves feeds that mean something: no length and no index among them points behind what is left.

    That may be any whole number as large as what is left of a dimension; one whose own input has that dimension, by
    name, is an element of it.
    """
    cut: dict[int | str, int] = {}
    for spec in inputs:
        for dim, have, want in zip(spec.shape, feeds[spec.name].shape, shapes.get(spec.name, ()), strict=False):
            if want < have:
                cut[dim] = min(want, cut.get(dim, want))
    for spec in inputs:
        left = min((size for dim, size in cut.items() if dim not in spec.shape), default=None)
        numbers = feeds[spec.name]
        if left is not None and numbers.dtype.kind in "iu" and ((numbers >= left) | (numbers <= -left)).any():
            return False
    return True


class Digest:
    """SHA-256 of feeds in order: every input's bytes, and its runs of equal row shapes."""

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        self._inputs = inputs
        self._hashes = {spec.name: hashlib.sha256() for spec in inputs}
        self._runs: dict[str, list[list[Any]]] = {spec.name: [] for spec in inputs}

    def update(self, feeds: Feeds) -> None:
        for name, array in feeds.items():
            text = "\0".join(map(str, array.flat)).encode() if array.dtype.kind == "O" else None
            self._hashes[name].update(array.view("u1").data if text is None else text)  # bfloat16 has no buffer
            runs, shape = self._runs[name], list(array.shape[1:])
            if runs and runs[-1][0] == shape:
                runs[-1][1] += len(array)
            else:
                runs.append([shape, len(array)])

    @property
    def uniform(self) -> bool:
        """Whether the rows of every input have had one shape until now."""
        return all(len(runs) == 1 for runs in self._runs.values())

    def hexdigest(self) -> str:
        parts = [[s.name, s.dtype, self._runs[s.name], self._hashes[s.name].hexdigest()] for s in self._inputs]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def transposed(shape: Sequence[int], wanted: Sequence[int | str]) -> str | None:
    """What to do where an array lies channels first and the model wants them last, or the reverse; None where not.

    `shape` is the array's, with an axis of samples or without; `wanted` that of one sample.
    """
    own = len(wanted)
    if own < 3 or len(shape) not in (own, own + 1):
        return None
    lead = len(shape) - own
    for name, order in (("first", (*range(1, own), 0)), ("last", (own - 1, *range(own - 1)))):
        turned = [shape[lead + axis] for axis in order]
        if all(isinstance(w, str) or w == have for have, w in zip(turned, wanted, strict=True)):
            known = {4: {"first": "NCHW", "last": "NHWC"}, 3: {"first": "CHW", "last": "HWC"}}
            looks = known.get(len(shape), {}).get(name, f"channels {name}") if own == 3 else f"channels {name}"
            axes = ", ".join(map(str, (*range(lead), *(lead + axis for axis in order))))
            return f"it looks {looks}: array.transpose({axes})"
    return None


def batching(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec] = ()) -> tuple[bool, int | None]:
    """Whether the first axes are one batch axis, and its size where the model fixes it.

    A fixed size above 1 may as well be that of channels, or of features: a batch's is in front of every output too, and
    where no `outputs` are known, not the only one of an input. An open one is a length where it is called so (LENGTH),
    or no output has it and all begin with a number, or another dimension of the inputs.
    """
    doors, answers = [spec.shape for spec in inputs], [spec.shape for spec in outputs]
    firsts = set(next(zip(*doors, strict=False), ()))  # none where an input is a scalar
    if {*map(type, firsts)} == {str}:
        dims = sum(doors, ())
        lengths = [s and firsts.isdisjoint(s) and (isinstance(s[0], int) or s[0] in dims) for s in answers]
        return not (lengths and all(lengths) or any(map(LENGTH, map(str, firsts)))), None
    size = next(iter(firsts), "")
    if isinstance(size, str) or len(firsts) > 1:
        return False, None
    if size > 1:
        begun = [s and (isinstance(s[0], str) or s[0] == size) for s in answers]
        if not (all(begun) if begun else max(map(len, doors)) > 1):
            return False, None
    return True, size
