"""What was seen of an activation, and how that changes when its channels are moved or scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from edgerun.errors import EdgerunError


def unusable(name: str, lows: np.ndarray, highs: np.ndarray) -> EdgerunError:
    """What is said of a value that is NaN, infinite or empty on the calibration data, whose extremes these are."""
    if ((lows == np.inf) & (highs == -np.inf)).any():  # of no element
        do = "--keep-float the nodes that read it, or leave out the samples that make it so"
        return EdgerunError(f"activation {name!r} is empty for some of the calibration data", do=do)
    do = "check the preprocessing; run the float model on the same data"
    return EdgerunError(f"activation {name!r} is not finite on the calibration data", do=do)


def check(name: str, channels: Channels) -> None:
    """Raise EdgerunError for what is NaN, infinite or empty, and for finite values whose squares have no sum in
    float32."""
    if not (np.isfinite(channels.lows) & np.isfinite(channels.highs)).all() or np.isnan(channels.power).any():
        raise unusable(name, channels.lows, channels.highs)
    if np.isinf(channels.power).any():
        raise EdgerunError(
            f"activation {name!r} is too large for statistics in float32",
            got=f"values up to {channels.peak.max():.3g}",
            wanted=f"a sum of squares below {np.finfo(np.float32).max:.3g}, in a batch",
            do="give the model smaller values, or --keep-float the nodes that read it, or --scheme w8a16",
        )


FEWEST = 8  # sampled values of a channel without which they say nothing of its mean


@dataclass(frozen=True)
class Channels:
    """Exact extremes of every part of the data, `[parts, C]`, and mean square `[C]` per channel, float64.

    C = 1 where a tensor has no channels. `count` are the elements of a channel in all the data.
    """

    lows: np.ndarray
    highs: np.ndarray
    power: np.ndarray
    count: float = np.inf

    @property
    def low(self) -> np.ndarray:
        """min x `[C]`."""
        low: np.ndarray = self.lows.min(axis=0)
        return low

    @property
    def high(self) -> np.ndarray:
        """max x `[C]`."""
        high: np.ndarray = self.highs.max(axis=0)
        return high

    @property
    def peaks(self) -> np.ndarray:
        """max |x| of every part `[parts, C]`."""
        peaks: np.ndarray = np.maximum(self.highs, -self.lows)
        return peaks

    @property
    def peak(self) -> np.ndarray:
        """max |x| `[C]`."""
        peak: np.ndarray = self.peaks.max(axis=0)
        return peak

    def mirrored(self) -> Channels:
        """As a grid with zero point 0 sees them: −max |x| to max |x|."""
        return replace(self, lows=-self.peaks, highs=self.peaks)

    def scaled(self, factors: np.ndarray) -> Channels:
        """Of f∘x, for positive f `[C]`."""
        return replace(self, lows=self.lows * factors, highs=self.highs * factors, power=self.power * factors**2)


@dataclass(frozen=True)
class Vectors:
    """What a layer reads at some places, `[m, C · taps]` floats for every batch, the taps of a channel in a row.

    They are kept as they were seen, x, and told as (x − offset)·factor, so that moving and scaling copies nothing.
    """

    batches: tuple[np.ndarray, ...] = ()
    offset: np.ndarray | float = 0.0
    factor: np.ndarray | float = 1.0

    def scaled(self, factors: np.ndarray) -> Vectors:
        """Of f∘x, f `[C]`."""
        return replace(self, factor=self.factor * factors)

    def moved(self, offsets: np.ndarray) -> Vectors:
        """Of x − o, o `[C]`."""
        return replace(self, offset=self.offset + offsets / self.factor)

    def of(self, batches: Sequence[np.ndarray]) -> np.ndarray:
        """Those of some of the `batches`, float32."""
        told: np.ndarray = np.concatenate(batches, dtype=np.float32)
        told -= self._by_tap(self.offset, told.shape[1])
        told *= self._by_tap(self.factor, told.shape[1])
        return told

    @staticmethod
    def _by_tap(channels: np.ndarray | float, size: int) -> np.ndarray:
        by = np.atleast_1d(np.asarray(channels, np.float32))
        return np.repeat(by, size // len(by))


@dataclass(frozen=True)
class Own:
    """A grid of 256 steps that values lie on: it spans `span` (None: not all of the data lies there). They are an
    input's plus `offsets` `[C]`, which the layers' biases take."""

    span: tuple[float, float] | None
    offsets: np.ndarray | float = 0.0


@dataclass(frozen=True)
class Activation:
    """What was seen of one activation.

    `channels` on `axis` (None: the tensor has no channels); `sample`, float32 `[m]`, is an even sample of its values,
    and `owner`, unsigned `[m]`, the channel of each; `lows` and `highs`, `[batches]`, are the extremes of every batch;
    `size` are the elements of the batches that were told in full, `vectors` some of them whole, where asked for.
    `own` is the grid that the values lie on (None: none is known).
    """

    channels: Channels
    axis: int | None
    sample: np.ndarray
    owner: np.ndarray
    lows: np.ndarray
    highs: np.ndarray
    size: float
    vectors: Vectors = Vectors()
    own: Own | None = None

    def scaled(self, factors: np.ndarray) -> Activation:
        """Of f∘x, for positive f `[C]`; the extremes of single batches are known no more but by their place in those of
        all."""
        channels = self.channels.scaled(factors)
        ends = [self._placed(end, channels) for end in (self.lows, self.highs)]
        sample = self.sample * factors[self.owner].astype(np.float32)
        vectors = self.vectors.scaled(factors)
        return replace(self, channels=channels, sample=sample, lows=ends[0], highs=ends[1], vectors=vectors, own=None)

    @property
    def mean(self) -> np.ndarray:
        """Of every channel `[C]`, by the sample; 0 of one hardly in it."""
        seen, mean, _ = self._sampled
        return np.where(seen < FEWEST, 0.0, mean)

    @property
    def unbiased(self) -> np.ndarray:
        """The mean beyond the offsets that biases take, `[C]`."""
        return self.mean - (0.0 if self.own is None else self.own.offsets)

    @property
    def varying(self) -> Channels:
        """With the variance in place of the mean square, by the sample; a channel hardly in it keeps its own."""
        seen, mean, power = self._sampled
        share = np.where(power > 0, 1 - mean**2 / np.maximum(power, np.finfo(np.float64).tiny), 1.0)
        share = np.where(seen < FEWEST, 1.0, np.maximum(share, 0.0))
        return replace(self.channels, power=self.channels.power * share)

    @cached_property
    def _sampled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How many values of each channel the sample has, their mean, and their mean square, `[C]` each."""
        channels, values = len(self.channels.power), self.sample.astype(np.float64)
        seen = np.bincount(self.owner, minlength=channels)
        mean, power = (np.bincount(self.owner, v, channels) / np.maximum(seen, 1) for v in (values, values**2))
        return seen, mean, power

    def moved(self, offsets: np.ndarray) -> Activation:
        """Of x − o, o `[C]`; the mean that E[(x − o)²] needs is that of the sample. Extremes as in `scaled`."""
        _, mean, _ = self._sampled
        power = self.varying.power + (mean - offsets) ** 2
        lows, highs = (end - offsets for end in (self.channels.lows, self.channels.highs))
        channels = replace(self.channels, lows=lows, highs=highs, power=power)
        ends = [self._placed(end, channels) for end in (self.lows, self.highs)]
        sample = self.sample - offsets[self.owner].astype(np.float32)
        vectors = self.vectors.moved(offsets)
        return replace(self, channels=channels, sample=sample, lows=ends[0], highs=ends[1], vectors=vectors, own=None)

    def _placed(self, ends: np.ndarray, channels: Channels) -> np.ndarray:
        """`ends` `[batches]` where they lie between these channels' extremes as they do between this one's."""
        low, high = float(self.channels.low.min()), float(self.channels.high.max())
        lowest, highest = float(channels.low.min()), float(channels.high.max())
        placed: np.ndarray = lowest + (ends - low) * ((highest - lowest) / (high - low) if high > low else 0.0)
        return placed

    def within(self, low: float, high: float) -> Activation:
        """Of min(max(x, low), high); the mean squares and the vectors stay those of x."""
        ends = (np.clip(end, low, high) for end in (self.channels.lows, self.channels.highs, self.lows, self.highs))
        lowest, highest, lows, highs = ends
        sample = np.clip(self.sample, np.float32(low), np.float32(high))
        channels = replace(self.channels, lows=lowest, highs=highest)
        return replace(self, channels=channels, sample=sample, lows=lows, highs=highs)
