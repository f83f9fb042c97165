"""A placement, emulated: what it loses of each sample, and what rounding takes from each layer's mean."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import cache
from edgerun.checkpoint import Memo
from edgerun.errors import Unsupported
from edgerun.metrics import Difference
from edgerun.quantize._lanes import in_lanes
from edgerun.quantize._observation import LEAST, Truth, batches, samples_in
from edgerun.quantize._scores import counted
from edgerun.quantize.graphs import correction, qdq
from edgerun.quantize.graphs.sides import cut
from edgerun.quantize.numerics import grid
from edgerun.quantize.numerics.grid import Grid
from edgerun.quantize.numerics.running import Running

if TYPE_CHECKING:
    from edgerun.passes import Feeds, Request
    from edgerun.runtime import Session

KEPT = 16  # spans whose shifts and scores are remembered
Intervals = dict[str, tuple[float, float]]
Shifts = dict[correction.Layer, np.ndarray]
Totals = dict[str, Difference]
# By what was run, and on which batches: what is missing in every layer's mean.
Begun = dict[tuple[object, frozenset[int]], dict[str, Running]]


class Stream:
    """Runs the emulated model on the first batches, each layer moved onto its float mean on the way."""

    def __init__(
        self, session: Session, layers: list[correction.Layer], truths: list[Truth], request: Request,
        begun: Begun | None = None,
    ) -> None:  # fmt: skip
        self._session, self._layers, self._truths, self._request = session, layers, truths, request
        # Shared by the streams of one model, of which some have the same layers on integers.
        self._begun: Begun = {} if begun is None else begun
        assert request.calibration is not None
        about = request.calibration.digest, *sorted(request.keep_float)
        self._memo = Memo(request.checkpoint, "trials of ranges", *about)
        # By spans and how many samples their shifts are of, what is lost of the samples of each batch behind these.
        self._scored: dict[tuple[object, int], list[list[Totals]]] = {}

    @property
    def samples(self) -> int:
        """How many samples it can run at most."""
        return sum(truth.rows for truth in self._truths)

    def _whole(self, samples: int) -> int:
        """The samples of as many whole batches as hold so many."""
        ends = itertools.accumulate((truth.rows for truth in self._truths), initial=0)
        return next((end for end in ends if end >= samples), self.samples)

    def _batches(self, samples: int, skip: int = 0) -> frozenset[int]:
        """The batches that hold the first `samples`, but for those that lie in the first `skip`."""
        starts = itertools.accumulate((truth.rows for truth in self._truths), initial=0)
        held = enumerate(zip(starts, self._truths, strict=False))
        return frozenset(index for index, (at, truth) in held if at < samples and at + truth.rows > skip)

    def grids(self, spans: Intervals) -> dict[str, Grid]:
        """The grids that span these intervals."""
        return grids_over(spans, self._request)

    def missing(self, spans: Intervals, samples: int, stage: str) -> Shifts:
        """What rounding takes from each layer's mean, averaged over `samples`, with the layers before it put right.

        Every batch's means are put right on the way: what is then missing at a layer is its own doing, and varies
        little from one sample to the next.
        """
        wanted, key = self._batches(samples), (tuple(spans.items()), tuple(layer.mean for layer in self._layers))
        known = max((run for about, run in self._begun if about == key and run <= wanted), key=len, default=frozenset())
        before = self._begun.get((key, known), {})
        found = {layer.mean: before.get(layer.mean, Running()) for layer in self._layers}
        zeros: Shifts = {layer: np.zeros(self._truths[0].means[layer.mean].shape, np.float32) for layer in self._layers}
        # More batches of the same spans go on from here.
        for truth, out in self._outputs(spans, zeros, 1.0, sorted(wanted - known), stage):
            for layer in self._layers:
                found[layer.mean] = found[layer.mean].with_(out[layer.missing], truth.rows)
        self._begun[key, wanted] = found
        if len(self._begun) > KEPT:
            self._begun.pop(next(iter(self._begun)))
        return {layer: found[layer.mean].shrunk() for layer in self._layers}

    def scores(self, spans: Intervals, shifts: Shifts, samples: int, stage: str, skip: int = 0) -> list[Totals]:
        """What is lost of each sample with grids over `spans` and every layer moved by its shift, `skip` samples on."""
        found: list[Totals] = []
        for truth, out in self._outputs(spans, shifts, 0.0, self._batches(samples, skip), stage):
            found += by_sample(truth, out)
        return found

    def judged(self, spans: Intervals, samples: int, stage: str, apart: int | None = None) -> list[Totals]:
        """`scores` that `spans` reach on `samples`, with shifts found on `apart` (None: as many) others, if any.

        On the same samples, shifts make up for clipping that no other sample has. More samples go on from fewer.
        """
        ends = (f"{name} {float(a).hex()} {float(b).hex()}" for name, (a, b) in spans.items())
        apart = apart or samples
        used = self._whole(apart)
        skip = used if used < self.samples else 0
        known = self._scored.setdefault((tuple(spans.items()), apart), [])
        if len(self._scored) > KEPT:
            self._scored.pop(next(iter(self._scored)))

        def find() -> np.ndarray:
            starts = np.cumsum([0, *(truth.rows for truth in self._truths)])  # of batches, and the end of the last
            before = int(np.searchsorted(starts, skip))
            wanted = int(np.searchsorted(starts[:-1], skip + samples)) - before
            if len(known) < wanted:
                shifts, done = self.missing(spans, apart, stage), int(starts[before + len(known)])
                later = self._outputs(spans, shifts, 0.0, self._batches(skip + samples, done), stage)
                known.extend([*by_sample(truth, out)] for truth, out in later)
            return as_array(list(itertools.chain.from_iterable(known[:wanted])))

        return as_totals(self._memo.get(cache.key(f"{samples} {apart}", *ends), find), list(self._truths[0].parts))

    def judged_beside(self, spans: Intervals, samples: int, stage: str, beside: Sequence[Totals]) -> list[Totals]:
        """As `judged`, where `beside` is what another placement lost of the same samples: those that say nothing there
        are not run, and lose what they lost there."""
        ends = list(itertools.accumulate(map(parts, self._truths), initial=0))
        judging = self.judging(samples, samples)
        first = ends[min(judging)]
        there = {i: list(beside[ends[i] - first : ends[i + 1] - first]) for i in sorted(judging)}
        says = telling(beside)
        wanted = frozenset(i for i in there if any(says[ends[i] - first : ends[i + 1] - first]))
        outputs = self._outputs(spans, self.missing(spans, samples, stage), 0.0, wanted, stage)
        ran = {i: [*by_sample(truth, out)] for i, (truth, out) in zip(sorted(wanted), outputs, strict=True)}
        return list(itertools.chain.from_iterable((there | ran).values()))

    def judging(self, samples: int, apart: int) -> frozenset[int]:
        """The batches on which `judged` judges."""
        used = self._whole(apart)
        skip = used if used < self.samples else 0
        return self._batches(skip + samples, skip)

    def between(
        self, pair: tuple[Intervals, Intervals], wanted: Collection[int], apart: int, stage: str
    ) -> dict[int, list[Totals]]:
        """How far the outputs of the second spans are from those of the first in each sample of the batches `wanted`,
        also where the float model's are not known; with the shifts of each, found on `apart` samples."""
        # One after the other: a reader that is rewound has one pass at a time.
        first, second = (list(self._apart(spans, self.missing(spans, apart, stage), wanted)) for spans in pair)
        outputs, found = list(self._truths[0].outputs), dict[int, list[Totals]]()
        for index, (rows, one), (_, other) in zip(sorted(wanted), first, second, strict=True):
            there = Truth(rows, {name: one[name] for name in outputs}, {}, self._truths[0].sides)
            found[index] = [*by_sample(there, other)]
        return found

    def _apart(
        self, spans: Intervals, shifts: Shifts, wanted: Collection[int]
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """The rows of every batch of those `wanted`, in order, and what it gives: each layer moved by its shift."""
        given = qdq.open_feeds(self.grids(spans)) | {correction.SHARE: np.array(0.0, np.float32)}
        fixed = {layer.fixed: shift for layer, shift in shifts.items()}
        means = {layer.mean: self._truths[0].means[layer.mean] for layer in shifts}  # have no share in it
        held = enumerate(itertools.islice(batches(self._request, None, ""), max(wanted) + 1))
        items = (feeds for index, feeds in held if index in wanted)
        runs = in_lanes(
            lambda feeds: self._session.run({**feeds, **means, **given, **fixed}), items, self._request.lanes
        )
        for feeds, out in runs:
            yield samples_in(feeds, self._request), out

    def _outputs(
        self, spans: Intervals, shifts: Shifts, share: float, wanted: Collection[int], stage: str
    ) -> Iterator[tuple[Truth, dict[str, np.ndarray]]]:
        """Every batch of those `wanted`, in order, with what it gives."""
        given = qdq.open_feeds(self.grids(spans)) | {correction.SHARE: np.array(share, np.float32)}
        fixed = {layer.fixed: (1 - share) * shift for layer, shift in shifts.items()}

        def run(item: tuple[Feeds, Truth]) -> dict[str, np.ndarray]:
            means = {layer.mean: item[1].means[layer.mean] for layer in shifts}
            return self._session.run({**item[0], **means, **given, **fixed})

        end = sum(truth.rows for truth in self._truths[: max(wanted, default=-1) + 1])
        held = zip(batches(self._request, end, stage), self._truths, strict=False) if wanted else iter(())
        items = (item for index, item in enumerate(held) if index in wanted)
        for (_, truth), out in in_lanes(run, items, self._request.lanes):
            yield truth, out


def grids_over(spans: Intervals, request: Request) -> dict[str, Grid]:
    """The grid of every scale group that spans its interval."""
    rules = request.rules
    if rules.symmetric:
        return {group: grid.symmetric(high, rules.activation) for group, (_, high) in spans.items()}
    return {group: grid.asymmetric(low, high, rules.activation) for group, (low, high) in spans.items()}


def by_sample(truth: Truth, out: Mapping[str, np.ndarray]) -> Iterator[Totals]:
    """The Difference of every sample's outputs, by sides; of the whole batch where an output has no row for each.

    Raises Unsupported where the model does not give as many numbers as the float one.
    """
    for name, array in truth.outputs.items():
        if np.shape(out[name]) != np.shape(array):
            raise Unsupported(f"how many numbers output {name!r} has depends on the data, and rounding changes it",
                              got=f"shape {np.shape(out[name])}", wanted=f"{np.shape(array)}, the float model's",
                              do="add an output of a fixed size, such as the scores that it selects from")  # fmt: skip
    rows, known, there = parts(truth), truth.parts, cut(out, truth.sides)
    for part in range(rows):
        own: Any = ... if rows == 1 else slice(part, part + 1)
        yield {name: Difference.of(array[own], there[name][own]) for name, array in known.items()}


def telling(scores: Sequence[Totals]) -> list[bool]:
    """Whether a sample has a share worth mentioning of the signal or of the noise of any output that counts.

    A detector's SQNR is that of the pictures in which it finds something: where it finds nothing, there is neither.
    """
    over = counted(list(scores))
    whole = {name: sum((score[name] for score in scores), Difference()) for name in over}
    return [
        any(score[name].signal > LEAST * total.signal or not score[name].noise < LEAST * total.noise
            for name, total in whole.items())
        for score in scores
    ]  # fmt: skip


def parts(truth: Truth) -> int:
    """How many samples of a batch are told apart: one where an output has no row for each."""
    return truth.rows if all(np.shape(array)[:1] == (truth.rows,) for array in truth.outputs.values()) else 1


def as_array(scores: list[Totals]) -> np.ndarray:
    """`[samples, outputs, sums]` of a Difference each, for a checkpoint."""
    return np.array([[astuple(total) for total in score.values()] for score in scores], np.float64)


def as_totals(array: np.ndarray, outputs: list[str]) -> list[Totals]:
    """What `as_array` was made of."""
    return [dict(zip(outputs, (Difference(*sums) for sums in sample.tolist()), strict=True)) for sample in array]
