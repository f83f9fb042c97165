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

from edgerun.quantize.diagnosis import advice, calibration, evidence, fixes, notes, recurrent, trials, verdict
from edgerun.quantize.diagnosis.advice import Static
from edgerun.quantize.diagnosis.fixes import Case
from edgerun.quantize.diagnosis.trials import Measured, Progress, Trials
from edgerun.quantize.diagnosis.verdict import Finding
from edgerun.quantize.graphs import align, factored, factors, overflow, products, quantizers, switches
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

STRUCTURAL = (causes.CONCAT, causes.OUTLIER)
AS_GOOD = 2.0  # times the noise: where data was wrong, one range may bear the brunt, and it is still the data
NEARLY_ALL = 0.999  # of the noise that calibrating anew must remove before nothing further is tried
SHIFTED_DB = 1.0  # that moving a bias must bring, and surely some, for a shifted mean to be the cause
MATTERS = 0.05  # of all noise: whatever is odd and does less of it is no cause

WHOLE = "all activations"


@dataclass(frozen=True)
class Diagnosis:
    """Findings, worst first, and the models' numbers; `case` holds what a page can be drawn from.

    `quantized` is measured on the samples of the diagnosis; `apart` too, and `after` with the fixes that were `kept`,
    on the samples that judge fixes. `floats`: layers whose rounding to 8 bits is what costs most, which only float
    spares, and `spared` what the model measures there with them in float; `unspared` says why what float would surely
    help is not among them.
    """

    findings: tuple[Finding, ...]
    quantized: Measured
    counterpart_db: float
    case: Case
    fixed: ir.Model | None
    kept: tuple[str, ...]
    apart: Measured
    after: Measured | None
    floats: tuple[str, ...]
    spared: Measured | None
    unspared: str
    notes: tuple[str, ...]


def diagnose(
    quantized: ir.Model, model: ir.Model, judged: Trials, top: int, progress: Progress, saturating: bool = False,
    remake: Callable[[], ir.Model] | None = None, data: Iterable[Feeds] | None = None, apart: Trials | None = None,
    static: Static | None = None,
) -> Diagnosis:  # fmt: skip
    """Find the `top` quantizers that do most damage, name causes, try fixes and keep those that pay.

    `judged` holds the samples with the float `model`'s outputs. `saturating`: the device adds pairs of products in
    16 bits. `remake` compresses the float model anew on the samples' data: tried when the calibration as a whole is
    wrong, where new ranges do not suffice. `data`: more samples, for ranges alone (default: the judged). `apart`:
    samples that are in neither, which say what each fix brings (default: the judged). `static`: how the float
    model would be compressed again (None: into another scheme).
    Raises EdgerunError when there is no Q/DQ.
    """
    quantized = quantized.clone()
    plain = products.unfold(quantized.graph, model.graph)
    unfolded = factored.unfold(quantized.graph)
    evened = factored.evened(quantized.graph, {str(node.name) for node in model.graph})
    found = tuple(quantizers.find(quantized.graph))
    if all(isinstance(q, Constant) and q.kind == "bias" for q in found):  # of layers whose weights are not looked at
        raise notes.nothing(quantized.graph, model.graph)
    judged = replace(judged, saturating=saturating)
    others = judged if apart is None else replace(apart, saturating=saturating)
    progress("reading the model", 0, 1)
    counterpart = align.align(model, quantized, found, evened)
    seen = evidence.gather(quantized, counterpart, found, judged.feeds if data is None else data, judged.open)
    steps = fixes.REDUCED if saturating else fixes.FULL
    case = Case(quantized, counterpart, found, seen, judged, others, steps, remake)
    base = replace(judged, saturating=False).measure(switches.off(quantized, counterpart, found))
    before = judged.measure(quantized)
    there = before if others is judged else others.measure(quantized)
    rows = [*_ranked(case, before, top, progress), *_saturating(case, before)]
    rows = sorted([*rows, *_whole(case, before, there, rows)], key=lambda row: -row.damage)[: top + MORE]
    told = []
    for row in rows:
        told.append(_tried(case, row, before, there))
        progress("trying fixes", len(told), len(rows))
    told = [_weighed(row, before) for row in _once(sorted(told, key=lambda row: -row.damage))[:top]]
    fixed, kept, after = verdict.repaired(case, told, there)
    spared = advice.spared(case, told, there, model, static)
    if fixed is not None:
        products.fold(fixed, plain)
        if unfolded:
            factors.fold(fixed.graph)
    said = notes.told(quantized, counterpart, base, judged.rows[0])
    return Diagnosis(tuple(told), before, base.sqnr_db, case, fixed, kept, there, after, *spared, said)


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


def _whole(case: Case, before: Measured, there: Measured, rows: Sequence[Finding]) -> list[Finding]:
    """The calibration as one finding, when ranges are wrong all over the model.

    It stands first when calibrating anew leaves about as little noise as taking out any one quantizer does.
    """
    cause = calibration.judge(
        case.model, case.counterpart, case.quantizers, case.evidence, case.trials.feeds, case.trials.open
    )
    if cause is None:
        return []
    tried = fixes.best(case, calibration.recalibrations(case), before, float(before.noise.mean()), NEARLY_ALL)
    assert tried is not None
    cost = noise.gain(before.noise, tried.measured.noise)
    removed = float(before.noise.mean() - tried.measured.noise.mean())
    if all(tried.measured.noise.mean() < AS_GOOD * row.without.noise.mean() for row in rows):
        removed = max(removed, *(row.damage for row in rows)) * 1.001
    gain = noise.gain(there.noise, tried.apart.noise)
    return [Finding(WHOLE, "calibration", WHOLE, cause, removed, before.sqnr_db, cost, tried.measured, tried, gain)]


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


def _tried(case: Case, row: Finding, before: Measured, there: Measured) -> Finding:
    """The row with its best fix. Where moving the bias is what helps a weight, the cause is a bias shift.

    `before` and `there` are the model as it is, on the samples that choose the fix and on those that judge it.
    """
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
    gain = noise.gain(there.noise, tried.apart.noise)
    moved = row.cause.name == causes.ROUNDING and tried.fix.name == fixes.MOVE
    if moved and gain[0] > SHIFTED_DB and gain[1] > 0:
        row = _as_bias(case, row, removed / float(before.noise.mean()))
    # Where nothing is odd, a layer left in float took its readers' faults along; and a gain must hold on other samples.
    counts = row.cause.name != causes.ROUNDING and gain[1] > 0
    damage = max(row.damage, removed) if counts else row.damage
    return replace(row, tried=tried, damage=damage, gain=gain)


def _as_bias(case: Case, row: Finding, share: float) -> Finding:
    """A weight's row as its bias's: what helped, by taking a `share` of the noise away, says what was wrong."""
    text = f"its layer's mean is off the float model's: moving it there takes {100 * share:.0f} % of the noise away"
    for bias in case.quantizers:
        if isinstance(bias, Constant) and bias.kind == "bias" and bias.layer == row.layer:
            own = evidence.cause(bias, case.evidence, case.counterpart)
            if own.number > SHIFT:
                return replace(row, kind="bias", key=bias.key, cause=own)
    return replace(row, cause=Cause(causes.BIAS, text, share))


def _weighed(row: Finding, before: Measured) -> Finding:
    """The row without its cause, where next to none of the noise is this one's."""
    share = max(row.damage, 0.0) / max(float(before.noise.mean()), np.finfo(np.float64).tiny)
    if row.cause.name == causes.ROUNDING or share >= MATTERS:
        return row
    text = f"{row.cause.evidence}; that is {100 * share:.1g} % of the noise"
    return replace(row, cause=Cause(causes.SLIGHT, text, row.cause.number))


def _once(rows: Sequence[Finding]) -> list[Finding]:
    """The first row of each quantizer."""
    found: dict[str, Finding] = {}
    for row in rows:
        found.setdefault(row.key, row)
    return list(found.values())
