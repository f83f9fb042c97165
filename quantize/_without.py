"""Each step tried without, at the model's output: what surely does not pay is left out (`--preset best`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.checkpoint import Memo
from edgerun.effort import Effort
from edgerun.quantize import _finished, _steps
from edgerun.quantize._prepared import Observed, Prepared
from edgerun.quantize._ranges import ERROR, gained
from edgerun.quantize._rounding import APART
from edgerun.quantize._stream import Totals, as_array, as_totals, parts

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

Make = Callable[[Prepared, "Request"], "ir.Model"]  # the finished model
# By the step, what of the history says that it did something.
DONE = {
    _steps.CENTRED: "centred",
    _steps.EQUALIZED: "equalized",
    _steps.SMOOTHED: "smoothed (dB)",
    _steps.EVENED: "evened (dB)",
    _steps.ROUNDED: "rounded to the second order",
}


def prepared(observed: Observed, make: Make, request: Request) -> Prepared:
    """`observed`, prepared without the steps that surely bring it nothing; the gain of each goes into `found`.

    One step after the other is left out of a model that is made as the default preset makes one, its ranges as asked
    for or the extremes, nothing kept in float for the precision. Who is nearer to float without a step, by Student's
    bound on the paired differences over the samples whose truth is known, stays so for the steps behind. Second-order
    rounding is judged on the batches that it was not fitted to alone.
    """
    if not request.effort.leave_out:
        return observed.prepared(request)
    trials = _Trials(observed, make, request)
    without, gains = frozenset[str](), dict[str, tuple[float, float, int]]()
    for step in DONE:
        if step not in trials.done(without):
            continue
        which = trials.apart if step == _steps.ROUNDED else trials.every
        whole, left = (which(trials.lost(steps)) for steps in (without, without | {step}))
        gains[step] = *gained(left, whole, ERROR), len(whole)
        if gained(whole, left, ERROR)[1] > 0:
            without |= {step}
    result = observed.prepared(request, without)
    for step, (gain, surely, n) in gains.items():
        _steps.tell(request, step, gain, surely, n=n, measured=_steps.OUTPUT, kept=step not in without)
    return result


class _Trials:
    """What models without some steps lose of every sample, each made once; a killed run goes on with what it knew."""

    def __init__(self, observed: Observed, make: Make, request: Request) -> None:
        self._observed, self._make, self._request = observed, make, request
        self._last: dict[frozenset[str], tuple[np.ndarray, np.ndarray]] = {}
        assert request.calibration is not None
        about = request.calibration.digest, *sorted(request.keep_float)
        self._memo = Memo(request.checkpoint, "models without a step", *about)

    def done(self, without: frozenset[str]) -> list[str]:
        """The steps that change something in the model that has all but these."""
        known = self._memo.get(f"{_name(without)}: steps", lambda: self._made(without)[0])
        return [step for step, did in zip(DONE, known, strict=True) if did]

    def lost(self, without: frozenset[str]) -> list[Totals]:
        """What the finished model loses of every sample."""
        found = self._memo.get(f"{_name(without)}: losses", lambda: self._made(without)[1])
        return as_totals(found, list(self._observed.truths[0].outputs))

    def every(self, scores: list[Totals]) -> list[Totals]:
        """All of them."""
        return scores

    def apart(self, scores: list[Totals]) -> list[Totals]:
        """Of those of all samples the ones that second-order rounding was not fitted to; all where there are none."""
        batch = [index for index, truth in enumerate(self._observed.truths) for _ in range(parts(truth))]
        return [own for own, index in zip(scores, batch, strict=True) if index % APART == APART - 1] or scores

    def _made(self, without: frozenset[str]) -> tuple[np.ndarray, np.ndarray]:
        if without not in self._last:
            self._last = {without: self._make_one(without)}  # which two questions are about
        return self._last[without]

    def _make_one(self, without: frozenset[str]) -> tuple[np.ndarray, np.ndarray]:
        own = self._own(without)
        prepared = self._observed.copy().prepared(own, without)
        rounded = own.found.get(DONE[_steps.ROUNDED], {}).get("layers", 0)
        done = [bool(rounded if step == _steps.ROUNDED else own.found.get(key)) for step, key in DONE.items()]
        truths = prepared.truths
        losses = _finished.lost(self._make(prepared, own), truths, sum(truth.rows for truth in truths), own)
        return np.array(done), as_array(losses)

    def _own(self, without: frozenset[str]) -> Request:
        """As the default preset, ranges at the extremes; no checkpoint: those of ranges are about one model."""
        request = self._request

        def progress(stage: str, done: int, total: int) -> None:
            request.progress(f"without {_name(without)}: {stage}", done, total)

        ranges = "minmax" if request.ranges == "auto" else request.ranges
        effort = replace(Effort(), second=request.effort.second, check=request.effort.check)
        return replace(request, ranges=ranges, effort=effort, checkpoint=None, progress=progress, found={})


def _name(without: frozenset[str]) -> str:
    return ", ".join(step for step in DONE if step in without) or "nothing"
