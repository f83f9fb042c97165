"""Why is it wrong: which layers of a quantized model do the damage, why, and what repairs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun import __version__, files, registry
from edgerun.data import Data
from edgerun.devices import Device
from edgerun.errors import EdgerunError, Unsupported
from edgerun.mixed import mixed
from edgerun.model import Model, Step
from edgerun.preprocess import Preprocessing
from edgerun.quantize import diagnosis
from edgerun.quantize.diagnosis import Diagnosis
from edgerun.runtime import Engine, Options, Session
from edgerun.verbs import devices, scoring
from edgerun.verbs.again import command, static, step
from edgerun.verbs.apart import ENOUGH, parted
from edgerun.verbs.compress import compress
from edgerun.verbs.diagnosed import Diagnosed, diagnosed, page
from edgerun.verbs.feeds import feeds_for
from edgerun.verbs.making import KEPT, MEASURER, judged

if TYPE_CHECKING:
    import onnx_ir as ir

Progress = Callable[[str, int, int], None]
DEFAULT_SAMPLES = 32
BATCH = 4  # samples a run: the first search takes whole batches, and few of them
RANGE_SAMPLES = 128  # that ranges are taken from: extremes need more samples than a mean does


def why_wrong(
    model: Model | str | Path,
    quantized: Model | str | Path,
    data: Any,
    *,
    target: str | None = None,
    device: Device | str | Path | None = None,
    saturating: bool | None = None,
    top: int = 8,
    limit: int | None = None,
    preprocessing: Preprocessing | str | Path | None = None,
    output: str | None = None,
    metric: scoring.Given | None = None,
    html: str | Path | None = None,
    fix: str | Path | None = None,
    force: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Diagnosed:
    """Diagnose `quantized` (standard Q/DQ, LSTMs on integers) against the float `model` on `data`.

    Judged on at most `limit` samples (default 32); new ranges are taken from up to 128, and fixes are judged on `limit`
    more, where the data has 8 or more. With labels in the data, or a `metric` (`edgerun.verbs.scoring`; by default
    top-1) that takes none, the rows that surely cost accuracy come first; `output` names the one that is read for it,
    where there are several.
    `saturating` says whether the device's CPU adds two products in 16 bits (default: what `target`, else that of
    `device`, else onnxruntime, says of the device, or of this machine). `html` writes a page, `fix` the model with the
    fixes that pay, with a Step; `Diagnosed.require_fixes` raises GateFailed where none does. Raises
    EdgerunError for bad input, Unsupported without an extra.
    """
    for path in (html, fix):
        if path is not None:
            files.refuse_same(Path(path), model, quantized)
            files.refuse_overwrite(Path(path), force)
    if html is not None:
        _require_report()
    if top < 1:
        raise EdgerunError("nothing to show", got=f"top={top}", wanted="1 or more")
    where, name = devices.chosen(device, target)
    rules = registry.target(name, usable=False).quantization(where)
    saturates = rules.reduced_range if saturating is None else saturating
    float_, rounded = (m if isinstance(m, Model) else Model.load(m) for m in (model, quantized))
    _check_doors(float_, rounded)
    contract: Any = preprocessing or float_.preprocessing
    wanted = limit or DEFAULT_SAMPLES
    most = max(wanted, RANGE_SAMPLES) + max(wanted, ENOUGH)
    feeds = mixed(
        feeds_for(float_.inputs, "", data, preprocessing=contract, batch=BATCH, limit=most, outputs=float_.outputs)
    )
    looks = judged(float_, feeds).warnings
    samples = parted(float_, feeds, output, metric, wanted, opened_here, progress)
    remake = _remake(model, rounded, samples.ranges, progress)
    found = diagnosis.diagnose(
        rounded.ir, float_.ir, samples.judged, top, progress, saturates, remake, samples.ranges, samples.apart,
        static(rounded),
    )  # fmt: skip
    again = command(model, rounded, data, preprocessing, found.floats)
    notes = (*feeds.notes, *looks, *samples.notes, *found.notes)
    result = diagnosed(found, samples.apart, feeds.digest, again, notes)
    if fix is not None and found.kept:
        _write(fix, rounded, found, result)
    if html is not None:
        title = f"Why {_name(quantized)} differs from {_name(model)}"
        files.write_bytes(html, page(title, result, found).encode())
    return result


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


def _remake(
    model: Model | str | Path, quantized: Model, feeds: Data, progress: Progress
) -> Callable[[], ir.Model] | None:
    """How to make the quantized model again on this data, where its history says that edgerun made it; else None."""
    made = step(quantized)
    if made is None or made.name != "quantize/static_int8":
        return None
    kept = list(made.options.get(KEPT, ()))
    options = {"scheme": made.options.get("scheme", "w8a8"), "target": made.options.get("target", "onnxruntime")}
    return lambda: (
        compress(model, calibration=feeds, keep_float=kept, placement="rules", progress=progress, **options).ir
    )


def _write(path: str | Path, quantized: Model, found: Diagnosis, result: Diagnosed) -> None:
    assert found.fixed is not None and result.fixed_gain_db is not None and result.fixed_db is not None
    before = quantized.digest()
    for shape, value in zip(quantized.ir.graph.outputs, found.fixed.graph.outputs, strict=True):
        value.shape = None if shape.shape is None else shape.shape.copy()
    made = Model.of(found.fixed)
    options = {
        "fixes": list(found.kept), "SQNR before (dB)": round(found.apart.sqnr_db, 2),
        "SQNR after (dB)": round(result.fixed_db, 2), "samples": result.fix_samples,
    }  # fmt: skip
    repair = Step("quantize/repair", __version__, options, before, made.digest(), result.data)
    replace(made, preprocessing=quantized.preprocessing, history=(*quantized.history, repair)).save(path)
