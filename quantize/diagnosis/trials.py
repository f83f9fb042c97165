"""Run variants of a quantized model on the same samples and say how noisy their outputs are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.quantize import fold
from edgerun.quantize.graphs import overflow, sides, switches
from edgerun.quantize.graphs.align import Counterpart
from edgerun.quantize.graphs.quantizers import Quantizer
from edgerun.quantize.graphs.sides import Sides
from edgerun.quantize.numerics import noise

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Feeds
    from edgerun.runtime import Session

Outputs = dict[str, np.ndarray]
Open = Callable[["ir.Model"], "Session"]
Progress = Callable[[str, int, int], None]
AT_ONCE = 12  # quantizers switched in one session: more of them slow every run down, fewer take more sessions


@dataclass(frozen=True)
class Measured:
    """Each sample's noise relative to the mean signal `[S]`, and its score `[S]`, 1 for right (None: nothing says)."""

    noise: np.ndarray
    hits: np.ndarray | None = None

    @property
    def sqnr_db(self) -> float:
        """Over all samples."""
        return noise.decibels(float(self.noise.mean()))


@dataclass(frozen=True)
class Trials:
    """Samples in batches with what the float model computes of them: the judge of every variant.

    `score(outputs, truth)` says how right each sample of a batch is, of the batch's `truths`. `saturating`: the device
    adds pairs of products in 16 bits, and what is measured does too. `sides` of outputs are judged apart.
    """

    open: Open
    feeds: tuple[Feeds, ...]
    rows: tuple[int, ...]
    truth: tuple[Outputs, ...]
    score: Callable[[Outputs, Any], np.ndarray] | None = None
    truths: tuple[Any, ...] = ()
    saturating: bool = False
    sides: Mapping[str, Sides] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many there are."""
        return sum(self.rows)

    def few(self, samples: int) -> Trials:
        """The first batches that hold `samples`, or all."""
        count = 1 + int(np.searchsorted(np.cumsum(self.rows), samples))
        count = min(count, len(self.rows))
        truths = self.truths[:count]
        return replace(self, feeds=self.feeds[:count], rows=self.rows[:count], truth=self.truth[:count], truths=truths)

    def outputs(self, session: Session, extra: Mapping[str, np.ndarray] | None = None) -> list[Outputs]:
        """What a session computes of all batches."""
        return [session.run({**feeds, **(extra or {})}) for feeds in self.feeds]

    def against(self, outputs: Sequence[Outputs], truth: Sequence[Outputs] | None = None) -> Measured:
        """How far `outputs` lie from the float model's, or from `truth`."""
        pairs = [
            noise.per_sample(self._judged({name: t[name] for name in self.truth[0]}), self._judged(got), rows)
            for t, got, rows in zip(truth or self.truth, outputs, self.rows, strict=True)
        ]
        parts = np.concatenate([e for e, _ in pairs]), np.concatenate([s for _, s in pairs])
        hits = None
        if self.score is not None:
            hits = np.concatenate([self.score(o, t) for o, t in zip(outputs, self.truths, strict=True)])
        return Measured(noise.relative(*parts), hits)

    def _judged(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs, by their sides."""
        return sides.cut(outputs, self.sides)

    def measure(self, model: ir.Model) -> Measured:
        """A Q/DQ model as the device runs it."""
        if self.saturating:
            model = overflow.add(model, overflow.risks(model.graph))
        with self.open(model) as session:
            return self.against(self.outputs(session))


def collect(
    open_: Open, model: ir.Model, data: Iterable[Feeds], names: Sequence[str], samples: int, progress: Progress,
    batched: bool = True,
) -> Trials:  # fmt: skip
    """Run the float `model` on the first `samples` of `data`, keeping feeds and outputs `names`.

    Not `batched`: the inputs have no batch axis in common, so that every feed is one sample, whatever its shape.
    """
    feeds, rows, truth = [], [], []
    with open_(model) as session:
        for feed in data:
            out = session.run(feed)
            first = next(iter(feed.values()))
            feeds.append(feed)
            rows.append(int(first.shape[0]) if batched and first.ndim else 1)
            truth.append({name: out[name] for name in names})
            progress("float reference", min(sum(rows), samples), samples)
            if sum(rows) >= samples:
                break
    fold.infer_shapes(inferred := model.clone())
    found = sides.different(sides.of(inferred.graph), truth)
    return Trials(open_, tuple(feeds), tuple(rows), tuple(truth), sides=found)


def alone(
    model: ir.Model, counterpart: Counterpart, quantizers: Sequence[Quantizer], trials: Trials, progress: Progress
) -> dict[str, float]:
    """Noise power at the outputs of rounding only this one, relative to the signal, by key.

    One session serves AT_ONCE quantizers, each behind a switch; all others compute in float for good. The reference
    is the float counterpart itself, so that what it lacks of the float model counts for nobody.
    """
    found: dict[str, float] = {}
    for start in range(0, len(quantizers), AT_ONCE):
        some = quantizers[start : start + AT_ONCE]
        rest = [q for q in quantizers if q not in some]
        with trials.open(switches.switched(model, counterpart, some, rest)) as session:
            base = trials.outputs(session, switches.feeds(some))
            for quantizer in some:
                got = trials.outputs(session, switches.feeds(some, [quantizer]))
                found[quantizer.key] = float(trials.against(got, base).noise.mean())
                progress("each quantizer alone", len(found), len(quantizers))
    return found


@dataclass(frozen=True)
class Removed:
    """A model before and after something was taken out of it."""

    before: Measured
    after: Measured

    @property
    def share(self) -> float:
        """Of the noise before, how much went; negative where more came."""
        return 1 - float(self.after.noise.mean() / max(self.before.noise.mean(), 1e-300))


def without(
    model: ir.Model, counterpart: Counterpart, suspects: Mapping[str, tuple[Quantizer, Sequence[Quantizer]]],
    trials: Trials, before: Measured, progress: Progress,
) -> dict[str, Removed]:  # fmt: skip
    """What taking each suspect out of the quantized model removes, by key; `before` is the model as it is.

    Beside each stand the biases that may have been moved for it. Where there are some, it is also taken out of the
    model without these, and what it removes there counts when it is more: never what the biases alone removed.
    """
    found: dict[str, Removed] = {}
    risks = overflow.risks(model.graph) if trials.saturating else []
    keys = list(suspects)
    for start in range(0, len(keys), AT_ONCE):
        chosen = [suspects[key] for key in keys[start : start + AT_ONCE]]
        some = {q.key: q for one, biases in chosen for q in (one, *biases)}
        graph = overflow.add(switches.switched(model, counterpart, list(some.values())), risks)
        with trials.open(graph) as session:

            def measured(
                out: Sequence[Quantizer], some: Mapping[str, Quantizer] = some, session: Session = session
            ) -> Measured:
                keys_out = {q.key for q in out}
                on = [q for q in some.values() if q.key not in keys_out]
                return trials.against(trials.outputs(session, switches.feeds(list(some.values()), on)))

            for one, biases in chosen:
                ways = [Removed(before, measured([one]))]
                if biases:
                    ways.append(Removed(measured(biases), measured([one, *biases])))
                found[one.key] = max(ways, key=lambda way: way.share)
                progress("all but one", len(found), len(keys))
    return found
