"""Check: which nodes of a model a target or a device does not run, or not on integers, why, and what can be done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgerun import files, registry
from edgerun.converters import _bodies, _lower
from edgerun.devices import Device, is_board
from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.model import Model
from edgerun.passes import Building, Issue, Limits, Quantization
from edgerun.runtime import Options, SelfCheck
from edgerun.runtime.progress import listener
from edgerun.verbs import devices, dictionaries, fitting, footprint, refusals, remarks, rewriting, saturating, subgraph
from edgerun.verbs.asked import Asked, named
from edgerun.verbs.compile import asked_here
from edgerun.verbs.fallbacks import Fallback, fallbacks, meant
from edgerun.verbs.load import placed


@dataclass(frozen=True)
class Part:
    """The smallest part of the model that still fails: where it was written, and its nodes."""

    path: str
    nodes: tuple[str, ...]
    ops: tuple[str, ...]


@dataclass(frozen=True)
class Fix:
    """The rewritten model: where it was written, what was rewritten, how it compares with the original, on what."""

    path: str
    rewritten: tuple[str, ...]
    check: SelfCheck
    ran: str


@dataclass(frozen=True)
class Check:
    """What `target`, on `device` where one was named, does with a model.

    `nodes` counts all, `products` those between Q/DQ, which are to run on integers. `refused` are nodes that do not run
    (a node "" is the whole model); `fell_back` are the products that run in float, None where nothing of the target
    runs here and no engine was built, so that nobody knows; `unseen` those whose kernel the profile does not tell; of
    the rewritten model where there is one. `idle` says that nothing of the target runs here: it was asked which nodes
    it takes, and no more, but where an engine that nobody keeps was `built` ("" or for what).
    `hardware` is what runs them where that is not the CPU, as KEY=VALUE of the target's options; `left` the nodes that
    it leaves to another (of the graph that the runtime made of the model; None where nobody tells).
    `saturating` are the layers whose sums of u8·s8 products can leave 16 bits, where that CPU adds them so.
    `memory` is what a run takes at least of the device's, where that is known.
    `ideas` are rewrites that `--fix` would try; `advice` is what helps where no rewriting does; `unfixed` says why it
    wrote none.
    """

    model: str
    target: str
    device: str | None
    nodes: int
    products: int
    refused: tuple[Issue, ...]
    fell_back: tuple[Fallback, ...] | None
    unseen: tuple[str, ...]
    ideas: tuple[str, ...]
    notes: tuple[str, ...]
    hardware: str = ""
    left: tuple[Issue, ...] | None = ()
    saturating: tuple[saturating.Saturating, ...] = ()
    memory: footprint.Memory | None = None
    idle: bool = False
    built: str = ""
    part: Part | None = None
    fix: Fix | None = None
    unfixed: str | None = None
    advice: str | None = None

    def require(self, strict: bool) -> None:
        """Raise GateFailed for a node that does not run; if `strict`, also for one that the hardware asked for leaves,
        that runs in float, or that saturates, and for a model that the device's memory cannot hold."""
        if self.refused and self.fix is None:
            what = f"{self.model} does not run on {self.device or self.target}"
            raise GateFailed(what + f" with {self.hardware}" * bool(self.hardware), got=named(self.refused))
        if not strict:
            return
        if self.memory is not None:
            self.memory.require()
        if self.left is None:
            raise Unsupported(f"which nodes {self.hardware} leaves cannot be seen here", got=self.notes[-1])
        if self.left:
            raise GateFailed(f"not all nodes run on {self.hardware}", got=named(self.left))
        saturating.refuse(self.saturating, self.device, self.target)
        if self.fell_back is None:
            raise Unsupported(
                f"whether nodes fall back to float on {self.target} cannot be seen here", got=self.notes[-1],
                do="check where the target runs",
            )  # fmt: skip
        if self.unseen:
            what = f"the kernels of {len(self.unseen)} of {self.products} products between Q/DQ are not known"
            raise Unsupported(what, got=", ".join(self.unseen[:10]))
        if self.fell_back:
            names = ", ".join(fallback.node for fallback in self.fell_back[:10])
            more = f", and {len(self.fell_back) - 10} more" if len(self.fell_back) > 10 else ""
            what = f"{len(self.fell_back)} of {self.products} products between Q/DQ run in float on {self.target}"
            raise GateFailed(what, got=names + more)


def check(
    model: str | Path,
    *,
    target: str | None = None,
    device: Device | str | Path | None = None,
    options: Options | None = None,
    strict: bool = False,
    batch: int | None = None,
    part: str | Path | None = None,
    fix: str | Path | None = None,
    force: bool = False,
) -> Check:
    """Look at every node of an `.onnx` file for `target` (onnxruntime, or the device's) and for what `device` reads.

    `options.extra` says how, in the target's own keys (a provider, hardware), as `device` does where it is a word of
    the target's (`edgerun.load`): the model is opened so, and what that leaves to the CPU is told. A target that builds
    engines builds one for the device, where it does so here, at `options.sizes`, and what its builder refuses is told.
    Products between Q/DQ are profiled on drawn inputs, one thread, to see which run in float; with `strict` often
    enough to tell what those cost. Which sums saturate on that CPU is told by the stored weights alone. The memory that
    a run takes of the device is a bound from below, for `batch` samples (1) where the file leaves that open. `part` is
    where the smallest failing part is written, `fix` the rewritten model, if the target takes that and it computes the
    same.
    `Check.require` raises when the answer is no.
    """
    for output in (part, fix):
        if output is not None:
            if Path(output).suffix != ".onnx":
                raise EdgerunError("what is written is ONNX", got=output, wanted="NAME.onnx")
            files.refuse_same(Path(output), model)
            files.refuse_overwrite(Path(output), force)
    if part is not None and fix is not None and Path(part).absolute() == Path(fix).absolute():
        raise EdgerunError("the part and the rewritten model are one file", got=part, do="give each a name of its own")
    options = options or Options()
    if device is not None and not is_board(device):
        name, options = placed(device, model, target, options)
        assert isinstance(name, str)  # where one target is asked, it stays one
        target, device = name, None
    where, name = devices.chosen(device, target)
    asked = Asked(name, asked_here(name, None, options, where), where)
    untried = [f"{key}={value}" for key, value in options.extra.items() if key not in asked.options.extra]
    listener()("reading", 0, 0)
    read = dictionaries.read(model) if part is fix is None else None  # whose tables would be written otherwise
    loaded, maps = (read.model, tuple(read.maps.values())) if read is not None else (Model.load(model), ())
    options.check(loaded.inputs)
    limits, whose = _limits(where, name)
    listener()(f"asking {name} which nodes it takes", 0, 0)
    rules = fitting.rules(where, name)
    refused, unfit = [*maps, *_refused(loaded, asked, limits, whose)], fitting.unfit(loaded, rules)
    fixed, unfixed = _fixed(loaded, asked, limits) if fix is not None and refused and not unfit else (None, None)
    current, refused = loaded if fixed is None else fixed.model, [*refused, *unfit]
    advice = rewriting.advice(loaded.to_proto(), refused, name, rules) if refused and fixed is None else None
    if unfit:
        advice = f"compress the float model with another scheme: {', '.join(fitting.fast(where, name, rules))}"
        unfixed = "quantizers are not rewritten for another type" if fix is not None else None
    runs = not refused or fixed is not None
    left, silent = _left(current, asked) if runs else ((), [])
    found, unseen, notes = _fell_back(current, asked, rules, where, strict, not runs)
    held = footprint.memory(current, where, batch)
    cut = () if asked.hardware else saturating.saturating(current, rules, [fallback.node for fallback in found or ()])
    told = remarks.remarks(loaded, asked, untried, asked.tried(current).reason if runs else "", held)
    result = Check(
        model=str(model), target=name, device=where.name if where else None, unfixed=unfixed,
        nodes=len(list(_bodies.nodes(loaded.to_proto().graph))), products=len(meant(current, rules)),
        refused=tuple(refused), fell_back=found, unseen=unseen, notes=(*told, *notes, *silent), advice=advice,
        hardware=asked.hardware, left=left, saturating=cut, memory=held, idle=asked.target.runnable() is not None,
        built=asked.built,
        ideas=tuple(rewriting.ideas(loaded.to_proto(), refused, limits) if refused and not advice and not maps else ()),
        part=_part(loaded, refused, left or found, asked, limits, rules, part) if part is not None else None,
        fix=Fix(str(fix), fixed.rewritten, fixed.check, fixed.ran) if fixed is not None else None,
    )  # fmt: skip
    if fixed is not None and fix is not None:
        fixed.model.save(fix)
    return result


def _left(model: Model, asked: Asked) -> tuple[tuple[Issue, ...] | None, list[str]]:
    """The nodes that the hardware asked for leaves, and what must be said where nobody tells which."""
    left = asked.left(model)
    return left, [f"this version of the runtime does not say which nodes run on {asked.hardware}"] * (left is None)


def _fell_back(
    model: Model, asked: Asked, rules: Quantization, device: Device | None, timed: bool, refused: bool
) -> tuple[tuple[Fallback, ...] | None, tuple[str, ...], list[str]]:
    """The products that run in float (None: nobody knows), those not seen, and what must be said about that."""
    if not meant(model, rules):
        return (), (), []
    if refused:
        return None, (), ["what runs in float was not looked at: first all nodes must run"]
    if asked.hardware:
        return None, (), [f"which kernels run on integers is known of the CPU alone, not of {asked.hardware}"]
    reason, trial = asked.target.runnable(), asked.tried(model)
    if reason and not trial.kernels:
        return None, (), [f"which kernels run on integers is not known here: {reason}"]
    if reason:
        found, unseen = fallbacks(model, asked.name, rules, kernels=trial.kernels)
        return tuple(found), tuple(unseen), [f"which run on integers is what was chosen for {trial.built}"]
    found, unseen = fallbacks(model, asked.name, rules, timed=timed, options=asked.options)
    elsewhere = devices.elsewhere(device, asked.name)
    notes = [f"which run on integers was looked at on this machine, and {elsewhere}"] if elsewhere else []
    return tuple(found), tuple(unseen), notes


def _fixed(model: Model, asked: Asked, limits: Limits) -> tuple[rewriting.Fixed | None, str | None]:
    """The rewritten model, or why there is none."""
    listener()("rewriting, and comparing with the original", 0, 0)
    try:
        return rewriting.fixed(model, asked, limits), None
    except GateFailed as error:
        return None, f"{error.what}: {error.got}"


def _limits(device: Device | None, target: str) -> tuple[Limits, str]:
    """The newest IR version and opset that are read on the device and by the version here, and where the least is.

    The version here has to read a model to look at its nodes.
    """
    here = registry.target(target).limits()
    there = fitting.limits(device, target)
    least = Limits(min(there.ir_version, here.ir_version), min(there.opset, here.opset))
    return least, f"on {device.name}" if device is not None and least == there else "here"


def _refused(model: Model, asked: Asked, limits: Limits, where: str) -> Iterator[Issue]:
    """What is too new, with the nodes that are; else the target's own issues, with a place where it names none."""
    proto = model.to_proto()
    if issues := limits.exceeded(model, where):
        new = Counter(node.op_type for node in _lower.too_new(proto, limits.opset))
        named = ", ".join(f"{op} ({count})" for op, count in sorted(new.items()))
        needs = f"; newer are {named}" if named else "; no node needs it"
        for issue in issues:
            yield Issue("", "", issue.reason + (needs if issue.reason.startswith("opset") else ""))
        return
    for issue in refusals.every(model, asked.issues):
        known = issue.node or isinstance(asked.target, Building)  # each part would be a build: `--subgraph` tries them
        if known or (found := subgraph.smallest(proto, "", lambda m: bool(asked.issues(m)))) is None:
            yield issue
        else:
            node = found.ir.graph[-1]
            yield Issue(str(node.name or node.outputs[0].name), node.op_type, issue.reason)


def _part(
    model: Model, refused: Sequence[Issue], elsewhere: Sequence[Fallback | Issue] | None, asked: Asked, limits: Limits,
    rules: Quantization, path: str | Path,
) -> Part | None:  # fmt: skip
    """The smallest part that fails as the first finding does, written to `path`; the whole model where none does. None
    where nothing fails, or no node but the model's opset or IR version."""
    listener()("looking for the smallest part that fails", 0, 0)
    proto = model.to_proto()
    if refused and limits.exceeded(model):
        if (new := next(_lower.too_new(proto, limits.opset), None)) is None:
            return None
        name, fails = new.name or new.output[0], _exceeds(limits)
    elif refused:
        name, fails = refused[0].node, _is_refused(asked, rules, refused[0].op)
    elif elsewhere:
        op = elsewhere[0].op
        name, fails = elsewhere[0].node, lambda m: op in {f.op for f in _tried(m, asked, rules)}
    else:
        return None
    found = subgraph.smallest(proto, name, fails) or model
    found.save(path)
    nodes = list(found.ir.graph)
    return Part(str(path), tuple(str(n.name or n.outputs[0].name) for n in nodes), tuple(n.op_type for n in nodes))


def _exceeds(limits: Limits) -> subgraph.Fails:
    return lambda model: bool(limits.exceeded(model))


def _is_refused(asked: Asked, rules: Quantization, op: str) -> subgraph.Fails:
    return lambda model: any(i.op in ("", op) for i in (*asked.issues(model), *fitting.unfit(model, rules)))


def _tried(model: Model, asked: Asked, rules: Quantization) -> Sequence[Fallback | Issue]:
    """The products in float, or what the hardware asked for leaves; nothing of a part that does not run at all, which
    says nothing about how it would."""
    try:
        if asked.hardware:
            return asked.left(model) or ()
        return fallbacks(model, asked.name, rules, options=asked.options, kernels=asked.tried(model).kernels)[0]
    except EdgerunError:
        return ()
