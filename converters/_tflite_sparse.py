"""Sparse constants of TFLite (the TACO format): a traversal of dimensions, each dense or compressed, blocks last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError

_MOST = 1 << 28  # elements of one tensor


def dense(values: np.ndarray, shape: Sequence[int], sparsity: Any) -> np.ndarray:
    """The whole array of `shape`; `values` are the stored elements in the order of the traversal.

    Level i runs over axis `traversalOrder[i]`; the levels behind the array's rank run inside blocks of the axes in
    `blockMap`. A dense level visits all its positions; a compressed one those in `arrayIndices`, its parent's p-th
    visit having the part from `arraySegments[p]` to `arraySegments[p + 1]`.
    """
    order, levels = [int(axis) for axis in sparsity.traversalOrder], sparsity.dimMetadata
    blocks = [] if sparsity.blockMap is None else [int(axis) for axis in sparsity.blockMap]
    rank = len(shape)
    if math.prod(shape) > _MOST:
        raise EdgerunError("a sparse tensor is too large", got=shape, wanted=f"at most {_MOST} elements")
    if sorted(order) != list(range(rank + len(blocks))) or len(levels) != len(order) or len(set(blocks)) < len(blocks):
        raise EdgerunError("a sparse tensor's traversal does not fit it", got=order, do="export it again")
    places = np.zeros((1, len(order)), np.int64)  # [visits, levels by axis]
    for axis, level in zip(order, levels, strict=True):
        parents = len(places)
        if level.format == 0:
            counts = np.full(parents, level.denseSize)
            found = np.tile(np.arange(level.denseSize), parents)
        else:
            segments = np.asarray(level.arraySegments.values, np.int64)
            counts, found = np.diff(segments), np.asarray(level.arrayIndices.values, np.int64)
            if len(counts) != parents or (counts < 0).any() or counts.sum() != len(found):
                raise EdgerunError("a sparse tensor's segments do not fit it", got=len(found), do="export it again")
        if counts.sum() > math.prod(shape):
            raise EdgerunError("a sparse tensor has more places than it holds", got=shape, do="export it again")
        places = np.repeat(places, counts, axis=0)
        places[:, axis] = found
    sizes = {axis: int(level.denseSize) for axis, level in zip(order, levels, strict=True)}
    for number, axis in enumerate(blocks):
        places[:, axis] = places[:, axis] * sizes[rank + number] + places[:, rank + number]
    where = tuple(places[:, :rank].T)
    inside = all((index >= 0).all() and (index < size).all() for index, size in zip(where, shape, strict=True))
    if len(places) != values.size or not inside:
        raise EdgerunError("a sparse tensor's places do not fit it", got=len(places), wanted=str(values.size))
    result = np.zeros(shape, values.dtype)
    result[where] = values
    return result
