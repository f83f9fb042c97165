"""What a model is to compute: by the references that take it, on given feeds or drawn ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgerun import draws, registry, thresholds
from edgerun import input_ranges as ends
from edgerun.batches import cuttable, fitted
from edgerun.errors import EdgerunError
from edgerun.passes import Feeds
from edgerun.runtime import Engine, Options, Session, dtypes
from edgerun.runtime.spec import DTYPES
from edgerun.verbs import work
from edgerun.verbs.judging import EXACT, Pair

if TYPE_CHECKING:
    from edgerun.model import Model

LIGHT, HEAVY = ("reference", Options()), ("onnxruntime", Options(extra={"graph_optimization_level": "off"}))
THIRD = "openvino", Options()  # where ONNX Runtime itself is in question, and the evaluator
BATCHES = (1, 3)
SINGLES = 4  # feeds of usual shapes that are cut out of others
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Truth:
    """Feeds with their true outputs, and who says so; an engine computes each of `parts` with other kernels."""

    target: str
    label: str
    parts: tuple[list[Pair], ...]

    @property
    def pairs(self) -> list[Pair]:
        """Those of all parts."""
        return [pair for part in self.parts for pair in part]


def truths(
    model: Model, engine: Engine, options: Options, feeds: Sequence[Feeds], whole: bool = True
) -> Iterator[Truth]:
    """What each reference that takes the model and the feeds computes: the ONNX evaluator (not for a heavy model, if
    another can), then unoptimized ONNX Runtime; for an engine of that one OpenVINO, where it runs. Without `whole` the
    given feeds are cut to the usual shapes, where the engine has such, and one of another shape joins them. Raises
    EdgerunError when there is none.

    One that is the engine itself proves nothing, and one that contradicts the model's declared outputs comes last.
    """
    reasons, misfits, given = [], [], False
    heavy = work.heavy(model)
    third = [THIRD] if engine.target == HEAVY[0] and not registry.target(THIRD[0], usable=False).available() else []
    for name, own in (HEAVY, LIGHT) if heavy else (LIGHT, HEAVY, *third):
        if name == engine.target and dict(own.extra) == dict(options.extra):
            continue
        try:
            truth = _computed(name, own, model, options, feeds, engine.usual, whole)
        except EdgerunError as error:
            reasons.append(f"{name}: {error.what}: {error.got}")
            continue
        if not _fits(model, truth.pairs):
            misfits.append(truth)
            continue
        given = True
        yield truth
        if heavy:
            return
    if misfits and not given:
        yield from misfits
    elif not given:
        raise EdgerunError(
            "no reference runs this model, so the engine cannot be checked",
            got="; ".join(reasons),
            do="give real inputs: --data FILE, in Python feeds=[…]",
        )


def _computed(
    name: str, own: Options, model: Model, options: Options, feeds: Sequence[Feeds], usual: Shapes, whole: bool
) -> Truth:
    target, settings = registry.target(name), Options(options.threads, own.extra)
    feeds = feeds if whole else _singles(feeds, usual, model)
    with target.load(target.compile(model, settings), settings) as session:
        pairs = [(feed, session.run(feed)) for feed in feeds] if feeds else _drawn(model, session, options.sizes)
        parts = _apart(pairs, usual, _Other(session, model, options.sizes))
    extra = "".join(f", {key}={value}" for key, value in own.extra.items())
    return Truth(name, f"{name} {target.device()['version']}{extra}", parts)


def _apart(pairs: list[Pair], usual: Shapes, other: _Other) -> tuple[list[Pair], ...]:
    """Pairs of the usual shapes, which an engine has kernels ready for, and of others (all together, where none are
    usual): of more than one shape, where the model takes more."""
    ready: list[Pair] = [pair for pair in pairs if _usual(pair[0], usual)]
    rest: list[Pair] = [pair for pair in pairs if not _usual(pair[0], usual)]
    if not ready:
        feeds = _singles([feed for feed, _ in pairs], usual, other.model)
        ready = [(feed, other.session.run(feed)) for feed in feeds]
    elif not rest and len({_shapes(feed) for feed, _ in pairs}) == 1 and (found := other.of(pairs[0][0])):
        rest = [found]
    return (ready, rest) if usual else (ready + rest,)


@dataclass(frozen=True)
class _Other:
    """How feeds of another shape are found: what `session`, a reference, says of `model` within these `ranges`."""

    session: Session
    model: Model
    ranges: Mapping[str, tuple[int, ...]]

    def of(self, feed: Feeds) -> Pair | None:
        """`feed` with open dimensions of half their size, or twice: the first that the model takes, batches before
        others, each name with one size wherever it stands. None where it takes no other."""
        inputs = self.model.inputs
        if not all(spec.kind == "tensor" and isinstance(feed.get(spec.name), np.ndarray) for spec in inputs):
            return None
        have = {spec.name: list(zip(spec.shape, feed[spec.name].shape, strict=True)) for spec in inputs}
        sizes = {dim: size for shape in have.values() for dim, size in shape if isinstance(dim, str) and size}
        batches = {dim for dim, leads in draws.sizes(inputs, 1, 0).items() if leads and dim in sizes}
        for changed in (batches, *({dim} for dim in sorted(set(sizes) - batches))):
            for factor in (0.5, 2):
                other = sizes | {dim: self._within(dim, sizes[dim] * factor) for dim in changed}
                shapes = {name: [other.get(str(dim), size) for dim, size in shape] for name, shape in have.items()}
                if other != sizes and cuttable(feed, shapes, inputs):
                    with contextlib.suppress(EdgerunError):
                        found = fitted(feed, shapes)
                        pair = found, self.session.run(found)
                        if _fits(self.model, [pair]):
                            return pair
        return None

    def _within(self, dim: str, size: float) -> int:
        near = (
            max(least, min(size, most))
            for least, _, most in (c.get(dim, (1, 1, int(size))) for c in choices(self.ranges))
        )
        return int(min(near, key=lambda found: abs(found - size)))


def _singles(feeds: Sequence[Feeds], usual: Shapes, model: Model) -> Sequence[Feeds]:
    """SINGLES of the usual shapes, or as many as there are `feeds`, cut out of them in turn, or drawn where they cannot
    be cut; themselves where they have these shapes, or none are usual."""
    if not feeds or not usual or all(_usual(feed, usual) for feed in feeds):
        return feeds
    feeds = [feed for feed in feeds if cuttable(feed, usual, model.inputs)]
    if not feeds:
        specs = [replace(spec, shape=tuple(usual[spec.name])) for spec in model.inputs]
        return [draws.feeds(specs, {}, seed, ends.ranges(model.ir)) for seed in range(SINGLES)]
    turns = (divmod(number, len(feeds)) for number in range(max(SINGLES, len(feeds))))
    return [fitted(feeds[index], usual, place) for place, index in turns]


def _shapes(feed: Feeds) -> tuple[object, ...]:
    return tuple(getattr(value, "shape", None) for value in feed.values())


def _usual(feed: Feeds, usual: Shapes) -> bool:
    return all(feed[name].shape == tuple(shape) for name, shape in usual.items())


def _fits(model: Model, pairs: Sequence[Pair]) -> bool:
    """Do the results have the dtypes and shapes that the model declares? The evaluator has faults of its own."""
    for spec in model.outputs:
        for _, outputs in pairs:
            array = outputs[spec.name]
            if spec.kind != "tensor":
                continue
            if array.dtype != dtypes.dtype(spec.dtype) or array.ndim != len(spec.shape):
                return False
            if any(isinstance(want, int) and have != want for have, want in zip(array.shape, spec.shape, strict=True)):
                return False
    return True


def choices(ranges: Mapping[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    """The ranges that belong together in `Options.sizes`: the first of every dimension, the second …; those of a
    dimension with fewer come in turn."""
    places = range(0, max(map(len, ranges.values()), default=3), 3)
    return [{dim: size[place % len(size) :][:3] for dim, size in ranges.items()} for place in places]


def _drawn(model: Model, reference: Session, ranges: Mapping[str, tuple[int, ...]]) -> list[Pair]:
    """Two draws of each batch size, at the first size of the other symbolic dimensions that the reference takes: two of
    noise; one with values at the thresholds that the model compares with; and one of equal values where it orders them,
    in which boolean masks hide a row, and what is only moved has infinities.

    Sizes lie within `ranges`, where a dimension has one; of several, which have kernels of their own, those behind
    the first are drawn from once.
    """
    if any(spec.dtype not in (*DTYPES, "object") or spec.kind != "tensor" for spec in model.inputs):
        raise EdgerunError("only numbers and strings can be drawn", got=", ".join(map(str, model.inputs)))
    below, refusal = ends.ranges(model.ir), EdgerunError("")
    told, moved = thresholds.decided(model.ir), ends.moved(model.ir)
    special = {2: lambda feed: thresholds.at_steps(feed, told),
               3: lambda feed: ends.extreme(ends.masked(thresholds.tied(feed, told)), moved)}  # fmt: skip
    for other in draws.SIZES:
        try:
            found: list[Pair] = []
            first, *more = choices(ranges)
            for seed, chosen in enumerate([first] * 2 * len(BATCHES) + more):
                sizes = draws.sizes(model.inputs, BATCHES[seed % len(BATCHES)], other)
                sizes |= {
                    dim: min(max(sizes[dim], low), high) for dim, (low, _, high) in chosen.items() if dim in sizes
                }
                feed = draws.feeds(model.inputs, sizes, seed, below)
                found.append(_ran(reference, feed, special.get(seed)))
            return found
        except EdgerunError as error:
            refusal = error
            if not draws.sizes(model.inputs, 1, 1):
                break
    raise EdgerunError("every random input that was tried is refused", got=refusal.got) from refusal


def _ran(
    reference: Session, feed: dict[str, np.ndarray], special: Callable[[Feeds], dict[str, np.ndarray]] | None
) -> Pair:
    """The feed made `special`, where the reference takes it so, else as it is, with what it computes."""
    if special is not None:
        with contextlib.suppress(EdgerunError):
            return (made := special(feed)), reference.run(made)
    return feed, reference.run(feed)


def exact(original: Model | str | Path, feeds: Sequence[Feeds]) -> list[dict[str, np.ndarray]]:
    """What the float model gives, nothing optimized."""
    from edgerun.model import Model

    return _runs(HEAVY, original if isinstance(original, Model) else Model.load(original), feeds)


def unrounded(model: Model, feeds: Sequence[Feeds]) -> list[dict[str, np.ndarray]]:
    """What a model in half precision gives where nothing is rounded on the way; nothing where neither reference runs
    it so."""
    if (plain := work.unrounded(model)) is None:
        return []
    kinds = {spec.name: dtypes.dtype(spec.dtype) for spec in plain.inputs if spec.kind == "tensor"}
    halved = {spec.name for spec, own in zip(plain.outputs, model.outputs, strict=True) if spec.dtype != own.dtype}
    wide = [{n: a.astype(kinds[n]) if n in kinds else a for n, a in feed.items()} for feed in feeds]
    for reference in (HEAVY, LIGHT):
        with contextlib.suppress(EdgerunError):
            found = _runs(reference, plain, wide)
            return [{n: a.astype(EXACT) if n in halved else a for n, a in result.items()} for result in found]
    return []


def _runs(reference: tuple[str, Options], model: Model, feeds: Sequence[Feeds]) -> list[dict[str, np.ndarray]]:
    name, own = reference
    target = registry.target(name)
    with target.load(target.compile(model, own), own) as session:
        return [session.run(feed) for feed in feeds]
