"""Cross-layer equalization: move scale between a layer's output channels and its readers' input channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
DEPTHS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)  # of a range below zero, per its height above
# Channels below this share of the largest range are scaled as if they had it: what calibration never saw of a quiet
# channel must still fit, at the price of its last few levels.
FLOOR = 1 / 64


@dataclass(frozen=True)
class Reader:
    """A layer that reads the channels: `peaks` `[O, C]` is max |w| over kernel positions, `energy` `[C]` is Σ w².

    `positions` is the number of kernel positions. A depthwise reader has no `peaks`: its scales follow for free.
    """

    energy: np.ndarray
    peaks: np.ndarray | None
    positions: int


def scales(ranges: np.ndarray, power: np.ndarray, readers: Sequence[Reader]) -> tuple[np.ndarray, float]:
    """Per-channel factors f `[C]` for the layers before (the readers' weights are divided by them), and the exponent.

    Of f_c ∝ r_c^−α over α ∈ {0, ¼, ½, ¾, 1} (α = 1: every channel fills the tensor's range) the one that minimises the
    relative noise Σ_j N_j / P_j at the readers' outputs, with rounding taken as uniform noise:

        N_j = Δ²/12 · Σ_c e_jc / f_c²  +  Σ_o δ_jo²/12 · k_j · Σ_c p_c·f_c²,    P_j = Σ_c e_jc·p_c,
        Δ = max_c r_c·f_c / 255,  δ_jo = max_c |w_joc| / (127·f_c)

    where r is the observed range, p the mean square of the channel, e the energy of the weights that read it.
    The factors are normalised to keep the largest range unchanged. After Nagel et al. 2019 (section 4.1), with the
    activation's and the weight's noise weighed by data in place of equal ranges.
    """
    largest = float(ranges.max(initial=0.0))
    if largest <= 0 or not np.isfinite(largest):
        return np.ones_like(ranges), 0.0
    shares = np.maximum(ranges / largest, FLOOR)
    candidates = [(_noise(shares**-a, ranges, power, readers), a) for a in EXPONENTS]
    best = min(candidates, key=lambda pair: (pair[0], pair[1]))[1]
    return shares**-best, best


def _noise(factors: np.ndarray, ranges: np.ndarray, power: np.ndarray, readers: Sequence[Reader]) -> float:
    return _relative_noise(float((ranges * factors).max()) / 255, factors, power, readers)


def _relative_noise(step: float, factors: np.ndarray, power: np.ndarray, readers: Sequence[Reader]) -> float:
    total = 0.0
    for reader in readers:
        noise = step**2 / 12 * float((reader.energy / factors**2).sum())
        if reader.peaks is not None:
            steps = (reader.peaks / factors).max(axis=1) / 127
            noise += float((steps**2).sum()) / 12 * reader.positions * float((power * factors**2).sum())
        total += noise / max(float((reader.energy * power).sum()), 1e-30)
    return total


def even(low: np.ndarray, high: np.ndarray, power: np.ndarray, readers: Sequence[Reader]) -> tuple[np.ndarray, float]:
    """Factors f `[C]` for a value whose own quantizer takes them, and by how much they lessen the noise, in dB.

    The same noise as in `scales`, with Δ = (max_c h_c·f_c + max_c l_c·f_c) / 255 for channels that reach from −l_c to
    h_c. Candidates are f_c ∝ max(h_c, l_c/ρ)^−α: with α = 1 every channel fills a range from −ρ to 1, or one of its
    ends; the depth ρ is searched because each channel has its own. Gain 0 and ones where nothing is better than ones.
    """
    depth, height = np.maximum(-low, 0.0), np.maximum(high, 0.0)
    ones = np.ones_like(low)
    if not np.isfinite(depth).all() or not np.isfinite(height).all() or not (depth + height).any():
        return ones, 0.0

    def noise(factors: np.ndarray) -> float:
        step = float((depth * factors).max() + (height * factors).max()) / 255
        return _relative_noise(step, factors, power, readers)

    plain = noise(ones)
    best, found = plain, ones
    for ratio in DEPTHS if depth.any() else (1.0,):
        size = np.maximum(height, depth / ratio)
        shares = np.maximum(size / size.max(), FLOOR)
        for exponent in EXPONENTS[1:]:
            factors = shares**-exponent
            reached = noise(factors)
            if reached < best:
                best, found = reached, factors
    return found, float(10 * np.log10(plain / best)) if best > 0 else 0.0
