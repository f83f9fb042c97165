"""Half-precision arithmetic: products and what follows them, in the half type of the target's kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun.errors import Unsupported
from edgerun.quantize import _weights, fold
from edgerun.quantize._observation import samples_in
from edgerun.quantize.graphs import edit, halves
from edgerun.quantize.graphs.statistics import Watch
from edgerun.quantize.numerics.half import BFLOAT16, HALVES, Half

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.model import Model
    from edgerun.passes import Quantization, Request

summary = (
    "weights and arithmetic in float16 (GPUs) or bfloat16 (CPUs with AMX), but for what would overflow: half the size"
)
needs_calibration = False
scheme = "w16a16"


def apply(model: ir.Model, request: Request) -> ir.Model:
    """Run products and what follows them in the rules' `half`. With calibration data, not where it comes near to
    overflowing.

    The door stays float32. How many nodes are in that type, and which overflow, goes into the history; without data
    nobody knows, and it says so.
    """
    original, half = _weights.begin(model, request), HALVES[request.rules.half]
    graph = model.graph
    able = halves.candidates(graph, frozenset(), half)
    products = [node for node in able if node.op_type in halves.PRODUCTS]
    free = _weights.chosen(products, request, "matrix product or convolution")
    if not free:
        raise _weights.all_kept(request)
    refused = {str(node.name) for node in products} - {str(node.name) for node in free}
    overflowing = _overflowing(original, able, half, request)
    nodes = halves.candidates(graph, refused | set(overflowing), half)
    if not any(node.op_type in halves.PRODUCTS for node in nodes):
        raise Unsupported(f"no product of the model fits {half.name}", got=", ".join(overflowing[:5]))
    total = sum(1 for _ in graph)
    if half is BFLOAT16:
        nodes = halves.leading(nodes)
        halves.surround(graph, nodes, half)
    else:
        halves.narrow(graph, nodes, half)
    edit.drop_unused(model)
    request.found |= {f"nodes in {half.name}": len(nodes), "nodes": total, "overflowing": overflowing}
    if request.calibration is None:
        request.found["overflowing"] = "not looked at (no data)"
    _weights.evidence(original, model, request)
    return model


def integers(model: Model, rules: Quantization, keep_float: frozenset[str]) -> list[str]:
    """The products that go into the half type, in graph order."""
    graph = fold.apply(model.clone()).graph
    able = halves.candidates(graph, keep_float, HALVES[rules.half])
    return [str(node.name) for node in able if node.op_type in halves.PRODUCTS]


def _overflowing(original: ir.Model, nodes: list[ir.Node], half: Half, request: Request) -> list[str]:
    """The names of nodes with an input or output beyond what `half` holds, with its room, on the calibration data,
    where there is some."""
    if request.calibration is None:
        return []
    names = {str(node.name) for node in nodes}
    touched = {
        str(node.name): [str(v.name) for v in (*node.inputs, *node.outputs) if v is not None and not v.is_initializer()]
        for node in original.graph if node.name in names
    }  # fmt: skip
    floats = {
        str(value.name)
        for value in (*original.graph.inputs, *(v for node in original.graph for v in node.outputs))
        if value.dtype is not None and int(value.dtype) == halves.FLOAT
    }
    watched = sorted({value for values in touched.values() for value in values} & floats)
    watch, seen = Watch(original, watched, 1), 0
    with request.open(watch.graph(False)) as session:
        for feeds in request.calibration:
            request.progress("looking for overflow", seen, request.calibration.samples or 0)
            watch.add(session.run(feeds))
            seen += samples_in(feeds, request)
            if seen >= request.effort.first:
                break
    lows, highs = watch.extremes(watched)
    peaks = np.maximum(-lows.min(axis=0), highs.max(axis=0))
    bad = {name for name, peak in zip(watched, peaks, strict=True) if not peak <= half.largest / half.room}
    return [name for name, values in touched.items() if bad & set(values)]
