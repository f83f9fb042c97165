"""What stays in float beside layers in 8 bits: stored in half the bytes, or computed in the half type of the target's
kernels, products and what leads from one to the next, as attention does. On a GPU float32 has no tensor cores, and
attention in it no kernel of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerun.quantize import _finished, _reached, _steps, _weights, weight_int8
from edgerun.quantize._scores import ERROR, gained
from edgerun.quantize._stream import telling
from edgerun.quantize.graphs import edit, halves, overflowing
from edgerun.quantize.numerics.half import HALVES

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request
    from edgerun.quantize._observation import Truth

LOSS_DB = 0.5  # that it may take of the outputs: a half type's own error is far below that of 8 bits
FOUND = "float layers in half precision"  # in the history
STORED = "float weights stored in 16 bits"
READERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather"})  # whose weights are unpacked but once


def stored(model: ir.Model, request: Request) -> ir.Model:
    """`model` itself, a Q/DQ graph, with the weights that its layers read as float32 stored in float16, where the rules
    widen them when they open it: computed is with float32, of 11 bits, an SQNR of about 72 dB (`Half.stored`).

    Not those of what is asked to stay float, nor what float16 does not hold."""
    if request.rules.widens:
        readers = [node for node in model.graph if node.op_type in READERS]
        kept, least = request.keep_float, weight_int8.LEAST
        request.found[STORED] = sum(weight_int8.store(node, least, kept, half=True) for node in readers)
    return model


def narrowed(model: ir.Model, truths: list[Truth], request: Request) -> ir.Model:
    """`model`, a Q/DQ graph, or a clone with its float products in the rules' `half`, where the target wants that.

    Not what is asked to stay float, nor what comes near to overflowing on the calibration data. The door, and whatever
    a quantizer reads or writes, stay float32. With more than LOSS_DB lost at the outputs all stays as it is.
    """
    if not request.rules.half_rest:
        return model
    half, result = HALVES[request.rules.half], model.clone()
    graph = result.graph
    refused = request.keep_float | {str(node.name) for node in graph if _on_integers(node)}
    able = halves.leading(halves.candidates(graph, refused, half))
    over = overflowing.found(model, able, half, request) if able else []
    nodes = halves.leading(halves.candidates(graph, refused | set(over), half))
    if not nodes:
        return model
    halves.narrow(graph, nodes, half)
    edit.drop_unused(result)
    before, after = (_finished.reached(one, truths, request) for one in (model, result))
    pairs = [pair for pair, tells in zip(zip(before, after, strict=True), telling(before), strict=True) if tells]
    gain, surely = gained([old for old, _ in pairs], [new for _, new in pairs], ERROR)
    kept = gain > -LOSS_DB
    _steps.tell(request, _steps.HALVED, gain, surely, n=len(pairs), measured=_steps.OUTPUT, kept=kept)
    if not kept:
        return model
    products = sum(node.op_type in halves.PRODUCTS for node in nodes)
    request.found[FOUND] = {"type": half.name, "products": products, "nodes": len(nodes), "overflowing": over}
    _reached.tell(model.graph, after, request, _finished.judge(truths, request.effort.check, request))
    return result


def everywhere(original: ir.Model, model: ir.Model, request: Request) -> ir.Model:
    """`model`, whose weights have few bits and whose arithmetic is float, or a clone with that in the rules' `half`,
    where the target wants that: all that can be, as in `w16a16`."""
    if not request.rules.half_rest:
        return model
    half, result = HALVES[request.rules.half], model.clone()
    over = overflowing.found(model, halves.candidates(model.graph, request.keep_float, half), half, request)
    nodes = halves.candidates(result.graph, request.keep_float | set(over), half)
    halves.narrow(result.graph, nodes, half)
    edit.drop_unused(result)
    request.found |= {f"nodes in {half.name}": len(nodes), "nodes": sum(1 for _ in model.graph), "overflowing": over}
    if request.calibration is None:
        request.found["overflowing"] = "not looked at (no data)"
    _weights.evidence(original, result, request)
    return result


def _on_integers(node: ir.Node) -> bool:
    """Whether it reads what a quantizer rounded."""
    return any(
        v is not None and (p := v.producer()) is not None and p.op_type == "DequantizeLinear" for v in node.inputs
    )
