"""How much of a measured difference is explained: the parts of two models' times, over several sessions.

Seconds per run. A kernel's time is the median over sessions, so that parts add up to their sum exactly; intervals are
those of the sessions' medians by the sign test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgerun.errors import EdgerunError, Unsupported
from edgerun.measure import attribution
from edgerun.measure.attribution import Region
from edgerun.measure.stats import Estimate, median
from edgerun.metrics import Interval
from edgerun.passes import NodeTime


@dataclass(frozen=True)
class Profiled:
    """One session of two models, the float one first: the p50 of each without profiler, and the kernels of each."""

    p50: tuple[float, float]
    kernels: tuple[Sequence[NodeTime], Sequence[NodeTime]]


@dataclass(frozen=True)
class Part:
    """A region of the network, with its kernels in both models.

    `saved` is positive where the second model is faster; `causes` split it and add up to it, `cause` is the largest.
    `layer` numbers what belongs together: what computes, and the conversions and reorders that are there for it.
    """

    nodes: tuple[str, ...]
    work: str
    layer: int
    cause: str
    causes: Mapping[str, float]
    before_seconds: float
    after_seconds: float
    saved: Estimate
    before: tuple[NodeTime, ...]
    after: tuple[NodeTime, ...]

    @property
    def integer(self) -> bool:
        """Whether the second model computes on integers here."""
        return self.work == "compute" and any(kernel.integer for kernel in self.after)


@dataclass(frozen=True)
class Account:
    """A measured difference and what it is made of.

    `measured` is the first model's p50 less the second one's, without profiler; `attributed` the sum of all parts;
    `explained` the one over the other, None where no difference could be measured; `outside` the rest, which no kernel
    accounts for: the runtime between kernels, inputs and outputs, and noise. `causes` and `layers` are seconds saved.
    """

    measured: Estimate
    attributed: Estimate
    explained: Estimate | None
    outside: Estimate
    causes: Mapping[str, Estimate]
    layers: Mapping[int, Estimate]
    parts: tuple[Part, ...]


def account(sessions: Sequence[Profiled]) -> Account:
    """Align the kernels of all sessions and add up. Raises EdgerunError when the models have no node in common."""
    ever = [_ever([s.kernels[side] for s in sessions]) for side in (0, 1)]
    seconds = [[_by_order(s.kernels[side], ever[side]) for s in sessions] for side in (0, 1)]
    typical = [{order: float(np.median([s[order] for s in side])) for order in side[0]} for side in seconds]
    regions = attribution.align(*ever)
    _check(regions)
    whole = [region.timed(*typical) for region in regions]
    each = [[region.timed(*pair) for region in regions] for pair in zip(*seconds, strict=True)]
    differences = [s.p50[0] - s.p50[1] for s in sessions]
    sums = [_saved(session) for session in each]
    typical_p50 = [median([s.p50[side] for s in sessions]).value for side in (0, 1)]
    measured = _about(typical_p50[0] - typical_p50[1], differences)
    attributed = _about(_saved(whole), sums)
    rest = [difference - total for difference, total in zip(differences, sums, strict=True)]
    return Account(
        measured,
        attributed,
        _share(attributed, measured, sums, differences),
        _about(measured.value - attributed.value, rest),
        _causes(whole, each),
        _layers(whole, each),
        tuple(_part(region, [session[i].saved for session in each]) for i, region in enumerate(whole)),
    )


def _saved(regions: Sequence[Region]) -> float:
    return sum(region.saved for region in regions)


def _ever(sessions: Sequence[Sequence[NodeTime]]) -> list[NodeTime]:
    """The kernels that any session saw: one that takes next to nothing is not counted in each.

    Raises Unsupported when sessions ran different kernels.
    """
    found: dict[int, NodeTime] = {}
    for kernels in sessions:
        for kernel in kernels:
            if found.setdefault(kernel.order, kernel).op != kernel.op:
                got = f"{found[kernel.order].op} and {kernel.op} at {kernel.order}"
                raise Unsupported("the runtime ran other kernels in one session than in another", got=got)
    return list(found.values())


def _by_order(kernels: Sequence[NodeTime], ever: Sequence[NodeTime]) -> dict[int, float]:
    """Seconds by order; 0 of those that took next to nothing in this session."""
    seconds = {kernel.order: kernel.seconds for kernel in kernels}
    return {kernel.order: seconds.get(kernel.order, 0.0) for kernel in ever}


def _check(regions: Sequence[Region]) -> None:
    before, after = (sum(k.integer for side in sides for k in side)
                     for sides in ([r.before for r in regions], [r.after for r in regions]))  # fmt: skip
    if before > after:
        got = f"{before} integer kernels in the first model, {after} in the second"
        raise EdgerunError("the first model is the quantized one", got=got, wanted="the float model first")
    if not any(region.work == "compute" and region.before and region.after for region in regions):
        raise EdgerunError("the models have no named node in common", wanted="a model and its compressed one",
                           do="compress the model that you compare with; its nodes need names")  # fmt: skip


def _about(value: float, samples: Sequence[float]) -> Estimate:
    """`value`, with the interval of the sessions' median, widened to hold it."""
    interval = median(samples).interval
    return Estimate(value, Interval(min(interval.low, value), max(interval.high, value), interval.confidence))


def _share(
    attributed: Estimate, measured: Estimate, sums: Sequence[float], differences: Sequence[float]
) -> Estimate | None:
    """Attributed over measured, None unless all of the measured difference's interval has one sign."""
    if measured.interval.low <= 0 <= measured.interval.high or 0 in differences:
        return None
    return _about(attributed.value / measured.value, [a / m for a, m in zip(sums, differences, strict=True)])


def _causes(whole: Sequence[Region], each: Sequence[Sequence[Region]]) -> dict[str, Estimate]:
    """Seconds saved by cause, the most lost last."""
    sessions = [attribution.totals(session) for session in each]
    found = {
        cause: _about(seconds, [session.get(cause, 0.0) for session in sessions])
        for cause, seconds in attribution.totals(whole).items()
    }
    return dict(sorted(found.items(), key=lambda item: -item[1].value))


def _layers(whole: Sequence[Region], each: Sequence[Sequence[Region]]) -> dict[int, Estimate]:
    sessions = [attribution.layers(session) for session in each]
    return {
        number: _about(_saved(regions), [_saved(session[number]) for session in sessions])
        for number, regions in attribution.layers(whole).items()
    }


def _part(region: Region, saved: Sequence[float]) -> Part:
    return Part(
        region.nodes,
        region.work,
        region.layer,
        attribution.main_cause(region),
        attribution.causes(region),
        sum(k.seconds for k in region.before),
        sum(k.seconds for k in region.after),
        _about(region.saved, saved),
        region.before,
        region.after,
    )
