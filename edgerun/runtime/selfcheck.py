"""What a compiled model's comparison with the reference found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SelfCheck:
    """How a compiled model compared with the reference, over all drawn or given feeds.

    `reference` says what computed the truth; `runs` counts the compared runs, those of
    which some output has an element that is finite; `shapes` are the input shapes that ran.
    `relative_error` is max |y - r| / max |r| and `sqnr_db` 10·log10(Σr² / Σ(y - r)²), both of the worst output.
    `outside` counts the elements of all outputs that are not near: |y - r| > 1e-3·|r| + 1e-5·max |r|.
    """

    reference: str
    runs: int
    shapes: tuple[str, ...]
    worst: str
    relative_error: float
    sqnr_db: float
    outside: int = 0
