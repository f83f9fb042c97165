"""How hard `compress` looks: the presets."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How many calibration samples each stage of a pass looks at (None: all), and whether single ranges are refined.

    `ranges`: extremes, which may end after `settled` when more would not move them; `first`: everything else that is
    known of the float model, bias correction and rounding; `search`: each candidate; `check`: the finished model.
    A search of 0 takes the extremes as they are. `second`: weights are rounded to the second order. `leave_out`: each
    step is tried without, and stays out where it surely does not pay.
    """

    ranges: int | None = None
    settled: float = 64
    first: int = 40
    search: int = 8
    check: int = 16
    refine: bool = False
    second: bool = True
    leave_out: bool = False


DEFAULT = "default"
PRESETS = {
    "fast": Effort(ranges=32, first=16, search=0, check=8, second=False),
    DEFAULT: Effort(),
    "best": Effort(settled=math.inf, first=128, search=16, check=128, refine=True, leave_out=True),
}
