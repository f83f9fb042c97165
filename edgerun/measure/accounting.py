"""How much of a measured difference is explained: the parts of two models' times, over several sessions.

A run is its kernels, what the runtime takes to come from one to the next, and what a call of it takes at all.
Seconds per run. A kernel's time is the median over sessions, so that parts add up to their sum exactly; intervals are
those of the sessions' medians by the sign test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgerun.errors import EdgerunError, Unsupported
from edgerun.measure import attribution
from edgerun.measure.attribution import Region
from edgerun.measure.places import alike
from edgerun.measure.stats import Estimate, median
from edgerun.metrics import Interval
from edgerun.passes import NodeTime

BETWEEN = "between kernels"


@dataclass(frozen=True)
class Dispatch:
    """What a runtime takes besides kernels, as measured on models that do next to nothing: seconds by node and call."""

    node: float
    call: float


@dataclass(frozen=True)
class Profiled:
    """One session of two models, the float one first: the p50 of each without profiler, the kernels of each, and what
    the runtime takes besides them (None: nobody knows)."""

    p50: tuple[float, float]
    kernels: tuple[Sequence[NodeTime], Sequence[NodeTime]]
    dispatch: Dispatch | None = None


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
class Whole:
    """One model's run without profiler, and what it is made of, each measured apart from it.

    `kernels` are what its `nodes` kernels take by the profiler, corrected for its own cost; `between` what the runtime
    takes to come to so many nodes, `call` to be called at all. `rest` is the run less all three: below 0 where kernels
    are slower under the profiler than without it.
    """

    run: Estimate
    kernels: Estimate
    nodes: int
    between: Estimate
    call: Estimate
    rest: Estimate


@dataclass(frozen=True)
class Account:
    """A measured difference and what it is made of.

    `measured` is the first model's p50 less the second one's of the same session, without profiler; `attributed` the
    sum of all parts and of what the one saves `between` kernels; `explained` the one over the other, None where no
    difference could be measured; `unexplained` the rest, which nothing accounts for. `causes` and `layers` are seconds
    saved, `wholes` the two models by themselves. `dispatched` says whether the time between kernels is known; else it
    is 0, and in kernels where the profiler cannot tell it from them.
    """

    measured: Estimate
    attributed: Estimate
    explained: Estimate | None
    unexplained: Estimate
    between: Estimate
    causes: Mapping[str, Estimate]
    layers: Mapping[int, Estimate]
    parts: tuple[Part, ...]
    wholes: tuple[Whole, Whole]
    dispatched: bool


def account(sessions: Sequence[Profiled]) -> Account:
    """Align the kernels of all sessions and add up. Raises EdgerunError when the models have no node in common."""
    kernels = [alike([s.kernels[side] for s in sessions]) for side in (0, 1)]
    ever = [_ever(side) for side in kernels]
    pairs = [zip(side, sessions, strict=True) for side in kernels]
    split = [[_split(found, ever[side], s.dispatch) for found, s in pairs[side]] for side in (0, 1)]
    seconds = [[own for own, _ in side] for side in split]
    between = [[taken for _, taken in side] for side in split]
    typical = [{order: float(np.median([s[order] for s in side])) for order in side[0]} for side in seconds]
    regions = attribution.align(*ever)
    _check(regions)
    whole = [region.timed(*typical) for region in regions]
    each = [[region.timed(*pair) for region in regions] for pair in zip(*seconds, strict=True)]
    differences = [s.p50[0] - s.p50[1] for s in sessions]
    shorter = [before - after for before, after in zip(*between, strict=True)]
    sums = [_saved(session) + saved for session, saved in zip(each, shorter, strict=True)]
    wholes = [_whole(side, sessions, typical[side], seconds[side], between[side]) for side in (0, 1)]
    measured = median(differences)
    saved = _about(wholes[0].between.value - wholes[1].between.value, shorter)
    attributed = _about(_saved(whole) + saved.value, sums)
    rest = [difference - total for difference, total in zip(differences, sums, strict=True)]
    dispatched = any(s.dispatch for s in sessions)
    return Account(
        measured,
        attributed,
        _share(attributed, measured, sums, differences),
        _about(measured.value - attributed.value, rest),
        saved,
        _causes(whole, each) | ({BETWEEN: saved} if dispatched else {}),
        _layers(whole, each),
        tuple(_part(region, [session[i].saved for session in each]) for i, region in enumerate(whole)),
        (wholes[0], wholes[1]),
        dispatched,
    )


def _whole(
    side: int, sessions: Sequence[Profiled], typical: Mapping[int, float], seconds: Sequence[Mapping[int, float]],
    between: Sequence[float],
) -> Whole:  # fmt: skip
    runs, calls = [s.p50[side] for s in sessions], [s.dispatch.call if s.dispatch else 0.0 for s in sessions]
    kernels = [sum(session.values()) for session in seconds]
    rests = [run - sum(parts) for run, *parts in zip(runs, kernels, between, calls, strict=True)]
    run, all_between, call = median(runs), median(between), median(calls)
    rest = run.value - sum(typical.values()) - all_between.value - call.value
    return Whole(run, _about(sum(typical.values()), kernels), len(typical), all_between, call, _about(rest, rests))


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


def _split(
    kernels: Sequence[NodeTime], ever: Sequence[NodeTime], dispatch: Dispatch | None
) -> tuple[dict[int, float], float]:
    """Seconds by order, 0 of those that took next to nothing in this session, and what it takes to come to them all."""
    seconds, node = {kernel.order: kernel.seconds for kernel in kernels}, dispatch.node if dispatch else 0.0
    told = {kernel.order: seconds.get(kernel.order, 0.0) for kernel in ever}
    inside = {k.order: min(node, told[k.order]) if k.dispatched else 0.0 for k in ever}
    between = sum(inside[k.order] if k.dispatched else node for k in ever)
    return {order: told[order] - inside[order] for order in told}, between


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
    if measured.interval.low <= 0 <= measured.interval.high:
        return None
    shares = [a / m if m else math.copysign(math.inf, a) for a, m in zip(sums, differences, strict=True)]
    return _about(attributed.value / measured.value, shares)


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
