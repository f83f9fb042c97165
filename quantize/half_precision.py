"""Half-precision arithmetic: products and what follows them, in the half type of the target's kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerun.errors import Unsupported
from edgerun.quantize import _weights, fold
from edgerun.quantize.graphs import edit, halves, overflowing
from edgerun.quantize.numerics.half import BFLOAT16, HALVES

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
    over = overflowing.found(original, able, half, request)
    nodes = halves.candidates(graph, refused | set(over), half)
    if not any(node.op_type in halves.PRODUCTS for node in nodes):
        raise Unsupported(f"no product of the model fits {half.name}", got=", ".join(over[:5]))
    total = sum(1 for _ in graph)
    if half is BFLOAT16:
        nodes = halves.leading(nodes)
        halves.surround(graph, nodes, half)
    else:
        halves.narrow(graph, nodes, half)
    edit.drop_unused(model)
    request.found |= {f"nodes in {half.name}": len(nodes), "nodes": total, "overflowing": over}
    if request.calibration is None:
        request.found["overflowing"] = "not looked at (no data)"
    _weights.evidence(original, model, request)
    return model


def integers(model: Model, rules: Quantization, keep_float: frozenset[str]) -> list[str]:
    """The products that go into the half type, in graph order."""
    graph = fold.apply(model.clone()).graph
    able = halves.candidates(graph, keep_float, HALVES[rules.half])
    return [str(node.name) for node in able if node.op_type in halves.PRODUCTS]
