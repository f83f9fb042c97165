"""Second moments of what matrix products read, streamed over the calibration data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.runtime import Session

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Feeds


POSITIONS = 49  # of a picture: neighbours are alike


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A clone of `model` that also gives the values of these names."""
    result = model.clone()
    values = {str(value.name): value for node in result.graph for value in node.outputs}
    values |= {str(value.name): value for value in result.graph.inputs}
    present = {str(value.name) for value in result.graph.outputs}
    result.graph.outputs.extend(values[name] for name in names if name not in present)
    return result


def accumulate(session: Session, batches: Iterable[Feeds], names: Sequence[str]) -> dict[str, np.ndarray]:
    """H = X·Xᵀ for each value, float64 `[K, K]`; every vector along its last axis is a column of X."""
    found: dict[str, np.ndarray] = {}
    for feeds in batches:
        for name, product in products(session, feeds, dict.fromkeys(names, -1)).items():
            found[name] = found.get(name, 0.0) + product.astype(np.float64)
    return found


def products(session: Session, feeds: Feeds, axes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """X·Xᵀ of one batch for each value, by the axis of its channels: float32 is exact enough for one."""
    out = session.run(feeds)
    found = {}
    for name, axis in axes.items():
        rows = vectors(feeds[name] if name in feeds else out[name], axis)
        found[name] = rows.T @ rows
    return found


def vectors(array: np.ndarray, axis: int) -> np.ndarray:
    """The vectors along `axis` as rows `[m, K]`; of a picture `[N, K, H, W]` every step-th, about POSITIONS of them."""
    if array.ndim == 4 and axis == 1:
        step = max(1, math.ceil(math.sqrt(array.shape[2] * array.shape[3] / POSITIONS)))
        array = array[:, :, step // 2 :: step, step // 2 :: step]
    rows: np.ndarray = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
    return rows


def groups(sizes: dict[str, int], cap: int) -> Iterator[list[str]]:
    """The values in groups whose moments together take at most `cap` bytes; one of them at least in each."""
    group: list[str] = []
    taken = 0
    for name, size in sizes.items():
        if group and taken + 8 * size * size > cap:
            yield group
            group, taken = [], 0
        group.append(name)
        taken += 8 * size * size
    if group:
        yield group
