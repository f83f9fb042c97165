"""Weight-only INT4 in blocks of 32 inputs: second-order rounding, and 8 bits where 4 cost too much."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.checkpoint import Memo
from edgerun.quantize import _recurrent, _resumed, _scores, _spare, _steps, _weights, weight_int8
from edgerun.quantize._lanes import in_lanes
from edgerun.quantize._observation import samples_in
from edgerun.quantize._sequences import LAYERS as LOOPS
from edgerun.quantize.graphs import compressed, dynamic, edit, moments
from edgerun.quantize.graphs.compressed import Blocks, Form
from edgerun.quantize.numerics import blocks, gptq

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

summary = "weight-only INT4 in blocks of 32 (GPTQ where calibration data is given), INT8 tables; smaller, not faster"
needs_calibration = False
scheme = "w4a16_b32"

FORM, BITS = Form(32), 4
LAYERS, MOMENTS_OF = "rounded layers", "second moments"  # in a checkpoint
log = logging.getLogger("edgerun")
MOMENTS = 192 << 20  # bytes of second moments that are held at once
FLOOR_DB = 21.0  # of the outputs on data kept apart: layers go to 8 bits until it is met (20 dB is a cosine of .995)
WHAT = "MatMul or Gemm with a constant float32 matrix"


@dataclass(frozen=True)
class Prepared:
    """The folded float model, its products' weights in 4 bits, by the node's name, and codes of recurrent weights."""

    original: ir.Model
    rounded: dict[str, Rounded]
    form: Form = FORM
    loops: weight_int8.Rounded = field(default_factory=dict)

    def copy(self) -> Prepared:
        """Itself: `finish` changes nothing of it."""
        return self


@dataclass(frozen=True)
class Rounded:
    """A product's weight in 4 bits: as it is to be stored, and as rounding to nearest would have it."""

    weight: Blocks
    nearest: Blocks


def apply(model: ir.Model, request: Request) -> ir.Model:
    """Round the weights of products to 4 bits and tables to 8; with calibration data, to the second order.

    Rounding is GPTQ (`quantize/numerics/gptq.py`) with the second moments of the float model's activations. Of the
    data, every fourth batch is kept apart: it decides how many layers, those that lose most first, need 8 bits.
    """
    return finish(prepare(model, request), request)


def prepare(model: ir.Model, request: Request, form: Form = FORM) -> Prepared:
    """Fold, and round the weight of every product that may have 4 bits."""
    original = _weights.begin(model, request)
    nodes = [node for node in _products(original, request) if form.fits(_inputs(node))]
    loops = _recurrent.codes(
        original, [n for n in _others(original, request) if n.name not in request.keep_float], request
    )
    return Prepared(original, _rounded(original, nodes, form, request), form, loops)


def finish(prepared: Prepared, request: Request) -> ir.Model:
    """Choose rounding and bits on data kept apart, and store the weights; arithmetic stays float."""
    return stored(prepared, request, integer=False)


def stored(prepared: Prepared, request: Request, *, integer: bool) -> ir.Model:
    """The model with its weights in 4 bits, and in 8 where 4 cost too much.

    With `integer` their inputs are rounded to int8 while it runs, by blocks, as MatMulNBits does where it may.
    """
    from edgerun import external

    original, model = prepared.original, prepared.original.clone()
    nodes = [node for node in _products(model, request) if str(node.name) in prepared.rounded]
    rounded = {str(node.name): prepared.rounded[str(node.name)] for node in nodes}
    wide: list[str] = []
    request.found["rounding"] = "nearest"
    if request.calibration is not None:
        few, judge = (_weights.truths(original, data, request) for data in _spare.apart(request))
        rounded = _better(original, rounded, judge, request)
        sizes = {str(node.name): _size(node) for node in nodes}
        trial = functools.partial(_trial, original, rounded)
        wide = _spare.spared(sizes, trial, FLOOR_DB, (few, judge), request, "layers in 4 bits")
    blocked = integer or external.weight_bytes(original) > external.ABOVE
    for node in nodes:
        if str(node.name) not in wide:
            prepared.form.store(model, node, rounded[str(node.name)].weight, integer=integer)
        elif prepared.form.qdq:  # with 8-bit weights and float inputs nothing there computes
            continue
        elif blocked:
            # Where two products are added in 16 bits, codes of 7 bits keep the sum of u8 by s8 below its end.
            narrow = integer and request.rules.reduced_range
            weight_int8.store_blocked(model, node, FORM.block, 8 - int(narrow), integer=integer)
        else:
            weight_int8.store(node, 0, request.keep_float)
    kept, codes = request.keep_float, prepared.loops
    others = [n for n in _others(model, request) if weight_int8.store(n, weight_int8.LEAST, kept, rounded=codes)]
    loops = [str(node.name) for node in others if node.op_type != "Gather"]
    if loops:
        request.found[LOOPS] = {"weights in 8 bits": loops}
    edit.drop_unused(model)
    request.found |= {
        "weights in 4 bits": len(nodes) - len(wide),
        "weights in float" if prepared.form.qdq else "weights in 8 bits": len(wide),
        "tables in 8 bits": len(others) - len(loops),
    }
    _weights.evidence(original, model, request)
    return model


def _products(model: ir.Model, request: Request) -> list[ir.Node]:
    products = [n for n in model.graph if dynamic.weight(n) is not None]
    return _weights.chosen(products, request, WHAT, _others(model, request))


def _others(model: ir.Model, request: Request) -> list[ir.Node]:
    return weight_int8.others(model.graph) if request.rules.tables else []


def _rounded(model: ir.Model, nodes: list[ir.Node], form: Form, request: Request) -> dict[str, Rounded]:
    """The rounded weight of every product, by the node's name; moments are held for as many as `MOMENTS` allows."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    found = _recalled(form, request)
    _resumed.claim(request, MOMENTS_OF)
    readers: dict[str, list[ir.Node]] = {}
    for node in nodes:
        if str(node.name) in found:
            edit.forget(node.inputs[1])
            continue
        readers.setdefault(str(node.inputs[0].name), []).append(node)  # type: ignore[union-attr]
    sizes = {name: weight_int8.matrix(group[0]).shape[1] for name, group in readers.items()}
    for names in moments.groups(sizes, MOMENTS):
        seen: dict[str, np.ndarray] = {}
        if request.calibration is not None:
            sums = _resumed.Sums(request, MOMENTS_OF, names)
            with request.open(moments.with_outputs(model, names)) as session:
                seen = moments.accumulate(session, sums.over(_spare.fitting(request)), names, sums.found)
        waiting = [(node, seen.get(name)) for name in names for node in readers[name]]
        with threadpool_limits(limits=1, user_api="blas"):  # lanes with two threads each wait for each other
            for (node, _), made in in_lanes(lambda pair: _round(*pair, form), waiting, request.lanes):
                found[str(node.name)] = made
                request.progress("rounding", len(found), len(nodes))
                _keep(found, request)
    _keep(found, request, whole=True)
    return found


def _keep(found: Mapping[str, Rounded], request: Request, *, whole: bool = False) -> None:
    def state() -> dict[str, np.ndarray]:
        told: dict[str, np.ndarray] = {}
        for name, made in found.items():
            own = made.weight
            arrays = own.stored, own.scale, own.zero_point, made.nearest.stored, np.array(own.inputs)
            told |= {f"{index}/{name}": array for index, array in enumerate(arrays)}
        return told

    if request.checkpoint is not None and found:
        request.checkpoint.offer(_resumed.part(request, LAYERS), state, whole=whole)


def _recalled(form: Form, request: Request) -> dict[str, Rounded]:
    """The layers that a killed run had rounded."""
    known = request.checkpoint.recall(_resumed.part(request, LAYERS)) if request.checkpoint else None
    found: dict[str, Rounded] = {}
    for name in [key[2:] for key in known or () if key.startswith("0/")]:
        assert known is not None
        stored, scale, zero_point, nearest, inputs = (known[f"{index}/{name}"] for index in range(5))
        own = Blocks(stored, scale, zero_point, int(inputs), BITS, form.block)
        found[name] = Rounded(own, replace(own, stored=nearest))
    if found:
        log.info("resuming: %d %s are known", len(found), LAYERS)
    return found


def _size(node: ir.Node) -> int:
    weight = dynamic.weight(node)
    assert weight is not None
    return weight.size


def _inputs(node: ir.Node) -> int:
    weight = dynamic.weight(node)
    assert weight is not None
    return len(weight)


def _round(node: ir.Node, second: np.ndarray | None, form: Form) -> Rounded:
    weight = _weights.finite(node, weight_int8.matrix(node))
    edit.forget(node.inputs[1])
    if second is None:
        grid = blocks.fitted(weight, form.block, BITS, symmetric=form.qdq)
        nearest = Blocks.of(grid.quantize(weight), grid)
        return Rounded(nearest, nearest)
    own = np.diag(second)
    share = own / own.mean() if own.any() else None
    grid = blocks.fitted(weight, form.block, BITS, share, symmetric=form.qdq)
    return Rounded(*(Blocks.of(codes, grid) for codes in (gptq.rounded(weight, second, grid), grid.quantize(weight))))


def _better(
    original: ir.Model, rounded: dict[str, Rounded], judge: list[_weights.Truth], request: Request
) -> dict[str, Rounded]:
    """Second-order rounding where it is nearer to float on data that it has not seen, else rounding to nearest."""
    nearest = {name: Rounded(part.nearest, part.nearest) for name, part in rounded.items()}
    memo = Memo(request.checkpoint, "trials of roundings", *_resumed.about(request), *sorted(request.keep_float))

    tries = {"second order": rounded, "nearest": nearest}
    lost = [
        _weights.lost(memo, name, functools.partial(_trial, original, tried, rounded), judge, request)
        for name, tried in tries.items()
    ]
    reached = [_scores.sqnr(scores, _scores.counted(*lost)) for scores in lost]
    if pays := reached[0] > reached[1]:
        request.found["rounding"] = "second order"
    request.found["dB of second order and of nearest"] = [round(db, 2) for db in reached]
    n = sum(samples_in(truth.feeds, request) for truth in judge)
    _steps.tell(request, _steps.ROUNDED, reached[0] - reached[1], n=n, measured=_steps.OUTPUT, kept=pays)
    return rounded if pays else nearest


def _trial(original: ir.Model, rounded: Mapping[str, Rounded], names: Iterable[str]) -> ir.Model:
    """The float model in which the products `names` have their 4-bit weights."""
    trial, chosen = original.clone(), set(names)
    for node in list(trial.graph):
        if str(node.name) in chosen:
            compressed.blocked_product(trial, node, rounded[str(node.name)].weight, integer=False)
    edit.drop_unused(trial)
    return trial
