"""Placement from the clock: what must stay in float so that a compressed model is faster than its float one?

Where the rules' placement is surely faster, nothing changes. Elsewhere sets of nodes to leave in float are proposed
from a profile (`measure/proposals.py`), timed, and kept when that is surely faster than before. They are made with
little data: where Q/DQ stand decides the time, not their scales. The placement that is left is made with all of the
data, and judged like the first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import NamedTuple

from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.measure import brief
from edgerun.measure.proposals import proposals
from edgerun.measure.stats import FEWEST_SESSIONS, MARGIN, verdict
from edgerun.model import Model
from edgerun.quantize import Compiled
from edgerun.runtime import Engine
from edgerun.verbs.clock import AS_FAST, RULES, TUNED, Clock, EngineOf, Kept, Speed, judged, label, not_timed


class Made(NamedTuple):
    """A compressed model, its engine, and what that loses on calibration data (None: nothing says it beside the graph,
    which the history tells of)."""

    model: Model
    engine: Engine
    compiled: Compiled | None = None


INCUMBENT = "incumbent"
LEAST = 60.0  # seconds of a compression that a search counts with, at least, where the rules' placement does not pay
HOPE = 0.95  # of the incumbent's speed in one session: two sessions of one model may differ by a tenth


@dataclass(frozen=True)
class Search:
    """What a search of placements needs: the scheme, the nodes that may stay float, compression with little data (a
    function of the nodes that do), and with all of it."""

    scheme: str
    nodes: Callable[[], list[str]]
    quick: Callable[[], Callable[[frozenset[str]], Model]]
    whole: Callable[[Kept], Made]


def held(made: Made, clock: Clock, search: Search, *, allow_slower: bool) -> tuple[Made, Speed]:
    """The model to write, and what the clock says of it: `made` by the rules, or one with more nodes in float.

    Raises GateFailed when none is as fast as the float model, unless `allow_slower`.
    """
    try:
        first = judged(clock, {RULES: lambda: made[1]}, RULES)
    except EdgerunError as error:  # the sample does not run: random noise, say
        return made, not_timed(error)
    if first.answer == "faster" and not clock.budget.always:
        return made, first
    kept, tried = _searched(clock, made, search, first)
    if kept:
        tuned = search.whole(kept)
        digest = tuned[0].history[-1].after
        second = judged(clock, {RULES: lambda: made[1], TUNED: lambda: tuned[1]}, TUNED, digest)
        if second.pays and (not first.pays or _ahead(clock, digest)):
            return tuned, replace(second, kept=kept, tried=tried)
    if not first.pays and not allow_slower:
        raise _refusal(clock, made, search, first, tried)
    return made, replace(first, tried=tried, earlier=not clock.timed)


def _ahead(clock: Clock, digest: str) -> bool:
    """Whether the tuned model is surely faster than that of the rules."""
    found = brief.compared(clock.known(label(TUNED, digest)), RULES, TUNED)
    return verdict(found.interval) == "faster"


def _searched(clock: Clock, made: Made, search: Search, first: Speed) -> tuple[Kept, int]:
    """The nodes to keep in float beside those that the rules leave there, and how many placements were timed.

    Where the rules' placement, which the clock judged `first`, is as fast as float, the search is no longer than the
    compression was, by the budget, and ends where the layers that lose time lose too little for a faster answer.
    """
    kept: dict[str, str] = {}
    budget, bold = clock.budget, first.answer != "faster"
    least = 0.0 if first.pays and not budget.always else LEAST
    tried, end = 0, perf_counter() + budget.patience * max(least, clock.took)
    names = search.nodes() if budget.steps else []
    quick = functools.cache(search.quick)
    engine = functools.lru_cache(budget.width + 2)(lambda own: clock.compiled(quick()(own)))
    for _ in range(budget.steps):
        place = " ".join(sorted(kept))
        incumbent = functools.partial(engine, frozenset(kept)) if kept else lambda: made[1]
        found, total = clock.layers(place, incumbent, names)
        if not least and sum(max(0.0, -layer.saved) for layer in found) < MARGIN * total:
            break
        sets = [{**kept, **more} for more in proposals(found, total, budget.width, bold=bold)]
        engines = {str(number): functools.partial(engine, frozenset(more)) for number, more in enumerate(sets)}
        timed, best = _contest(clock, f"search {place}", incumbent, engines, end - perf_counter())
        tried += timed
        if best is None:
            break
        kept = sets[int(best)]
    return kept, tried


def _contest(
    clock: Clock, place: str, incumbent: EngineOf, engines: Mapping[str, EngineOf], seconds: float
) -> tuple[int, str | None]:
    """How many of `engines` could be timed, and which is the fastest of those that surely beat the incumbent.

    One session of all leaves out those that look slower; the rest are timed until one is ahead, or none is in front.
    """
    first = f"{place} first"
    before = clock.known(first)
    if not before and (seconds <= 0 or clock.timings.get(first) is not None):
        clock.timings.put(first, {"sessions": [], "ended": True})  # with the same timings the answer stays the same
        return 0, None
    engines = {n: of for n, of in engines.items() if n in before[0]} if before else _possible(engines)
    if not engines:
        return 0, None
    end, field = perf_counter() + seconds, tuple(engines)
    looked = clock.sessions(first, {INCUMBENT: incumbent, **engines}, lambda taken: True, seconds)
    hopeful = {n: of for n, of in engines.items() if brief.compared(looked, INCUMBENT, n).value >= HOPE}
    if (best := _best(looked, field)) is not None or not hopeful:
        return len(field), best
    names = tuple(hopeful)
    sessions = clock.sessions(
        place, {INCUMBENT: incumbent, **hopeful},
        lambda taken: _best(taken, names) is not None or _behind(taken, names), end - perf_counter(),
    )  # fmt: skip
    return len(field), _best(sessions, names)


def _behind(sessions: Sequence[brief.Session], names: Sequence[str]) -> bool:
    """Whether none of them is in front after as many sessions as an interval needs."""
    against = (brief.compared(sessions, INCUMBENT, name).value for name in names)
    return len(sessions) >= FEWEST_SESSIONS and all(value <= 1 + MARGIN for value in against)


def _possible(engines: Mapping[str, EngineOf]) -> dict[str, EngineOf]:
    """Those that leave something on integers."""
    found = {}
    for name, of in engines.items():
        try:
            of()
            found[name] = of
        except Unsupported:
            continue
    return found


def _best(sessions: Sequence[brief.Session], names: Sequence[str]) -> str | None:
    """The fastest of those that are surely faster than the incumbent."""
    against = {name: brief.compared(sessions, INCUMBENT, name) for name in names}
    ahead = [name for name, found in against.items() if verdict(found.interval) == "faster"]
    return max(ahead, key=lambda name: against[name].value, default=None)


def _refusal(clock: Clock, made: Made, search: Search, speed: Speed, tried: int) -> GateFailed:
    found, _ = clock.layers("", lambda: made[1], search.nodes())
    told = "; ".join(f"{x.nodes[0]} loses {-1e6 * x.saved:.1f} µs ({x.cause})" for x in found[:3] if x.saved < 0)
    reason = told or "no layer is slower: what the runtime does between more kernels costs more than they gain"
    beside = f"; {tried} other placements were tried and are not as fast either" if tried else ""
    refusal = GateFailed(
        f"{search.scheme} does not pay on {clock.target}: the model is not as fast as the float one",
        got=f"{speed}{beside}; {reason}",
        wanted=f"surely faster, or not surely slower and at least {AS_FAST:g} times as fast",
        do="use the float model; --scheme w8a16 makes it small; --allow-slower writes this one all the same",
    )
    slowest = [{"nodes": list(x.nodes), "loses (s)": -x.saved, "cause": x.cause} for x in found[:3] if x.saved < 0]
    refusal.measured = {"speed": replace(speed, tried=tried).to_json(), "slowest layers": slowest}
    return refusal
