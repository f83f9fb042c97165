"""Random feeds for a model's inputs: shapes for its symbolic dimensions, values by dtype. Pure, seeded functions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
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


_FLOATS = frozenset({"FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"})
MOVES = frozenset({"Cast", "CastLike", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})


def moved(model: ir.Model) -> frozenset[str]:
    """The inputs of floats that the model only moves to outputs, in these or other floats: nothing is computed of them,
    so that no infinity spreads."""
    return frozenset(value.name for value in model.graph.inputs if value.name and _moved(value, value.dtype))


def _moved(value: ir.Value, dtype: ir.DataType | None) -> bool:
    """Whether all that is made of `value`, whose elements are of `dtype`, are floats that are its own."""
    if dtype is None or dtype.name not in _FLOATS:
        return False
    uses = list(value.uses())
    if not all(node.op_type in MOVES and slot == 0 for node, slot in uses):
        return False
    return (bool(uses) or value.is_graph_output()) and all(
        _moved(node.outputs[0], _cast(node, dtype)) for node, _ in uses
    )


def _cast(node: ir.Node, dtype: ir.DataType) -> ir.DataType | None:
    """What a move makes of elements of `dtype`."""
    if node.op_type == "CastLike":
        like = node.inputs[1]
        return None if like is None else like.dtype
    return type(dtype)(node.attributes["to"].as_int()) if node.op_type == "Cast" else dtype


def extreme(feeds: Mapping[str, np.ndarray], names: Collection[str]) -> dict[str, np.ndarray]:
    """The feeds, infinities and a NaN first in those of these `names`: a runtime may clamp them on the way."""
    found = dict(feeds)
    for name in names:
        found[name] = feeds[name].copy()
        found[name].reshape(-1)[:3] = np.array([np.inf, -np.inf, np.nan])[: found[name].size]
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
    one that says which of many, or a size: those that there are, or those of SIZES_SAID."""
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
        elif known := _hot(node, slot):
            yield known
        elif node.op_type in _PASS_INDICES and slot == 0:
            yield from _told(node.outputs[0])


def _hot(node: ir.Node, slot: int) -> Range | None:
    """What numbers are told apart that become a one of many: by OneHot, or by Equal with every one that there is."""
    if (node.op_type, slot) != ("OneHot", 0) and node.op_type != "Equal":
        return None
    other = node.inputs[1 - slot]
    if other is None or other.const_value is None:
        return None
    held = np.unique(other.const_value.numpy())
    if node.op_type == "OneHot":
        return Range(0, int(held[-1]))
    table = held.dtype.kind in "iu" and len(held) > 2 and held[-1] - held[0] == len(held) - 1
    return Range(int(held[0]), int(held[-1]) + 1) if table else None
