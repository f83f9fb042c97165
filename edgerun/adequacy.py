"""Is the calibration data fit to calibrate with? Looked at while it streams, sample by sample."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError

Feeds = Mapping[str, np.ndarray]
FEW = 16  # samples: with fewer, one new sample in nine leaves a two-sided range, 2/(n+1)


@dataclass
class FeedCheck:
    """Looks at every sample once: `add` each batch of feeds in order, then `report`. Keeps some bytes per sample.

    `batched` says that the first axis holds samples; otherwise a feed is one sample.
    """

    batched: bool = True
    samples: int = 0
    _seen: set[bytes] = field(default_factory=set)
    _bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    _elements: dict[str, int] = field(default_factory=dict)
    _blank: int = 0

    @property
    def different(self) -> int:
        """How many samples are no repetition of others."""
        return len(self._seen)

    def add(self, feeds: Feeds) -> list[bool]:
        """Count a batch in; of each of its samples, whether none before is the same. Raises EdgerunError for NaN or
        infinity."""
        rows = {name: a if self.batched and a.ndim else a[None] for name, a in feeds.items()}
        count = min((len(array) for array in rows.values()), default=0)
        keys = [bytearray() for _ in range(count)]
        blank = np.ones(count, bool)
        for name, array in rows.items():
            blank &= self._add(name, array, keys)
        fresh = []
        for key in map(bytes, keys):
            fresh.append(key not in self._seen)
            self._seen.add(key)
        self._blank += int(blank.sum()) if any(array[0].size > 1 for array in rows.values() if len(array)) else 0
        self.samples += count
        return fresh

    def _add(self, name: str, array: np.ndarray, keys: Sequence[bytearray]) -> np.ndarray:
        """One input of a batch; which of its samples hold one number only, bool `[n]`."""
        flat = np.ascontiguousarray(array).reshape(len(array), int(np.prod(array.shape[1:])))
        for key, row in zip(keys, flat, strict=True):
            # A checksum of all bytes and 16 numbers as they are: fast, and no two samples share that by chance.
            told = row if row.dtype.kind in "biufc" else np.frombuffer(repr(row.tolist()).encode(), np.uint8)
            key += zlib.crc32(told.data).to_bytes(4, "little") + told[:: max(1, -(-told.size // 16))].tobytes()
        if not flat.size or flat.dtype.kind not in "biuf":
            return np.zeros(len(array), bool)
        low, high = flat.min(axis=1), flat.max(axis=1)
        if flat.dtype.kind == "f" and not (finite := np.isfinite(low) & np.isfinite(high)).all():
            at = self.samples + int(np.argmin(finite))
            raise EdgerunError(f"the calibration data of input {name!r} holds NaN or infinity", got=f"at sample {at}",
                               do="remove or repair the sample")  # fmt: skip
        if flat.dtype.kind == "f":
            before = self._bounds.get(name, (np.inf, -np.inf))
            self._bounds[name] = min(before[0], float(low.min())), max(before[1], float(high.max()))
            self._elements[name] = max(self._elements.get(name, 0), flat.shape[1])
        alike: np.ndarray = low == high
        return alike

    def report(self) -> dict[str, Any]:
        """What a history should hold: `samples`, `duplicates` and `warnings`, sentences for the user.

        Raises EdgerunError when there is no sample, when all are the same, or when every float input of more than one
        element is one number throughout.
        """
        if not self.samples:
            raise EdgerunError("the calibration data is empty", do="give some real inputs")
        do = "give different real inputs; check what loads them"
        if self.samples > 1 and len(self._seen) == 1:
            raise EdgerunError("the calibration data is constant", got=f"{self.samples} times the same sample", do=do)
        wide = {name: bounds for name, bounds in self._bounds.items() if self._elements[name] > 1}
        still = [name for name, (low, high) in wide.items() if low == high]
        if still and len(still) == len(wide):
            got = ", ".join(f"{name!r} is {wide[name][0]:g} everywhere" for name in still)
            raise EdgerunError("the calibration data is constant", got=got, do=do)
        doubles = self.samples - len(self._seen)
        return {"samples": self.samples, "duplicates": doubles, "warnings": list(self._warnings(doubles, still))}

    def _warnings(self, doubles: int, still: Sequence[str]) -> Iterator[str]:
        for name in still:
            yield f"input {name!r} is the same number in all calibration samples"
        if doubles:
            yield f"{doubles} of {self.samples} calibration samples repeat others exactly and add nothing"
        if self._blank:
            yield f"{self._blank} of {self.samples} calibration samples are blank: one number throughout"
        if self.different < FEW:
            share, kind = 2 / (self.different + 1), " different" if doubles else ""
            few = "samples are few" if self.different > 1 else "sample is few"
            yield (
                f"{self.different}{kind} calibration {few}: up to {share:.0%} of new data will leave a "
                "range; a hundred are usual"
            )
