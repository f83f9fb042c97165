"""Labelled data taken in looks: growing random parts of it, so that a bad candidate is given up after few samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from edgerun.batches import rebatched
from edgerun.data import Data, Feeds
from edgerun.errors import EdgerunError
from edgerun.runtime import Session
from edgerun.verbs import scoring

SHARES = (8, 4, 2, 1)  # a look ends at n/8, n/4, n/2 and n samples
LEAST = 128  # samples of the first look, or there is none before half the data


class Looks:
    """The samples of `data`, every one in one look, drawn at random (seeded): files are often sorted by class.

    `ends` are the samples up to and with each look. Reading is one pass over the data per look, in its own order and
    without holding it. Samples that are byte for byte among those of `calibration` are in no look, since on them a drop
    looks smaller than it is; `left_out` counts them. Raises EdgerunError where no other is left.
    """

    def __init__(self, data: Data, metric: scoring.Metric | None = None, calibration: Data | None = None) -> None:
        self.metric = (metric or scoring.named()).on(data)
        self._data, self._labels = data, self.metric.labels(data)
        prints = list(fingerprints(data)) if calibration is not None or self._labels is None else []
        total, batch = len(prints) if self._labels is None else len(self._labels), data.batch or 1
        kept = np.arange(total)
        if calibration is not None:
            seen = set(fingerprints(calibration))
            kept = np.array([i for i, sample in enumerate(prints) if sample not in seen], np.int64)
        self.left_out = total - len(kept)
        if not len(kept):
            raise EdgerunError(
                "the labelled data is the calibration data: on it, a drop looks smaller than it is",
                got=f"the same {self.left_out} samples", do="give labelled data that calibration does not see",
            )  # fmt: skip
        whole = len(kept) // batch * batch if _fixed(data) else len(kept)
        drawn = np.random.default_rng(0).permutation(len(kept))[:whole]
        self.ends = _ends(whole, batch)
        self._look = np.full(total, -1)  # of each sample
        self._look[kept[drawn]] = np.searchsorted(self.ends, np.arange(whole), side="right")

    @property
    def samples(self) -> int:
        """Labelled samples in all looks together."""
        return int(self.ends[-1])

    @property
    def digest(self) -> str:
        """Of the data's feeds."""
        return self._data.digest

    @property
    def scored_by(self) -> str:
        """What scores hang on beside the feeds: the metric, and a digest of its labels."""
        found, labels = hashlib.sha256(), self._labels
        if labels is not None:
            found.update(repr(labels.tolist()).encode() if labels.dtype.kind == "O" else labels.tobytes())
        return f"{self.metric.name} {self.metric.digest} {found.hexdigest()}"

    def reader(self, session: Session) -> scoring.Reader:
        """What the metric reads of a session's runs."""
        return self.metric.reader(session, self._data.batch)

    def answers(self, session: Session, look: int) -> Iterator[Any]:
        """What `session` says of the samples of one look, batch by batch, in the data's order."""
        reader = self.reader(session)
        for feeds in self._feeds(look):
            yield reader.answers(session.run(feeds))

    def scores(self, session: Session, look: int, baseline: Iterable[Any] = ()) -> np.ndarray:
        """bool or float [rows]: the scores of the samples of one look by `session`, in the data's order; by its own
        `answers` of the `baseline` where the metric takes no labels."""
        reader, found, start = self.reader(session), [], 0
        labels = None if self._labels is None else self._labels[self._look == look]
        there = iter(baseline)
        for feeds in self._feeds(look):
            answers = reader.answers(session.run(feeds))
            stop = start + (len(next(iter(feeds.values()))) if self._data.batch is not None else 1)
            truth = next(there) if labels is None else labels[start:stop]
            found.append(self.metric.score(answers, truth))
            start = stop
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
