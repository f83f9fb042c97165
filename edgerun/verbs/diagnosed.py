"""What `why_wrong` found: numbers, sentences, a table and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgerun.errors import GateFailed
from edgerun.metrics import Interval, counted, paired_drop
from edgerun.quantize.diagnosis import Diagnosis
from edgerun.quantize.diagnosis.advice import FLOAT_DB
from edgerun.quantize.diagnosis.trials import Measured, Trials
from edgerun.quantize.diagnosis.verdict import PAYS, Finding
from edgerun.quantize.graphs.quantizers import Activation
from edgerun.quantize.numerics import causes, noise


@dataclass(frozen=True)
class Gain:
    """A difference with its 95 % interval: dB of SQNR, or points of accuracy."""

    value: float
    interval: Interval

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.interval.low:.2f}, {self.interval.high:.2f}]"


@dataclass(frozen=True)
class Row:
    """One finding, worst first.

    `kind`: activation, weight, bias, recurrent (a layer on integers), sums (16-bit saturation) or calibration.
    `alone_db`: SQNR at the output when only this one rounds. `cost_db`: what the model gains without it; `cost_points`
    the same in points of accuracy, paired, where something says what is right. `evidence` is the cause's number in
    words. `gain_db` and `gain_points` are what `fix` measured on the samples that judge fixes. `trade`: the fix is one
    for float, or for more bits, which the device pays for.
    """

    layer: str
    kind: str
    tensor: str
    alone_db: float
    cost_db: Gain
    cost_points: Gain | None
    cause: str
    evidence: str
    number: float
    fix: str | None
    trade: bool
    gain_db: Gain | None
    gain_points: Gain | None


@dataclass(frozen=True)
class Diagnosed:
    """What was found. `sqnr_db` is the quantized model's over `samples` samples, which costs are of.

    Fixes are judged over `fix_samples`, others than those that chose them, where `apart`: there the model as it is has
    the SQNR `before_db`, and with all `fixes` that pay `fixed_db`; `fixed_gain_db` is what they gain. `unfixed` says
    why there are none. `keep_float` are the layers that only float spares, `keep_float_gain_db` what that gains,
    `command` how to make such a model.
    `drop_points`: accuracy lost against the float model, as it is on the first samples, as it is on those that judge
    (`before_drop_points`), and with the fixes there (None without labels).
    """

    samples: int
    data: str
    sqnr_db: float
    counterpart_db: float
    drop_points: Gain | None
    rows: tuple[Row, ...]
    fix_samples: int
    apart: bool
    before_db: float
    before_drop_points: Gain | None
    fixes: tuple[str, ...]
    fixed_db: float | None
    fixed_gain_db: Gain | None
    fixed_drop_points: Gain | None
    unfixed: str | None
    keep_float: tuple[str, ...]
    keep_float_gain_db: Gain | None
    command: str | None
    notes: tuple[str, ...]

    def require_fixes(self) -> None:
        """Raise GateFailed where no fix pays, so that none was written."""
        if self.unfixed is not None:
            raise GateFailed("no fix was written", got=self.unfixed, do=self.command)

    @property
    def judges(self) -> str:
        """The samples that gains are of."""
        return _judges(self.fix_samples, self.apart)

    def beginning(self) -> str:
        """How far the model is off, and which numbers are of which samples: a line for a person."""
        found = f"SQNR {self.sqnr_db:.1f} dB at the outputs{_lost(self.drop_points)}, n={self.samples}"
        if not self.apart:
            return f"{found}: costs and gains are of these samples"
        return (
            f"{found}: costs are of these samples; gains of {self.judges}, with SQNR {self.before_db:.1f} dB"
            f"{_lost(self.before_drop_points)}"
        )

    def ending(self) -> list[str]:
        """What pays and what it brings, or why nothing does, and what float would bring: lines for a person."""
        lines = [] if self.unfixed is None else [self.unfixed]
        if self.fixed_db is not None:
            count = f"{len(self.fixes)} fix{'es' if len(self.fixes) > 1 else ''}"
            before = f"{self.before_db:.1f} dB{_lost(self.before_drop_points)}"
            after = f"{self.fixed_db:.1f} dB{_lost(self.fixed_drop_points)}"
            lines = [f"with {count}: SQNR {before} -> {after}, gains {self.fixed_gain_db} dB, on {self.judges}",
                     *(f"  {text}" for text in self.fixes)]  # fmt: skip
        if self.keep_float:
            names = ", ".join(self.keep_float)
            lines.append(f"with {names} in float: gains about {self.keep_float_gain_db} dB, on {self.judges}")
            lines.append(f"  {self.command}")
        return lines


def _judges(samples: int, apart: bool) -> str:
    return f"{samples} other samples" if apart else f"the same {samples} samples"


def _lost(points: Gain | None) -> str:
    return f", {points} points lost" if points else ""


def diagnosed(
    found: Diagnosis, apart: Trials | None, data: str, again: str | None, notes: tuple[str, ...]
) -> Diagnosed:
    """The numbers of a diagnosis; `apart` are the samples that judged fixes, None where it was the diagnosis' own."""
    judged, judge = found.case.trials, apart or found.case.trials
    truth, true = (t.against(t.truth).hits for t in (judged, judge))
    rows = [row(f, found.quantized, found.apart) for f in found.findings]
    if truth is not None:
        rows.sort(key=lambda row: -max(0.0, row.cost_points.interval.low if row.cost_points else 0.0))
    gains = [None if after is None else decibels(noise.gain(found.apart.noise, after.noise))
             for after in (found.after, found.spared)]  # fmt: skip
    after, judges = found.after, _judges(judge.samples, apart is not None)
    return Diagnosed(
        judged.samples, data, found.quantized.sqnr_db, found.counterpart_db, points(truth, found.quantized.hits),
        tuple(rows), judge.samples, apart is not None, found.apart.sqnr_db, points(true, found.apart.hits),
        found.kept, None if after is None else after.sqnr_db, gains[0],
        None if after is None else points(true, after.hits), unfixed(rows, found, judges),
        found.floats, gains[1], again, notes,
    )  # fmt: skip


SHOWN_TENSORS = 6
HEADERS = ("layer", "alone dB", "costs dB [95 %]", "costs points [95 %]", "cause", "fix tried", "gains dB [95 %]")


def cells(result: Diagnosed) -> tuple[list[str], list[list[str]]]:
    """The table as text: headers and rows; the column of points only where there are labels."""
    labelled = result.drop_points is not None
    rows = [
        [f"{r.layer} ({r.kind})", f"{r.alone_db:.1f}", str(r.cost_db), str(r.cost_points or "-"), r.cause, r.fix or "-",
         str(r.gain_db or "-")]
        for r in result.rows
    ]  # fmt: skip
    kept = [i for i in range(len(HEADERS)) if labelled or i != 3]
    return [HEADERS[i] for i in kept], [[row[i] for i in kept] for row in rows]


def page(title: str, result: Diagnosed, found: Diagnosis) -> str:
    """The page as HTML (the extra `report`)."""
    from edgerun.report.why_wrong import Bar, Page, Tensor, render

    headers, rows = cells(result)
    seen = found.case.evidence
    activations = {q.key: q for q in found.case.quantizers if isinstance(q, Activation)}
    suffering = [f for f in found.findings if f.key in activations]
    if not suffering or any(f.kind == "calibration" for f in found.findings):  # then many do: the worst fitting ones
        suffering = [replace(found.findings[0], key=key, layer=activations[key].layer) for key in activations]
    tensors = [
        Tensor(f"{activations[f.key].layer}: {f.key}", f.cause.name, seen.seen[f.key].sample, activations[f.key].low,
               activations[f.key].high, seen.channels[f.key].low, seen.channels[f.key].high)
        for f in suffering[:SHOWN_TENSORS]
    ]  # fmt: skip
    facts = [result.beginning(), *result.notes]
    bars = [Bar(f"{r.layer} ({r.kind})", _three(r.cost_db), _three(r.gain_db) if r.gain_db else None)
            for r in result.rows]  # fmt: skip
    explained = [f"{r.layer} ({r.kind}), {r.cause}: {r.evidence}" for r in result.rows]
    return render(Page(title, facts, headers, rows, explained, result.ending(), bars, tensors))


def _three(gain: Gain) -> tuple[float, float, float]:
    return gain.value, gain.interval.low, gain.interval.high


def row(finding: Finding, before: Measured, there: Measured) -> Row:
    """A finding in numbers; `before` and `there` are the model as it is, on the diagnosis' samples and the fixes'."""
    tried = finding.tried
    return Row(
        finding.layer, finding.kind, finding.key, finding.alone_db, decibels(finding.cost),
        points(finding.without.hits, before.hits), finding.cause.name, finding.cause.evidence, finding.cause.number,
        None if tried is None else tried.fix.name, tried is not None and tried.fix.trade,
        None if finding.gain is None else decibels(finding.gain),
        None if tried is None else points(tried.apart.hits, there.hits),
    )  # fmt: skip


def decibels(numbers: tuple[float, float, float]) -> Gain:
    """Value, low and high as a Gain."""
    return Gain(numbers[0], Interval(numbers[1], numbers[2]))


def points(better: np.ndarray | None, worse: np.ndarray | None) -> Gain | None:
    """Accuracy of `better` minus that of `worse` on the same samples, in points, with its paired interval."""
    if better is None or worse is None:
        return None
    (lost, gained, squares), n = counted(better, worse), len(better)
    interval = paired_drop(lost, gained, n, squares=squares)
    return Gain(100 * (lost - gained) / n, Interval(100 * interval.low, 100 * interval.high))


def unfixed(rows: Sequence[Row], found: Diagnosis, judges: str) -> str | None:
    """Why no fix is kept, None where one is; where the best surely gains, on the samples that `judges` names, why that
    is too little, or too dear."""
    if found.kept:
        return None
    gains = [row for row in rows if row.gain_db is not None and row.gain_db.value > 0]
    odd = any(row.cause not in (causes.ROUNDING, causes.SLIGHT) for row in rows)
    left = "" if odd else ": what is left is rounding"
    if found.floats:
        return f"no fix pays that leaves all on integers{left}"
    if not gains:
        return f"no fix pays{left}"
    best = max(gains, key=lambda row: (_surely(row), row.gain_db.value if row.gain_db else 0.0))
    which = f"the best, {best.fix} ({best.layer}), gains {best.gain_db} dB on {judges}"
    if not _surely(best):
        return f"no fix pays{left}; {which}" if best.trade else f"no fix surely pays: {which}"
    if not best.trade:
        return f"no fix pays: {which}, which is less than {100 * (1 - PAYS):.0f} % of the noise"
    why = found.unspared or f"that is less than the {FLOAT_DB:g} dB that float must bring"
    return f"no fix pays that leaves all on integers{left}; {which}, but {why}"


def _surely(row: Row) -> bool:
    return row.gain_db is not None and row.gain_db.interval.low > 0
