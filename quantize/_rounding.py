"""Second-order rounding of static INT8's weights: what inputs have in common is rounded away from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize._lanes import in_lanes
from edgerun.quantize.graphs import placement
from edgerun.quantize.graphs.activation import Activation, Vectors
from edgerun.quantize.graphs.edit import constant
from edgerun.quantize.numerics import gptq
from edgerun.quantize.numerics.grid import channel_bounds, symmetric

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

STEPS = 127  # of a weight's grid on either side of zero
INPUTS = 1536  # of a layer, at most: its second moments are INPUTS² numbers, and their factorization INPUTS³/3 products
VECTORS = 768  # of each input of a layer, over all samples: 3 kB for every channel; twice as many are no better
APART = 4  # every fourth batch judges
Layer = tuple[str, list["ir.Node"]]  # a value, and the nodes that read it


def wanted(plan: placement.Plan, request: Request) -> dict[str, int]:
    """The values whose vectors `codes` needs, and how many of them of each batch of the first samples."""
    assert request.calibration is not None
    if not _pays(request):
        return {}
    count = max(1, VECTORS * (request.calibration.batch or 1) // request.effort.first)
    return {name: count for name, _ in _layers(plan)}


def codes(plan: placement.Plan, seen: Mapping[str, Activation], request: Request) -> dict[str, np.ndarray]:
    """int8 codes, by node name, for the weights of `plan` that rounding to the second order brings nearer.

    Products and 1x1 convolutions with at most INPUTS inputs are tried. Every fourth batch of the vectors `seen` is kept
    apart and decides, layer by layer. Cost: INPUTS³/3 + INPUTS²·outputs products a layer, one at a time in each lane.
    """
    if not _pays(request):
        return {}
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    layers = [layer for layer in _layers(plan) if seen[layer[0]].vectors.batches]
    found: dict[str, np.ndarray] = {}
    gains: list[float] = []
    with threadpool_limits(limits=1, user_api="blas"):  # lanes with two threads each wait for each other

        def rounded(layer: Layer) -> list[tuple[str, np.ndarray, float]]:
            return _rounded(layer[1], seen[layer[0]].vectors)

        for told, (_, made) in enumerate(in_lanes(rounded, layers, request.lanes), 1):
            request.progress("rounding", told, len(layers))
            gains += [gain for _, _, gain in made]
            found |= {name: stored for name, stored, gain in made if gain > 0}
    request.found["rounded to the second order"] = {"layers": len(found), "tried": len(gains)} | {
        "less noise of weights, on data kept apart (median dB)": round(float(np.median(gains)), 1) if gains else None
    }
    return found


def _pays(request: Request) -> bool:
    """Codes that are repaired against saturation are chosen against sums that overflow, not against noise."""
    return request.effort.second and not request.rules.reduced_range


def _layers(plan: placement.Plan) -> list[Layer]:
    """The matrices of `plan`, by what they read: their inputs' second moments are the same."""
    readers: dict[str, list[ir.Node]] = {}
    for node in plan.weights:
        if _is_matrix(node) and _matrix(node).shape[1] <= INPUTS:
            readers.setdefault(str(node.inputs[0].name), []).append(node)  # type: ignore[union-attr]
    return list(readers.items())


def _is_matrix(node: ir.Node) -> bool:
    weight = constant(node.inputs[1])
    assert weight is not None
    if node.op_type == "Conv":
        return weight.ndim == 4 and weight.shape[2:] == (1, 1) and node.attributes.get_int("group", 1) == 1
    return node.op_type in ("MatMul", "Gemm") and weight.ndim == 2 and not node.attributes.get_int("transA", 0)


def _rows_first(node: ir.Node) -> bool:
    return node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1


def _matrix(node: ir.Node) -> np.ndarray:
    """The weight as `[N, K]`."""
    weight = constant(node.inputs[1])
    assert weight is not None
    return weight.reshape(weight.shape[:2]) if _rows_first(node) else weight.T


def _rounded(nodes: list[ir.Node], vectors: Vectors) -> list[tuple[str, np.ndarray, float]]:
    """Of every node its name, its codes as the weight has its axes, and by how many dB they lose less than nearest."""
    batches = vectors.batches
    apart = batches[APART - 1 :: APART] or batches
    fit = vectors.of([batch for index, batch in enumerate(batches) if index % APART < APART - 1])
    weights = [_matrix(node) for node in nodes]
    weight, judge = np.concatenate(weights), vectors.of(apart)
    scale = symmetric(channel_bounds(weight, 0), axis=0, steps=STEPS).scale.reshape(-1)
    second = fit.T @ fit
    if not second.any():
        return []
    stored = gptq.symmetric(weight, scale, second, STEPS)
    nearest = np.clip(np.rint(weight / scale[:, None]), -STEPS, STEPS)
    lost = [np.square((weight - codes * scale[:, None]) @ judge.T).sum(axis=1) for codes in (nearest, stored)]
    found, start = [], 0
    for node, own in zip(nodes, weights, strict=True):
        rows = slice(start, start := start + len(own))
        before, after = (float(part[rows].sum(dtype=np.float64)) for part in lost)
        gain = 10 * float(np.log10(before / after)) if before > 0 and after > 0 else 0.0
        codes, whole = stored[rows] if _rows_first(node) else stored[rows].T, constant(node.inputs[1])
        assert whole is not None
        found.append((str(node.name), np.ascontiguousarray(codes).reshape(whole.shape), gain))
    return found
