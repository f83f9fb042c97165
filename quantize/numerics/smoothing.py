"""SmoothQuant: divide an activation's channels by s, multiply the weights that read them: exact in real arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgerun.quantize.numerics.equalization import clipped, others

EXPONENTS = tuple(np.arange(1, 9) / 8)
# A channel that calibration never saw move is scaled as if it had this share of the largest range.
LEAST = 1 / 256


def noise(
    factors: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    power: np.ndarray,
    weights: Sequence[np.ndarray],
    lost: np.ndarray | float = 0.0,
) -> float:
    """Predicted noise over signal (powers) at the outputs of x·W_jᵀ, summed over readers j, when x is stored as f∘x.

    The activation's rounding is taken as uniform noise; the weights are rounded as they will be, since the largest
    weight of a row has no error at all. With e_jc = Σ_o w_joc², p_c = E[x_c²]:

        Σ_j ( Δ²/12 · Σ_c e_jc / f_c²  +  Σ_c p_c·f_c² · Σ_o (v_joc − Q_jo(v_joc))²  +  Σ_c e_jc·χ_c ) / Σ_c e_jc·p_c,
        Δ = (max_c h_c·f_c − min_c l_c·f_c) / 255,   v_joc = w_joc / f_c,   Q_jo of 127 steps to max_c |v_joc|

    `factors` f > 0, `low` l, `high` h, `power` p and `lost` χ (the mean square of what a grid cuts off new data) are
    `[C]`, each of the `weights` is `[O, C]`.
    """
    step = (max(float((high * factors).max()), 0.0) - min(float((low * factors).min()), 0.0)) / 255
    total = 0.0
    for weight in weights:
        energy = np.einsum("oc,oc->c", weight, weight)
        scaled = weight / factors.astype(weight.dtype)
        steps = np.maximum(np.abs(scaled).max(axis=1, keepdims=True) / 127, np.finfo(weight.dtype).tiny)
        scaled /= steps
        scaled -= np.rint(scaled)
        scaled *= steps
        rounded = float((power * factors**2) @ np.einsum("oc,oc->c", scaled, scaled))
        rounded += step**2 / 12 * float((energy / factors**2).sum()) + float((energy * lost).sum())
        total += rounded / max(float(energy @ power), 1e-30)
    return total


def factors(
    lows: np.ndarray, highs: np.ndarray, power: np.ndarray, weights: Sequence[np.ndarray], count: float = np.inf
) -> tuple[np.ndarray, float]:
    """Factors f = 1/s `[C]` for the activation (its readers' `weights` `[O, C]` are divided by them); the gain in dB.

    Of s_c = r_c^α, r = max(−l, h), the one with the least `noise`, α in eighths up to 1; `lows` and `highs` are
    `[parts, C]`, for what new data reaches beyond such a grid (`equalization.clipped`), over `count` elements of a
    channel. Normalised so that the largest f is 1: no channel grows. The gain is how much less noise is predicted than
    without factors, 0 where nothing helps.

    After Xiao et al., SmoothQuant, 2022 (section 4), with the balance between activation and weight chosen by the
    predicted noise in place of one exponent for all.
    """
    depths, heights = np.maximum(-lows, 0.0), np.maximum(highs, 0.0)
    peaks = np.maximum(depths, heights)
    if not float(peaks.max(initial=0.0)) > 0 or not (np.isfinite([lows, highs]).all() and np.isfinite(power).all()):
        return np.ones(power.shape), 0.0
    shares, rest, outside = _shares(peaks.max(axis=0)), _shares(others(peaks)), (others(depths), others(heights))

    def tried(exponent: float) -> tuple[float, np.ndarray]:
        found = (shares / shares.min()) ** -exponent
        lost = clipped([depths, heights], rest**-exponent, count, outside)
        return noise(found, lows.min(axis=0), highs.max(axis=0), power, weights, lost), found

    before, ones = tried(0.0)
    least, best = min((tried(exponent) for exponent in EXPONENTS), key=lambda trial: trial[0])
    if not least < before:
        return ones, 0.0
    return best, float(10 * np.log10(before / least)) if least > 0 else 0.0


def _shares(ranges: np.ndarray) -> np.ndarray:
    """Of the largest of `[..., C]`, LEAST at least."""
    largest = np.maximum(ranges.max(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    shares: np.ndarray = np.maximum(ranges / largest, LEAST)
    return shares
