"""What `why_wrong` found: numbers, sentences, a table and a page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.errors import GateFailed
from edgerun.metrics import Interval, paired_drop
from edgerun.model import Model, Step
from edgerun.quantize.diagnosis import Diagnosis
from edgerun.quantize.diagnosis.trials import Measured, Trials
from edgerun.quantize.diagnosis.verdict import FLOAT_DB, PAYS, Finding
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
    the same in top-1 points, paired, where there are labels. `evidence` is the cause's number in words. `gain_db` and
    `gain_points` are what `fix` measured on the samples that judge fixes. `trade`: the fix is one for float, or for
    more bits, which the device pays for.
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
    """What was found. `sqnr_db` is the quantized model's over `samples` samples.

    Fixes are judged over `fix_samples`, others than those that chose them, where `apart`: `fixed_db` is the SQNR there
    with all `fixes` that pay, `fixed_gain_db` what they gain. `unfixed` says why there are none. `keep_float` are the
    layers that only float spares, `keep_float_gain_db` what that gains, `command` how to make such a model.
    `drop_points`: accuracy lost against the float model, before and with the fixes (None without labels).
    """

    samples: int
    data: str
    sqnr_db: float
    counterpart_db: float
    drop_points: Gain | None
    rows: tuple[Row, ...]
    fix_samples: int
    apart: bool
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

    def ending(self) -> list[str]:
        """What pays and what it brings, or why nothing does, and what float would bring: lines for a person."""
        others = f"{self.fix_samples} other samples" if self.apart else f"the same {self.fix_samples} samples"
        lines = [] if self.unfixed is None else [self.unfixed]
        if self.fixed_db is not None:
            lost = f", {self.fixed_drop_points} points lost" if self.fixed_drop_points else ""
            count = f"{len(self.fixes)} fix{'es' if len(self.fixes) > 1 else ''}"
            gains = f"gains {self.fixed_gain_db} dB{lost}, on {others}"
            lines = [f"with {count}: SQNR {self.fixed_db:.1f} dB, {gains}", *(f"  {text}" for text in self.fixes)]
        if self.keep_float:
            names = ", ".join(self.keep_float)
            lines.append(f"with {names} in float: gains about {self.keep_float_gain_db} dB, on {others}")
            lines.append(f"  {self.command}")
        return lines


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
    after, count = found.after, judge.samples
    return Diagnosed(
        judged.samples, data, found.quantized.sqnr_db, found.counterpart_db, points(truth, found.quantized.hits),
        tuple(rows), count, apart is not None, found.kept, None if after is None else after.sqnr_db, gains[0],
        None if after is None else points(true, after.hits), unfixed(rows, found, count),
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
    lost = f"; {result.drop_points} points of accuracy lost" if result.drop_points else ""
    facts = [f"SQNR {result.sqnr_db:.1f} dB at the outputs, n = {result.samples}{lost}", *result.notes]
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
    lost, gained, n = int((better & ~worse).sum()), int((worse & ~better).sum()), len(better)
    interval = paired_drop(lost, gained, n)
    return Gain(100 * (lost - gained) / n, Interval(100 * interval.low, 100 * interval.high))


def unfixed(rows: Sequence[Row], found: Diagnosis, samples: int) -> str | None:
    """Why no fix is kept, None where one is; where the best one surely gains, why that is too little, or too dear."""
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
    which = f"the best, {best.fix} ({best.layer}), gains {best.gain_db} dB, n={samples}"
    if not _surely(best):
        return f"no fix pays{left}; {which}" if best.trade else f"no fix surely pays: {which}"
    if not best.trade:
        return f"no fix pays: {which}, which is less than {100 * (1 - PAYS):.0f} % of the noise"
    why = found.unspared or f"that is less than the {FLOAT_DB:g} dB that float must bring"
    return f"no fix pays that leaves all on integers{left}; {which}, but {why}"


def _surely(row: Row) -> bool:
    return row.gain_db is not None and row.gain_db.interval.low > 0


def step(quantized: Model) -> Step | None:
    """The Step that quantized the model, where edgerun did."""
    return next((one for one in quantized.history if one.name.startswith("quantize/")), None)


SCHEMES = {"DynamicQuantizeLinear": "w8a8_dynamic", "MatMulNBits": "w4a16_b32"}  # of others' models


def command(model: Model | str | Path, quantized: Model, data: Any, names: Sequence[str]) -> str | None:
    """The command that compresses the float model anew as `quantized` was, with `names` in float."""
    if not names:
        return None
    ops = {node.op_type for node in quantized.ir.graph}
    guess = next((scheme for op, scheme in SCHEMES.items() if op in ops), "w8a8")
    made = step(quantized)
    asked = {"scheme": guess} if made is None else made.options
    options = [f"--{key}={asked[key]}" for key, usual in (("scheme", "w8a8"), ("target", "onnxruntime"))
               if asked.get(key, usual) != usual]  # fmt: skip
    source, feeds = (
        ("MODEL" if isinstance(model, Model) else str(model)),
        str(data) if isinstance(data, (str, Path)) else "DATA",
    )
    words = ["edgerun", "compress", source, "--calibration", feeds, *options]
    words += [word for name in names for word in ("--keep-float", name)]
    return shlex.join([*words, "-o", "OUT.onnx"])
