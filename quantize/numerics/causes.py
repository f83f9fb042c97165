"""From numbers to the name of a cause: what is wrong with a range, a weight's grid, or a whole calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgerun.quantize.numerics.grid import Grid, asymmetric

CLIPPING, OUTLIER, CONCAT = "clipping", "outlier channel", "mixed-scale Concat"
CALIBRATION, PREPROCESSING = "dead or constant calibration", "wrong preprocessing"
SPREAD, DEAD, BIAS, SATURATION = "weight channel spread", "dead channel", "bias shift", "saturation"
SOFTMAX, TAIL, ROUNDING = "softmax tail", "long tail", "rounding"
SLIGHT = "little damage"  # of what is odd, and yet does next to none of the harm

UNEVEN = 8.0  # a peak so many times the typical one wastes three of eight bits on everything else
UNEVEN_WEIGHTS = 4.0
LOST = 0.5  # share of the values (or of the noise) that makes a cause the cause
CUT = 0.02  # share of the nonzero values outside from which a range is simply too small, whatever else is odd
NEVER_FILLED = 16.0  # a range so many times as wide as the data wastes four of eight bits
HEARD = 0.05  # a channel's rms, relative to the median channel's, from which its loss matters


@dataclass(frozen=True)
class Cause:
    """A cause by name, with the number that shows it."""

    name: str
    evidence: str
    number: float


@dataclass(frozen=True)
class Seen:
    """An activation in the float counterpart: exact extremes, per-channel peaks `[C]` (max |x|), an even sample `[m]`.

    `parts` are the peaks of a Concat's inputs (empty elsewhere); `op` is what computes it.
    """

    low: float
    high: float
    peaks: np.ndarray
    sample: np.ndarray
    op: str
    parts: tuple[float, ...] = ()


@dataclass(frozen=True)
class Fit:
    """How a grid fits: noise powers relative to the signal's; shares of nonzero values outside, and rounded to 0."""

    clipped: float
    rounded: float
    outside: float
    vanished: float


def fit(sample: np.ndarray, grid: Grid, low: float, high: float) -> Fit:
    """The noise of `sample` `[m]` on a per-tensor grid over [low, high], parted into clipping and rounding."""
    x = sample.astype(np.float64)
    power = max(float(x @ x), np.finfo(np.float64).tiny)
    inside = np.clip(x, low, high)
    clip = x - inside
    stored = grid.dequantize(grid.quantize(sample.astype(np.float32))).astype(np.float64)
    nonzero = max(int((x != 0).sum()), 1)
    margin = (high - low) / 255 / 2
    outside = float(((x < low - margin) | (x > high + margin)).sum()) / nonzero
    vanished = float(((stored == 0) & (x != 0)).sum()) / nonzero
    return Fit(float(clip @ clip) / power, float(((inside - stored) ** 2).sum()) / power, outside, vanished)


def of_activation(seen: Seen, grid: Grid, low: float, high: float) -> Cause:
    """The cause of an activation quantizer's noise, the most specific that its numbers show."""
    found = fit(seen.sample, grid, low, high)
    extent, width = max(seen.high, 0.0) - min(seen.low, 0.0), high - low
    exceeded = max(seen.high, -seen.low) / max(high, -low)
    reach = f"data reaches [{seen.low:.3g}, {seen.high:.3g}], the grid [{low:.3g}, {high:.3g}]"
    if found.outside > LOST and exceeded > NEVER_FILLED:
        return Cause(CALIBRATION, f"{100 * found.outside:.0f} % of the values lie outside: {reach}", found.outside)
    if 0 < extent * NEVER_FILLED < width:
        return Cause(CALIBRATION, f"the data fills {100 * extent / width:.2g} % of the grid: {reach}", extent / width)
    clipping = Cause(CLIPPING, f"{100 * found.outside:.2g} % of the values lie outside: {reach}", found.outside)
    if found.clipped > found.rounded and found.outside > CUT:
        return clipping
    parts = [p for p in seen.parts if p > 0]
    if len(parts) > 1 and max(parts) > UNEVEN * min(parts):
        ratio = max(parts) / min(parts)
        return Cause(
            CONCAT, f"its inputs' peaks differ {ratio:.3g} times: {min(parts):.3g} and {max(parts):.3g}", ratio
        )
    if (uneven := unevenness(seen.peaks)) > UNEVEN:
        worst, count = int(np.argmax(seen.peaks)), int((seen.peaks > UNEVEN * _typical(seen.peaks)).sum())
        text = f"channel {worst} peaks at {uneven:.3g} times the median channel; {count} of {len(seen.peaks)} like it"
        return Cause(OUTLIER, text, uneven)
    if found.clipped > found.rounded:
        return clipping
    if seen.op == "Softmax" and found.vanished > LOST:
        return Cause(SOFTMAX, f"{100 * found.vanished:.0f} % of the probabilities round to zero", found.vanished)
    bits = f"rounding noise {-10 * np.log10(max(found.rounded, 1e-30)):.1f} dB below the signal; nothing else is odd"
    return Cause(ROUNDING, bits, found.rounded)


def of_input(seen: Seen) -> Cause:
    """The cause at what is rounded while it runs: nothing is clipped there, and the largest value sets all steps."""
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if not high > low:
        return Cause(ROUNDING, "its input is zero", 0.0)
    grid = asymmetric(low, high)
    found, vanished = of_activation(seen, grid, low, high), fit(seen.sample, grid, low, high).vanished
    if found.name == ROUNDING and vanished > LOST:
        largest = f"the largest, {max(high, -low):.3g}, sets the steps"
        text = f"{100 * vanished:.0f} % of its input's values round to zero: {largest}"
        return Cause(TAIL, text, vanished)
    return found


def unevenness(peaks: np.ndarray) -> float:
    """The largest channel peak over the median of the channels that are not silent; 1 for fewer than three."""
    return float(peaks.max() / _typical(peaks)) if (peaks > 0).sum() >= 3 else 1.0


def _typical(peaks: np.ndarray) -> float:
    return float(np.median(peaks[peaks > 0]))


def of_weight(weight: np.ndarray, grid: Grid, stored: np.ndarray, axis: int) -> Cause:
    """The cause of a weight's noise: float `weight`, `grid`, the integers `stored`; `axis` holds output channels."""
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    values = np.moveaxis(grid.dequantize(stored), axis, 0).reshape(rows.shape).astype(np.float64)
    error = rows - values
    rms = np.sqrt((rows**2).mean(axis=1))
    blocked = grid.axis is None and grid.scale.ndim == weight.ndim
    per_channel = grid.scale.size > 1 and (grid.scale.shape[axis] > 1 if blocked else grid.axis is not None)
    lost = (error**2).mean(axis=1) > LOST * rms**2
    lost &= rms > HEARD * float(np.median(rms))
    peaks = np.abs(rows).max(axis=1)
    if not per_channel and (uneven := unevenness(peaks)) > UNEVEN_WEIGHTS:
        return Cause(SPREAD, f"one scale for all: the largest channel peaks at {uneven:.3g} times the median", uneven)
    codes = np.abs(np.moveaxis(stored, axis, 0).reshape(rows.shape).astype(np.int64))
    ends = codes >= max(codes.max() - 1, 2)  # −128 and 127 are both ends
    clipped = float((error[ends & (np.abs(rows) > np.abs(values))] ** 2).sum())
    if lost.any() and clipped < LOST * float((error**2).sum()):
        worst = int(np.argmax(np.where(lost, rms, 0)))
        text = f"{int(lost.sum())} of {len(rows)} channels are lost in rounding, channel {worst} (rms {rms[worst]:.3g})"
        return Cause(DEAD, text, float(lost.sum()))
    share = clipped / max(float((error**2).sum()), np.finfo(np.float64).tiny)
    if share > LOST and float((error**2).sum()) > 1e-3 * float((rows**2).sum()):
        return Cause(CLIPPING, f"{100 * share:.0f} % of the weight's error is beyond its grid's end", share)
    noise = float((error**2).sum()) / max(float((rows**2).sum()), 1e-30)
    return Cause(
        ROUNDING,
        f"rounding noise {-10 * np.log10(max(noise, 1e-30)):.1f} dB below the weights; nothing else is odd",
        noise,
    )


def of_bias(bias: np.ndarray, stored: np.ndarray, sigma: float) -> Cause:
    """The cause at a bias: the largest |stored − bias| in units of its layer's output, `sigma` its rms."""
    shift = float(np.abs(stored - bias).max(initial=0.0)) / max(sigma, 1e-30)
    return Cause(BIAS, f"moves a channel of the layer's output by {shift:.2g} of its rms", shift)


def log_widths(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """log of the width of [min(low, 0), max(high, 0)]; a tensor that never leaves zero counts as grid of scale 1."""
    width = np.maximum(high, 0.0) - np.minimum(low, 0.0)
    logs: np.ndarray = np.log(np.where(width > 1e-30, width, 255.0))
    return logs


def explains(widths: np.ndarray, given: np.ndarray, other: np.ndarray, least: float = 0.08) -> float:
    """How much better the ranges `other` explain a model's than those of the data as `given`: 0 not, to 1 fully.

    All are log-widths `[Q]`. The distance of two sets is the mean |difference − its median| plus a quarter of the
    |median|, since an estimator may shrink all ranges alike; each difference counts as 3 (e³ = 20 times) at most.
    1 − distance(other) / distance(given), and 0 where the given ones are nearer than `least`: extremes of two sets of
    samples differ by a few percent anyway.
    """
    before, after = _distance(widths - given), _distance(widths - other)
    return 0.0 if before < least else float(1 - after / before)


def _distance(difference: np.ndarray) -> float:
    middle = float(np.median(difference))
    return float(np.clip(np.abs(difference - middle), 0, 3).mean()) + min(abs(middle), 3.0) / 4
