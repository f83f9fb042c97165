"""Compile: a model becomes an engine for one target, compared with the reference before anyone trusts it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import draws, registry
from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.metrics import Difference
from edgerun.passes import Feeds, Issue
from edgerun.runtime import Engine, Options, SelfCheck, Session, dtypes
from edgerun.runtime.spec import DTYPES
from edgerun.verbs import work
from edgerun.verbs.auto import AUTO, candidates, first
from edgerun.verbs.written_out import or_written_out

if TYPE_CHECKING:
    from edgerun.model import Model

RELATIVE_ERROR = 1e-3  # of float models: max |y - r| / max |r|, every output
# Of models that round (Q/DQ, float16). A tie that falls the other way moves a whole step and everything behind it:
# on a quantized MobileNetV2 ONNX Runtime with and without its optimizations agrees with itself to 20 dB, and both are
# as near to the float model. So the float model is the judge where it is known, and else the bound is a low one.
SQNR_DB = 10.0
SQNR_LOSS_DB = 3.0  # how much further from the float model the engine may be than the reference is
LIGHT, HEAVY = ("reference", Options()), ("onnxruntime", Options(extra={"graph_optimization_level": "off"}))
BATCHES = (1, 3)
Pair = tuple[Feeds, dict[str, np.ndarray]]


def compile(
    model: Model | str | Path,
    target: str | Sequence[str],
    options: Options | None = None,
    *,
    feeds: Sequence[Feeds] = (),
    original: Model | str | Path | None = None,
) -> Engine:
    """The engine of `model` (or of an `.onnx` file) for `target`; `engine.check` holds the numbers of its comparison.

    Several targets mean the first of them whose engine agrees with the reference, and "auto" all that run here.
    `feeds` are compared on when given (real data tells more), else random draws with batch 1 and 3. `original` is
    the float model that a rounding one came from: its engine may be 3 dB further from it than the reference is.
    Operators that the target lacks, or computes wrongly, are written with others where ONNX defines them so.
    Raises Unsupported with the nodes that cannot run, or where no engine of the target runs at all, and GateFailed when
    the engine computes something else.
    """
    from edgerun.model import Model

    model = model if isinstance(model, Model) else Model.load(model)
    if target == AUTO or not isinstance(target, str):
        names = candidates() if target == AUTO else list(target)
        return first(names, lambda name: compile(model, name, options, feeds=feeds, original=original))
    found, options = registry.target(target), options or Options()
    if reason := found.runnable():
        raise Unsupported(
            f"an engine for {target} cannot be compared with the reference here, so none is given out",
            got=reason, do="compile the model where it shall run",
        )  # fmt: skip
    return or_written_out(model, target, lambda form: _proven(form, target, options, feeds, original))


def _proven(
    model: Model, target: str, options: Options, feeds: Sequence[Feeds], original: Model | str | Path | None
) -> Engine:
    with _explained(model, target):
        engine = registry.target(target).compile(model, options)
        return replace(engine, check=self_check(model, engine, options, feeds, original))


def built(model: Model, target: str, options: Options) -> Engine:
    """An engine that was compared with nothing: it shows that `target` takes the model, and no more.

    Raises Unsupported with the nodes that it does not take.
    """
    with _explained(model, target):
        return registry.target(target).compile(model, options)


@contextmanager
def _explained(model: Model, target: str) -> Iterator[None]:
    """Say a target's refusal node by node, where it can."""
    found = registry.target(target)
    if issues := found.limits().exceeded(model):
        raise _unsupported(target, issues)
    try:
        yield
    except GateFailed:
        raise
    except EdgerunError as error:
        if issues := found.check(model):  # at the price of another compilation
            raise _unsupported(target, issues) from error
        raise


def _unsupported(target: str, issues: Sequence[Issue]) -> Unsupported:
    named = [f"{issue.node} ({issue.op}): {issue.reason}" if issue.node else issue.reason for issue in issues]
    more = f", and {len(named) - 5} more" if len(named) > 5 else ""
    return Unsupported(f"the model does not run on {target}", got="; ".join(named[:5]) + more)


def self_check(
    model: Model,
    engine: Engine,
    options: Options,
    feeds: Sequence[Feeds] = (),
    original: Model | str | Path | None = None,
) -> SelfCheck:
    """Run `engine` and a reference on the same feeds. Raises GateFailed naming the worst output.

    Where the engine differs from the first reference, it may still meet another one that is not its own runtime:
    references have faults too. (Not where runtimes are known to share one.)
    """
    refusal: GateFailed | None = None
    for truth in _truths(model, engine, options, feeds):
        if refusal and (truth.target == engine.target or work.disputed(model)):
            continue
        try:
            with registry.target(engine.target).load(engine, options) as session:  # after the reference is closed
                return _judged(model, engine, session, truth, original)
        except GateFailed as error:
            refusal = refusal or error
    assert refusal is not None  # _truths gives one at least, or raises
    raise refusal


def _judged(
    model: Model, engine: Engine, session: Session, truth: _Truth, original: Model | str | Path | None
) -> SelfCheck:
    wanted = [outputs for _, outputs in truth.pairs]
    got = [_run(session, feed) for feed, _ in truth.pairs]
    totals, rounds = _totals(wanted, got), work.rounds(model)
    worst = min(totals, key=lambda n: totals[n].sqnr_db if rounds else -totals[n].relative_error)
    error = totals[worst]
    agreed = error.sqnr_db >= SQNR_DB if rounds else error.relative_error <= RELATIVE_ERROR
    if rounds and not agreed and original is not None:
        agreed = _as_near(original, [feed for feed, _ in truth.pairs], wanted, got)
    if not agreed:
        raise GateFailed(
            f"the engine for {engine.target} does not compute what the model says: output {worst!r}",
            got=f"SQNR {error.sqnr_db:.1f} dB, relative error {error.relative_error:.2g} against {truth.label}",
            wanted=f"SQNR of {SQNR_DB:g} dB" if rounds else f"relative error {RELATIVE_ERROR:g}",
            do="use another target for this model",
        )
    shapes = dict.fromkeys(_shapes(feed) for feed, _ in truth.pairs)
    return SelfCheck(truth.label, len(truth.pairs), tuple(shapes), worst, error.relative_error, error.sqnr_db)


def _as_near(
    original: Model | str | Path,
    feeds: Sequence[Feeds],
    reference: Sequence[Mapping[str, np.ndarray]],
    got: Sequence[Any],
) -> bool:
    """Whether the engine's outputs are as near to the float model's as the reference's are, to SQNR_LOSS_DB."""
    from edgerun.model import Model

    original = original if isinstance(original, Model) else Model.load(original)
    name, own = HEAVY
    target = registry.target(name)
    with target.load(target.compile(original, own), own) as session:
        exact = [session.run(feed) for feed in feeds]
    ours, theirs = _totals(exact, got), _totals(exact, reference)
    return all(ours[n].sqnr_db >= theirs[n].sqnr_db - SQNR_LOSS_DB for n in ours)


def _totals(
    wanted: Sequence[Mapping[str, np.ndarray]], got: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Difference]:
    totals = dict.fromkeys(wanted[0], Difference())
    for want, have in zip(wanted, got, strict=True):
        for name, array in want.items():
            totals[name] += _difference(name, array, have[name])
    return totals


def _run(session: Session, feed: Feeds) -> dict[str, np.ndarray]:
    try:
        return session.run(feed)
    except EdgerunError as error:
        raise Unsupported(
            "the engine fails on an input that the reference takes", got=f"{_shapes(feed)}: {error.got}"
        ) from error


def _shapes(feed: Feeds) -> str:
    return ", ".join(f"{n}{list(a.shape) if isinstance(a, np.ndarray) else ''}" for n, a in feed.items())


def _difference(name: str, want: Any, got: Any) -> Difference:
    if want is None or isinstance(want, list):  # an absent optional, or a sequence
        if type(want) is not type(got) or len(want or ()) != len(got or ()):
            raise GateFailed(f"output {name!r} has another length than the reference's", got=got, wanted=str(want))
        return sum((_difference(name, w, g) for w, g in zip(want or (), got or (), strict=True)), Difference())
    if want.dtype != got.dtype or want.shape != got.shape:
        raise GateFailed(
            f"output {name!r} has another type than the model says",
            got=f"{got.dtype}{list(got.shape)}",
            wanted=f"{want.dtype}{list(want.shape)}",
        )
    if want.dtype.kind == "O":  # strings are equal or not
        return Difference.of(np.ones(want.shape), want == got)
    return Difference.of(want, got)


@dataclass(frozen=True)
class _Truth:
    """Feeds with their true outputs, and who says so."""

    target: str
    label: str
    pairs: list[Pair]


def _truths(model: Model, engine: Engine, options: Options, feeds: Sequence[Feeds]) -> Iterator[_Truth]:
    """What each reference that takes the model and the feeds computes: the ONNX evaluator (not for a heavy model, if
    another can), then unoptimized ONNX Runtime. Raises EdgerunError when there is none.

    One that is the engine itself proves nothing, and one that contradicts the model's declared outputs comes last.
    """
    reasons, misfits, given = [], [], False
    heavy = work.heavy(model)
    for name, own in (HEAVY, LIGHT) if heavy else (LIGHT, HEAVY):
        if name == engine.target and dict(own.extra) == dict(options.extra):
            continue
        try:
            truth = _computed(name, own, model, options, feeds)
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
            do="give compile() real feeds: feeds=[...]",
        )


def _computed(name: str, own: Options, model: Model, options: Options, feeds: Sequence[Feeds]) -> _Truth:
    target, settings = registry.target(name), Options(options.threads, own.extra)
    with target.load(target.compile(model, settings), settings) as session:
        pairs = [(feed, session.run(feed)) for feed in feeds] if feeds else _drawn(model, session)
    extra = "".join(f", {key}={value}" for key, value in own.extra.items())
    return _Truth(name, f"{name} {target.device()['version']}{extra}", pairs)


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


def _drawn(model: Model, reference: Session) -> list[Pair]:
    """Two draws of each batch size, at the first size of the other symbolic dimensions that the reference takes."""
    if any(spec.dtype not in DTYPES or spec.kind != "tensor" for spec in model.inputs):
        raise EdgerunError("only numbers can be drawn", got=", ".join(map(str, model.inputs)))
    below, refusal = draws.index_bounds(model.ir), EdgerunError("")
    for other in draws.SIZES:
        try:
            found: list[Pair] = []
            for seed, batch in enumerate(2 * BATCHES):
                feed = draws.feeds(model.inputs, draws.sizes(model.inputs, batch, other), seed, below)
                found.append((feed, reference.run(feed)))
            return found
        except EdgerunError as error:
            refusal = error
            if not draws.sizes(model.inputs, 1, 1):
                break
    raise EdgerunError("every random input that was tried is refused", got=refusal.got) from refusal
