"""What a float model does on calibration data: one run over it, until its ranges are settled."""

from __future__ import annotations

import gc
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.adequacy import FEW
from edgerun.quantize._lanes import in_lanes
from edgerun.quantize.graphs import compared, correction, placement, sides
from edgerun.quantize.graphs.activation import Activation, check, unusable
from edgerun.quantize.graphs.sides import Sides
from edgerun.quantize.graphs.statistics import APART, Watch
from edgerun.quantize.graphs.windows import Window
from edgerun.quantize.numerics import coverage

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Feeds, Request

log = logging.getLogger("edgerun")
SAMPLE_BUDGET = 1 << 16  # elements kept of each activation
UNIT = 8  # samples
LIGHT = 1e6  # elements of all activations of a sample: below, a run takes so little that more samples can be looked at
LATER = 128, 1 << 25  # of a light model, samples whose outputs are kept for the check alone, and their bytes
LEAST = 1e-4  # of all signal or all noise: a sample with less of both says nothing


@dataclass(frozen=True)
class Truth:
    """What the float model computes on a batch of `rows`: its outputs, and each correctable layer's mean.

    `parts`: what is judged apart, the outputs or their `sides`, by name.
    """

    rows: int
    outputs: dict[str, np.ndarray]
    means: dict[str, np.ndarray]
    sides: Mapping[str, Sides] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, np.ndarray]:
        return sides.cut(self.outputs, self.sides)


def batches(request: Request, samples: int | None, stage: str, *, again: bool = True) -> Iterator[Feeds]:
    """Calibration batches, `samples` samples at most, reporting progress after each, where the `stage` has a name; not
    `again`: with their digest."""
    assert request.calibration is not None
    seen, total = 0, min(samples or math.inf, request.calibration.samples or samples or 0)
    for feeds in request.calibration.again() if again else request.calibration:
        yield feeds
        seen += samples_in(feeds, request)
        if stage:
            request.progress(stage, seen if samples is None else min(seen, samples), int(total))
        if samples is not None and seen >= samples:
            return


def samples_in(feeds: Feeds, request: Request) -> int:
    """The samples of a batch; a feed of a model without a batch axis is one."""
    assert request.calibration is not None
    return 1 if request.calibration.batch is None else int(next(iter(feeds.values())).shape[0])


def observe(
    model: ir.Model, plan: placement.Plan, request: Request, vectors: Mapping[str, Window]
) -> tuple[dict[str, Activation], dict[str, Activation], list[Truth]]:
    """One float run over the data: every activation's extremes, and of its beginning everything else that is needed.

    Then the same of three batches in four, for trials that every fourth one judges (`Effort.try_out`; none where there
    is no fourth). The run ends when the extremes are settled (`coverage.verdict`); the rest of the data is only looked
    at. `vectors` says of which values some are kept, by name, and where.
    """
    outputs = compared.outputs(model.graph)
    # A sum may need rounding after all once the layer that it is fused into stays in float.
    every = placement.plan(model.graph, replace(request.rules, fused_sum=False), request.keep_float)
    names = [str(value.name) for value in every.points]
    watch = Watch(model, names, SAMPLE_BUDGET // request.effort.first, vectors)
    told = _Told(watch)
    data = _resumed(told, request)
    if told.rows < request.effort.first:
        full = watch.graph(full=True)
        correction.add_means(full.graph, {str(node.name): node for node in full.graph}, plan)
        with request.open(full, lanes=request.lanes) as session:
            del full
            first = _beginning(data, request.effort.first - told.rows, request)
            for (feeds, digest), out in in_lanes(lambda item: session.run(item[0]), first, request.lanes):
                # Copies: a runtime's own arrays may keep everything that it allocated for the run.
                means = {name: array.copy() for name, array in out.items() if name.startswith(correction.MEANS)}
                rows = samples_in(feeds, request)
                told.truths.append(Truth(rows, {name: out[name].copy() for name in outputs}, means))
                told.add(out, rows, digest)
                del out
                _keep(told, request)
        gc.collect()
    if not told.settled and (more := next(data, None)) is not None:
        points = [str(value.name) for value in plan.points]
        light = sum(seen.size for seen in watch.activations().values()) < LIGHT * sum(t.rows for t in told.truths)
        with request.open(watch.graph(full=False, outputs=light), lanes=request.lanes) as session:
            rest = itertools.chain([more], data)
            for (feeds, digest), out in (runs := in_lanes(lambda item: session.run(item[0]), rest, request.lanes)):
                told.add(out, samples_in(feeds, request), digest)
                if light:
                    told.keep({name: out[name] for name in outputs}, samples_in(feeds, request))
                enough = told.rows >= request.effort.settled and verdict(*_extremes(watch, points), request).enough
                told.settled = bool(enough)
                if enough:
                    break
                _keep(told, request)
            runs.close()
        gc.collect()
    _keep(told, request, whole=True)
    for _ in data:
        continue
    found = sides.different(sides.of(model.graph), [truth.outputs for truth in told.truths])
    truths, later = ([replace(truth, sides=found) for truth in some] for some in (told.truths, told.later))
    request.found["samples run"], request.later = told.rows, later
    seen = watch.activations()
    for name, activation in seen.items():
        check(name, activation.channels)
    tried = request.effort.try_out and len(told.truths) >= APART
    return seen, watch.activations(fit=True) if tried else {}, truths


def _extremes(watch: Watch, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    lows, highs = watch.extremes(names)
    if not (finite := (np.isfinite(lows) & np.isfinite(highs)).all(axis=0)).all():
        worst = int(finite.argmin())
        raise unusable(names[worst], lows[:, worst], highs[:, worst])
    return lows, highs


Marked = tuple["Feeds", str]  # a batch, and the digest of the data up to its end


@dataclass
class _Told:
    """What the float run has told so far: of `rows` samples in `batches`, whose data has the `digest`.

    `settled`: the extremes are, and no more need be run.
    """

    watch: Watch
    truths: list[Truth] = field(default_factory=list)
    later: list[Truth] = field(default_factory=list)  # behind these, without the layers' means
    rows: int = 0
    batches: int = 0
    settled: bool = False
    digest: str = ""

    def add(self, out: Mapping[str, np.ndarray], rows: int, digest: str) -> None:
        self.watch.add(out)
        self.rows, self.batches, self.digest = self.rows + rows, self.batches + 1, digest

    def keep(self, outputs: Mapping[str, np.ndarray], rows: int) -> None:
        """Remember the outputs of `rows` samples behind the truths, up to LATER."""
        samples, size = sum(t.rows for t in self.later), sum(a.nbytes for t in self.later for a in t.outputs.values())
        if samples < LATER[0] and size + sum(array.nbytes for array in outputs.values()) <= LATER[1]:
            self.later.append(Truth(rows, {name: array.copy() for name, array in outputs.items()}, {}))

    def state(self) -> dict[str, np.ndarray]:
        found = {f"watch/{key}": array for key, array in self.watch.state().items()}
        for index, truth in enumerate([*self.truths, *self.later]):
            found[f"rows/{index}"] = np.array(truth.rows)
            for kind in ("outputs", "means"):
                found |= {f"{kind}/{index}/{name}": array for name, array in getattr(truth, kind).items()}
        counts = np.array([self.rows, self.batches, self.settled, len(self.truths), len(self.later)])
        return found | {"counts": counts, "digest": np.frombuffer(bytes.fromhex(self.digest), np.uint8)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        def below(prefix: str) -> dict[str, np.ndarray]:
            return {key[len(prefix) :]: array for key, array in state.items() if key.startswith(prefix)}

        self.watch.restore(below("watch/"))
        self.rows, self.batches, settled, truths, later = (int(n) for n in state["counts"])
        self.settled, self.digest = bool(settled), state["digest"].tobytes().hex()
        for index in range(truths + later):
            outputs, means = (
                {name: array.copy() for name, array in below(f"{kind}/{index}/").items()}
                for kind in ("outputs", "means")
            )
            kept = self.truths if index < truths else self.later
            kept.append(Truth(int(state[f"rows/{index}"]), outputs, means))


def _keep(told: _Told, request: Request, whole: bool = False) -> None:
    if request.checkpoint is not None and told.batches:
        request.checkpoint.offer("float model", told.state, whole=whole)


def _resumed(told: _Told, request: Request) -> Iterator[Marked]:
    """The batches behind those that a checkpoint knows, which go into `told`; all of them where there is none."""
    state = None if request.checkpoint is None else request.checkpoint.recall("float model")
    data = _marked(request)
    if state is None:
        return data
    assert request.calibration is not None
    known = [digest for _, digest in itertools.islice(data, int(state["counts"][1]))]
    if known[-1:] != [state["digest"].tobytes().hex()]:
        log.info("the checkpoint is of other data: starting anew")
        return _marked(request)
    told.restore(state)
    log.info("resuming: %d of %s samples are known", told.rows, request.calibration.samples)
    return data


def _marked(request: Request) -> Iterator[Marked]:
    assert request.calibration is not None
    for feeds in batches(request, request.effort.ranges, "float model", again=False):
        yield feeds, request.calibration.digest_so_far


def _beginning(data: Iterator[Marked], rows: int, request: Request) -> Iterator[Marked]:
    """Whole batches until there are `rows` samples; takes no more out of `data`."""
    for feeds, digest in data:
        rows -= samples_in(feeds, request)
        yield feeds, digest
        if rows <= 0:
            return


def verdict(lows: np.ndarray, highs: np.ndarray, request: Request) -> coverage.Verdict:
    """Would more data move the ranges? `lows`, `highs` `[batches, points]`.

    Batches that only repeat samples tell nothing, and only different samples are counted. Two batches of UNIT / 2 are
    looked at as one: extremes over more samples tell more of the largest to come.
    """
    assert request.calibration is not None
    batch = request.calibration.batch or 1
    fresh = np.array(request.fresh[: len(lows)])
    if len(fresh) < len(lows):
        fresh = np.full(len(lows), batch)
    lows, highs = lows[fresh > 0], highs[fresh > 0]
    if batch == UNIT // 2 and len(lows) > 1:
        starts = np.arange(0, len(lows) // 2 * 2, 2)
        lows, highs = np.minimum.reduceat(lows, starts), np.maximum.reduceat(highs, starts)
    return coverage.verdict(lows, highs, rows=fresh.sum() / len(lows))


def telling(truths: Sequence[Truth]) -> list[int]:
    """The batches with a share worth mentioning (LEAST) of an output's signal: a detector's pictures without anything
    in them have next to none, and any two models differ there."""
    signal = np.array([[_signal(truth.outputs[name]) for name in truth.outputs] for truth in truths])
    says = ~(signal < LEAST * signal.sum(axis=0)).all(axis=1)
    return [int(place) for place in np.flatnonzero(says)]


def _signal(array: np.ndarray) -> float:
    return float(np.square(array, dtype=np.float64).sum())


def tell_coverage(seen: Mapping[str, Activation], request: Request) -> None:
    """Would more calibration data move the ranges? Into `found`, and among its warnings when it would, or when nobody
    can tell and the samples were not called few already."""
    assert request.calibration is not None
    lows, highs = (np.stack(ends, 1) for ends in zip(*((a.lows, a.highs) for a in seen.values()), strict=True))
    found = verdict(lows, highs, request)
    told = request.found.setdefault("calibration", {})
    told["coverage"] = found.to_json(list(seen))
    called_few = told.get("samples", FEW) - told.get("duplicates", 0) < FEW
    if found.enough is False or (found.enough is None and not called_few):
        looked = int(request.found["samples run"])
        sentence = found.sentence(looked, request.calibration.samples or looked)
        told["warnings"] = [*told.get("warnings", ()), sentence]


def with_moved_means(truth: Truth, changed: Mapping[str, tuple[np.ndarray | float, np.ndarray | float]]) -> Truth:
    """With the layer means (m − o)·f of the model that was centred by o and equalized by f, `[C]` or a number each."""

    def moved(name: str, mean: np.ndarray) -> np.ndarray:
        if name not in changed:
            return mean
        offset, factor = (np.reshape(by, (1, -1, *[1] * (mean.ndim - 2))) for by in changed[name])
        told: np.ndarray = ((mean - offset) * factor).astype(mean.dtype)
        return told

    return replace(truth, means={name: moved(name, mean) for name, mean in truth.means.items()})
