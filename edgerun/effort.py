"""How hard `compress` looks: the presets."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How many calibration samples each stage of a pass looks at (None: all), and whether single ranges are refined.

    `ranges`: extremes, which may end after `settled` when more would not move them; `first`: everything else that is
    known of the float model, bias correction and rounding; `search`: each candidate; `check`: the finished model.
    A search of 0 takes the extremes as they are. `second`: weights are rounded to the second order. `try_out`: each
    step that makes activations easier to round is tried without, plainly rounded, on batches kept apart; `leave_out`:
    each step of all is, finished as by default, on all that is known. What surely does not pay stays out.
    """

    ranges: int | None = None
    settled: float = 64
    first: int = 40
    search: int = 8
    check: int = 16
    refine: bool = False
    second: bool = True
    try_out: bool = False
    leave_out: bool = False


DEFAULT = "default"
PRESETS = {
    "fast": Effort(ranges=32, first=16, search=0, check=8, second=False),
    DEFAULT: Effort(try_out=True),
    "best": Effort(settled=math.inf, first=128, search=16, check=128, refine=True, leave_out=True),
}
