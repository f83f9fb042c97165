"""Which fixes are kept, and which layers only float spares: judged on samples that no fix was made from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgerun.quantize.diagnosis import fixes
from edgerun.quantize.diagnosis.fixes import Case, Tried
from edgerun.quantize.graphs import repairs
from edgerun.quantize.graphs.edit import drop_unused
from edgerun.quantize.graphs.quantizers import Activation, Constant, Loop, Quantizer, Running
from edgerun.quantize.numerics import causes, noise

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.quantize.diagnosis.trials import Measured
    from edgerun.quantize.numerics.causes import Cause

PAYS = 0.99  # noise must fall below this share, and surely fall, for a fix to be kept
FLOAT_DB = 1.0  # that float must bring a layer, and surely some, to be worth its time
NOTHING, MANY = "it leaves nothing quantized: that is the float model", "it leaves most layers in float"
MOST = 1 / 3  # of the layers with integers may be told to stay in float: with more, little is left of the model's speed


@dataclass(frozen=True)
class Finding:
    """One row: a quantizer (or the calibration as a whole), what it costs, why, and the fix that was tried.

    `alone_db`: SQNR with only this one rounding; `cost` dB of SQNR (value, low, high) that the model gains without it;
    `gain` dB that the fix brought on the samples kept apart. `damage` is the noise power, relative to the signal, that
    the rows are ranked by.
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


def repaired(
    case: Case, rows: Sequence[Finding], before: Measured
) -> tuple[ir.Model | None, tuple[str, ...], Measured | None]:
    """The model with the fixes that pay one on top of the other, in the rows' order; what was done, as text.

    `before` is the model as it is on the samples kept apart, where every fix must surely gain, and all together.
    """
    model, counterpart, now = case.model, case.counterpart, before
    kept: list[str] = []
    for row in rows:
        if row.tried is None or _traded(row):
            continue
        if (made := fixes.applied(case, model, counterpart, row.tried.fix)) is None:
            continue
        measured = row.tried.apart if model is case.model else case.apart.measure(made[0])
        if not _pays(now, measured):
            continue
        if row.tried.fix.remake is not None:  # all else was found in the model that is no more
            return made[0], (row.tried.fix.name,), row.tried.apart
        (model, counterpart), now = made, measured
        kept.append(f"{row.layer} ({row.kind}): {row.tried.fix.name}")
    return (model, tuple(kept), now) if kept else (None, (), None)


def spared(
    case: Case, rows: Sequence[Finding], before: Measured, known: Collection[str]
) -> tuple[tuple[str, ...], Measured | None, str]:
    """The layers that only float spares, by their names in the float model (`known`), and the model with them in float;
    where there are none, why those that float would surely help are no advice ("": there are none of these either).

    As compressing again and keeping them in float would have it: with their weights and what they alone read.
    """
    all_ = {q.layer for q in case.quantizers if isinstance(q, Constant | Loop) and q.kind != "bias"}
    most = min(max(1, MOST * len(all_)), len(all_) - 1)  # of a float model there is no use
    layers, why = dict[str, None](), ""
    for row in sorted(rows, key=lambda row: -row.gain[0] if row.gain else 0.0):
        if _traded(row) and row.gain is not None and row.gain[0] > FLOAT_DB and surely(row.gain):
            more = dict.fromkeys((*layers, *_layers(case, row)))
            if len(more) <= most:
                layers = more
            else:
                why = why or (NOTHING if len(more) >= len(all_) else MANY)
    named = [case.counterpart.named.get(name, name) for name in layers]
    if not layers:
        return (), None, why
    if not all(name in known for name in named):
        return (), None, "the float model has no layer of that name"
    model = case.model.clone()
    repairs.leave_float(model.graph, case.counterpart, [q for q in case.quantizers if _only_in(q, layers)])
    drop_unused(model)
    measured = case.apart.measure(model)
    return (tuple(named), measured, "") if _pays(before, measured) else ((), None, "the whole layer in float does not")


def surely(gain: tuple[float, float, float] | None) -> bool:
    """Whether all of a gain's interval is gain."""
    return gain is not None and gain[1] > 0


def _traded(row: Finding) -> bool:
    """Whether the row's fix is a trade, not a repair: where rounding is all there is, float is not for nothing."""
    return row.tried is not None and row.tried.fix.trade and row.cause.name in (causes.ROUNDING, causes.SLIGHT)


def _pays(before: Measured, after: Measured) -> bool:
    less = bool(after.noise.mean() < PAYS * before.noise.mean())
    return less and surely(noise.gain(before.noise, after.noise))


def _layers(case: Case, row: Finding) -> Sequence[str]:
    """What must compute in float so that this one does not round: an activation's readers, else the layer itself."""
    quantizer = next((q for q in case.quantizers if q.key == row.key), None)
    return quantizer.readers if isinstance(quantizer, Activation | Running) else (row.layer,)


def _only_in(quantizer: Quantizer, layers: Collection[str]) -> bool:
    if isinstance(quantizer, Activation | Running):
        return bool(quantizer.readers) and all(name in layers for name in quantizer.readers)
    return quantizer.layer in layers
