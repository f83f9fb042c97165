"""Compress: a float model becomes a small, fast one for one target, with the evidence in its history."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import files, quantize, registry
from edgerun.adequacy import FeedCheck
from edgerun.checkpoint import Checkpoint
from edgerun.data import Data
from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.model import Model, without_weights
from edgerun.passes import PRESETS, Quantization, Request, Target
from edgerun.preprocess import Preprocessing
from edgerun.quantize.fold import infer_shapes
from edgerun.quantize.graphs import plausible
from edgerun.quantize.graphs.work import layers
from edgerun.readers import GivesInferenceData, GivesNext
from edgerun.runtime import Engine, Options, Session, machine
from edgerun.verbs import search
from edgerun.verbs.feeds import feeds_for

if TYPE_CHECKING:
    import onnx_ir as ir

Progress = Callable[[str, int, int], None]
DEFAULT_CAP = 192 << 20  # bytes of activations
OLDEST_OPSET = 13
# A block planned for a whole run takes as much memory as the pieces that the first run was made of, beside them.
LEAN = {"enable_mem_pattern": "0"}
LANES = 2  # batches at once; the cap is measured with two
EMULATED = {"session.disable_quant_qdq": "1"}
MEASURER = "onnxruntime"  # runs float and Q/DQ graphs while the numbers are chosen, whatever the target is


def compress(
    model: Model | str | Path,
    *,
    scheme: str = "w8a8",
    target: str = "onnxruntime",
    calibration: str
    | Path
    | Mapping[str, np.ndarray]
    | Iterable[Any]
    | Callable[[], Iterable[Any]]
    | GivesNext
    | GivesInferenceData
    | Data
    | None = None,
    output: str | Path | None = None,
    preset: str = "default",
    ranges: str = "auto",
    keep_float: Iterable[str] = (),
    memory_cap: int = DEFAULT_CAP,
    limit: int | None = None,
    max_drop: float | None = None,
    labelled: Any = None,
    logits: str | None = None,
    preprocessing: Preprocessing | str | Path | None = None,
    force: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Model:
    """`model` in `scheme`, in the form that `target` has kernels for; `output` is .onnx, or what the target writes.

    `calibration` is any kind of data that `edgerun.data.open_data` takes (at most `limit` samples of it); a folder of
    pictures goes through `preprocessing` (the contract or its JSON file), else the model's own. Schemes that need none
    do without; given some, `w4a16_b32` rounds better and every history tells what the result lost on it. `preset` is
    "fast", "default" or "best": how much of the data is looked at, and how many choices are tried; `ranges` an
    estimator or "auto"; `keep_float` names of nodes to leave alone; `memory_cap` bytes for activations, which sets
    the batch that statistics are taken with. With `max_drop` (points) as few layers stay in float as the data in
    `labelled` proves to lose less top-1 accuracy (`logits` names the output where there are several). The compiled
    result is compared with the reference before it is returned. What was decided and measured stands in the last Step
    of the history. A long run keeps checkpoints in `edgerun.cache`: killed and begun again, it goes on where it was.

    Raises EdgerunError for bad input, Unsupported when nothing in the model can be quantized for the target,
    GateFailed when the compiled result does not compute what it says, or the bound on the drop is not surely held.
    """
    _refuse_overwrite(output, force)
    name, chosen, rules = _chosen(scheme, target, output)
    check_ranges(ranges)
    if ranges != "auto" and not registry.quantizer(name).needs_calibration:
        raise EdgerunError(f"{scheme} has no static ranges to estimate", got=f"ranges {ranges!r}", do="leave it out")
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    _check_bound(max_drop, labelled)
    loaded = _loaded(model)
    _check_model(loaded)
    _check_names(loaded, keep_float)
    if calibration is None and (max_drop is not None or registry.quantizer(name).needs_calibration):
        raise EdgerunError(
            f"{scheme if max_drop is None else '--max-drop'} needs calibration data",
            do="give --calibration FILE.npz, FOLDER, module:callable, or random",
        )
    if calibration is None or isinstance(calibration, Data):
        data = calibration
    else:
        data = _data(loaded, calibration, preprocessing, memory_cap, limit)
    known = None if data is None else _Known(data, _judged(loaded, data))
    del loaded
    request = Request(rules, _open, known, ranges, frozenset(keep_float), PRESETS[preset])
    request.lanes, request.progress = min(LANES, machine.quota()), progress
    request.checkpoint = Checkpoint({"measured with": dict(registry.target(MEASURER).device())})
    request.found |= {"target": target, "scheme": scheme, "random data": data is not None and data.random}
    if known is not None:
        request.found["calibration"] = known.found
    # A file is read again where it is needed: its weights do not stay in memory in between.
    if max_drop is None or data is None:
        result = quantize.apply(name, _loaded(model), request)
    else:
        result = _held(name, _loaded(model), request, data, labelled, preprocessing, target, max_drop, logits)
    engine = _proven(result, model, target, data)
    if output is not None:
        _refuse_overwrite(output, force)
        result.save(output) if Path(output).suffix == ".onnx" else chosen.save(engine, Path(output))
    request.checkpoint.clear()
    return result


def _chosen(scheme: str, target: str, output: str | Path | None) -> tuple[str, Target, Quantization]:
    """The pass that makes `scheme`, the target, and its rules. Raises when they do not go together."""
    name, chosen = quantize.pass_for(scheme), registry.target(target)
    rules = chosen.quantization()
    if scheme not in rules.schemes:
        raise Unsupported(f"{target} has no kernels for {scheme}", wanted=", ".join(rules.schemes))
    if output is not None and Path(output).suffix not in chosen.suffixes:
        raise EdgerunError(
            f"{target} does not write this kind of file", got=output, wanted=" or ".join(chosen.suffixes)
        )
    return name, chosen, rules


def _held(
    name: str, model: Model, request: Request, data: Data, labelled: Any,
    preprocessing: Preprocessing | str | Path | None, target: str, max_drop: float, logits: str | None,
) -> Model:  # fmt: skip
    """`model` with what must stay in float for the accuracy to drop by less than `max_drop` points, and no more."""
    looks = search.looks_at(labelled, model, data, preprocessing, max_drop=max_drop, output=logits)
    cost = layers(model, request.rules, request.keep_float)
    variant = quantize.variants(name, model, request)
    return search.hold(
        model, variant, cost, data, looks, target=target, max_drop=max_drop, progress=request.progress,
        checkpoint=request.checkpoint,
    )  # fmt: skip


def _check_bound(max_drop: float | None, labelled: Any) -> None:
    if (max_drop is None) != (labelled is None):
        given = "labelled data" if max_drop is None else f"--max-drop {max_drop:g}"
        raise EdgerunError("a bound on the drop and labelled data belong together", got=f"{given} alone",
                           do="give --max-drop POINTS and --labelled DATA")  # fmt: skip
    if max_drop is not None and not 0 < max_drop < 100:
        raise EdgerunError("the bound on the drop is out of range", got=max_drop, wanted="points between 0 and 100")


def _loaded(model: Model | str | Path) -> Model:
    return model if isinstance(model, Model) else Model.load(model)


def _refuse_overwrite(output: str | Path | None, force: bool) -> None:
    if output is not None:
        files.refuse_overwrite(Path(output), force)
        if Path(output).suffix == ".xml":
            files.refuse_overwrite(Path(output).with_suffix(".bin"), force)


def _check_model(model: Model) -> None:
    opset = model.ir.opset_imports.get("", 0)
    do = "edgerun convert it first: that brings it up to date"
    if opset < OLDEST_OPSET:
        wanted = f"{OLDEST_OPSET} or newer (per-channel Q/DQ)"
        raise EdgerunError("the model's opset is too old to quantize", got=opset, wanted=wanted, do=do)
    doubled = [spec.name for spec in model.inputs if spec.name in model.ir.graph.initializers]
    if doubled:
        raise EdgerunError("weights are declared as inputs too", got=", ".join(doubled[:5]), do=do)


def _data(
    model: Model, calibration: Any, preprocessing: Preprocessing | str | Path | None, memory_cap: int, limit: int | None
) -> Data:
    """The calibration data, in batches that fit the cap at the sizes which its first sample has."""
    contract: Any = preprocessing if preprocessing is not None else model.preprocessing
    data = feeds_for(model.inputs, "", calibration, preprocessing=contract, batch=1, limit=limit)
    first = next(iter(data))
    sizes = {
        dim: size
        for spec in model.inputs
        for dim, size in zip(spec.shape, first[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }
    return data.in_batches(_batch(model, memory_cap, sizes))


def check_ranges(name: str) -> None:
    """Raise unless `name` is an estimator or "auto"."""
    from edgerun.quantize.numerics.ranges import ESTIMATORS

    if name not in ("auto", *ESTIMATORS):
        raise unknown("range estimator", name, ("auto", *ESTIMATORS))


def _proven(result: Model, original: Model | str | Path, target: str, data: Data | None) -> Engine:
    from edgerun.verbs.compile import compile

    # Two batches apart from each other: neighbours may show nothing, both of them.
    feeds = list(itertools.islice(data or (), 0, 6, 5))
    return compile(result, target, feeds=feeds, original=original)


def _open(graph: ir.Model, *, emulated: bool = False, lanes: int = 1) -> Session:
    data, weights = without_weights(graph)
    options = Options(max(1, machine.quota() // lanes), LEAN | (EMULATED if emulated else {}))
    return registry.target(MEASURER).load(Engine(MEASURER, data, weights=weights), options)


def _judged(model: Model, data: Data) -> plausible.Judgement:
    return plausible.Judgement() if data.random else plausible.suspect(model.ir, model.inputs, _open, data)


class _Known:
    """Calibration data whose number of batches is known: a callable's is counted in a pass of its own.

    The first whole pass looks at every sample; `found` then says how many there were, and what is wrong with them.
    """

    def __init__(self, data: Data, judgement: plausible.Judgement) -> None:
        self._data = data
        self.found: dict[str, Any] = {"preprocessing judged": judgement.judged, "warnings": judgement.warnings}
        if data.samples is None:
            _ = data.digest

    def __iter__(self) -> Any:
        return iter(self._data) if "samples" in self.found else self._checked()

    def _checked(self) -> Any:
        check = FeedCheck(batched=self._data.batch is not None)
        for feeds in self._data:
            check.add(feeds)
            yield feeds
        if "samples" not in self.found:
            told = check.report()
            self.found |= {**told, "warnings": [*told["warnings"], *self.found["warnings"]]}

    def __len__(self) -> int:
        return len(self._data)

    @property
    def batch(self) -> int | None:
        return self._data.batch

    @property
    def samples(self) -> int | None:
        return self._data.samples

    @property
    def digest(self) -> str:
        return self._data.digest

    @property
    def digest_so_far(self) -> str:
        return self._data.digest_so_far


def _check_names(model: Model, keep_float: Iterable[str]) -> None:
    known = {str(node.name) for node in model.ir.graph}
    for name in keep_float:
        if name not in known:
            raise unknown("node", name, known)


def _batch(model: Model, memory_cap: int, sizes: Mapping[str, int]) -> int:
    """Samples a batch may have under the cap, between 1 and 8 (more would only take memory).

    Runtimes free what nobody will read again: at the fullest moment of the search memory grows by about 32
    tensors of the largest one's size (rounded copies, layout copies, arenas that double); measured, not derived.
    """
    largest = 1
    inferred = model.clone()
    infer_shapes(inferred)
    for node in inferred.graph:
        for value in node.outputs:
            dims = [d if isinstance(d, int) else sizes.get(str(d.value), 1) for d in list(value.shape or ())]
            largest = max(largest, 4 * int(np.prod(dims)))
    return int(np.clip(memory_cap // (32 * largest), 1, 8))
