"""Compress: a float model becomes a small, fast one for one target, with the evidence in its history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import files, quantize, registry
from edgerun.data import Data
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model, without_weights
from edgerun.passes import Request
from edgerun.preprocess import Preprocessing
from edgerun.quantize.fold import infer_shapes
from edgerun.runtime import Engine, Options, Session
from edgerun.verbs.feeds import feeds_for

if TYPE_CHECKING:
    import onnx_ir as ir

Progress = Callable[[str, int, int], None]
DEFAULT_CAP = 192 << 20  # bytes of activations
OLDEST_OPSET = 13
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
    | Data
    | None = None,
    output: str | Path | None = None,
    ranges: str = "auto",
    keep_float: Iterable[str] = (),
    memory_cap: int = DEFAULT_CAP,
    limit: int | None = None,
    preprocessing: Preprocessing | str | Path | None = None,
    force: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Model:
    """`model` in `scheme`, with Q/DQ where `target` wants them; written to `output` (.onnx, or what the target writes).

    `calibration` is any kind of data that `edgerun.data.open_data` takes (at most `limit` samples of it); a folder of
    pictures goes through `preprocessing` (the contract or its JSON file), else the model's own; `ranges` an
    estimator or "auto"; `keep_float` names of nodes to leave alone; `memory_cap` bytes for activations, which sets
    the batch that statistics are taken with. The compiled result is compared with the reference before it is
    returned. What was decided and measured stands in the last Step of the history.

    Raises EdgerunError for bad input, Unsupported when nothing in the model can be quantized for the target,
    GateFailed when the compiled result does not compute what it says.
    """
    _refuse_overwrite(output, force)
    name, chosen = quantize.pass_for(scheme), registry.target(target)
    rules = chosen.quantization()
    if scheme not in rules.schemes:
        raise Unsupported(f"{target} has no fast kernels for {scheme}", wanted=", ".join(rules.schemes))
    if output is not None and Path(output).suffix not in chosen.suffixes:
        raise EdgerunError(
            f"{target} does not write this kind of file", got=output, wanted=" or ".join(chosen.suffixes)
        )
    check_ranges(ranges)
    loaded = _loaded(model)
    _check_model(loaded)
    _check_names(loaded, keep_float)
    if calibration is None:
        raise EdgerunError(
            f"{scheme} needs calibration data", do="give --calibration FILE.npz, FOLDER, module:callable, or random"
        )
    data = (
        calibration if isinstance(calibration, Data) else _data(loaded, calibration, preprocessing, memory_cap, limit)
    )
    del loaded
    request = Request(rules, opened_here, _Known(data), ranges, frozenset(keep_float), memory_cap, progress)
    request.found |= {"target": target, "scheme": scheme, "random data": data.random}
    # A file is read again where it is needed: its weights do not stay in memory in between.
    result = quantize.apply(name, _loaded(model), request)
    engine = _proven(result, model, target, data)
    if output is not None:
        _refuse_overwrite(output, force)
        result.save(output) if Path(output).suffix == ".onnx" else chosen.save(engine, Path(output))
    return result


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

    def opened(batch: int) -> Data:
        return feeds_for(model.inputs, "", calibration, preprocessing=contract, batch=batch, limit=limit)

    contract: Any = preprocessing if preprocessing is not None else model.preprocessing

    first = next(iter(opened(1)))
    sizes = {
        dim: size
        for spec in model.inputs
        for dim, size in zip(spec.shape, first[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }
    return opened(_batch(model, memory_cap, sizes))


def check_ranges(name: str) -> None:
    """Raise unless `name` is an estimator or "auto"."""
    from edgerun.errors import unknown
    from edgerun.quantize.numerics.ranges import ESTIMATORS

    if name not in ("auto", *ESTIMATORS):
        raise unknown("range estimator", name, ("auto", *ESTIMATORS))


def _proven(result: Model, original: Model | str | Path, target: str, data: Data) -> Engine:
    from edgerun.verbs.compile import compile

    feeds = [feeds for _, feeds in zip(range(2), data, strict=False)]
    return compile(result, target, feeds=feeds, original=original)


def opened_here(graph: ir.Model) -> Session:
    """A session of the measuring runtime for a graph in memory; its weights are not copied into the protobuf."""
    data, weights = without_weights(graph)
    return registry.target(MEASURER).load(Engine(MEASURER, data, weights=weights), Options())


class _Known:
    """Calibration data whose number of batches is known: a callable's is counted in a pass of its own."""

    def __init__(self, data: Data) -> None:
        self._data = data
        if data.samples is None:
            _ = data.digest

    def __iter__(self) -> Any:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    @property
    def digest(self) -> str:
        return self._data.digest


def _check_names(model: Model, keep_float: Iterable[str]) -> None:
    known = {str(node.name) for node in model.ir.graph}
    for name in keep_float:
        if name not in known:
            from edgerun.errors import unknown

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
