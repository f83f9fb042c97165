"""Candidates of a compressed model, judged beside the float one on labelled data, in looks at more and more of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgerun import registry
from edgerun.checkpoint import Memo
from edgerun.metrics import Interval, counted, paired_drop
from edgerun.model import Model
from edgerun.quantize.numerics import sequential
from edgerun.runtime import Options, Session
from edgerun.verbs.looks import Looks

HOPELESS = 0.02  # a candidate is given up when the chance that all samples would say yes is below this

Progress = Callable[[str, int, int], None]
Variant = Callable[[frozenset[str]], Model]


@dataclass(frozen=True)
class Trial:
    """One candidate on labelled data: `kept` layers in float, `samples` seen, `lost` and `gained` among them (sums of
    what scores differ by).

    `answer`: "yes" (surely below the bound), "no" (surely above), "given up" (early: yes had become unlikely), or
    "undecided" with all samples.
    """

    kept: tuple[str, ...]
    samples: int
    lost: float
    gained: float
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
        self.original, self._target, self._looks, self.bound = original, target, looks, bound
        self._progress, self.known = progress, known
        self.variant = functools.lru_cache(maxsize=2)(variant)  # the last yes, and the one being tried
        self._truth: list[np.ndarray] = []
        self._answers: list[list[Any]] = []  # of the float model, where the metric takes no labels
        self._seen: dict[frozenset[str], list[np.ndarray]] = {}
        self.made: list[Trial] = []
        self.runs = 0

    @contextmanager
    def opened(self, model: Model) -> Iterator[Session]:
        """A session of `model` on the target."""
        target = registry.target(self._target)
        with target.load(target.compile(model, Options()), Options()) as session:
            yield session

    @property
    def samples(self) -> int:
        """Labelled samples that there are."""
        return self._looks.samples

    def judge(self, kept: tuple[str, ...], error: float, early: float = 0.0) -> Trial:
        """Look until the answer is clear; `early` is the error that a yes before the last look may have (0: none).

        A yes with all samples needs that of `edgerun eval` as well.
        """
        critical, total = sequential.critical_value(error), self._looks.samples
        with self.opened(self.variant(frozenset(kept))) as session:
            for look, n in enumerate(map(int, self._looks.ends)):
                self._progress(f"evaluating with {len(kept)} layers in float", n, total)
                trial = self._counted(kept, session, look)
                z = sequential.score(trial.lost, trial.gained, n, self.bound)
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
        self._look_up(look)
        seen = self._seen.setdefault(frozenset(kept), [])
        while len(seen) <= look:
            seen.append(self._scores(session, len(seen), f"with {sorted(kept)} in float"))
            self.runs += len(seen[-1])
        ours, truth = (np.concatenate(part[: look + 1]) for part in (seen, self._truth))
        lost, gained, _ = counted(truth, ours)
        return Trial(kept, len(ours), lost, gained, "undecided")

    def _look_up(self, look: int) -> None:
        """What the float model says up to `look`."""
        if len(self._truth) > look:
            return
        with self.opened(self.original) as baseline:
            while (at := len(self._truth)) <= look:
                if not self._looks.metric.labelled and not self._looks.metric.raw:
                    self._answers.append([*self._looks.answers(baseline, at)])
                self._truth.append(self._scores(baseline, at, "of the float model"))

    def _scores(self, session: Session, look: int, which: str) -> np.ndarray:
        return self.known.get(f"scores {look} {which}", lambda: self._scored(session, look))

    def _scored(self, session: Session, look: int) -> np.ndarray:
        """The scores of a look; whole outputs of the float model, which may be large, are made again each time."""
        metric = self._looks.metric
        if metric.labelled or not metric.raw:
            return self._looks.scores(session, look, () if metric.labelled else self._answers[look])
        with self.opened(self.original) as baseline:
            return self._looks.scores(session, look, self._looks.answers(baseline, look))

    def _evidence(self, trial: Trial) -> float:
        return sequential.log_evidence(trial.lost, trial.gained, trial.samples, self.bound)

    def _last_answer(self, trial: Trial, *, held: bool) -> str:
        if held and trial.interval.high < self.bound:
            return "yes"
        return "no" if trial.interval.low > self.bound else "undecided"

    def _noted(self, trial: Trial, answer: str) -> Trial:
        self.made.append(replace(trial, answer=answer))
        return self.made[-1]
