"""Each step tried without, at the model's output: what surely does not pay is left out.

`--preset best` makes whole models for that; the default one plain ones, on batches that the step was not fitted to, and
whole ones only where a step seems to cost something.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.checkpoint import Memo
from edgerun.effort import Effort
from edgerun.quantize import _finished, _steps
from edgerun.quantize._observation import LIGHT, Truth, batches
from edgerun.quantize._prepared import Observed, Prepared
from edgerun.quantize._ranges import HEAVY, activations
from edgerun.quantize._scores import ERROR, gained
from edgerun.quantize._stream import Totals, as_array, as_totals, parts
from edgerun.quantize.graphs.statistics import APART

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Feeds, Request

Make = Callable[[Prepared, "Request"], "ir.Model"]  # the finished model
# By the step, what of the history says that it did something.
DONE = {
    _steps.CENTRED: "centred",
    _steps.EQUALIZED: "equalized",
    _steps.SMOOTHED: "smoothed (dB)",
    _steps.EVENED: "evened (dB)",
    _steps.ROUNDED: "rounded to the second order",
}
Steps = frozenset[str]
SLIGHT = 0.5  # dB in a plain model: whether so little is lost or won is not worth whole ones
LIKELY = 0.25  # the error of taking a step that makes runs slower


@dataclass(frozen=True)
class Makes:
    """How the models that are compared are made: `whole` as in the end, and `plain`, rounded with nothing put right."""

    whole: Make
    plain: Make


@dataclass(frozen=True)
class _Gain:
    """By how many dB the outputs of `n` samples are nearer to float with a step, and the bounds on that: it surely
    brings as much, likely, and likely and surely costs as much."""

    mean: float
    surely: float
    likely: float
    costs: float
    n: int

    def open(self, *, light: bool) -> bool:
        """Whether whole models are to say what it costs: not where these plain ones surely say that it is more than
        SLIGHT; of a `light` model wherever it may be something, else where it surely is, and SLIGHT in the mean."""
        if self.costs > SLIGHT:
            return False
        return self.surely < 0 if light else self.costs > 0 and self.mean < -SLIGHT

    def pays(self, *, slower: bool) -> bool:
        """Whether it stays: what does not surely cost anything does, and one that makes runs `slower` must likely bring
        something."""
        return self.likely > 0 if slower else self.costs <= 0


def prepared(observed: Observed, makes: Makes, request: Request) -> Prepared:
    """`observed`, prepared without the steps that surely cost it something; the gain of each goes into `found`.

    One step after the other is left out of a model, its ranges as asked for or the extremes, nothing kept in float for
    the precision. Who is nearer to float without a step, by Student's bound on the paired differences over samples
    whose truth is known, stays so for the steps behind. With `leave_out` the models are made as the default preset
    makes one, and all samples judge, but of second-order rounding those that it was not fitted to; with `try_out` it
    is every fourth batch, of a heavy model every eighth, steps and ranges are of the others, and the models are plain:
    a step of which these do not surely say what it costs is tried in whole ones.
    """
    trials: _Trials
    again: _Trials | None = None
    size = activations(observed.seen, sum(truth.rows for truth in observed.truths))
    if request.effort.leave_out:
        trials = _Trials(observed, makes.whole, request)
    elif observed.fit:
        apart = replace(observed, seen=observed.fit)
        every = 2 if size > HEAVY else 1
        trials, again = _Plain(apart, makes.plain, request, every), _Apart(apart, makes.whole, request, every)
    else:
        return observed.prepared(request)
    without, gains = Steps(), dict[str, _Gain]()
    for step in DONE:
        if step not in trials.done(without):
            continue
        slower = step == _steps.EVENED and not request.rules.channel_scales  # by a Mul in front of a quantizer
        gains[step] = trials.gain(step, without)
        if again is not None and gains[step].open(light=size < LIGHT):
            gains[step] = again.gain(step, without)
        if not gains[step].pays(slower=slower):
            without |= {step}
    result = observed.prepared(request, without)
    for step, gain in gains.items():
        kept = step not in without
        _steps.tell(request, step, gain.mean, gain.surely, n=gain.n, measured=_steps.OUTPUT, kept=kept)
    return result


class _Trials:
    """What models without some steps lose of every sample, each made once; a killed run goes on with what it knew."""

    about = "models without a step"

    def __init__(self, observed: Observed, make: Make, request: Request) -> None:
        self._observed, self._make, self._request = observed, make, request
        self._last: dict[Steps, tuple[np.ndarray, np.ndarray]] = {}
        assert request.calibration is not None
        about = request.calibration.digest, *sorted(request.keep_float)
        self._memo = Memo(request.checkpoint, self.about, *about)

    def done(self, without: Steps) -> list[str]:
        """The steps that change something in the model that has all but these."""
        known = self._memo.get(f"{_name(without)}: steps", lambda: self._made(without)[0])
        return [step for step, did in zip(DONE, known, strict=True) if did]

    def gain(self, step: str, without: Steps) -> _Gain:
        """What `step` brings to the model without some others."""
        whole, left = (self._judging(step, self._lost(steps)) for steps in (without, without | {step}))
        mean, surely = gained(left, whole, ERROR)
        return _Gain(mean, surely, gained(left, whole, LIKELY)[1], gained(whole, left, ERROR)[1], len(whole))

    def _lost(self, without: Steps) -> list[Totals]:
        """What the finished model loses of every sample."""
        found = self._memo.get(f"{_name(without)}: losses", lambda: self._made(without)[1])
        return as_totals(found, list(self._observed.truths[0].parts))

    def _judging(self, step: str, scores: list[Totals]) -> list[Totals]:
        """Of second-order rounding those that it was not fitted to; all where there are none."""
        if step != _steps.ROUNDED:
            return scores
        batch = [index for index, truth in enumerate(self._observed.truths) for _ in range(parts(truth))]
        return [own for own, index in zip(scores, batch, strict=True) if _held(index)] or scores

    def _made(self, without: Steps) -> tuple[np.ndarray, np.ndarray]:
        if without not in self._last:
            self._last = {without: self._make_one(without)}  # which two questions are about
            gc.collect()  # graphs hold cycles, and each has weights of its own
        return self._last[without]

    def _make_one(self, without: Steps) -> tuple[np.ndarray, np.ndarray]:
        own = self._own(without)
        ready = self._observed.copy().prepared(own, without)
        rounded = own.found.get(DONE[_steps.ROUNDED], {}).get("layers", 0)
        done = [bool(rounded if step == _steps.ROUNDED else own.found.get(key)) for step, key in DONE.items()]
        return np.array(done), as_array(self._losses(self._make(ready, own), own))

    def _losses(self, model: ir.Model, own: Request) -> list[Totals]:
        truths = self._observed.truths
        return _finished.lost(model, truths, sum(truth.rows for truth in truths), own)

    def _own(self, without: Steps) -> Request:
        """As the default preset, ranges at the extremes; no checkpoint: those of ranges are about one model."""
        request = self._request

        def progress(stage: str, done: int, total: int) -> None:
            request.progress(f"without {_name(without)}: {stage}", done, total)

        ranges = "minmax" if request.ranges == "auto" else request.ranges
        effort = replace(Effort(), second=request.effort.second, check=request.effort.check)
        return replace(request, ranges=ranges, effort=effort, checkpoint=None, progress=progress, found={})


class _Apart(_Trials):
    """The same on the batches that are kept apart, or on `every` so manieth of these."""

    about = "models without a step, on data kept apart"

    def __init__(self, observed: Observed, make: Make, request: Request, every: int) -> None:
        super().__init__(observed, make, request)
        self._every = every
        self._known: list[tuple[Feeds, Truth]] = []

    def _judging(self, step: str, scores: list[Totals]) -> list[Totals]:
        return scores

    def _losses(self, model: ir.Model, own: Request) -> list[Totals]:
        truths = self._observed.truths
        if not self._known:
            pairs = zip(batches(own, sum(truth.rows for truth in truths), ""), truths, strict=False)
            self._known = [pair for index, pair in enumerate(pairs) if _held(index)][:: self._every]
        return _finished.lost_of(model, self._known, own)


class _Plain(_Apart):
    """Of models that take next to nothing to make: weights to nearest."""

    def __init__(self, observed: Observed, make: Make, request: Request, every: int) -> None:
        super().__init__(observed, make, replace(request, checkpoint=None), every)

    def _own(self, without: Steps) -> Request:
        own = super()._own(without)
        return replace(own, effort=replace(own.effort, second=False))


def _held(batch: int) -> bool:
    return batch % APART == APART - 1


def _name(without: Steps) -> str:
    return ", ".join(step for step in DONE if step in without) or "nothing"
