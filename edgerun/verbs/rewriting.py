"""Rewriting a model until a target takes all of it; nothing is kept that the comparison with the original refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgerun import __version__, draws, registry
from edgerun.converters import _lower, _rewrites
from edgerun.converters._normalize import OLDEST_OPSET, ir_version, opset_of, to_opset
from edgerun.errors import EdgerunError, GateFailed
from edgerun.model import Model, Step
from edgerun.passes import Issue, Limits, Quantization, Target
from edgerun.runtime import Options, SelfCheck
from edgerun.verbs.asked import Asked
from edgerun.verbs.compile import self_check
from edgerun.verbs.making import MEASURER

if TYPE_CHECKING:
    import onnx

DEEPEST = 6  # rewrites, one after the other
CHECKS = 24  # of the target, in all
Found = tuple["onnx.ModelProto", list[str]]
Rewrite = Callable[["onnx.ModelProto", Sequence[Issue], Limits], Found | None]


@dataclass(frozen=True)
class Fixed:
    """A model that the target takes, what was rewritten, and how it compares with the original.

    `ran` says what ran the rewritten model: the target, or, where nothing of it runs here, ONNX Runtime.
    """

    model: Model
    rewritten: tuple[str, ...]
    check: SelfCheck
    ran: str


@dataclass
class _Search:
    asked: Asked
    limits: Limits
    checks: int = 0
    refusals: list[str] = field(default_factory=list)

    def issues(self, proto: onnx.ModelProto) -> list[Issue]:
        model = Model.from_proto(proto)
        self.checks += 1
        return self.limits.exceeded(model) or self.asked.issues(model)

    def solved(self, proto: onnx.ModelProto, depth: int = DEEPEST) -> Found | None:
        """The model without issues, by the first chain of rewrites that leads there."""
        if not (issues := self.issues(proto)):
            return proto, []
        for rewrite in REWRITES:
            if depth == 0 or self.checks >= CHECKS:
                return None
            try:
                made = rewrite(proto, issues, self.limits)
            except EdgerunError as error:
                self.refusals.append(f"{error.what}: {error.got}" if error.got else error.what)
                continue
            if made is not None and (rest := self.solved(made[0], depth - 1)) is not None:
                return rest[0], [*made[1], *rest[1]]
        if depth < DEEPEST:
            self.refusals.append(f"what a rewrite made is refused too: {issues[0].op}: {issues[0].reason}")
        return None


def fixed(model: Model, asked: Asked, limits: Limits) -> Fixed:
    """`model` rewritten so that the target takes every node within `limits` as asked, compared with the original.

    Raises GateFailed where no rewrite is known or the comparison fails.
    """
    search, original, target = _Search(asked, limits), model.to_proto(), asked.name
    found = search.solved(original)
    if found is None:
        got = "; ".join(dict.fromkeys(search.refusals)) or "no rewrite for these nodes"
        raise GateFailed(f"no form of the model is known that {target} takes", got=got, do="edgerun check tells why")
    proto, told = found
    made = replace(
        Model.from_proto(proto), preprocessing=model.preprocessing, postprocessing=model.postprocessing,
        history=model.history,
    )  # fmt: skip
    if (made.inputs, made.outputs) != (model.inputs, model.outputs):
        raise GateFailed("the rewritten model has other inputs or outputs", got=f"{made.inputs} {made.outputs}")
    check, ran = _proven(made, model, target, asked.options)
    options = {"rewritten": told, "target": target, "against": check.reference, "ran on": ran,
               "relative error": check.relative_error}  # fmt: skip
    step = Step("check/fix", __version__, options, model.digest(), made.digest())
    return Fixed(made.with_step(step), tuple(told), check, ran)


def ideas(proto: onnx.ModelProto, issues: Sequence[Issue], limits: Limits) -> list[str]:
    """What `fixed` would try first, as lines; whether the target takes it, and computes the same, is not looked at."""
    for rewrite in REWRITES:
        try:
            made = rewrite(proto, issues, limits)
        except EdgerunError:
            continue
        if made is not None:
            return made[1]
    return []


def advice(proto: onnx.ModelProto, issues: Sequence[Issue], target: str, rules: Quantization) -> str | None:
    """What helps where rewriting does not: quantizers with zero points, on a target whose rules are symmetric."""
    if not rules.symmetric or not {issue.op for issue in issues} & set(_rewrites.QUANTIZERS):
        return None
    if not (count := _rewrites.asymmetric(proto)):
        return None
    one = "1 quantizer has a zero point" if count == 1 else f"{count} quantizers have zero points"
    return f"{one}, and {target} takes none: compress the float model for it (edgerun compress --target {target})"


def _proven(made: Model, original: Model, target: str, options: Options) -> tuple[SelfCheck, str]:
    """How the rewritten model compares with the original one, and what ran it."""
    chosen = registry.target(target)
    if chosen.runnable():
        _built(made, chosen)
        target, chosen = MEASURER, registry.target(MEASURER)
    try:
        return self_check(original, chosen.compile(made, options), options), target
    except GateFailed:
        raise
    except EdgerunError as error:
        raise GateFailed(
            "nothing here runs the original model, so the rewritten one cannot be compared with it", got=error.got
        ) from error


def _built(made: Model, chosen: Target) -> None:
    """Show that `chosen` makes an engine of the model, at one of the usual sizes for what is open."""
    refusal = EdgerunError("")
    for other in draws.SIZES:
        sizes = {dim: (size, size, size) for dim, size in draws.sizes(made.inputs, 0, other).items() if size}
        try:
            chosen.compile(made, Options(sizes=sizes))
            return
        except EdgerunError as error:
            refusal = error
            if not sizes:
                break
    raise GateFailed(f"no engine of the rewritten model: {refusal.what}", got=refusal.got) from refusal


def _lowered(proto: onnx.ModelProto, issues: Sequence[Issue], limits: Limits) -> Found | None:
    old = opset_of(proto) <= limits.opset and proto.ir_version <= limits.ir_version
    return None if old else _lower.lowered(proto, limits)


def _raised(proto: onnx.ModelProto, issues: Sequence[Issue], limits: Limits) -> Found | None:
    """Up to the oldest opset that converters write: kernels for older ones may be gone."""
    old = opset_of(proto)
    if not 0 < old < OLDEST_OPSET <= limits.opset:
        return None
    made = to_opset(proto, OLDEST_OPSET)
    made.ir_version = max(made.ir_version, ir_version(OLDEST_OPSET))
    return made, [f"opset {old} -> {OLDEST_OPSET}"]


def _as_qdq(proto: onnx.ModelProto, issues: Sequence[Issue], limits: Limits) -> Found | None:
    ops = {*_rewrites.INTEGER_OPS, *_rewrites.QUANTIZERS}  # refused quantizers may hide that those are refused too
    return _listed(_rewrites.plain(proto)) if {issue.op for issue in issues} & ops else None


def _as_int8(proto: onnx.ModelProto, issues: Sequence[Issue], limits: Limits) -> Found | None:
    return _listed(_rewrites.signed(proto)) if {issue.op for issue in issues} & set(_rewrites.QUANTIZERS) else None


def _expanded(proto: onnx.ModelProto, issues: Sequence[Issue], limits: Limits) -> Found | None:
    return _listed(_lower.expanded(proto, {issue.op for issue in issues if issue.op}))


def _widened(proto: onnx.ModelProto, issues: Sequence[Issue], limits: Limits) -> Found | None:
    return _listed(_rewrites.widened(proto, {issue.node for issue in issues if issue.node}))


def _listed(made: tuple[onnx.ModelProto, str] | None) -> Found | None:
    return None if made is None else (made[0], [made[1]])


REWRITES: tuple[Rewrite, ...] = (_lowered, _raised, _as_qdq, _as_int8, _widened, _expanded)
