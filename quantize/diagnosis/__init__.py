"""Why a quantized model is wrong: each quantizer's damage at the output, its cause, a fix, and what the fix brings.

Everything is measured on the model itself. Its float counterpart (`graphs/align.py`) tells what each quantizer does
alone; the quantized model with one quantizer taken out tells what that one costs; a fix counts for what the repaired
model measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.errors import EdgerunError
from edgerun.quantize.diagnosis import calibration, evidence, fixes, recurrent, trials
from edgerun.quantize.diagnosis.fixes import Case, Tried
from edgerun.quantize.diagnosis.trials import Measured, Progress, Trials
from edgerun.quantize.graphs import align, factors, overflow, quantizers, switches
from edgerun.quantize.graphs.align import Counterpart
from edgerun.quantize.graphs.quantizers import Activation, Constant, Loop, Quantizer
from edgerun.quantize.numerics import causes, noise
from edgerun.quantize.numerics.causes import Cause

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Feeds

WORK = 480  # quantizers times samples that are run alone; what is found there is measured on all samples
SHIFT = 0.01  # of its layer's output that a bias must move to be suspected
MORE = 4  # candidates measured beyond those that are shown
MASKED = 0.5  # of all noise: no single quantizer explains so much, though each of two alone makes it
PAYS = 0.99  # noise must fall below this share for a fix to be kept

FAITHFUL_DB = 50.0  # the float counterpart reaches at least this where the models belong together

STRUCTURAL = (causes.CONCAT, causes.OUTLIER)
AS_GOOD = 2.0  # times the noise: where data was wrong, one range may bear the brunt, and it is still the data
NEARLY_ALL = 0.999  # of the noise that calibrating anew must remove before nothing further is tried
SHIFTED_DB = 1.0  # that moving a bias must bring for a shifted mean to be the cause

WHOLE = "all activations"


@dataclass(frozen=True)
class Finding:
    """One row: a quantizer (or the calibration as a whole), what it costs, why, and the fix that was tried.

    `alone_db`: SQNR with only this one rounding; `cost` dB of SQNR (value, low, high) that the model gains without it;
    `gain` dB that the fix brought. `damage` is the noise power, relative to the signal, that the rows are ranked by.
    """

    layer: str
    kind: str
    key: str
    cause: Cause
    damage: float
    alone_db: float
    cost: tuple[float, float, float]
    without: Measured
    tried: Tried | None = None
    gain: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Findings, worst first, and the models' numbers; `case` holds what a page can be drawn from."""

    findings: tuple[Finding, ...]
    quantized: Measured
    counterpart_db: float
    case: Case
    fixed: ir.Model | None
    kept: tuple[str, ...]
    after: Measured | None
    notes: tuple[str, ...]


def diagnose(
    quantized: ir.Model, model: ir.Model, judged: Trials, top: int, progress: Progress, saturating: bool = False,
    remake: Callable[[], ir.Model] | None = None, data: Iterable[Feeds] | None = None,
) -> Diagnosis:  # fmt: skip
    """Find the `top` quantizers that do most damage, name causes, try fixes and keep those that pay.

    `judged` holds the samples with the float `model`'s outputs. `saturating`: the device adds pairs of products in
    16 bits. `remake` compresses the float model anew on the samples' data: tried when the calibration as a whole is
    wrong, where new ranges do not suffice. `data`: more samples, for ranges alone (default: the judged).
    Raises EdgerunError when there is no Q/DQ.
    """
    quantized = quantized.clone()
    unfolded = factors.unfold(quantized.graph)
    evened = factors.evened(quantized.graph, {str(node.name) for node in model.graph})
    found = tuple(quantizers.find(quantized.graph))
    if not found:
        what, wanted = "there is no QuantizeLinear/DequantizeLinear pair in the second model", "a quantized model"
        raise EdgerunError(what, wanted=wanted, do="give the float model first, then the quantized one")
    judged = replace(judged, saturating=saturating)
    progress("reading the model", 0, 1)
    counterpart = align.align(model, quantized, found, evened)
    seen = evidence.gather(quantized, counterpart, found, judged.feeds if data is None else data, judged.open)
    case = Case(quantized, counterpart, found, seen, judged, fixes.REDUCED if saturating else fixes.FULL, remake)
    base = replace(judged, saturating=False).measure(switches.off(quantized, counterpart, found))
    before = judged.measure(quantized)
    rows = [*_ranked(case, before, top, progress), *_saturating(case, before)]
    rows = sorted([*rows, *_whole(case, before, rows)], key=lambda row: -row.damage)[: top + MORE]
    told = []
    for row in rows:
        told.append(_tried(case, row, before))
        progress("trying fixes", len(told), len(rows))
    told = _once(sorted(told, key=lambda row: -row.damage))[:top]
    fixed, kept, after = _repaired(case, told, before)
    if fixed is not None and unfolded:
        factors.fold(fixed.graph)
    return Diagnosis(tuple(told), before, base.sqnr_db, case, fixed, kept, after, _notes(quantized, counterpart, base))


def _ranked(case: Case, before: Measured, top: int, progress: Progress) -> list[Finding]:
    """The quantizers that cost most: found each alone on a few samples, then measured without on all of them."""
    chosen = [q for q in case.quantizers if not isinstance(q, Constant) or q.kind == "weight" or _shifted(case, q)]
    few = case.trials.few(max(2, WORK // len(chosen)))
    noise_alone = trials.alone(case.model, case.counterpart, chosen, few, progress)
    suspects = sorted(chosen, key=lambda q: -noise_alone[q.key])[: top + MORE]
    beside = {q.key: (q, fixes.moved_biases(case.quantizers, case.counterpart, q)) for q in suspects}
    taken = trials.without(case.model, case.counterpart, beside, case.trials, before, progress)
    removed = {key: out.share * float(before.noise.mean()) for key, out in taken.items()}
    total = float(before.noise.mean())
    strong = [q for q in suspects if noise_alone[q.key] > MASKED * total and isinstance(q, Activation)]
    masked = len(strong) > 1 and max(removed.values()) < MASKED * total
    rows = []
    for q in suspects:
        kind = "activation" if isinstance(q, Activation) else q.kind
        if kind == "bias" and removed[q.key] <= 0:
            continue  # it was moved on purpose, and that helps
        lone = masked and isinstance(q, Activation)  # what a weight does alone, its bias may have been moved for
        damage = max(removed[q.key], min(noise_alone[q.key], total) if lone else -np.inf)
        cost = noise.gain(taken[q.key].before.noise, taken[q.key].after.noise)
        if isinstance(q, Loop):
            cause = recurrent.cause(case, q, before, taken[q.key].after)
        else:
            cause = evidence.cause(q, case.evidence, case.counterpart)
        alone_db = noise.decibels(noise_alone[q.key])
        rows.append(Finding(q.layer, kind, q.key, cause, damage, alone_db, cost, taken[q.key].after))
    return rows


def _shifted(case: Case, quantizer: Quantizer) -> bool:
    """Whether a bias is far enough from the float model's to be suspected."""
    known = isinstance(quantizer, Constant) and quantizer.key in case.counterpart.constants
    return known and evidence.cause(quantizer, case.evidence, case.counterpart).number > SHIFT


def _whole(case: Case, before: Measured, rows: Sequence[Finding]) -> list[Finding]:
    """The calibration as one finding, when ranges are wrong all over the model.

    It stands first when calibrating anew leaves about as little noise as taking out any one quantizer does.
    """
    cause = calibration.judge(
        case.model, case.counterpart, case.quantizers, case.evidence, case.trials.feeds, case.trials.open
    )
    if cause is None:
        return []
    tried = fixes.best(case, fixes.recalibrations(case), before, float(before.noise.mean()), NEARLY_ALL)
    assert tried is not None
    cost = noise.gain(before.noise, tried.measured.noise)
    removed = float(before.noise.mean() - tried.measured.noise.mean())
    if all(tried.measured.noise.mean() < AS_GOOD * row.without.noise.mean() for row in rows):
        removed = max(removed, *(row.damage for row in rows)) * 1.001
    return [Finding(WHOLE, "calibration", WHOLE, cause, removed, before.sqnr_db, cost, tried.measured, tried, cost)]


def _saturating(case: Case, before: Measured) -> list[Finding]:
    """The layers whose sums leave 16 bits on these samples."""
    if not case.trials.saturating:
        return []
    rows, found = [], overflow.risks(case.model.graph)
    exact = replace(case.trials, saturating=False)
    plain = switches.off(case.model, case.counterpart, case.quantizers)
    with exact.open(plain) as session:
        truth = exact.outputs(session)
    for risk in found:
        with exact.open(overflow.add(plain, [risk])) as session:
            lone = float(exact.against(exact.outputs(session), truth).noise.mean())
        rest = exact.measure(overflow.add(case.model, [other for other in found if other is not risk]))
        removed = float(before.noise.mean() - rest.noise.mean())
        if removed <= 0:
            continue
        text = f"{len(risk.pairs)} pairs of weights in {len(risk.channels)} channels can exceed 16 bits, and do"
        cause = Cause(causes.SATURATION, text, len(risk.channels))
        cost = noise.gain(before.noise, rest.noise)
        rows.append(Finding(risk.layer, "sums", risk.key, cause, removed, noise.decibels(lone), cost, rest))
    return rows


def _tried(case: Case, row: Finding, before: Measured) -> Finding:
    """The row with its best fix. Where moving the bias is what helps a weight, the cause is a bias shift."""
    if row.tried is not None:
        return row
    enough = fixes.ENOUGH
    if row.cause.name == causes.SATURATION:
        risk = next(r for r in overflow.risks(case.model.graph) if r.key == row.key)
        offered = fixes.smaller_weights(case, risk)
    else:
        quantizer = next(q for q in case.quantizers if q.key == row.key)
        if recurrent.meant(quantizer):
            offered, enough = recurrent.fixes(case, quantizer, row.cause.name), recurrent.ENOUGH
        else:
            offered = fixes.for_cause(case, quantizer, row.cause.name)
    possible = float(before.noise.mean() - row.without.noise.mean())
    if row.cause.name in STRUCTURAL:  # the readers' weights suffer too, so taking it out alone shows too little
        possible = float(before.noise.mean())
    tried = fixes.best(case, offered, before, possible, enough)
    if tried is None or tried.measured.noise.mean() >= before.noise.mean():
        return row
    # What a repair takes away was there, even where taking the quantizer out does not show it: its layer's bias was
    # moved for the rounding that it has.
    removed = float(before.noise.mean() - tried.measured.noise.mean())
    gain = noise.gain(before.noise, tried.measured.noise)
    if row.cause.name == causes.ROUNDING and tried.fix.name == fixes.MOVE and gain[0] > SHIFTED_DB:
        row = _as_bias(case, row)
    # Where nothing is odd, a layer left in float took its readers' faults along.
    damage = row.damage if row.cause.name == causes.ROUNDING else max(row.damage, removed)
    return replace(row, tried=tried, damage=damage, gain=gain)


def _as_bias(case: Case, row: Finding) -> Finding:
    """A weight's row as its bias's: what helped says what was wrong."""
    bias = next(
        (q for q in case.quantizers if isinstance(q, Constant) and q.kind == "bias" and q.layer == row.layer), None
    )
    if bias is None:
        return row
    return replace(row, kind="bias", key=bias.key, cause=evidence.cause(bias, case.evidence, case.counterpart))


def _once(rows: Sequence[Finding]) -> list[Finding]:
    """The first row of each quantizer."""
    found: dict[str, Finding] = {}
    for row in rows:
        found.setdefault(row.key, row)
    return list(found.values())


def _repaired(
    case: Case, rows: Sequence[Finding], before: Measured
) -> tuple[ir.Model | None, tuple[str, ...], Measured | None]:
    """The model with the fixes that pay one on top of the other, in the rows' order; what was done, as text."""
    model, counterpart, now = case.model, case.counterpart, before
    kept: list[str] = []
    for row in rows:
        made = fixes.applied(case, model, counterpart, row.tried.fix) if row.tried is not None else None
        # Where rounding is all there is, a layer left in float is a trade, not a repair.
        if made is None or row.tried is None or row.cause.name == causes.ROUNDING:
            continue
        if row.tried.fix.remake is not None:  # all else was found in the model that is no more
            return made[0], (row.tried.fix.name,), row.tried.measured
        measured = row.tried.measured if model is case.model else case.trials.measure(made[0])
        if measured.noise.mean() < PAYS * now.noise.mean():
            (model, counterpart), now = made, measured
            kept.append(f"{row.layer} ({row.kind}): {row.tried.fix.name}")
    return (model, tuple(kept), now) if kept else (None, (), None)


def _notes(model: ir.Model, counterpart: Counterpart, base: Measured) -> tuple[str, ...]:
    notes = []
    if products := [str(node.name) for node in model.graph if node.op_type == "MatMulInteger"]:
        what = "product quantizes its input" if len(products) == 1 else "products quantize their input"
        notes.append(f"{len(products)} {what} while running ({_few(products)}): that is not looked at")
    if counterpart.foreign:
        found = f"{len(counterpart.foreign)} layers ({_few(counterpart.foreign)})"
        notes.append(f"no float weight was found for {found}: theirs count as exact")
    if base.sqnr_db < FAITHFUL_DB:
        notes.append(
            f"with nothing rounded the quantized model still differs from the float one (SQNR {base.sqnr_db:.1f} dB): "
            "what differs there is nobody's damage below"
        )
    return tuple(notes)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
