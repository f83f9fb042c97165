"""Cross-layer equalization: move scale between a layer's output channels and its readers' input channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
DEPTHS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)  # of a range below zero, per its height above
# Channels below this share of the largest range are scaled as if they had it: what calibration never saw of a quiet
# channel must still fit, at the price of its last few levels.
FLOOR = 1 / 64
T = TypeVar("T")


@dataclass(frozen=True)
class Reader:
    """A layer that reads the channels: `peaks` `[O, C]` is max |w| over kernel positions, `energy` `[C]` is Σ w².

    `positions` is the number of kernel positions. A depthwise reader has no `peaks`: its scales follow for free.
    """

    energy: np.ndarray
    peaks: np.ndarray | None
    positions: int


@dataclass(frozen=True)
class Read:
    """A value that is quantized, and the layers that read it.

    `peaks` `[parts, C]` is max |x| of every part of the data, `power` `[C]` the mean square, `count` the elements of a
    channel that there were. `at` are the places of its channels among all that are scaled together, int64 `[C]`.
    """

    peaks: np.ndarray
    power: np.ndarray
    count: float
    readers: Sequence[Reader]
    at: np.ndarray


def scales(reads: Sequence[Read]) -> tuple[np.ndarray, float, float]:
    """Factors f `[K]` of all channels (`Read.at`) for the layers before, by which the readers' weights are divided, α,
    and the noise won in dB.

    Of f_c ∝ r_c^−α over α ∈ {0, ¼, ½, ¾, 1} (α = 1: every channel fills the tensor's range) the one that minimises the
    relative noise Σ_j N_j / P_j at the readers' outputs, with rounding taken as uniform noise:

        N_j = Δ²/12 · Σ_c e_jc / f_c²  +  Σ_o δ_jo²/12 · k_j · Σ_c p_c·f_c²  +  Σ_c e_jc·χ_c,    P_j = Σ_c e_jc·p_c,
        Δ = max_c r_c·f_c / 255,  δ_jo = max_c |w_joc| / (127·f_c)

    where r is the observed range, p the mean square of the channel, e the energy of the weights that read it, and χ
    what is `clipped` of new data, all of the value that j reads; all values have the factors of the largest r_c.
    The factors are normalised to keep the largest range unchanged. After Nagel et al. 2019 (section 4.1), with the
    activation's and the weight's noise weighed by data in place of equal ranges.
    """
    sizes = _largest([read.peaks.max(axis=0) for read in reads], reads)
    if not float(sizes.max(initial=0.0)) > 0 or not np.isfinite(sizes).all():
        return np.ones_like(sizes), 0.0, 0.0
    outside = [others(read.peaks) for read in reads]
    rest = _largest(outside, reads)

    def of_values(exponent: float) -> float:
        factors, held = _factors(sizes, exponent), _factors(rest, exponent)
        total = 0.0
        for read, out in zip(reads, outside, strict=True):
            own = factors[read.at]
            step = float((read.peaks * own).max()) / 255
            lost = clipped([read.peaks], held[..., read.at], read.count, [out])
            total += _of_values(step, own, read.power, read.readers, lost)
        return total

    def of_weights(exponent: float) -> float:
        factors = _factors(sizes, exponent)
        return sum(_of_weights(factors[read.at], read.power, read.readers) for read in reads)

    plain = of_values(0.0) + of_weights(0.0)
    noise, best = _least(((of_values(a), a) for a in EXPONENTS[1:]), of_weights, (plain, 0.0))
    return _factors(sizes, best), best, 10 * float(np.log10(plain / noise)) if noise > 0 else 0.0


def _largest(of_reads: Sequence[np.ndarray], reads: Sequence[Read]) -> np.ndarray:
    """The largest that any read has of each channel, `[…, K]` of `[…, C]` each."""
    found = np.zeros((*of_reads[0].shape[:-1], 1 + max(int(read.at.max()) for read in reads)))
    for own, read in zip(of_reads, reads, strict=True):
        with np.errstate(invalid="ignore"):  # a broken channel makes the whole no number
            np.maximum.at(found.T, read.at, own.T)
    return found


def _least(tried: Iterable[tuple[float, T]], rest: Callable[[T], float], plain: tuple[float, T]) -> tuple[float, T]:
    """The smallest sum of what was `tried` and its `rest`, and what has it; `plain` where none is smaller.

    The rest is never negative, and asked for in the order of the first part, until that alone is as large.
    """
    least = plain
    for part, one in sorted(tried, key=lambda pair: pair[0]):
        if not part < least[0]:
            break
        least = min(least, (part + rest(one), one), key=lambda pair: pair[0])
    return least


def _factors(sizes: np.ndarray, exponent: float) -> np.ndarray:
    """r_c^−α of sizes `[..., C]`, 1 for the largest."""
    largest = np.maximum(sizes.max(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    factors: np.ndarray = np.maximum(sizes / largest, FLOOR) ** -exponent
    return factors


def others(ends: np.ndarray) -> np.ndarray:
    """The largest that was reached outside each part, `[parts, C]` of `[parts, C]`; of a single part its own."""
    if len(ends) < 2:
        return ends
    second, first = np.sort(ends, axis=0)[-2:]
    rest: np.ndarray = np.where(ends == first, second, first)
    return rest


def clipped(
    ends: Sequence[np.ndarray], factors: np.ndarray, count: float, rest: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """The mean square `[C]` of what a grid cuts off new data; the `ends` are how far each of its sides was reached.

    Each part of the data stands for new data once: with the `factors` `[parts, C]` that the others would choose, and a
    grid that spans what they reached, o_kc = max(0, r_kc − max_{j≠k, d} r_jd·f_kd / f_kc) is the overshoot of channel c
    in part k, and χ_c = Σ_k o_kc² / n over the channel's n = `count` elements. Where channels are even each is an edge
    of the grid, and new data is beyond many; a large channel leaves the others room. One element a part and channel is
    counted: χ is a lower bound, and zero for a single part. `rest` are the `others` of the ends, where they are known.
    """
    over = np.zeros(factors.shape[-1])
    for end, out in zip(ends, rest or map(others, ends), strict=True):  # `[parts, C]`
        edge = (out * factors).max(axis=1, keepdims=True)
        over += (np.maximum(end - edge / factors, 0.0) ** 2).sum(axis=0)
    return over / count


def _of_values(
    step: float, factors: np.ndarray, power: np.ndarray, readers: Sequence[Reader], lost: np.ndarray
) -> float:
    """What the readers' outputs have of noise because their values are rounded, relative to the signal there: cheap."""
    return sum(
        (step**2 / 12 * float((reader.energy / factors**2).sum()) + float(reader.energy @ lost))
        / _signal(reader, power)
        for reader in readers
    )


def _of_weights(factors: np.ndarray, power: np.ndarray, readers: Sequence[Reader]) -> float:
    """And because their weights are: a look at every weight's peak."""
    grown, inverse, total = float((power * factors**2).sum()), 1 / factors, 0.0
    for reader in readers:
        if reader.peaks is not None:
            steps = (reader.peaks * inverse).max(axis=1) / 127
            total += float((steps**2).sum()) / 12 * reader.positions * grown / _signal(reader, power)
    return total


def _signal(reader: Reader, power: np.ndarray) -> float:
    return max(float((reader.energy * power).sum()), 1e-30)


def even(
    lows: np.ndarray, highs: np.ndarray, power: np.ndarray, readers: Sequence[Reader], count: float = np.inf
) -> tuple[np.ndarray, float]:
    """Factors f `[C]` for a value whose own quantizer takes them, and by how much they lessen the noise, in dB.

    The same noise as in `scales`, with Δ = (max_c h_c·f_c + max_c l_c·f_c) / 255 for channels that reach from −l_c to
    h_c, by `lows` and `highs` `[parts, C]`. Candidates are f_c ∝ max(h_c, l_c/ρ)^−α: with α = 1 every channel fills a
    range from −ρ to 1, or one of its ends; the depth ρ is searched because each channel has its own. Gain 0 and ones
    where nothing is better than ones.
    """
    depths, heights = np.maximum(-lows, 0.0), np.maximum(highs, 0.0)
    depth, height = depths.max(axis=0), heights.max(axis=0)
    ones = np.ones_like(depth)
    if not np.isfinite(depth).all() or not np.isfinite(height).all() or not (depth + height).any():
        return ones, 0.0

    rest = others(depths), others(heights)

    def factors_of(tried: tuple[float, float]) -> np.ndarray:
        ratio, exponent = tried
        return _factors(np.maximum(height, depth / ratio), exponent)

    def of_values(ratio: float, exponent: float) -> float:
        factors = factors_of((ratio, exponent))
        held = _factors(np.maximum(rest[1], rest[0] / ratio), exponent)
        step = float((depth * factors).max() + (height * factors).max()) / 255
        return _of_values(step, factors, power, readers, clipped([depths, heights], held, count, rest))

    def of_weights(tried: tuple[float, float]) -> float:
        return _of_weights(factors_of(tried), power, readers)

    plain = of_values(1.0, 0.0) + of_weights((1.0, 0.0))
    ratios = DEPTHS if depth.any() else (1.0,)
    tried = ((of_values(ratio, a), (ratio, a)) for ratio in ratios for a in EXPONENTS[1:])
    noise, best = _least(tried, of_weights, (plain, (1.0, 0.0)))
    if not noise < plain:
        return ones, 0.0
    return factors_of(best), float(10 * np.log10(plain / noise)) if noise > 0 else 0.0
