"""Second moments of what matrix products read, streamed over the calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.activation import unusable
from edgerun.runtime import Session

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Feeds


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A clone of `model` that also gives the values of these names."""
    result = model.clone()
    values = {str(value.name): value for node in result.graph for value in node.outputs}
    values |= {str(value.name): value for value in result.graph.inputs}
    present = {str(value.name) for value in result.graph.outputs}
    result.graph.outputs.extend(values[name] for name in names if name not in present)
    return result


def accumulate(
    session: Session, batches: Iterable[Feeds], names: Sequence[str], found: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """H = X·Xᵀ for each value, float64 `[K, K]`; every vector along its last axis is a column of X.

    They are added to what is `found` of them already. Raises EdgerunError naming a value that is not finite.
    """
    found = {} if found is None else found
    for feeds in batches:
        out = session.run(feeds)
        for name in names:
            array = feeds[name] if name in feeds else out[name]
            rows = array.reshape(-1, array.shape[-1])
            found[name] = found.get(name, 0.0) + _products(rows, name)
    return found


def _products(rows: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        found: np.ndarray = (rows.T @ rows).astype(np.float64)  # float32 is exact enough for one batch
    if np.isfinite(np.diag(found)).all():
        return found
    if not np.isfinite(rows).all():
        raise unusable(name, rows, rows)
    wide = rows.astype(np.float64)  # squares that float32 has no room for
    found = wide.T @ wide
    return found


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
