"""Compress: a float model becomes a small, fast one for one target, with the evidence in its history."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgerun import files, quantize, registry
from edgerun.data import Data
from edgerun.devices import Device
from edgerun.effort import PRESETS
from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.model import Model
from edgerun.passes import Quantization, Request, Target
from edgerun.preprocess import Preprocessing
from edgerun.quantize.fold import infer_shapes
from edgerun.quantize.graphs.work import layers
from edgerun.readers import GivesInferenceData, GivesNext
from edgerun.runtime import TensorSpec
from edgerun.verbs import clock, devices, placements, proof, search
from edgerun.verbs.benchmark import fixed
from edgerun.verbs.clock import Speed
from edgerun.verbs.feeds import feeds_for
from edgerun.verbs.folding import folded
from edgerun.verbs.making import Making, Original, judged
from edgerun.verbs.placements import Made

log = logging.getLogger("edgerun")
Progress = Callable[[str, int, int], None]
Calibration = (
    str
    | Path
    | Mapping[str, np.ndarray]
    | Iterable[Any]
    | Callable[[], Iterable[Any]]
    | GivesNext
    | GivesInferenceData
    | Data
)
DEFAULT_CAP = 192 << 20  # bytes of activations
OLDEST_OPSET = 13
MOST = 4  # samples of a batch: a choice is judged on two batches or more, one on each core
PLACEMENTS = ("clock", "rules")  # the first is the default
PLACEMENT = "EDGERUN_PLACEMENT"  # the environment's default


def compress(
    model: Model | str | Path,
    *,
    scheme: str = "w8a8",
    target: str | None = None,
    device: Device | str | Path | None = None,
    calibration: Calibration | None = None,
    output: str | Path | None = None,
    preset: str = "default",
    ranges: str = "auto",
    keep_float: Iterable[str] = (),
    memory_cap: int = DEFAULT_CAP,
    limit: int | None = None,
    max_drop: float | None = None,
    labelled: Any = None,
    logits: str | None = None,
    placement: str | None = None,
    shapes: Iterable[TensorSpec | str] = (),
    allow_slower: bool = False,
    clocked: Callable[[Speed], None] = lambda speed: None,
    preprocessing: Preprocessing | str | Path | None = None,
    fold_preprocessing: bool = False,
    force: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Model:
    """`model` in `scheme`, in the form that `target` has kernels for; `output` is .onnx, or what the target writes.

    `device` (a known one, or a file that `edgerun probe` wrote) gives the target unless it is named, the instruction
    sets that its rules follow, and the newest opset and IR version; where this machine is another, nothing is timed.
    `calibration` is any kind of data that `edgerun.data.open_data` takes (at most `limit` samples of it); a folder of
    pictures goes through `preprocessing` (the contract or its file), else the model's own; `fold_preprocessing` first
    moves its arithmetic into the graph, which then takes bytes (`edgerun.verbs.folding`). Schemes that need none do
    without; given some, `w4a16_b32` rounds better and every history tells what the result lost on it. `preset` is
    "fast", "default" or "best": how much of the data is looked at, and how many choices are tried; `ranges` an
    estimator or "auto"; `keep_float` names of nodes to leave alone; `memory_cap` bytes for activations, which sets
    the batch that statistics are taken with. With `max_drop` (points) as few layers stay in float as the data in
    `labelled` proves to lose less top-1 accuracy (`logits` names the output where there are several). The compiled
    result is compared with the reference before it is returned; where the target can only compile, it is compiled, and
    what is compared is its Q/DQ form, on ONNX Runtime. What was decided and measured stands in the last Step of the
    history. A long run keeps checkpoints in `edgerun.cache`: killed and begun again, it goes on where it was.

    What a scheme that promises speed makes is timed against the float model on the first sample (at the sizes of
    `shapes`, where given); nodes that do not pay stay in float, and `clocked` gets what the clock said. With
    `placement` "rules" nothing is timed; "clock" is the default, or what $EDGERUN_PLACEMENT says.

    Raises EdgerunError for bad input, Unsupported when nothing in the model can be quantized for the target,
    GateFailed when the compiled result does not compute what it says, the bound on the drop is not surely held, or no
    placement is as fast as the float model (unless `allow_slower`).
    """
    began, sizes = perf_counter(), list(shapes)
    _refuse_overwrite(output, force)
    where, target = devices.chosen(device, target)
    name, chosen, rules = _chosen(scheme, target, output, where)
    devices.check_output(where, target, scheme, output)
    idle, placement = proof.idle(chosen, target, output, max_drop), _placement(placement, where, target)
    _check_ways(name, scheme, ranges, preset)
    _check_bound(max_drop, labelled)
    if fold_preprocessing:
        model, preprocessing = folded(model, preprocessing), None
    original = Original(model)
    first = original.model
    _check_model(first)
    devices.check_limits(first, where, target)
    _check_names(first, keep_float)
    data = _data(first, _calibration(name, scheme, calibration, max_drop), preprocessing, memory_cap, limit)
    hold = None
    if max_drop is not None and data is not None:
        hold = _held(name, data, labelled, preprocessing, target, max_drop, logits)
    told = {"target": target, "scheme": scheme, "random data": data is not None and data.random}
    if where is not None:
        told["device"] = where.name
    if idle:
        told["engine"] = f"compiled, not run: {idle}"
    inputs = fixed(first.inputs, sizes)
    making = Making(name, original, target, rules, data, inputs, judged(first, data), ranges, frozenset(keep_float),
                    PRESETS[preset], told, progress, hold)  # fmt: skip
    del first
    made = making.whole({})
    if placement == "clock" and not idle:
        made = _timed(made, making, preset, inputs, began, allow_slower, clocked)
    result, engine = made
    devices.check_limits(result, where, target)
    if output is not None:
        _refuse_overwrite(output, force)
        result.save(output) if Path(output).suffix == ".onnx" else chosen.save(engine, Path(output))
    return result


def _timed(
    made: Made, making: Making, preset: str, inputs: tuple[TensorSpec, ...], began: float, allow_slower: bool,
    clocked: Callable[[Speed], None],
) -> Made:  # fmt: skip
    """What is as fast as the float model by the clock: `made`, or one with more in float."""
    if (space := making.search()) is None:
        return made
    try:
        feed = clock.feed_for(inputs, making.data)
    except EdgerunError as error:  # noise needs every size
        clocked(clock.not_timed(error))
        return made
    told, usual = making.progress, clock.usual_shapes(inputs, making.data)
    own = clock.clock_for(making.original.source, made[0], making.target, feed, preset, began, told, usual)
    made, speed = placements.held(made, own, space, allow_slower=allow_slower)
    clocked(replace(speed, reason=speed.reason or own.timings.lost))
    return made


def _placement(asked: str | None, device: Device | None, target: str) -> str:
    """What was asked for, or the default; only rules where this machine's clock is not that of `device`."""
    found = asked or os.environ.get(PLACEMENT) or PLACEMENTS[0]
    if found not in PLACEMENTS:
        raise unknown("placement", found, PLACEMENTS)
    if found == PLACEMENTS[0] and (reason := devices.elsewhere(device, target)):
        if asked:
            devices.here(device, target)
        log.info("nothing is timed, as with --placement rules: this machine is not the device (%s)", reason)
        return PLACEMENTS[1]
    return found


def _chosen(
    scheme: str, target: str, output: str | Path | None, device: Device | None
) -> tuple[str, Target, Quantization]:
    """The pass that makes `scheme`, the target, and its rules. Raises when they do not go together."""
    name, chosen = quantize.pass_for(scheme), registry.target(target)
    rules = devices.rules(device, target)
    if scheme not in rules.schemes:
        raise Unsupported(f"{target} has no kernels for {scheme}", wanted=", ".join(rules.schemes))
    kinds = dict.fromkeys((chosen.suffixes[0], ".onnx"))
    if output is not None and Path(output).suffix not in kinds:
        raise EdgerunError(f"{target} does not write this kind of file", got=output, wanted=" or ".join(kinds))
    return name, chosen, rules


def _held(
    name: str, data: Data, labelled: Any, preprocessing: Preprocessing | str | Path | None, target: str,
    max_drop: float, logits: str | None,
) -> Callable[[Model, Request], Model]:  # fmt: skip
    """How a model keeps in float what it must for its accuracy to drop by less than `max_drop` points, and no more."""

    def hold(model: Model, request: Request) -> Model:
        looks = search.looks_at(labelled, model, data, preprocessing, max_drop=max_drop, output=logits)
        cost = layers(model, request.rules, request.keep_float)
        variant, told = quantize.variants(name, model, request), request.progress
        return search.hold(
            model, variant, cost, data, looks, target=target, max_drop=max_drop, progress=told,
            checkpoint=request.checkpoint,
        )  # fmt: skip

    return hold


def _check_ways(name: str, scheme: str, ranges: str, preset: str) -> None:
    check_ranges(ranges)
    if ranges != "auto" and not registry.quantizer(name).needs_calibration:
        raise EdgerunError(f"{scheme} has no static ranges to estimate", got=f"ranges {ranges!r}", do="leave it out")
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)


def _calibration(name: str, scheme: str, calibration: Calibration | None, max_drop: float | None) -> Calibration | None:
    """`calibration` itself. Raises where there is none and something needs it."""
    if calibration is None and (max_drop is not None or registry.quantizer(name).needs_calibration):
        raise EdgerunError(
            f"{scheme if max_drop is None else '--max-drop'} needs calibration data",
            do="give --calibration FILE.npz, FOLDER, module:callable, or random",
        )
    return calibration


def _check_bound(max_drop: float | None, labelled: Any) -> None:
    if (max_drop is None) != (labelled is None):
        given = "labelled data" if max_drop is None else f"--max-drop {max_drop:g}"
        raise EdgerunError("a bound on the drop and labelled data belong together", got=f"{given} alone",
                           do="give --max-drop POINTS and --labelled DATA")  # fmt: skip
    if max_drop is not None and not 0 < max_drop < 100:
        raise EdgerunError("the bound on the drop is out of range", got=max_drop, wanted="points between 0 and 100")


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
    doubled = [str(v.name) for v in model.ir.graph.inputs if v.name in model.ir.graph.initializers]
    if doubled:
        raise EdgerunError("weights are declared as inputs too", got=", ".join(doubled[:5]), do=do)


def _data(
    model: Model, calibration: Any, preprocessing: Preprocessing | str | Path | None, memory_cap: int, limit: int | None
) -> Data | None:
    """The calibration data, if any, in batches that fit the cap at the sizes which its first sample has."""
    if calibration is None or isinstance(calibration, Data):
        return calibration
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


def _check_names(model: Model, keep_float: Iterable[str]) -> None:
    known = {str(node.name) for node in model.ir.graph}
    for name in keep_float:
        if name not in known:
            raise unknown("node", name, known)


def _batch(model: Model, memory_cap: int, sizes: Mapping[str, int]) -> int:
    """Samples a batch may have under the cap, between 1 and MOST (more would only take memory).

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
    return int(np.clip(memory_cap // (32 * largest), 1, MOST))
