"""What the passes that store weights in fewer bits share: how they begin, and the evidence that they end with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from edgerun.errors import EdgerunError, Unsupported
from edgerun.quantize import _masked, _observation, _reached, fold
from edgerun.quantize._lanes import in_lanes
from edgerun.quantize._stream import Totals, as_array, as_totals, by_sample
from edgerun.quantize.graphs import compared, gelus
from edgerun.quantize.numerics.grid import channel_bounds, symmetric

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.checkpoint import Memo
    from edgerun.passes import Feeds, Request, Runner

QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeLSTM", "MatMulNBits")


def begin(model: ir.Model, request: Request) -> ir.Model:
    """Fold `model` in place; a clone of it, which shares its weights, to compare with.

    Raises EdgerunError for a quantized model, and for options that have no effect here.
    """
    for node in model.graph.all_nodes():
        if node.op_type in QUANTIZED or "Integer" in node.op_type:
            raise EdgerunError("the model is quantized already", got=f"{node.op_type} {node.name!r}",
                               wanted="a float model", do="compress the model that it was made from")  # fmt: skip
    if request.ranges != "auto":
        raise EdgerunError("this scheme has no activation ranges to estimate", got=f"ranges {request.ranges}",
                           do="leave --ranges away")  # fmt: skip
    fold.apply(model)
    original = model.clone()
    if request.rules.fast_gelu:
        gelus.join(model)
    _masked.raised(model, request)
    return original


def chosen(candidates: Iterable[ir.Node], request: Request, what: str, beside: Iterable[ir.Node] = ()) -> list[ir.Node]:
    """The candidates that are not to be kept in float. Raises Unsupported when there is nothing to do.

    What stands `beside` them may be kept too.
    """
    nodes = list(candidates)
    names = {str(node.name) for node in (*nodes, *beside)}
    for name in request.keep_float:
        if name not in names:
            raise EdgerunError(f"keeping {name!r} in float has no effect: this scheme leaves it alone",
                               wanted=f"the name of a {what}")  # fmt: skip
    if not nodes:
        raise Unsupported("this scheme finds nothing to store smaller in the model", wanted=f"a {what}")
    return [node for node in nodes if node.name not in request.keep_float]


def all_kept(request: Request) -> Unsupported:
    """The refusal where nothing is left to do since all of it is to stay in float."""
    names = sorted(request.keep_float)
    got = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return Unsupported("--keep-float leaves nothing that this scheme would change", got=got, do="name fewer nodes")


def finite(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """`weight` itself. Raises EdgerunError when it holds a NaN or an infinity."""
    if not np.isfinite(weight).all():
        raise EdgerunError(f"the weight of {node.name!r} is not finite", do="repair the float model")
    return weight


def per_channel(weight: np.ndarray, axes: tuple[int, ...], steps: int = 127) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes like `weight`, and their float32 scale with size 1 on `axes`: symmetric, one scale over `axes`."""
    kept = [i for i in range(weight.ndim) if i not in axes]
    moved = weight.transpose(*kept, *axes)
    rows = moved.reshape(int(np.prod(moved.shape[: len(kept)])), -1)
    grid = symmetric(channel_bounds(rows, 0), axis=0, steps=steps)
    codes = grid.quantize(rows).reshape(moved.shape).transpose(np.argsort([*kept, *axes]))
    return np.ascontiguousarray(codes), grid.scale.reshape([1 if i in axes else n for i, n in enumerate(weight.shape)])


@dataclass(frozen=True)
class Truth:
    """What the float model computes on one batch of calibration data."""

    feeds: Feeds
    outputs: dict[str, np.ndarray]


def truths(original: ir.Model, batches: Iterable[Feeds], request: Request) -> list[Truth]:
    """What the float model gives at the outputs that are `compared`. Raises Unsupported when it has none, EdgerunError
    when one overflows."""
    names = compared.outputs(original.graph)
    with request.open(original, lanes=request.lanes) as session:
        runs = in_lanes(session.run, batches, request.lanes)
        found = [Truth(feeds, {name: out[name] for name in names}) for feeds, out in runs]
    if not all(np.isfinite(array).all() for truth in found for array in truth.outputs.values() if array.size):
        raise EdgerunError("an output is not finite on the calibration data",
                           do="check the preprocessing; run the float model on the same data")  # fmt: skip
    return found


def lost(memo: Memo, key: str, make: Callable[[], ir.Model], wanted: Sequence[Truth], request: Request) -> list[Totals]:
    """What a trial loses of each sample, for `_scores.sqnr`; made where the `memo` does not know it by that `key`."""
    found = memo.get(f"lost: {key}", lambda: as_array(scores(make(), wanted, request)))
    return as_totals(found, list(wanted[0].outputs))


def scores(result: ir.Model, wanted: Sequence[Truth], request: Request) -> list[Totals]:
    """What is lost of each sample."""
    with request.open(result) as session:
        return by(session.run, wanted, request)


def by(run: Runner, wanted: Sequence[Truth], request: Request) -> list[Totals]:
    """What who `run`s a model loses of each sample."""
    found: list[Totals] = []
    for truth in wanted:
        own = _observation.Truth(_observation.samples_in(truth.feeds, request), truth.outputs, {})
        found += by_sample(own, run(truth.feeds))
    return found


def evidence(original: ir.Model, result: ir.Model, request: Request) -> None:
    """Write the SQNR on calibration data into the history, where there is such data."""
    if request.calibration is None:
        return
    few: list[Feeds] = []
    for feeds in request.calibration:
        few.append(feeds)
        if sum(_observation.samples_in(one, request) for one in few) >= request.effort.check:
            break
    request.progress("comparing", 0, 0)
    wanted = truths(original, few, request)
    _reached.tell(original.graph, scores(result, wanted, request), request, partial(by, wanted=wanted, request=request))
