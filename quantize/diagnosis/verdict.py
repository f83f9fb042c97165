"""Which fixes are kept: judged on samples that no fix was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgerun.quantize.diagnosis import fixes
from edgerun.quantize.diagnosis.fixes import Case, Tried
from edgerun.quantize.numerics import causes, noise

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.quantize.diagnosis.trials import Measured
    from edgerun.quantize.numerics.causes import Cause

PAYS = 0.99  # noise must fall below this share, and surely fall, for a fix to be kept


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
        if row.tried is None or traded(row):
            continue
        if (made := fixes.applied(case, model, counterpart, row.tried.fix)) is None:
            continue
        measured = row.tried.apart if model is case.model else case.apart.measure(made[0])
        if not pays(now, measured):
            continue
        if row.tried.fix.remake is not None:  # all else was found in the model that is no more
            return made[0], (row.tried.fix.name,), row.tried.apart
        (model, counterpart), now = made, measured
        kept.append(f"{row.layer} ({row.kind}): {row.tried.fix.name}")
    return (model, tuple(kept), now) if kept else (None, (), None)


def surely(gain: tuple[float, float, float] | None) -> bool:
    """Whether all of a gain's interval is gain."""
    return gain is not None and gain[1] > 0


def traded(row: Finding) -> bool:
    """Whether the row's fix is a trade, not a repair: where rounding is all there is, float is not for nothing."""
    return row.tried is not None and row.tried.fix.trade and row.cause.name in (causes.ROUNDING, causes.SLIGHT)


def pays(before: Measured, after: Measured) -> bool:
    """Whether the noise falls far enough, and surely."""
    less = bool(after.noise.mean() < PAYS * before.noise.mean())
    return less and surely(noise.gain(before.noise, after.noise))
