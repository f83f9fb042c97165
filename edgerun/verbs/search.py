"""Holding a bound on the accuracy drop: the fewest, cheapest layers stay in float, and the drop is proven below it.

The candidates form a ladder that is fixed before a label is seen (`quantize/numerics/ladder.py`), from nearly all
layers in float to few. It is climbed down while the answer is yes, and the first other answer ends it: so the error of
a descent is that of one test, however many rungs it has (fixed-sequence testing: W. Maurer, L. Hothorn and
W. Lehmacher, 1995; A. Angelopoulos et al., *Learn then Test*, 2021). There are three of them, each at an error of its
own, one-sided and 5 % together: the model without any layer in float; the ladder from the rung that will do by what the
calibration data says, which has no labels; and where that rung does not, the ladder from its safe end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgerun.checkpoint import Checkpoint, Memo
from edgerun.data import Data, Feeds
from edgerun.errors import GateFailed, Unsupported
from edgerun.metrics import Difference
from edgerun.mixed import mixed
from edgerun.model import Model
from edgerun.preprocess import Preprocessing
from edgerun.quantize.numerics import sequential
from edgerun.quantize.numerics.ladder import NET, changed, holds, ladder
from edgerun.verbs import scoring
from edgerun.verbs.feeds import feeds_for
from edgerun.verbs.looks import Looks
from edgerun.verbs.trials import Progress, Trial, Trials, Variant

STRAIGHT = 0.025  # error of the first claim, on the model with nothing kept: that of a two-sided 95 % interval


class Errors(NamedTuple):
    """Of a rung's yes: before all samples are seen, and with all of them."""

    early: float
    late: float


FORESEEN, SAFE = Errors(0.003, 0.014), Errors(0.002, 0.006)  # of the two descents
RANK_SAMPLES, MARGINS = 16, 256  # calibration samples on which layers are ranked, and of which margins are known


def looks_at(
    labelled: Any, model: Model, calibration: Data, preprocessing: Preprocessing | str | Path | None, *,
    max_drop: float, metric: scoring.Metric,
) -> Looks:  # fmt: skip
    """The labelled data for `model`'s inputs, in the calibration's batches.

    Samples that calibration sees are left out. Raises EdgerunError when the metric does not fit the model, or the data
    has no labels for it or no other sample; GateFailed when it is too little for any yes.
    """
    metric.reader(model, calibration.batch)
    contract: Any = preprocessing if preprocessing is not None else model.preprocessing
    data = feeds_for(model.inputs, "", labelled, preprocessing=contract, batch=calibration.batch, outputs=model.outputs)
    looks = Looks(mixed(data), metric, calibration)
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
    known = Memo(checkpoint, "results on labelled data", looks.digest, looks.scored_by, calibration.digest, target)
    trials = Trials(original, variant, target, looks, max_drop / 100, known, progress)
    won = trials.judge((), STRAIGHT)
    if won.answer != "yes":
        rungs, start = _rungs(trials, cost, calibration, looks, progress)
        won = _climbed(trials, rungs, start, len(cost), max_drop)
    return _told(trials.variant(frozenset(won.kept)), trials, won, cost, max_drop, looks)


def _rungs(
    trials: Trials, cost: Mapping[str, float], calibration: Data, looks: Looks, progress: Progress
) -> tuple[list[tuple[str, ...]], int]:
    """The ladder, and the number of its rung from which to climb down.

    Every layer is quantized alone, and its noise on what the metric reads of calibration samples is measured (the mean
    over outputs). A layer that nothing quantizes when it is alone is no part of the ladder.
    """
    feeds = list(_first(calibration, RANK_SAMPLES))
    logits: np.ndarray | None = None
    with trials.opened(trials.original) as session:
        names = looks.reader(session).names
        exact = [session.run(feed) for feed in feeds]
        if looks.metric.classes:
            rows = [session.run(feed)[names[0]] for feed in _first(calibration, MARGINS)]
            logits = np.concatenate([scoring.logit_rows(row, calibration.batch) for row in rows])
    noise: dict[str, float] = {}

    def alone(layer: str) -> float:
        try:
            quantized = trials.variant(frozenset(cost) - {layer})
        except Unsupported:
            return math.nan
        total = dict.fromkeys(names, Difference())
        with trials.opened(quantized) as session:
            for feed, wanted in zip(feeds, exact, strict=True):
                found = session.run(feed)
                total = {name: before + Difference.of(wanted[name], found[name]) for name, before in total.items()}
        return math.fsum(each.noise / each.signal for each in total.values() if each.signal) / len(names)

    for index, layer in enumerate(cost, 1):
        found = float(trials.known.get(f"noise of {layer}", functools.partial(alone, layer)))
        if not math.isnan(found):
            noise[layer] = found
        progress("ranking layers", index, len(cost))
    rungs = ladder(noise, cost)
    left = [math.fsum(noise[layer] for layer in noise if layer not in kept) for kept in rungs]
    return rungs, 0 if logits is None else _foreseen(left, logits, trials, NET if looks.metric.labelled else 1.0)


def _foreseen(left: Sequence[float], logits: np.ndarray, trials: Trials, net: float) -> int:
    """The lowest rung that the labelled samples will likely show to hold, by what calibration samples, without labels,
    say of the answers that its noise changes; the highest where none will.

    `left`: the noise of each rung, Σe²/Σr² of the logits; `logits` `[n, C]` of the float model; `net` the share of the
    answers that change which are lost on balance.
    """
    first, second = np.sort(logits.astype(np.float64), axis=1)[:, :-3:-1].T if logits.shape[1] > 1 else (logits, 0)
    margins, square = np.ravel(first - second), float(np.mean(np.square(logits, dtype=np.float64)))
    critical = sequential.critical_value(FORESEEN.late)
    fit = [
        i
        for i, noise in enumerate(left)
        if holds(changed(margins, noise * square), trials.samples, trials.bound, critical, net)
    ]
    return max(fit, default=0)


def _first(data: Data, samples: int) -> Iterator[Feeds]:
    """The first feeds of `data` that together hold `samples` rows."""
    rows = 0
    for feeds in data:
        yield feeds
        rows += data.batch or 1
        if rows >= samples:
            return


def _climbed(trials: Trials, rungs: Sequence[tuple[str, ...]], start: int, layers: int, max_drop: float) -> Trial:
    """The lowest rung that is reached through yeses alone, from `start` or else from the safe end, and whose interval
    over all samples says yes as well."""
    both = Errors(FORESEEN.early + SAFE.early, FORESEEN.late + SAFE.late)
    for part, errors in ((rungs[start:], FORESEEN if start else both), (rungs[:start], SAFE)):
        for trial in reversed(_descended(trials, part, errors)):
            if (whole := trials.whole(trial)).answer == "yes":
                return whole
    safest = max((trial for trial in trials.made if trial.kept), key=lambda t: len(t.kept), default=trials.made[0])
    raise _refusal(safest, trials.samples, layers, max_drop)


def _descended(trials: Trials, rungs: Sequence[tuple[str, ...]], errors: Errors) -> list[Trial]:
    """The rungs that have their yes, down to the first other answer."""
    reached: list[Trial] = []
    for kept in rungs:
        trial = trials.judge(kept, errors.late, errors.early)
        if trial.answer != "yes":
            break
        reached.append(trial)
    return reached


def _refusal(safest: Trial, samples: int, layers: int, max_drop: float) -> GateFailed:
    got = f"with {len(safest.kept)} of {layers} layers in float, a drop of {safest.points}"
    if safest.samples < samples:
        got += f"; a yes had become unlikely after {safest.samples} of {samples} labelled samples"
    wanted = f"surely less than {max_drop:g} points"
    if safest.interval.low > max_drop / 100:
        return GateFailed(
            "the bound on the drop cannot be held, whatever stays in float", got=got, wanted=wanted,
            do="find the cause: edgerun compare the float model with one compressed without --max-drop",
        )  # fmt: skip
    critical = sequential.critical_value(SAFE.late)
    needed = sequential.samples_to_hold(safest.lost, safest.gained, safest.samples, max_drop / 100, critical)
    what = "the labelled data does not decide whether the bound can be held"
    if needed:
        return GateFailed(f"{what}: needs about {needed} labelled samples", got=got, wanted=wanted)
    drop = 100 * (safest.lost - safest.gained) / safest.samples
    more = "more layers in float (--keep-float), " if len(safest.kept) < layers - 1 else ""
    return GateFailed(
        f"{what}: the drop seen, {drop:.2f} points, {'sits on' if drop == max_drop else 'lies above'} it",
        got=got, wanted=wanted, do=f"another --scheme, {more}or a larger --max-drop",
    )  # fmt: skip


def _told(model: Model, trials: Trials, won: Trial, cost: Mapping[str, float], max_drop: float, looks: Looks) -> Model:
    """`model` with the whole search in its last Step: drops in points, costs as shares of the multiply-accumulates."""
    interval, n = won.interval, won.samples
    record = {
        "metric": looks.metric.name,
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
