"""Random feeds for a model's inputs: shapes for its symbolic dimensions, values by dtype. Pure, seeded functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Range:
    """What an input may hold: numbers in [low, high), `whole` ones or any."""

    low: float
    high: float
    whole: bool = True


def feeds(
    specs: Sequence[TensorSpec], dims: Mapping[str, int], seed: int, within: Mapping[str, Range] | None = None
) -> dict[str, np.ndarray]:
    """Feeds of the given sizes: floats from N(0, 1), booleans fair, integers uniform in [0, 2).

    An input that `within` names is uniform in its range, whatever its dtype: indices into a table, a number of repeats.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[str, np.ndarray] = {}
    for spec in specs:
        shape, known = spec.with_dims(dims), (within or {}).get(spec.name)
        if known is not None and not known.whole:
            drawn[spec.name] = rng.uniform(known.low, known.high, shape).astype(spec.dtype)
        elif known is None and spec.dtype.startswith("float"):
            drawn[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        else:
            low, high = (int(known.low), int(known.high)) if known else (0, 2)
            if not spec.dtype.startswith(("float", "bool")):
                high = min(high, np.iinfo(spec.dtype).max)
            drawn[spec.name] = rng.integers(min(low, high - 1), high, shape).astype(spec.dtype)
    return drawn


def masked(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The feeds, the first row of every boolean table all False: an attention mask that hides all, as padding does."""
    found = dict(feeds)
    for name, array in feeds.items():
        if array.dtype == np.bool_ and array.ndim > 1 and array.size:
            found[name] = array.copy()
            found[name].reshape(-1, array.shape[-1])[0] = False
    return found


# Numbers that say a size, by operator and input: with 0 there, a draw leaves the output empty, and shows nothing.
SIZES_SAID = {
    ("Tile", 1): Range(1, 4),
    ("Expand", 1): Range(1, 2),
    ("ConstantOfShape", 0): Range(1, 5),
    ("TopK", 1): Range(1, 3),
    ("OneHot", 1): Range(2, 6),
    ("Range", 0): Range(0, 2),
    ("Range", 1): Range(3, 8),
    ("Range", 2): Range(1, 3),
    ("Slice", 1): Range(0, 1),
    ("Slice", 2): Range(1, 4),
    ("Slice", 4): Range(1, 2),
    ("Loop", 0): Range(1, 4),
    ("NonMaxSuppression", 2): Range(1, 4),
    ("NonMaxSuppression", 3): Range(0.1, 0.9, whole=False),
    ("HannWindow", 0): Range(4, 9),
    ("HammingWindow", 0): Range(4, 9),
    ("BlackmanWindow", 0): Range(4, 9),
}
_PASS_INDICES = frozenset({"Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Expand"})


def ranges(model: ir.Model) -> dict[str, Range]:
    """For every graph input that only selects rows of constant tables: numbers below the smallest one's row count; for
    one that says a size: those of SIZES_SAID."""
    found: dict[str, Range] = {}
    for value in model.graph.inputs:
        told = list(_told(value))
        if value.name and told:
            low, high = max(r.low for r in told), min(r.high for r in told)
            found[value.name] = Range(low, high, all(r.whole for r in told)) if low < high else told[0]
    return found


def _told(value: ir.Value) -> Iterator[Range]:
    for node, slot in value.uses():
        if node.op_type == "Gather" and slot == 1 and node.inputs[0] is not None:
            table, axis = node.inputs[0].const_value, node.attributes.get_int("axis", 0)
            if table is not None:
                yield Range(0, table.shape.numpy()[axis])
        elif said := SIZES_SAID.get((node.op_type, slot)):
            yield said
        elif node.op_type in _PASS_INDICES and slot == 0:
            yield from _told(node.outputs[0])
