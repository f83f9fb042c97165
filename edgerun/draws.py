"""Random feeds for a model's inputs: shapes for its symbolic dimensions, values by dtype. Pure, seeded functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.runtime.spec import TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

SIZES = (16, 32, 64, 224, 256)  # tried in turn for symbolic dimensions that are not the batch
LONG = (1024, 16384)  # and then, where no input has two of them, as a signal's length


def sizes(specs: Sequence[TensorSpec], batch: int, other: int) -> dict[str, int]:
    """A size for every symbolic dimension: `batch` where it leads an input of more than one axis, `other` elsewhere.

    A name that leads one input and stands inside another counts as batch. A lone axis that is symbolic is a batch too
    when every input has one axis.
    """
    flat = all(len(spec.shape) <= 1 for spec in specs)
    leading = {spec.shape[0] for spec in specs if len(spec.shape) > (0 if flat else 1)}
    names = {dim for spec in specs for dim in spec.shape if isinstance(dim, str)}
    return {name: batch if name in leading else other for name in sorted(names)}


def larger(specs: Sequence[TensorSpec]) -> tuple[int, ...]:
    """The sizes to try, smallest first."""
    batch = {name for name, size in sizes(specs, 1, 0).items() if size}
    many = any(sum(isinstance(dim, str) and dim not in batch for dim in spec.shape) > 1 for spec in specs)
    return SIZES if many else SIZES + LONG


def feeds(
    specs: Sequence[TensorSpec], dims: Mapping[str, int], seed: int, below: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Feeds of the given sizes: floats from N(0, 1), booleans fair, integers uniform in [0, 2).

    An input that `below` names holds whole numbers in [0, below[name]), whatever its dtype: indices into a table.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[str, np.ndarray] = {}
    for spec in specs:
        shape = spec.with_dims(dims)
        if spec.dtype.startswith("float") and spec.name not in (below or {}):
            drawn[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        else:
            high = (below or {}).get(spec.name, 2)
            if not spec.dtype.startswith(("float", "bool")):
                high = min(high, np.iinfo(spec.dtype).max)
            drawn[spec.name] = rng.integers(0, high, shape).astype(spec.dtype)
    return drawn


_PASS_INDICES = frozenset({"Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Expand"})


def index_bounds(model: ir.Model) -> dict[str, int]:
    """For every graph input that only selects rows of constant tables: the smallest table's row count."""
    bounds: dict[str, int] = {}
    for value in model.graph.inputs:
        rows = _table_rows(value)
        if value.name and rows:
            bounds[value.name] = min(rows)
    return bounds


def _table_rows(value: ir.Value) -> list[int]:
    rows: list[int] = []
    for node, slot in value.uses():
        if node.op_type == "Gather" and slot == 1 and node.inputs[0] is not None:
            table, axis = node.inputs[0].const_value, node.attributes.get_int("axis", 0)
            if table is not None:
                rows.append(table.shape.numpy()[axis])
        elif node.op_type in _PASS_INDICES and slot == 0:
            rows += _table_rows(node.outputs[0])
    return rows
