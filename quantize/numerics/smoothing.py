"""SmoothQuant: divide an activation's channels by s, multiply the weights that read them: exact in real arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EXPONENTS = tuple(np.arange(1, 9) / 8)
# A channel that calibration never saw move is scaled as if it had this share of the largest range.
LEAST = 1 / 256


def noise(
    factors: np.ndarray, low: np.ndarray, high: np.ndarray, power: np.ndarray, weights: Sequence[np.ndarray]
) -> float:
    """Predicted noise over signal (powers) at the outputs of x·W_jᵀ, summed over readers j, when x is stored as f∘x.

    The activation's rounding is taken as uniform noise; the weights are rounded as they will be, since the largest
    weight of a row has no error at all. With e_jc = Σ_o w_joc², p_c = E[x_c²]:

        Σ_j ( Δ²/12 · Σ_c e_jc / f_c²  +  Σ_c p_c·f_c² · Σ_o (v_joc − Q_jo(v_joc))² ) / Σ_c e_jc·p_c,
        Δ = (max_c h_c·f_c − min_c l_c·f_c) / 255,   v_joc = w_joc / f_c,   Q_jo of 127 steps to max_c |v_joc|

    `factors` f > 0, `low` l, `high` h and `power` p are `[C]`, each of the `weights` is `[O, C]`.
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
        rounded += step**2 / 12 * float((energy / factors**2).sum())
        total += rounded / max(float(energy @ power), 1e-30)
    return total


def factors(
    low: np.ndarray, high: np.ndarray, power: np.ndarray, weights: Sequence[np.ndarray]
) -> tuple[np.ndarray, float]:
    """Factors f = 1/s `[C]` for the activation (its readers' `weights` `[O, C]` are divided by them); the gain in dB.

    Of s_c = r_c^α, r = max(−l, h), the one with the least `noise`, α in eighths up to 1. Normalised so that the largest
    f is 1: no channel grows. The gain is how much less noise is predicted than without factors, 0 where nothing helps.

    After Xiao et al., SmoothQuant, 2022 (section 4), with the balance between activation and weight chosen by the
    predicted noise in place of one exponent for all.
    """
    ranges = np.maximum(high, -low)
    largest = float(ranges.max(initial=0.0))
    ones = np.ones(ranges.shape)
    if largest <= 0 or not (np.isfinite([low, high, power]).all()):
        return ones, 0.0
    shares = np.maximum(ranges / largest, LEAST)
    before = noise(ones, low, high, power, weights)
    best, least = ones, before
    for exponent in EXPONENTS:
        tried = (shares / shares.min()) ** -exponent
        predicted = noise(tried, low, high, power, weights)
        if predicted < least:
            best, least = tried, predicted
    return best, float(10 * np.log10(before / least)) if least > 0 else 0.0
