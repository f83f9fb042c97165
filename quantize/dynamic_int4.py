"""4-bit weights and 8-bit activations: weights as in `weight_int4`, inputs rounded to int8 by blocks while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerun.quantize import fold, weight_int4
from edgerun.quantize.graphs import dynamic

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.model import Model
    from edgerun.passes import Quantization, Request

summary = "INT4 weights as in w4a16_b32, activations quantized to INT8 as they come, in blocks of 32; matrix products"
needs_calibration = False
scheme = "w4a8"

prepare = weight_int4.prepare


def apply(model: ir.Model, request: Request) -> ir.Model:
    """Store the weights as `weight_int4` does, and let the products run on integers."""
    return finish(prepare(model, request), request)


def finish(prepared: weight_int4.Prepared, request: Request) -> ir.Model:
    """Choose rounding and bits on data kept apart, and store the weights; products on integers."""
    model = weight_int4.stored(prepared, request, integer=True)
    request.found["integer nodes"] = sum(node.op_type == "MatMulNBits" for node in model.graph)
    return model


def integers(model: Model, rules: Quantization, keep_float: frozenset[str]) -> list[str]:
    """The nodes that go on integers, in graph order."""
    folded = fold.apply(model.clone())
    return [str(n.name) for n in folded.graph if dynamic.weight(n) is not None and n.name not in keep_float]
