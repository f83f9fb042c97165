"""Is the calibration as a whole wrong, and which mistake with the data would explain the ranges in the model?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.diagnosis import fixes
from edgerun.quantize.diagnosis.evidence import Evidence
from edgerun.quantize.diagnosis.fixes import Case, Edit, Fix
from edgerun.quantize.diagnosis.trials import Open
from edgerun.quantize.graphs import repairs, statistics, switches
from edgerun.quantize.graphs.align import Counterpart
from edgerun.quantize.graphs.quantizers import Activation, Constant, Quantizer
from edgerun.quantize.numerics import causes
from edgerun.quantize.numerics.causes import Cause

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Feeds

EXPLAINED = 0.5  # share of the ranges' misfit that a mistake must explain to be named
FEWEST = 3  # activations; fewer ranges fit too much
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
MISFIT = 0.5
SAMPLED = 8  # values: here only extremes count
NEAR, FAR_OFF = 0.08, 0.5  # log-widths; no data at all puts ranges further off than data prepared otherwise may


def judge(
    model: ir.Model, counterpart: Counterpart, quantizers: Sequence[Quantizer], evidence: Evidence,
    feeds: Sequence[Feeds], open_: Open,
) -> Cause | None:  # fmt: skip
    """The cause when ranges are wrong all over the model: data that never changed, or that was prepared otherwise."""
    activations = [q for q in quantizers if isinstance(q, Activation) and q.grid.scale.size == 1]
    if len(activations) < FEWEST:
        return None
    mine = causes.log_widths(np.array([a.low for a in activations]), np.array([a.high for a in activations]))
    observed = _observed(model, counterpart, quantizers, activations, feeds, open_)
    found = {name: causes.log_widths(low, high) for name, low, high in observed}
    given = found.pop("")
    scores = {
        name: causes.explains(mine, given, widths, FAR_OFF if name in CONSTANTS else NEAR)
        for name, widths in found.items()
    }
    best = max(scores, key=lambda name: scores[name], default="")  # of words and bytes no mistake is known
    if best and scores[best] > EXPLAINED:
        off = float(np.exp(np.abs(mine - given).mean()))
        text = f"the ranges are {off:.3g} times off; {100 * scores[best]:.0f} % of that is explained by {best}"
        still = best in CONSTANTS
        return Cause(causes.CALIBRATION if still else causes.PREPROCESSING, text, scores[best])
    odd = [a.name for a in activations if _misfits(a, evidence)]
    if len(odd) >= FEWEST and len(odd) > MISFIT * len(activations):
        text = f"{len(odd)} of {len(activations)} ranges do not fit the data at all"
        return Cause(causes.CALIBRATION, text, len(odd) / len(activations))
    return None


CONSTANTS = ("data that is all zero", "data that never changes", "random noise in place of data")


def mistakes(feeds: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Plausible mistakes with the data, by name, each with the feeds it would have made of these."""
    images = [n for n, a in feeds.items() if a.ndim == 4 and a.dtype == np.float32 and 3 in (a.shape[1], a.shape[3])]
    floats = [name for name, a in feeds.items() if a.dtype.kind == "f"]
    if images:
        yield "channels in reverse order (RGB for BGR)", _changed(feeds, images, lambda a: np.flip(a, _colour(a)))
        yield "mean and std applied twice", _changed(feeds, images, lambda a: (a - _row(MEAN, a)) / _row(STD, a))
        yield "mean and std left out", _changed(feeds, images, lambda a: a * _row(STD, a) + _row(MEAN, a))
    if floats:
        yield "values 255 times as large", _changed(feeds, floats, lambda a: a * 255)
        yield "values 255 times as small", _changed(feeds, floats, lambda a: a / 255)
        yield "values in [0, 1] in place of [-1, 1]", _changed(feeds, floats, lambda a: (a + 1) / 2)
        yield "values in [-1, 1] in place of [0, 1]", _changed(feeds, floats, lambda a: 2 * a - 1)
        yield CONSTANTS[0], _changed(feeds, floats, np.zeros_like)
        yield CONSTANTS[1], _changed(feeds, floats, lambda a: np.full_like(a, a.mean()))
        draw = np.random.default_rng(0)
        yield CONSTANTS[2], _changed(feeds, floats, lambda a: draw.standard_normal(a.shape))


def _changed(
    feeds: Mapping[str, np.ndarray], names: Sequence[str], by: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    return {n: np.ascontiguousarray(by(a), a.dtype) if n in names else a for n, a in feeds.items()}


def _colour(image: np.ndarray) -> int:
    return 1 if image.shape[1] == 3 else 3


def _row(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    return values.reshape(1, 3, 1, 1) if _colour(image) == 1 else values


def _observed(
    model: ir.Model, counterpart: Counterpart, quantizers: Sequence[Quantizer], activations: Sequence[Activation],
    feeds: Sequence[Feeds], open_: Open,
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:  # fmt: skip
    """Lowest and highest value of every activation `[Q]`, for the data as it is ("") and under each mistake."""
    told = switches.off(model, counterpart, quantizers)
    names = [switches.FLOAT + pair.value for a in activations for pair in a.pairs]
    owner = [index for index, a in enumerate(activations) for _ in a.pairs]
    variants: dict[str, list[Mapping[str, np.ndarray]]] = {"": list(feeds)}
    for feed in feeds:
        for name, changed in mistakes(feed):
            variants.setdefault(name, []).append(changed)
    with open_(statistics.Watch(told, names, SAMPLED).graph(full=True)) as session:
        for name, batches in variants.items():
            watch = statistics.Watch(told, names, SAMPLED)
            for batch in batches:
                watch.add(session.run(batch))
            seen = watch.activations()
            low, high = np.full(len(activations), np.inf), np.full(len(activations), -np.inf)
            np.minimum.at(low, owner, [float(seen[n].channels.low.min()) for n in names])
            np.maximum.at(high, owner, [float(seen[n].channels.high.max()) for n in names])
            yield name, low, high


def recalibrations(case: Case) -> Iterator[Fix]:
    """All per-tensor activation ranges anew from the data, by one estimator after the other."""
    activations = [q for q in case.quantizers if isinstance(q, Activation) and q.grid.scale.size == 1]
    for name in fixes.TRIED_RANGES:
        yield replace(fixes.ranged(case, activations, name), name=f"calibrate all ranges anew ({name})")
    if case.remake is not None:
        yield Fix("compress again with this data", lambda graph, counter: False, case.remake)
    for name in fixes.TRIED_RANGES:
        yield Fix(f"calibrate all ranges anew ({name}), the float model's biases", _anew(case, activations, name))


def _anew(case: Case, activations: Sequence[Activation], estimator: str) -> Edit:
    """New ranges, and no bias moved: what was corrected on wrong data is wrong too."""
    ranged = fixes.ranged(case, activations, estimator)
    biases = [q for q in case.quantizers if isinstance(q, Constant) and q.kind == "bias"]

    def edit(graph: ir.Graph, counterpart: Counterpart) -> bool:
        for bias in biases:
            if bias.key in counterpart.constants:
                repairs.set_bias(graph, bias.layer, bias.index, counterpart.constants[bias.key])
        return ranged.edit(graph, counterpart)

    return edit


def _misfits(activation: Activation, evidence: Evidence) -> bool:
    seen = evidence.seen[activation.name]
    extent, width = max(seen.high, 0.0) - min(seen.low, 0.0), activation.high - activation.low
    outside = causes.fit(seen.sample, activation.grid, activation.low, activation.high).outside
    return outside > 0.25 or (0 < extent * causes.NEVER_FILLED < width)
