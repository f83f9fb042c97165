"""Compress: a float model becomes a small, fast one for one target, with the evidence in its history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from edgerun import quantize, registry
from edgerun.data import Data
from edgerun.devices import Device
from edgerun.effort import DEFAULT, PRESETS
from edgerun.errors import EdgerunError
from edgerun.mixed import mixed
from edgerun.model import Model
from edgerun.passes import Faster, Request
from edgerun.preprocess import Preprocessing
from edgerun.quantize import Compiled
from edgerun.quantize.fold import infer_shapes
from edgerun.quantize.graphs.work import layers
from edgerun.readers import GivesInferenceData, GivesNext
from edgerun.runtime import TensorSpec
from edgerun.verbs import clock, fitting, placements, scoring, search
from edgerun.verbs.aim import Aim, aimed, check_bound, refuse_overwrite
from edgerun.verbs.benchmark import fixed
from edgerun.verbs.clock import Speed
from edgerun.verbs.feeds import feeds_for
from edgerun.verbs.folding import folded
from edgerun.verbs.making import Making, Original, judged
from edgerun.verbs.placements import Made

Progress = Callable[[str, int, int], None]


class Indexed(Protocol):
    """As a torch Dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


Calibration = (
    str
    | Path
    | Mapping[str, np.ndarray]
    | Iterable[Any]
    | Callable[[], Iterable[Any]]
    | GivesNext
    | GivesInferenceData
    | Indexed
    | Data
)
DEFAULT_CAP = 192 << 20  # bytes of activations
MOST = 4  # samples of a batch: a choice is judged on two batches or more, one on each core


def compress(
    model: Model | str | Path,
    *,
    scheme: str = "w8a8",
    target: str | None = None,
    device: Device | str | Path | None = None,
    calibration: Calibration | None = None,
    output: str | Path | None = None,
    preset: str | None = None,
    ranges: str = "auto",
    keep_float: Iterable[str] = (),
    memory_cap: int | None = None,
    limit: int | None = None,
    max_drop: float | None = None,
    labelled: Any = None,
    logits: str | None = None,
    metric: scoring.Given | None = None,
    placement: str | None = None,
    shapes: Iterable[TensorSpec | str] = (),
    allow_slower: bool = False,
    clocked: Callable[[Speed], None] = lambda speed: None,
    compiled: Callable[[Compiled], None] = lambda compiled: None,
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
    `labelled` proves to lose less accuracy, by a `metric` (`edgerun.verbs.scoring`: top-1 by default; `logits` names
    the output that it reads, where there are several). The compiled
    result is compared with the reference before it is returned; where the target can only compile, it is compiled, and
    what is compared is the graph itself, on ONNX Runtime. What was decided and measured stands in the last Step of the
    history. A long run keeps checkpoints in `edgerun.cache`: killed and begun again, it goes on where it was.

    What a scheme that promises speed makes is timed against the float model on the first sample (at the sizes of
    `shapes`, where given); nodes that do not pay stay in float, and `clocked` gets what the clock said. With
    `placement` "rules" nothing is timed; "clock" is the default, or what $EDGERUN_PLACEMENT says. `compiled` gets what
    the engine loses on calibration data, where that is not what the graph was judged on.

    Raises EdgerunError for bad input, and for an option that would do nothing, Unsupported when nothing in the model
    can be quantized for the target, GateFailed when the compiled result does not compute what it says, the bound on the
    drop is not surely held, or no placement is as fast as the float model (unless `allow_slower`; its `measured` tells
    the ratio and the slowest layers).
    """
    began, keep = perf_counter(), tuple(keep_float)
    refuse_overwrite(output, force, model)
    aim = aimed(scheme, target, device, output, placement, max_drop)
    aim.check_ways(ranges, preset or DEFAULT)
    check_bound(max_drop, labelled, logits, metric)
    aim.check_used(calibration is not None, preset=preset, memory_cap=memory_cap, limit=limit)
    aim.check_clock(allow_slower, placement)
    preset = preset or DEFAULT
    if fold_preprocessing:
        model, preprocessing = folded(model, preprocessing), None
    original = Original(model)
    aim.check_model(original.model, keep)
    data = _data(original.model, _calibration(aim, calibration, max_drop), preprocessing,
                 DEFAULT_CAP if memory_cap is None else memory_cap, limit)  # fmt: skip
    hold = None
    if max_drop is not None and data is not None:
        scored = scoring.named(metric or scoring.DEFAULT, logits)
        hold = _held(aim, data, labelled, preprocessing, max_drop, scored)
    making = Making(
        aim.step, original, aim.target, aim.rules, data, fixed(original.model.inputs, list(shapes)),
        judged(original.model, data), ranges, frozenset(keep), PRESETS[preset], aim.told(data), progress, hold,
        aim.timed,
    )  # fmt: skip
    made = making.whole({})
    if aim.timed:
        made = _timed(made, making, preset, began, allow_slower, clocked)
    if made.compiled is not None:
        compiled(made.compiled)
    return _written(made, aim, output, force)


def _written(made: Made, aim: Aim, output: str | Path | None, force: bool) -> Model:
    """The model that was made, and `output` of it."""
    result, engine, _ = made
    fitting.check_limits(result, aim.device, aim.target)
    if output is not None:
        refuse_overwrite(output, force)
        result.save(output) if Path(output).suffix == ".onnx" else aim.writer.save(engine, Path(output))
    return result


def _timed(
    made: Made, making: Making, preset: str, began: float, allow_slower: bool, clocked: Callable[[Speed], None]
) -> Made:
    """What is as fast as the float model by the clock: `made`, or one with more in float."""
    if (space := making.search()) is None:
        return made
    if made[0].history[-1].options.get("integer nodes") == 0:  # halves are refused by their pass
        what = "nothing of the model runs on integers there: it is as fast as float"
        clocked(clock.not_timed(EdgerunError(what)))
        return made
    try:
        feed = clock.feed_for(making.inputs, making.data)
    except EdgerunError as error:  # noise needs every size
        clocked(clock.not_timed(error))
        return made
    told, usual = making.progress, clock.usual_shapes(making.inputs, making.data)
    own = clock.clock_for(making.original.source, made[0], making.target, feed, preset, began, told, usual)
    made, speed = placements.held(made, own, space, allow_slower=allow_slower)
    clocked(replace(speed, reason=speed.reason or own.timings.lost))
    return made


def _held(
    aim: Aim, data: Data, labelled: Any, preprocessing: Preprocessing | str | Path | None, max_drop: float,
    metric: scoring.Metric,
) -> Callable[[Model, Request], Model]:  # fmt: skip
    """How a model keeps in float what it must for its accuracy to drop by less than `max_drop` points, and no more."""

    def hold(model: Model, request: Request) -> Model:
        looks = search.looks_at(labelled, model, data, preprocessing, max_drop=max_drop, metric=metric)
        step, own = registry.quantizer(aim.step), (model, request.rules, request.keep_float)
        cost = layers(*own, step.integers(*own) if isinstance(step, Faster) else None)
        variant, told = quantize.variants(aim.step, model, request), request.progress
        return search.hold(
            model, variant, cost, data, looks, target=aim.target, max_drop=max_drop, progress=told,
            checkpoint=request.checkpoint,
        )  # fmt: skip

    return hold


def _calibration(aim: Aim, calibration: Calibration | None, max_drop: float | None) -> Calibration | None:
    """`calibration` itself. Raises where there is none and something needs it."""
    if calibration is None and (max_drop is not None or aim.calibrated):
        raise EdgerunError(
            f"{aim.scheme if max_drop is None else '--max-drop'} needs calibration data",
            do="give --calibration FILE.npz, FOLDER, module:callable, or random",
        )
    return calibration


def _data(
    model: Model, calibration: Any, preprocessing: Preprocessing | str | Path | None, memory_cap: int, limit: int | None
) -> Data | None:
    """The calibration data, if any, in batches that fit the cap at the sizes which its first sample has."""
    if calibration is None or isinstance(calibration, Data):
        return calibration
    contract: Any = preprocessing if preprocessing is not None else model.preprocessing
    data = feeds_for(model.inputs, "", calibration, preprocessing=contract, batch=1, limit=limit, outputs=model.outputs)
    first = next(iter(data))
    sizes = {
        dim: size
        for spec in model.inputs
        for dim, size in zip(spec.shape, first[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }
    return mixed(data).in_batches(_batch(model, memory_cap, sizes))


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
