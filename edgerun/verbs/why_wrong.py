"""Why is it wrong: which layers of a quantized model do the damage, why, and what repairs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import __version__, files, registry
from edgerun.data import Data
from edgerun.errors import EdgerunError, Unsupported
from edgerun.metrics import Interval, paired_drop
from edgerun.model import Model, Step
from edgerun.preprocess import Preprocessing
from edgerun.quantize import diagnosis
from edgerun.quantize.diagnosis import Diagnosis, Finding, trials
from edgerun.quantize.diagnosis.trials import Measured, Trials
from edgerun.quantize.graphs.quantizers import Activation
from edgerun.runtime import Engine, Options, Session
from edgerun.verbs.compress import compress
from edgerun.verbs.feeds import feeds_for
from edgerun.verbs.making import KEPT, MEASURER

if TYPE_CHECKING:
    import onnx_ir as ir

Progress = Callable[[str, int, int], None]
DEFAULT_SAMPLES = 32
BATCH = 4  # samples a run: the first search takes whole batches, and few of them
RANGE_SAMPLES = 128  # that ranges are taken from: extremes need more samples than a mean does
FLOATS = ("float32", "float64", "float16")


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
    `gain_points` are what `fix` measured.
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
    gain_db: Gain | None
    gain_points: Gain | None


@dataclass(frozen=True)
class Diagnosed:
    """What was found. `sqnr_db` of the quantized model, `fixed_db` with all `fixes` that pay, over `samples` samples.

    `drop_points`: accuracy lost against the float model, before and with the fixes (None without labels).
    """

    samples: int
    data: str
    sqnr_db: float
    counterpart_db: float
    drop_points: Gain | None
    rows: tuple[Row, ...]
    fixes: tuple[str, ...]
    fixed_db: float | None
    fixed_drop_points: Gain | None
    notes: tuple[str, ...]


def why_wrong(
    model: Model | str | Path,
    quantized: Model | str | Path,
    data: Any,
    *,
    target: str = "onnxruntime",
    saturating: bool | None = None,
    top: int = 8,
    limit: int | None = None,
    preprocessing: Preprocessing | str | Path | None = None,
    output: str | None = None,
    html: str | Path | None = None,
    fix: str | Path | None = None,
    force: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Diagnosed:
    """Diagnose `quantized` (standard Q/DQ, LSTMs on integers) against the float `model` on `data`.

    Judged on at most `limit` samples (default 32); new ranges are taken from up to 128. With labels in the data,
    `output` names the one with the classes where there are several, and the rows that surely cost accuracy come first.
    `saturating` says whether the device's CPU adds two products in 16 bits (default: what `target` says of this
    machine). `html` writes a page, `fix` the model with the fixes that pay, with a Step.
    Raises EdgerunError for bad input and where --fix finds nothing to repair, Unsupported without an extra.
    """
    for path in (html, fix):
        if path is not None:
            files.refuse_overwrite(Path(path), force)
    if html is not None:
        _require_report()
    if top < 1:
        raise EdgerunError("nothing to show", got=f"top={top}", wanted="1 or more")
    saturates = registry.target(target, usable=False).quantization().reduced_range if saturating is None else saturating
    float_, rounded = (m if isinstance(m, Model) else Model.load(m) for m in (model, quantized))
    _check_doors(float_, rounded)
    contract: Any = preprocessing or float_.preprocessing
    feeds = feeds_for(
        float_.inputs, "", data, preprocessing=contract, batch=BATCH, limit=max(limit or 0, RANGE_SAMPLES)
    )  # fmt: skip
    judged, names = _judged(float_, feeds, output, limit or DEFAULT_SAMPLES, progress)
    remake = _remake(model, rounded, feeds, progress)
    found = diagnosis.diagnose(rounded.ir, float_.ir, judged, top, progress, saturates, remake, feeds)
    truth = judged.against(judged.truth).hits
    rows = [_row(f, found.quantized) for f in found.findings]
    if truth is not None:
        rows.sort(key=lambda row: -max(0.0, row.cost_points.interval.low if row.cost_points else 0.0))
    after = found.after
    result = Diagnosed(
        judged.samples, feeds.digest, found.quantized.sqnr_db, found.counterpart_db,
        _points(truth, found.quantized.hits), tuple(rows), found.kept, None if after is None else after.sqnr_db,
        None if after is None else _points(truth, after.hits), (*feeds.notes, *found.notes, *names),
    )  # fmt: skip
    if fix is not None:
        _write(fix, rounded, found, result)
    if html is not None:
        title = f"Why {_name(quantized)} differs from {_name(model)}"
        files.write_bytes(html, _page(title, result, found).encode())
    return result


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


def _page(title: str, result: Diagnosed, found: Diagnosis) -> str:
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
    fixes = list(result.fixes)
    if result.fixed_db is not None:
        fixes.append(f"with all of these: SQNR {result.fixed_db:.1f} dB on the same samples")
    bars = [Bar(f"{r.layer} ({r.kind})", _three(r.cost_db), _three(r.gain_db) if r.gain_db else None)
            for r in result.rows]  # fmt: skip
    explained = [f"{r.layer} ({r.kind}), {r.cause}: {r.evidence}" for r in result.rows]
    return render(Page(title, facts, headers, rows, explained, fixes, bars, tensors))


def _three(gain: Gain) -> tuple[float, float, float]:
    return gain.value, gain.interval.low, gain.interval.high


def opened_here(graph: ir.Model) -> Session:
    """A session of the runtime that measures, for a graph in memory; its weights are not copied into the protobuf."""
    from edgerun import external

    data, weights, folder = external.apart(graph)
    return registry.target(MEASURER).load(Engine(MEASURER, data, weights=weights, folder=folder), Options())


def _require_report() -> None:
    if reason := registry.missing(("jinja2", "plotly"), "report"):
        raise Unsupported("a page cannot be made here", got=reason)


def _name(model: Model | str | Path) -> str:
    return "a model in memory" if isinstance(model, Model) else Path(model).name


def _check_doors(a: Model, b: Model) -> None:
    for ours, theirs, what in ((a.inputs, b.inputs, "inputs"), (a.outputs, b.outputs, "outputs")):
        if [s.name for s in ours] != [s.name for s in theirs]:
            got, wanted = (", ".join(s.name for s in specs) for specs in (theirs, ours))
            do = "give the float model that the quantized one was made from"
            raise EdgerunError(f"the models have different {what}", got=got, wanted=wanted, do=do)
    opset = b.ir.opset_imports.get("", 0)
    if opset < 13:
        raise EdgerunError("the quantized model's opset is too old", got=opset, wanted="13 or newer",
                           do="quantize again after edgerun convert")  # fmt: skip


def _judged(
    model: Model, feeds: Data, output: str | None, samples: int, progress: Progress
) -> tuple[Trials, tuple[str, ...]]:
    """Samples with the float model's outputs, and labels where the data has some that fit an output."""
    names = [spec.name for spec in model.outputs if spec.dtype in FLOATS]
    if not names:
        raise Unsupported("the model has no float output to compare", do="add the scores as an output")
    judged = trials.collect(opened_here, model.ir, feeds, names, samples, progress)
    labels = feeds.labels
    if labels is None:
        return judged, ()
    classes = [n for n in ([output] if output is not None else names) if n in names and _scores(judged, n, labels)]
    if len(classes) != 1:
        return judged, ("the labels are not used: name the output that holds one score per class with --output",)
    return replace(judged, labels=labels[: judged.samples], scores=classes[0]), ()


def _scores(judged: Trials, name: str, labels: np.ndarray) -> bool:
    array, rows = judged.truth[0][name], judged.rows[0]
    columns = array.size // rows if array.ndim and len(array) == rows else 0
    return columns > max(1, int(labels.max(initial=0)))


def _row(finding: Finding, before: Measured) -> Row:
    tried = finding.tried
    return Row(
        finding.layer, finding.kind, finding.key, finding.alone_db, _decibels(finding.cost),
        _points(finding.without.hits, before.hits), finding.cause.name, finding.cause.evidence, finding.cause.number,
        None if tried is None else tried.fix.name, None if finding.gain is None else _decibels(finding.gain),
        None if tried is None else _points(tried.measured.hits, before.hits),
    )  # fmt: skip


def _decibels(numbers: tuple[float, float, float]) -> Gain:
    return Gain(numbers[0], Interval(numbers[1], numbers[2]))


def _remake(
    model: Model | str | Path, quantized: Model, feeds: Data, progress: Progress
) -> Callable[[], ir.Model] | None:
    """How to make the quantized model again on this data, where its history says that edgerun made it; else None."""
    made = next((s for s in quantized.history if s.name == "quantize/static_int8"), None)
    if made is None:
        return None
    kept = list(made.options.get(KEPT, ()))
    options = {"scheme": made.options.get("scheme", "w8a8"), "target": made.options.get("target", "onnxruntime")}
    return lambda: (
        compress(model, calibration=feeds, keep_float=kept, placement="rules", progress=progress, **options).ir
    )


def _points(better: np.ndarray | None, worse: np.ndarray | None) -> Gain | None:
    """Accuracy of `better` minus that of `worse` on the same samples, in points, with its paired interval."""
    if better is None or worse is None:
        return None
    lost, gained, n = int((better & ~worse).sum()), int((worse & ~better).sum()), len(better)
    interval = paired_drop(lost, gained, n)
    return Gain(100 * (lost - gained) / n, Interval(100 * interval.low, 100 * interval.high))


def _write(path: str | Path, quantized: Model, found: Diagnosis, result: Diagnosed) -> None:
    if found.fixed is None or not found.kept:
        raise EdgerunError("there is nothing to write: no fix pays", got=f"SQNR {result.sqnr_db:.1f} dB",
                           do="see the table: where rounding is all there is, keep layers in float")  # fmt: skip
    before = quantized.digest()
    for shape, value in zip(quantized.ir.graph.outputs, found.fixed.graph.outputs, strict=True):
        value.shape = None if shape.shape is None else shape.shape.copy()
    made = Model.of(found.fixed)
    options = {
        "fixes": list(found.kept), "SQNR before (dB)": round(result.sqnr_db, 2),
        "SQNR after (dB)": round(result.fixed_db or result.sqnr_db, 2), "samples": result.samples,
    }  # fmt: skip
    step = Step("quantize/repair", __version__, options, before, made.digest(), result.data)
    replace(made, preprocessing=quantized.preprocessing, history=(*quantized.history, step)).save(path)
