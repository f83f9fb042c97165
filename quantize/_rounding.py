"""Second-order rounding of static INT8's weights: what inputs have in common is rounded away from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize._lanes import in_lanes
from edgerun.quantize._observation import batches
from edgerun.quantize.graphs import moments, placement
from edgerun.quantize.graphs.edit import constant
from edgerun.quantize.numerics import gptq
from edgerun.quantize.numerics.grid import Grid

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

STEPS = 127  # of a weight's grid on either side of zero
INPUTS = 2048  # of a layer, at most: its second moments are INPUTS² numbers, and their factorization INPUTS³/3 products
MOMENTS = 192 << 20  # bytes of second moments that are held at once
APART = 4  # every fourth batch judges
Moments = dict[str, np.ndarray]


def codes(model: ir.Model, plan: placement.Plan, grids: Mapping[str, Grid], request: Request) -> dict[str, np.ndarray]:
    """int8 codes, by node name, for the weights of the float `model` that rounding to the second order brings nearer.

    Products and 1x1 convolutions with at most INPUTS inputs are tried; `grids` are those of all nodes. The first
    `effort.second` samples give the moments; every fourth batch of them is kept apart and decides, layer by layer.
    """
    readers: dict[str, list[ir.Node]] = {}
    for node in plan.weights:
        if _axis(node) is not None and _matrix(node).shape[1] <= INPUTS:
            readers.setdefault(str(node.inputs[0].name), []).append(node)  # type: ignore[union-attr]
    found: dict[str, np.ndarray] = {}
    gains: list[float] = []
    sizes = {name: _matrix(nodes[0]).shape[1] for name, nodes in readers.items()}
    for names in moments.groups(sizes, MOMENTS):
        fit, judge = _moments(model, {name: _axis(readers[name][0]) or -1 for name in names}, request)

        def tried(item: tuple[str, ir.Node]) -> tuple[np.ndarray, float]:
            name, node = item
            return _tried(node, grids[str(node.name)], fit[name], judge.get(name, fit[name]))  # noqa: B023

        items = [(name, node) for name in names for node in readers[name]]
        for (_, node), (stored, gain) in in_lanes(tried, items, request.lanes):
            gains.append(gain)
            request.progress("rounding", len(gains), sum(map(len, readers.values())))
            if gain > 0:
                found[str(node.name)] = stored
    told = {"layers": len(found), "tried": len(gains)}
    request.found["rounded to the second order"] = told | {
        "less noise of weights, on data kept apart (median dB)": round(float(np.median(gains)), 1) if gains else None
    }
    return found


def _axis(node: ir.Node) -> int | None:
    """Where the channels of what `node` reads are; None where it has more to it than a matrix."""
    weight = constant(node.inputs[1])
    assert weight is not None
    if node.op_type == "Conv":
        whole = weight.ndim == 4 and weight.shape[2:] == (1, 1) and node.attributes.get_int("group", 1) == 1
        return 1 if whole else None
    matrix = node.op_type in ("MatMul", "Gemm") and weight.ndim == 2 and not node.attributes.get_int("transA", 0)
    return -1 if matrix else None


def _rows_first(node: ir.Node) -> bool:
    return node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1


def _matrix(node: ir.Node) -> np.ndarray:
    """The weight as `[N, K]`."""
    weight = constant(node.inputs[1])
    assert weight is not None
    return weight.reshape(weight.shape[:2]) if _rows_first(node) else weight.T


def _moments(model: ir.Model, axes: Mapping[str, int], request: Request) -> tuple[Moments, Moments]:
    """Second moments `[K, K]`, float32, of these values: to round by, and to judge by (none where one batch is all)."""
    parts: tuple[Moments, Moments] = {}, {}
    with request.open(moments.with_outputs(model, list(axes)), lanes=request.lanes) as session:
        items = enumerate(batches(request, request.effort.second, "second moments"))
        for (index, _), found in in_lanes(lambda i: moments.products(session, i[1], axes), items, request.lanes):
            part = parts[index % APART == APART - 1]
            for name, product in found.items():
                part[name] = part[name] + product if name in part else product
    return parts


def _tried(node: ir.Node, grid: Grid, fit: np.ndarray, judge: np.ndarray) -> tuple[np.ndarray, float]:
    """Codes as the weight has its axes, and by how many dB its noise is less than nearest rounding's."""
    weight, whole = _matrix(node), constant(node.inputs[1])
    assert whole is not None
    scale = np.broadcast_to(grid.scale.reshape(-1), len(weight))
    stored = gptq.symmetric(weight, scale, fit, STEPS)
    nearest = np.clip(np.rint(weight / scale[:, None]), -STEPS, STEPS)
    before, after = (_loss(weight - c * scale[:, None], judge) for c in (nearest, stored))
    gain = 10 * float(np.log10(before / after)) if before > 0 and after > 0 else 0.0
    return np.ascontiguousarray(stored if _rows_first(node) else stored.T).reshape(whole.shape), gain


def _loss(error: np.ndarray, second: np.ndarray) -> float:
    error = error.astype(np.float32)
    return float(np.einsum("nk,nk->", error @ second, error, dtype=np.float64))
