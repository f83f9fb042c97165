"""Compile: a model becomes an engine for one target, compared with the reference before anyone trusts it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgerun import files, registry
from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.passes import Feeds, Finishing, Issue, Writing
from edgerun.runtime import Engine, Options, SelfCheck, Session
from edgerun.runtime.progress import listener
from edgerun.verbs import devices, undecided, work
from edgerun.verbs.auto import AUTO, candidates, first
from edgerun.verbs.judging import REAL, Pair, advice, apart
from edgerun.verbs.recipe import SUFFIX as RECIPE
from edgerun.verbs.truths import Truth, exact, truths, unrounded
from edgerun.verbs.written_out import or_written_out

if TYPE_CHECKING:
    from edgerun.devices import Device
    from edgerun.model import Model

Judge = Callable[[Session], None]


def compile(
    model: Model | str | Path,
    target: str | Sequence[str],
    options: Options | None = None,
    *,
    feeds: Sequence[Feeds] = (),
    original: Model | str | Path | None = None,
    output: str | Path | None = None,
    device: Device | str | Path | None = None,
    force: bool = False,
    whole: bool = True,
    judge: Judge = lambda session: None,
) -> Engine:
    """The engine of `model` (or of an `.onnx` file) for `target`; `engine.check` holds the numbers of its comparison.

    Several targets mean the first of them whose engine agrees with the reference (of a model without quantizers: in
    every element, where one does), and "auto" all that run here.
    `feeds` are compared on when given (real data tells more), else random draws with batch 1 and 3. `original` is
    the float model that a rounding one came from: its engine may be 3 dB further from it than the reference is.
    With `output` the engine is written there too, once it has passed; what kind of file it is says what is compiled,
    and `device` (a known one, or a file that `edgerun probe` wrote) for whom: it has to read the model. Without `whole`
    an engine that has kernels ready for usual shapes is compared on `feeds` cut to these, and on one of another shape,
    which other kernels run. What has passed goes, as a session, to the `judge`, who may refuse it as well.
    Operators that the target lacks, or computes wrongly, are written with others where ONNX defines them so.
    Raises Unsupported with the nodes that cannot run, or where no engine of the target runs at all, and GateFailed when
    the engine computes something else, of a float model with the first node from which on it does.
    """
    from edgerun.model import Model

    where, _ = devices.chosen(device, target if isinstance(target, str) and target != AUTO else None)

    def made(name: str) -> Engine:
        if where is not None:
            devices.refuse_without(where, name)
        return _made(model, name, options or Options(), feeds, original, output, where, force, whole, judge)

    if output is not None:
        files.refuse_same(Path(output), model, original)
    if target == AUTO or not isinstance(target, str):
        model = model if isinstance(model, Model) else Model.load(model)
        # A quantizer's tie moves a whole step, whoever computes: no engine is the nearer one for it.
        engine = first(candidates() if target == AUTO else list(target), made, near=not work.quantized(model))
    else:
        try:
            engine = made(target)
        except GateFailed as refusal:
            if original is not None:  # what rounds is told by its layers' damage
                raise
            raise _placed(refusal, model, target, feeds) from refusal
    if output is not None:
        check_output(Path(output), registry.written(engine.target), engine.target, force)
        listener()("writing", 0, 0)
        registry.target(engine.target).save(engine, Path(output))
    return engine


def _placed(refusal: GateFailed, model: Model | str | Path, target: str, feeds: Sequence[Feeds]) -> GateFailed:
    """The refusal with the first node from which on the engine differs, at the price of a compilation for each halving
    of the graph; as it is where steps round, weights are large, or no part differs."""
    from edgerun.model import Model
    from edgerun.verbs import subgraph

    model = model if isinstance(model, Model) else Model.load(model)
    if work.rounds(model) or work.large(model):
        return refusal

    def differs(part: Model) -> bool:
        names = {spec.name for spec in part.inputs}
        own = [{name: feed[name] for name in names} for feed in feeds]
        try:
            _made(part, target, Options(), own, None, None, None, False, True)
        except EdgerunError as error:
            return isinstance(error, GateFailed)
        return False

    listener()("looking for the first node that differs", 0, 0)
    if (node := subgraph.first(model.to_proto(), differs)) is None:
        return refusal
    told = f"{refusal.got}; first at {node.name or node.output[0]} ({node.op_type})"
    return GateFailed(refusal.what, got=told, wanted=refusal.wanted, do=refusal.do)


def _made(
    model: Model | str | Path,
    target: str,
    options: Options,
    feeds: Sequence[Feeds],
    original: Model | str | Path | None,
    output: str | Path | None,
    device: Device | None,
    force: bool,
    whole: bool,
    judge: Judge = lambda session: None,
) -> Engine:
    """`compile` for one target; `output` is not written yet."""
    from edgerun.model import Model
    from edgerun.verbs.fitting import check_limits

    found = registry.target(target)
    if output is not None:
        check_output(Path(output), registry.written(target), target, force)
    options = asked_here(target, output, options, device)
    model = model if isinstance(model, Model) else Model.load(model)
    options.check(model.inputs)
    check_limits(model, device, target)
    if reason := found.runnable():
        hint = ", or write a recipe that it finishes: -o NAME.recipe" if isinstance(found, Finishing) else ""
        raise Unsupported(
            f"an engine for {target} cannot be compared with the reference here, so none is given out",
            got=reason, do="compile the model where it shall run" + hint,
        )  # fmt: skip
    rounds = work.rounds(model)  # of the model itself: what it is written with may have constants in half precision
    return or_written_out(
        model, target, lambda form: _proven(form, target, options, feeds, original, rounds, whole, judge)
    )


def asked_here(target: str, output: str | Path | None, options: Options, device: Device | None) -> Options:
    """`options` that make this file and run it here: without those about the CPU of `device` alone, which has to have
    what they ask for. Raises EdgerunError for an engine, which runs on this machine's GPU alone, for another device."""
    found = registry.target(target)
    if isinstance(found, Writing):
        return found.written(found.suffixes[0] if output is None else Path(output).suffix, options, device)
    if output is not None and isinstance(found, Finishing) and (reason := devices.elsewhere(device, target)):
        what, do = f"an {Path(output).suffix} is bound to the GPU that it is made on", f"-o {Path(output).stem}.recipe"
        raise EdgerunError(
            what, got=f"this is not the device: {reason}", do=f"make a recipe, which the device finishes: {do}"
        )
    return options


def _proven(
    model: Model,
    target: str,
    options: Options,
    feeds: Sequence[Feeds],
    original: Model | str | Path | None,
    rounds: bool,
    whole: bool,
    judge: Judge,
) -> Engine:
    with _explained(model, target):
        listener()(f"compiling for {target}", 0, 0)
        engine = registry.target(target).compile(model, options)
        listener()("comparing with the reference", 0, 0)
        return replace(engine, check=self_check(model, engine, options, feeds, original, rounds, whole, judge))


def check_output(path: Path, suffixes: Sequence[str], target: str, force: bool) -> None:
    """Raise EdgerunError where `target` does not write such a file, or it must not be overwritten."""
    if path.suffix not in suffixes:
        finishes = path.suffix == RECIPE and isinstance(registry.target(target, usable=False), Finishing)
        do = f"the command writes it: edgerun compile MODEL.onnx --target {target} -o {path.name}" if finishes else None
        raise EdgerunError(f"{target} does not write this kind of file", got=path, wanted=" or ".join(suffixes), do=do)
    files.refuse_overwrite(path, force)
    if path.suffix == ".xml":
        files.refuse_overwrite(path.with_suffix(".bin"), force)


def built(model: Model, target: str, options: Options) -> Engine:
    """An engine that was compared with nothing: it shows that `target` takes the model, and no more.

    Raises Unsupported with the nodes that it does not take.
    """
    with _explained(model, target):
        return registry.target(target).compile(model, options)


def reference(model: Model, target: str, options: Options, feeds: Sequence[Feeds] = ()) -> tuple[str, list[Pair]]:
    """What the first reference that takes the model computes, and who it is; no engine of `target` is needed. Raises
    EdgerunError when there is none."""
    truth = next(truths(model, Engine(target, b""), options, feeds))
    return truth.label, truth.pairs


@contextmanager
def _explained(model: Model, target: str) -> Iterator[None]:
    """Say a target's refusal node by node, where it can."""
    found = registry.target(target)
    if issues := found.limits().exceeded(model):
        raise unsupported(target, [*issues, *undecided.newer(model, found.limits().opset)])
    try:
        yield
    except GateFailed:
        raise
    except EdgerunError as error:
        if issues := found.check(model):  # at the price of another compilation
            raise unsupported(target, issues) from error
        raise


def unsupported(target: str, issues: Sequence[Issue]) -> Unsupported:
    named = [f"{issue.node} ({issue.op}): {issue.reason}" if issue.node else issue.reason for issue in issues]
    more = f", and {len(named) - 5} more" if len(named) > 5 else ""
    return Unsupported(f"the model does not run on {target}", got="; ".join(named[:5]) + more)


def self_check(
    model: Model,
    engine: Engine,
    options: Options,
    feeds: Sequence[Feeds] = (),
    original: Model | str | Path | None = None,
    rounds: bool | None = None,
    whole: bool = True,
    judge: Judge = lambda session: None,
) -> SelfCheck:
    """Run `engine` and a reference on the same feeds, then let the `judge` look. Raises GateFailed by the worst output.

    `rounds` says whether ties may move a whole step; None looks at `model`. Without `whole` feeds are cut to the
    engine's usual shapes, where it has such, and one of another shape joins them.
    Where the engine differs from the first reference, it may still meet another one that is not its own runtime:
    references have faults too. (Not where runtimes are known to share one.)
    """
    refusal: GateFailed | None = None
    rounds = work.rounds(model) if rounds is None else rounds
    near = partial(unrounded, model) if work.halved(model) else None
    near = partial(exact, original) if original is not None and rounds else near
    found = truths(model, engine, options, feeds, whole)
    do = REAL if rounds and not feeds and near is None else advice(options)
    loading = partial(registry.target(engine.target).load, engine, options)
    with _beside(lambda: next(found), loading, together=not work.large(model)) as (first, session):
        for truth in itertools.chain([first], found):
            if refusal and (truth.target == engine.target or work.disputed(model)):
                continue
            try:
                check = apart(session, engine.target, truth.label, truth.parts, rounds, near, do, work.least_db(model))
            except GateFailed as error:
                refusal = refusal or error
                continue
            if not check.runs and not feeds:
                raise EdgerunError(
                    "nothing was compared: of random inputs every output is empty, or not finite",
                    got="; ".join(check.shapes), wanted="real inputs",
                    do="give --data (compress: --calibration), or compile() feeds=[...]",
                )  # fmt: skip
            judge(session)
            return check
    assert refusal is not None  # _truths gives one at least, or raises
    raise refusal


@contextmanager
def _beside(
    reference: Callable[[], Truth], load: Callable[[], Session], *, together: bool
) -> Iterator[tuple[Truth, Session]]:
    """What the reference computes, in a thread, and the engine's session, which opens meanwhile where memory may hold
    the weights of both `together`; closed at the end.

    It opens in this thread: a GPU's context is current in the thread that made it.
    """
    with ThreadPoolExecutor(1) as pool:
        computed = pool.submit(reference)
        if not together:
            wait([computed])
        try:
            opened: Session | Exception = load()
        except Exception as error:  # told after what the reference has to say
            opened = error
        try:
            first = computed.result()
            if isinstance(opened, Exception):
                raise opened
            yield first, opened
        finally:
            if not isinstance(opened, Exception):
                opened.close()
