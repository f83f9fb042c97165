"""A model's inputs as its source tells them, and what the user calls or sets their free dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from edgerun.errors import EdgerunError
from edgerun.runtime import TensorSpec


def spec(name: str, dtype: str, shape: Sequence[int | None]) -> TensorSpec:
    """A TensorSpec whose free dimensions are called `batch`, where they lead, and `NAME_axis`."""
    dims = [("batch" if axis == 0 else f"{name}_{axis}") if d is None else d for axis, d in enumerate(shape)]
    return TensorSpec(name, dtype, tuple(dims))


def matched(have: Sequence[TensorSpec], wanted: Sequence[TensorSpec]) -> list[TensorSpec]:
    """`have` with the names and free dimensions of `wanted`, which is in its order or by its names; `have` when empty.

    Raises EdgerunError when `wanted` has another dtype, rank or fixed size, or not as many inputs.
    """
    if not wanted:
        return list(have)
    by_name = {spec.name: spec for spec in wanted}
    if len(wanted) == len(have) and set(by_name) == {spec.name for spec in have}:
        wanted = [by_name[spec.name] for spec in have]
    pairs = list(zip(have, wanted, strict=False))
    fits = len(wanted) == len(have) and all(
        h.dtype == w.dtype
        and len(h.shape) == len(w.shape)
        and all(isinstance(a, str) or a == b for a, b in zip(h.shape, w.shape, strict=True))
        for h, w in pairs
    )
    if not fits:
        raise EdgerunError(
            "the model has other inputs", got=", ".join(map(str, wanted)), wanted=", ".join(map(str, have)),
            do="leave --input out, or name and fix only its free dimensions",
        )  # fmt: skip
    return [TensorSpec(w.name or h.name, w.dtype, w.shape) for h, w in pairs]
