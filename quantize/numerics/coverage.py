"""How much calibration data is enough: what the extremes seen so far say about those still to come.

A unit is what extremes are taken over: one sample, or one batch of `rows` samples. Letters: n units, T tensors,
X₁ ≥ X₂ ≥ … the upper extremes of one tensor in falling order (its lower extremes are treated as −x).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError

LEAST = 4  # units: below that, spacings say nothing
SHARE = 0.95  # of the tensors must be covered
DRAWS = 1 << 14


@dataclass(frozen=True)
class Verdict:
    """Whether the calibration data suffices, and what that rests on.

    `enough` is None where fewer than LEAST units were seen. `samples` seen; `wanted` about how many would do (0 where
    that is unknown). `exceeding` bounds the chance that one more unit leaves a tensor's seen range (mean over tensors).
    Per tensor `[T]`, float64: `overshoot`, by how many grid steps the extremes of one more sample are expected to be
    clipped; `low` and `high`, the interval (`confidence`) of the scale that other data of this size would give, as a
    factor on the scale seen.
    """

    enough: bool | None
    samples: int
    wanted: int
    exceeding: float
    overshoot: np.ndarray
    low: np.ndarray
    high: np.ndarray
    confidence: float = 0.9

    def sentence(self, looked: int | None = None, given: int | None = None) -> str:
        """The verdict for a person, with its numbers: of the samples that are different, of all that were `looked` at,
        of all that were `given`; what is not told is as much as was seen."""
        looked, given = looked or self.samples, given or looked or self.samples
        which = " different" * (self.samples < looked) + " samples" + " looked at" * (looked < given)
        which = f"{self.samples}{which}" + f" (of {given})" * (self.samples < given)
        if self.enough is None:
            return f"{which} are too few to say whether they suffice"
        if self.enough:
            return f"{which} are enough"
        more = "; --preset default looks at more" if looked < given else ""
        return f"{which} leave ranges open; about {self.wanted} would do{more}"

    def to_json(self, names: list[str], worst: int = 3) -> dict[str, Any]:
        """JSON values for a history: the verdict and the `worst` tensors by overshoot; `names` has T entries."""
        order = np.argsort(-self.overshoot, kind="stable")[: worst if self.enough is not None else 0]
        return {
            "enough": self.enough,
            "samples": self.samples,
            "about this many would do": self.wanted,
            "share of new data outside the ranges, at most (mean)": round(self.exceeding, 4),
            "widest ranges still open": [
                {
                    "activation": names[i],
                    "clipped steps expected": round(float(self.overshoot[i]), 2),
                    f"scale interval {self.confidence:.0%}": [round(float(v[i]), 3) for v in (self.low, self.high)],
                }
                for i in order
                if self.overshoot[i] > 0
            ],
        }


def verdict(
    lows: np.ndarray, highs: np.ndarray, *, rows: float = 1, steps: int = 255, tolerance: float = 0.5,
    confidence: float = 0.9,
) -> Verdict:  # fmt: skip
    """Do n units settle the min-max ranges of T tensors?

    `lows`, `highs` [n, T] extremes per unit, any float dtype; `rows` samples per unit, on average; `steps` of the
    integer grid that the range is cut into. With b the mean excess (`tail`), one more unit exceeds each end with
    probability ≤ 1/(n+1) (exchangeability: any of the n+1 is as likely the largest) and then by b on average, so that
    its extremes are clipped by

        o = (b_low + b_high) / (n+1) · steps / (high − low)      grid steps.

    A tensor is covered when o ≤ `tolerance`: half a step is what rounding may cost anyway. The data is enough when
    SHARE of the tensors are; n_wanted solves o = tolerance for the tensor at that share.

    Raises EdgerunError for shapes that differ, no units, or extremes that are not finite.
    """
    lows, highs = (np.asarray(a, np.float64) for a in (lows, highs))
    if lows.ndim != 2 or lows.shape != highs.shape or not len(lows):
        raise EdgerunError("extremes do not fit", got=f"{lows.shape} and {highs.shape}", wanted="[n, T] twice, n >= 1")
    if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
        raise EdgerunError("extremes are not finite", do="check the preprocessing")
    n, tensors = lows.shape
    low, high = np.minimum(lows.min(axis=0), 0.0), np.maximum(highs.max(axis=0), 0.0)  # grids hold zero
    width = np.maximum(high - low, np.finfo(np.float64).tiny)
    # An end at zero that never moves (behind a ReLU) cannot be exceeded.
    open_low, open_high = (lows < 0).any(axis=0), (highs > 0).any(axis=0)
    exceeding = float(np.mean(open_low.astype(float) + open_high) / (n + 1)) if tensors else 0.0
    if n < LEAST or not tensors:
        blank = np.zeros(tensors)
        return Verdict(
            None if tensors else True, round(n * rows), 0, min(1.0, exceeding), blank, blank, blank, confidence
        )
    up, down = np.maximum(highs, 0.0), np.maximum(-lows, 0.0)
    (up_excess, up_from, k), (down_excess, down_from, _) = tail(up), tail(down)
    overshoot = (up_excess + down_excess) / (n + 1) * steps / width
    wanted = math.ceil(float(np.quantile(overshoot * (n + 1) / tolerance, SHARE))) - 1
    enough = bool(np.mean(overshoot <= tolerance) >= SHARE)
    reach = _reach(k, confidence)
    ends = [np.maximum(up_from + r * up_excess, 0) + np.maximum(down_from + r * down_excess, 0) for r in reach]
    return Verdict(
        enough, round(n * rows), round(max(n if enough else n + 1, wanted) * rows),
        min(1.0, exceeding), overshoot, ends[0] / width, ends[1] / width, confidence,
    )  # fmt: skip


def tail(extremes: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean excess b `[T]`, its threshold X_{k+1} `[T]` and k, from upper extremes `[n, T]`, n ≥ 3.

    b = (1/k) Σ_{i≤k} X_i − X_{k+1} = (1/k) Σ i·(X_i − X_{i+1}): the normalized spacings of an exponential tail are
    independent with mean b each (A. Rényi, On the theory of order statistics, 1953), and so is the mean amount by
    which a new largest one exceeds the old. k is √n, between 2 and 20: enough spacings for a mean,
    few enough to be the tail. Lighter tails (normal, bounded) are overstated a little, heavier ones understated.
    """
    n = len(extremes)
    k = min(max(math.isqrt(n), 2), 20)
    top = np.sort(np.partition(extremes, n - k - 1, axis=0)[n - k - 1 :], axis=0)[::-1]
    return top[:k].mean(axis=0) - top[k], top[k], k


@functools.cache
def _reach(k: int, confidence: float) -> np.ndarray:
    """Where the largest of n fresh units lies, (X' − X_{k+1}) / b: the two ends of the interval `[2]`.

    With an exponential tail of true mean β: X' − X_{k+1} = β·(ln G_{k+1} − ln E) and b = β·G_k/k, where G are gamma
    and E is exponential, independent; so the quotient has one law for every tensor, drawn here from a fixed seed.
    """
    generator = np.random.default_rng(0)
    fresh = np.log(generator.standard_gamma(k + 1, DRAWS)) - np.log(generator.standard_exponential(DRAWS))
    quotient = fresh * k / generator.standard_gamma(k, DRAWS)
    ends: np.ndarray = np.quantile(quotient, [(1 - confidence) / 2, (1 + confidence) / 2])
    return ends
