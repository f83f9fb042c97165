"""What each step of a pass brings, in one place of the history: `steps`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgerun.passes import Request

KEY = "steps"
CENTRED, EQUALIZED, SMOOTHED, EVENED = "centring", "equalization", "smoothing", "evening out"
ROUNDED, RECURRENT = "second-order rounding", "second-order rounding of recurrent weights"
FLOAT, RANGES, REFINED, BIAS = "float layers", "range estimator", "tightened ranges", "bias correction"
HALVED = "half precision beside 8 bits"
ORDER = (CENTRED, EQUALIZED, SMOOTHED, EVENED, ROUNDED, RECURRENT, FLOAT, RANGES, REFINED, BIAS, HALVED)
OUTPUT, LAYER, PREDICTED = "output", "layer", "predicted"  # where a gain was measured


def tell(
    request: Request,
    step: str,
    gain: float,
    surely: float = -math.inf,
    *,
    n: int,
    measured: str,
    kept: bool,
    choice: str = "",
) -> None:
    """Write into `found` by how many dB there is less noise with `step`, in place of what stood there of it.

    `gain` is the mean over `n` samples where it was measured at the model's output, and `surely` the bound above which
    it lies but for an error of 5 %; the interval is as wide on the other side, 90 % in all. Elsewhere it is the median
    over `n` layers or values, and has none. `choice` says which of several ways of the step is meant.
    """
    interval = [round(surely, 2), round(2 * gain - surely, 2)] if math.isfinite(surely) else None
    name = f"{step}: {choice}" if choice else step
    told = {"step": name, "gain_db": round(gain, 2), "interval_db": interval, "n": n, "measured": measured}
    others = [other for other in request.found.get(KEY, ()) if other["step"] != name]
    request.found[KEY] = sorted([*others, told | {"kept": kept}], key=_place)  # a new list: variants share the old one


def _place(told: dict[str, Any]) -> int:
    return ORDER.index(told["step"].partition(":")[0])
