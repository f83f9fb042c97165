"""Labelled data taken in looks: growing random parts of it, so that a bad candidate is given up after few samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from edgerun.batches import rebatched
from edgerun.data import Data, Feeds
from edgerun.errors import EdgerunError
from edgerun.metrics import correct
from edgerun.runtime import Session
from edgerun.verbs.evaluate import logit_rows, logits_name

SHARES = (8, 4, 2, 1)  # a look ends at n/8, n/4, n/2 and n samples
LEAST = 128  # samples of the first look, or there is none before half the data


class Looks:
    """The samples of `data`, every one in one look, drawn at random (seeded): files are often sorted by class.

    `ends` are the samples up to and with each look. Reading is one pass over the data per look, in its own order and
    without holding it. Samples that are byte for byte among those of `calibration` are in no look, since on them a drop
    looks smaller than it is; `left_out` counts them. Raises EdgerunError where no other is left.
    """

    def __init__(self, data: Data, output: str | None = None, calibration: Data | None = None) -> None:
        if data.labels is None:
            raise EdgerunError(
                "the labelled data has no labels",
                wanted="an array `labels` or `y` in the .npz, labels.npy in the folder, or a subfolder per class",
            )
        self._data, self._labels, self._output = data, data.labels, output
        kept, batch = np.arange(len(data.labels)), data.batch or 1
        if calibration is not None:
            seen = set(fingerprints(calibration))
            kept = np.array([i for i, sample in enumerate(fingerprints(data)) if sample not in seen], np.int64)
        self.left_out = len(data.labels) - len(kept)
        if not len(kept):
            raise EdgerunError(
                "the labelled data is the calibration data: on it, a drop looks smaller than it is",
                got=f"the same {self.left_out} samples", do="give labelled data that calibration does not see",
            )  # fmt: skip
        whole = len(kept) // batch * batch if _fixed(data) else len(kept)
        drawn = np.random.default_rng(0).permutation(len(kept))[:whole]
        self.ends = _ends(whole, batch)
        self._look = np.full(len(data.labels), -1)  # of each sample
        self._look[kept[drawn]] = np.searchsorted(self.ends, np.arange(whole), side="right")

    @property
    def samples(self) -> int:
        """Labelled samples in all looks together."""
        return int(self.ends[-1])

    @property
    def digest(self) -> str:
        """Of the data's feeds."""
        return self._data.digest

    def logits(self, session: Session) -> str:
        """The name of the output that holds the logits."""
        return logits_name(session.outputs, self._output)

    def hits(self, session: Session, look: int) -> np.ndarray:
        """bool [rows]: which samples of one look `session` has right, in the data's order."""
        name = self.logits(session)
        labels = self._labels[self._look == look]
        found, start = [], 0
        for feeds in self._feeds(look):
            logits = logit_rows(session.run(feeds)[name], self._data.batch)
            found.append(correct(logits, labels[start : start + len(logits)]))
            start += len(logits)
        return np.concatenate(found)

    def _feeds(self, look: int) -> Iterator[Feeds]:
        if self._data.batch is None:
            yield from (feeds for index, feeds in enumerate(self._data) if self._look[index] == look)
            return
        yield from rebatched(self._chosen(look), self._data.batch)

    def _chosen(self, look: int) -> Iterator[Feeds]:
        start = 0
        for feeds in self._data:
            rows = len(next(iter(feeds.values())))
            mask = self._look[start : start + rows] == look
            start += rows
            if mask.any():
                yield {name: np.ascontiguousarray(array[mask]) for name, array in feeds.items()}


def fingerprints(data: Data) -> Iterator[bytes]:
    """16 bytes of SHA-256 of each sample as it is fed (names, dtypes, shapes, content), in one pass over the data."""
    for feeds in data:
        count = len(next(iter(feeds.values()))) if data.batch is not None else 1
        rows = [{n: a[i] if data.batch is not None else a for n, a in feeds.items()} for i in range(count)]
        for row in rows:
            found = hashlib.sha256()
            for name, value in sorted(row.items()):
                array = np.ascontiguousarray(value)
                found.update(repr((name, array.dtype.name, array.shape)).encode())
                found.update(repr(array.tolist()).encode() if array.dtype.kind == "O" else array.tobytes())
            yield found.digest()[:16]


def _fixed(data: Data) -> bool:
    """Whether the model fixes its batch, so that only whole ones can be fed."""
    return data.batch is not None and all(isinstance(spec.shape[0], int) for spec in data.inputs)


def _ends(n: int, batch: int) -> np.ndarray:
    """Where the looks end: whole batches, since a model may fix its batch, but for the last."""
    ends = [n // share // batch * batch for share in SHARES[:-1]]
    return np.array([*dict.fromkeys(end for end in ends if end >= LEAST), n])
