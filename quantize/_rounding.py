"""Second-order rounding of static INT8's weights: what inputs have in common is rounded away from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize import _steps
from edgerun.quantize._lanes import in_lanes
from edgerun.quantize.graphs import placement, windows
from edgerun.quantize.graphs.activation import Activation, Vectors
from edgerun.quantize.graphs.statistics import APART
from edgerun.quantize.graphs.windows import Window
from edgerun.quantize.numerics import gptq
from edgerun.quantize.numerics.grid import channel_bounds, symmetric

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

STEPS = 127  # of a weight's grid on either side of zero
INPUTS = 1536  # of an output, at most: second moments are INPUTS² numbers, and their factorization INPUTS³/3 products
VECTORS, ENOUGH = 768, 48  # of each input of a layer, over all samples, and for each number that an output reads
# Values, and the layers that read each of them in the same way, by weight: either is one.
Layer = tuple[list[str], list[list["ir.Node"]]]


def wanted(plan: placement.Plan, request: Request) -> dict[str, Window]:
    """The values of which `codes` needs vectors, and at which places."""
    assert request.calibration is not None
    if not _pays(request):
        return {}
    samples, rows = request.effort.first, request.calibration.batch or 1
    found: dict[str, Window] = {}
    for names, ((first, *_), *_) in _layers(plan):
        places = math.ceil(min(VECTORS, ENOUGH * windows.matrix(first).shape[1]) / samples / len(names))
        for name in names:
            most = max(places, found[name].places if name in found else 0)
            found[name] = Window(most, rows, *(windows.kernel(first) or ()))
    return found


def codes(plan: placement.Plan, seen: Mapping[str, Activation], request: Request) -> dict[str, np.ndarray]:
    """int8 codes, by node name, for the weights of `plan` that rounding to the second order brings nearer.

    Products and convolutions are tried whose outputs read at most INPUTS numbers. Every fourth batch of the vectors
    `seen` is kept apart and decides, output by output. Cost: INPUTS³/3 + INPUTS²·outputs products a layer, in lanes.
    """
    if not _pays(request):
        return {}
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    read = [([v for name in names if (v := seen[name].vectors).batches], layers) for names, layers in _layers(plan)]
    known = [(vectors, layers) for vectors, layers in read if vectors]
    found: dict[str, np.ndarray] = {}
    gains: list[float] = []
    with threadpool_limits(limits=1, user_api="blas"):  # lanes with two threads each wait for each other

        def rounded(layer: tuple[list[Vectors], list[list[ir.Node]]]) -> list[tuple[str, np.ndarray, float]]:
            return _rounded(*layer)

        for told, (_, made) in enumerate(in_lanes(rounded, known, request.lanes), 1):
            request.progress("rounding", told, len(known))
            gains += [gain for _, _, gain in made]
            found |= {name: stored for name, stored, gain in made if gain > 0}
    median = float(np.median(gains)) if gains else None
    request.found["rounded to the second order"] = {"layers": len(found), "tried": len(gains)} | {
        "less noise of weights, on data kept apart (median dB)": None if median is None else round(median, 1)
    }
    if median is not None:
        _steps.tell(request, _steps.ROUNDED, median, n=len(gains), measured=_steps.LAYER, kept=bool(found))
    return found


def _pays(request: Request) -> bool:
    """Codes that are repaired against saturation are chosen against sums that overflow, not against noise."""
    return request.effort.second and not request.rules.reduced_range


def _layers(plan: placement.Plan) -> list[Layer]:
    """The layers of `plan` by the value that they read: the second moments are the same. Those that share a weight by
    that: moments are summed. Who reads a value otherwise than its first reader is left out."""
    ways: dict[str, tuple[object, ...]] = {}
    found: dict[str, Layer] = {}
    for nodes in plan.sharing():
        if (kernel := windows.kernel(nodes[0])) is None or windows.matrix(nodes[0]).shape[1] > INPUTS:
            continue
        names = list(dict.fromkeys(str(node.inputs[0].name) for node in nodes))  # type: ignore[union-attr]
        way = kernel, windows.groups(nodes[0])
        same = all((windows.kernel(node), windows.groups(node)) == way for node in nodes)
        if same and all(ways.setdefault(name, way) == way for name in names):
            key = names[0] if len(names) == 1 else f"weight of {nodes[0].name}"
            found.setdefault(key, (names, []))[1].append(nodes)
    return list(found.values())


def _rounded(seen: list[Vectors], layers: list[list[ir.Node]]) -> list[tuple[str, np.ndarray, float]]:
    """Of every node its name, its codes as the weight has its axes, and by how many dB they lose less than nearest."""
    batches = [(vectors, index, batch) for vectors in seen for index, batch in enumerate(vectors.batches)]
    fit = np.concatenate([v.of([batch]) for v, index, batch in batches if index % APART < APART - 1])
    apart = [v.of([batch]) for v, index, batch in batches if index % APART == APART - 1]
    judge = np.concatenate(apart) if apart else fit
    weights, parts = [windows.matrix(nodes[0]) for nodes in layers], windows.groups(layers[0][0])
    weight = np.concatenate(weights)
    scale = symmetric(channel_bounds(weight, 0), axis=0, steps=STEPS).scale.reshape(-1)
    nearest = np.clip(np.rint(weight / scale[:, None]), -STEPS, STEPS).astype(np.int8)
    stored = _codes(weight, scale, fit, parts)
    before, after = (_lost(weight - codes * scale[:, None], judge, parts) for codes in (nearest, stored))
    stored = np.where((after < before)[:, None], stored, nearest)
    kept = np.minimum(before, after)
    found, start = [], 0
    for nodes, own in zip(layers, weights, strict=True):
        rows = slice(start, start := start + len(own))
        ratio = kept[rows].sum() / max(before[rows].sum(), np.finfo(np.float32).tiny)
        gain = -10 * float(np.log10(ratio)) if 0 < ratio < 1 else 0.0
        codes = windows.like_weight(nodes[0], stored[rows])
        found += [(str(node.name), codes, gain) for node in nodes]
    return found


def _codes(weight: np.ndarray, scale: np.ndarray, fit: np.ndarray, parts: int) -> np.ndarray:
    """int8 `[N, K]` for W `[N, K]` by vectors `[m, parts · K]`, of which every output reads those of its part."""
    if parts == 1:
        second = fit.T @ fit
        return gptq.symmetric(weight, scale, second, STEPS) if second.any() else np.zeros(weight.shape, np.int8)
    seen = fit.reshape(len(fit), parts, -1).transpose(1, 2, 0)
    wide = weight.reshape(parts, -1, weight.shape[1])
    return gptq.grouped(wide, scale.reshape(parts, -1), seen @ seen.transpose(0, 2, 1), STEPS).reshape(weight.shape)


def _lost(error: np.ndarray, judge: np.ndarray, parts: int) -> np.ndarray:
    """‖e_n·X‖² of every output `[N]`, float64, for errors `[N, K]` of a weight."""
    seen = judge.reshape(len(judge), parts, -1).transpose(1, 2, 0)
    error = error.astype(np.float32).reshape(parts, -1, error.shape[1])
    lost: np.ndarray = np.square(error @ seen).sum(axis=2, dtype=np.float64).reshape(-1)
    return lost
