"""Random feeds for a model's inputs: shapes for its symbolic dimensions, values by dtype. Pure, seeded functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgerun.runtime.spec import WORDS, TensorSpec, batch_dims

SIZES = (16, 32, 64, 224, 256)  # tried in turn for symbolic dimensions that are not the batch
LONG = (1024, 16384)  # and then, where no input has two of them, as a signal's length


def sizes(specs: Sequence[TensorSpec], batch: int, other: int) -> dict[str, int]:
    """A size for every symbolic dimension: `batch` for those of `batch_dims`, `other` elsewhere; what is named as a sum
    of others, "past + new", has their sum."""
    leading = batch_dims(specs)
    names = {dim for spec in specs for dim in spec.shape if isinstance(dim, str)}
    found = {name: batch if name in leading else other for name in sorted(names)}
    for name in names:
        terms = [term.strip() for term in name.split("+")]
        if len(terms) > 1 and all(term.isdigit() or term in found for term in terms):
            found[name] = sum(int(term) if term.isdigit() else found[term] for term in terms)
    return found


def larger(specs: Sequence[TensorSpec]) -> tuple[int, ...]:
    """The sizes to try, smallest first."""
    batch = {name for name, size in sizes(specs, 1, 0).items() if size}
    many = any(sum(isinstance(dim, str) and dim not in batch for dim in spec.shape) > 1 for spec in specs)
    return SIZES if many else SIZES + LONG


@dataclass(frozen=True)
class Range:
    """What an input may hold: numbers in [low, high), `whole` ones or any; of strings, these `words`."""

    low: float
    high: float
    whole: bool = True
    words: tuple[str, ...] = ()


def feeds(
    specs: Sequence[TensorSpec], dims: Mapping[str, int], seed: int, within: Mapping[str, Range] | None = None
) -> dict[str, np.ndarray]:
    """Feeds of the given sizes: floats from N(0, 1), booleans fair, integers uniform in [0, 2), strings out of WORDS.

    An input that `within` names is uniform in its range, whatever its dtype: indices into a table, a number of repeats.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[str, np.ndarray] = {}
    for spec in specs:
        shape, known = spec.with_dims(dims), (within or {}).get(spec.name)
        if spec.dtype == "object":
            words = np.array(known.words if known is not None else WORDS, object)
            drawn[spec.name] = words[rng.integers(0, len(words), shape)]
        elif known is not None and not known.whole:
            drawn[spec.name] = rng.uniform(known.low, known.high, shape).astype(spec.dtype)
        elif known is None and spec.dtype.startswith("float"):
            drawn[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        else:
            low, high = (int(known.low), int(known.high)) if known else (0, 2)
            if not spec.dtype.startswith(("float", "bool")):
                high = min(high, np.iinfo(spec.dtype).max)
            drawn[spec.name] = rng.integers(min(low, high - 1), high, shape).astype(spec.dtype)
    return drawn
