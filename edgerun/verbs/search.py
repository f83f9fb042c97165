"""Holding a bound on the accuracy drop: the fewest, cheapest layers stay in float, and the drop is proven below it.

The candidates form a ladder that is fixed before a label is seen (`quantize/numerics/ladder.py`), from nearly all
layers in float to few. It is climbed down while the answer is yes, and the first other answer ends it: so the error of
the whole ladder is that of one test, however many rungs it has (fixed-sequence testing: W. Maurer, L. Hothorn and
W. Lehmacher, 1995; A. Angelopoulos et al., *Learn then Test*, 2021). The model without any layer in float is tried
first, at an error of its own. Both errors are 2.5 %, one-sided: a bound that does not hold is claimed in at most 5 of
100 runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import registry
from edgerun.checkpoint import Checkpoint, Memo
from edgerun.data import Data, Feeds
from edgerun.errors import GateFailed, Unsupported
from edgerun.metrics import Difference, Interval, paired_drop
from edgerun.model import Model
from edgerun.preprocess import Preprocessing
from edgerun.quantize.numerics import sequential
from edgerun.quantize.numerics.ladder import ladder
from edgerun.runtime import Options, Session
from edgerun.verbs.feeds import feeds_for
from edgerun.verbs.looks import Looks

STRAIGHT = 0.025  # error of the first claim, on the model with nothing kept: that of a two-sided 95 % interval
EARLY, LATE = 0.005, 0.02  # errors of a rung's yes before all samples are seen, and with all of them
HOPELESS = 0.02  # a candidate is given up when the chance that all samples would say yes is below this
RANK_SAMPLES = 16  # calibration samples on which layers are ranked

Progress = Callable[[str, int, int], None]
Variant = Callable[[frozenset[str]], Model]


@dataclass(frozen=True)
class Trial:
    """One candidate on labelled data: `kept` layers in float, `samples` seen, `lost` and `gained` among them.

    `answer`: "yes" (surely below the bound), "no" (surely above), "given up" (early: yes had become unlikely), or
    "undecided" with all samples.
    """

    kept: tuple[str, ...]
    samples: int
    lost: int
    gained: int
    answer: str

    @property
    def interval(self) -> Interval:
        """Of the drop, as `edgerun eval` shows it (95 %, shares)."""
        return paired_drop(self.lost, self.gained, self.samples)

    @property
    def points(self) -> str:
        """The interval as text."""
        return f"{100 * self.interval.low:.2f} to {100 * self.interval.high:.2f} points (n={self.samples}, 95 %)"


class Trials:
    """Candidates against the float model on the same labelled samples; each sample is run once per candidate.

    `runs` counts the samples that candidates were run on, the float model's apart; `known` keeps what was measured.
    """

    def __init__(
        self,
        original: Model,
        variant: Variant,
        target: str,
        looks: Looks,
        bound: float,
        known: Memo,
        progress: Progress,
    ) -> None:
        self.original, self._target, self._looks, self._bound = original, target, looks, bound
        self._progress, self.known = progress, known
        self.variant = functools.lru_cache(maxsize=2)(variant)  # the last yes, and the one being tried
        self._truth: list[np.ndarray] = []
        self._seen: dict[frozenset[str], list[np.ndarray]] = {}
        self.made: list[Trial] = []
        self.runs = 0

    @contextmanager
    def opened(self, model: Model) -> Iterator[Session]:
        """A session of `model` on the target."""
        target = registry.target(self._target)
        with target.load(target.compile(model, Options()), Options()) as session:
            yield session

    def judge(self, kept: tuple[str, ...], error: float, early: float = 0.0) -> Trial:
        """Look until the answer is clear; `early` is the error that a yes before the last look may have (0: none).

        A yes with all samples needs that of `edgerun eval` as well.
        """
        critical, total = sequential.critical_value(error), self._looks.samples
        with self.opened(self.variant(frozenset(kept))) as session:
            for look, n in enumerate(map(int, self._looks.ends)):
                self._progress(f"evaluating with {len(kept)} layers in float", n, total)
                trial = self._counted(kept, session, look)
                z = sequential.score(trial.lost, trial.gained, n, self._bound)
                if n == total:
                    return self._noted(trial, self._last_answer(trial, held=z <= -critical))
                if early and self._evidence(trial) >= -math.log(early):
                    return self._noted(trial, "yes")
                if sequential.prospect(z, n / total, critical) < HOPELESS:
                    return self._noted(trial, "given up")
        raise AssertionError("there is no look")

    def whole(self, early: Trial) -> Trial:
        """A trial that had its yes, with all samples: the interval must say it too."""
        if early.samples == self._looks.samples:
            return early
        with self.opened(self.variant(frozenset(early.kept))) as session:
            trial = self._counted(early.kept, session, len(self._looks.ends) - 1)
        return self._noted(trial, self._last_answer(trial, held=True))

    def _counted(self, kept: tuple[str, ...], session: Session, look: int) -> Trial:
        """What is known of a candidate up to `look`, running only what was not run yet."""
        seen = self._seen.setdefault(frozenset(kept), [])
        while len(seen) <= look:
            seen.append(self._hits(session, len(seen), f"with {sorted(kept)} in float"))
            self.runs += len(seen[-1])
        if len(self._truth) <= look:
            with self.opened(self.original) as baseline:
                while len(self._truth) <= look:
                    self._truth.append(self._hits(baseline, len(self._truth), "of the float model"))
        ours, truth = (np.concatenate(part[: look + 1]) for part in (seen, self._truth))
        return Trial(kept, len(ours), int((truth & ~ours).sum()), int((ours & ~truth).sum()), "undecided")

    def _hits(self, session: Session, look: int, which: str) -> np.ndarray:
        return self.known.get(f"hits {look} {which}", lambda: self._looks.hits(session, look))

    def _evidence(self, trial: Trial) -> float:
        return sequential.log_evidence(trial.lost, trial.gained, trial.samples, self._bound)

    def _last_answer(self, trial: Trial, *, held: bool) -> str:
        if held and trial.interval.high < self._bound:
            return "yes"
        return "no" if trial.interval.low > self._bound else "undecided"

    def _noted(self, trial: Trial, answer: str) -> Trial:
        self.made.append(replace(trial, answer=answer))
        return self.made[-1]


def looks_at(
    labelled: Any, model: Model, calibration: Data, preprocessing: Preprocessing | str | Path | None, *,
    max_drop: float, output: str | None = None,
) -> Looks:  # fmt: skip
    """The labelled data for `model`'s inputs, in the calibration's batches.

    Samples that calibration sees are left out. Raises EdgerunError when it has no labels or no other sample, GateFailed
    when it is too little for any yes.
    """
    contract: Any = preprocessing if preprocessing is not None else model.preprocessing
    data = feeds_for(model.inputs, "", labelled, preprocessing=contract, batch=calibration.batch)
    looks = Looks(data, output, calibration)
    fewest = sequential.fewest_samples(max_drop / 100, sequential.critical_value(STRAIGHT))
    if looks.samples < fewest:
        raise GateFailed(
            f"too little labelled data to hold {max_drop:g} points: it could not decide even if no answer differed",
            got=f"{looks.samples} samples"
            + (f" ({looks.left_out} that calibration sees left out)" if looks.left_out else ""),
            wanted=f"{fewest} at least, and more where the models differ",
        )  # fmt: skip
    return looks


def hold(
    original: Model,
    variant: Variant,
    cost: Mapping[str, float],
    calibration: Data,
    looks: Looks,
    *,
    target: str,
    max_drop: float,
    progress: Progress = lambda stage, done, total: None,
    checkpoint: Checkpoint | None = None,
) -> Model:
    """The compressed `original` with as few layers in float as `looks` prove to lose less than `max_drop` points.

    `variant` compresses with some layers kept in float; `cost` has the share of the work of every layer that may be
    kept. Layers are ranked on `calibration`. The last Step of the result tells what was kept, and every trial.
    Raises GateFailed when no candidate is surely below the bound; it says about how many samples would decide.
    """
    known = Memo(checkpoint, "results on labelled data", looks.digest, calibration.digest, target)
    trials = Trials(original, variant, target, looks, max_drop / 100, known, progress)
    won = trials.judge((), STRAIGHT)
    if won.answer != "yes":
        won = _climbed(trials, _rungs(trials, cost, calibration, looks, progress), len(cost), max_drop)
    return _told(trials.variant(frozenset(won.kept)), trials, won, cost, max_drop, looks)


def _rungs(
    trials: Trials, cost: Mapping[str, float], calibration: Data, looks: Looks, progress: Progress
) -> list[tuple[str, ...]]:
    """The ladder: every layer is quantized alone, and its noise on the logits of calibration samples is measured.

    A layer that nothing quantizes when it is alone is no part of the ladder.
    """
    feeds = list(_first(calibration, RANK_SAMPLES))
    with trials.opened(trials.original) as session:
        name = looks.logits(session)
        exact = [session.run(feed)[name] for feed in feeds]
    noise: dict[str, float] = {}

    def alone(layer: str) -> float:
        try:
            quantized = trials.variant(frozenset(cost) - {layer})
        except Unsupported:
            return math.nan
        total = Difference()
        with trials.opened(quantized) as session:
            for feed, wanted in zip(feeds, exact, strict=True):
                total += Difference.of(wanted, session.run(feed)[name])
        return total.noise / total.signal if total.signal else 0.0

    for index, layer in enumerate(cost, 1):
        found = float(trials.known.get(f"noise of {layer}", functools.partial(alone, layer)))
        if not math.isnan(found):
            noise[layer] = found
        progress("ranking layers", index, len(cost))
    return ladder(noise, cost)


def _first(data: Data, samples: int) -> Iterator[Feeds]:
    """The first feeds of `data` that together hold `samples` rows."""
    rows = 0
    for feeds in data:
        yield feeds
        rows += data.batch or 1
        if rows >= samples:
            return


def _climbed(trials: Trials, rungs: Sequence[tuple[str, ...]], layers: int, max_drop: float) -> Trial:
    """The lowest rung that is reached through yeses alone, and whose interval over all samples says yes as well."""
    reached: list[Trial] = []
    for kept in rungs:
        trial = trials.judge(kept, LATE, EARLY)
        if trial.answer != "yes":
            break
        reached.append(trial)
    for trial in reversed(reached):
        if (whole := trials.whole(trial)).answer == "yes":
            return whole
    safest = next((trial for trial in trials.made if trial.kept), trials.made[0])
    raise _refusal(safest, layers, max_drop)


def _refusal(safest: Trial, layers: int, max_drop: float) -> GateFailed:
    got = f"with {len(safest.kept)} of {layers} layers in float, a drop of {safest.points}"
    wanted = f"surely less than {max_drop:g} points"
    if safest.interval.low > max_drop / 100:
        return GateFailed(
            "the bound on the drop cannot be held, whatever stays in float", got=got, wanted=wanted,
            do="find the cause: edgerun compare the float model with one compressed without --max-drop",
        )  # fmt: skip
    critical = sequential.critical_value(LATE)
    needed = sequential.samples_to_hold(safest.lost, safest.gained, safest.samples, max_drop / 100, critical)
    more = f"about {needed} labelled samples" if needed else "another bound: the drop seen sits on this one"
    return GateFailed(
        f"the labelled data does not decide whether the bound can be held: needs {more}", got=got, wanted=wanted
    )


def _told(model: Model, trials: Trials, won: Trial, cost: Mapping[str, float], max_drop: float, looks: Looks) -> Model:
    """`model` with the whole search in its last Step: drops in points, costs as shares of the multiply-accumulates."""
    interval, n = won.interval, won.samples
    record = {
        "bound (points)": max_drop,
        "kept float": {name: round(cost[name], 4) for name in won.kept},
        "layers": len(cost),
        "drop (points)": round(100 * (won.lost - won.gained) / n, 4),
        "interval (points, 95 %)": [round(100 * interval.low, 4), round(100 * interval.high, 4)],
        "samples": n,
        "left out, in the calibration data": looks.left_out,
        "labelled data": looks.digest,
        "samples run": trials.runs,
        "trials": [
            {"kept": len(t.kept), "samples": t.samples, "lost": t.lost, "gained": t.gained, "answer": t.answer}
            for t in trials.made
        ],
    }
    last = model.history[-1]
    return replace(model, history=(*model.history[:-1], replace(last, options={**last.options, "max drop": record})))
