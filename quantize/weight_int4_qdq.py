"""Weight-only INT4 in Q/DQ form: blocks of 64 inputs around zero, which TensorRT has kernels for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerun.quantize import _rest, weight_int4
from edgerun.quantize.graphs import opsets
from edgerun.quantize.graphs.compressed import Form

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

summary = "weight-only INT4 as Q/DQ in blocks of 64 (GPTQ where calibration data is given), float16 between, for GPUs"
needs_calibration = False
scheme = "w4a16_b64"

# TensorRT's blocks have 64 or 128 inputs, and no zero point (its guide, Quantization Schemes).
FORM = Form(64, qdq=True)
OLDEST_OPSET = 21  # whose DequantizeLinear has int4 and blocks


def apply(model: ir.Model, request: Request) -> ir.Model:
    """As `weight_int4.apply`; a layer that would lose too much in 4 bits keeps its float weights."""
    return finish(prepare(model, request), request)


def prepare(model: ir.Model, request: Request) -> weight_int4.Prepared:
    """Bring it to an opset with 4-bit integers, fold, and round. Raises Unsupported where there is no way to one."""
    return weight_int4.prepare(opsets.at_least(model, OLDEST_OPSET, "4-bit integers"), request, FORM)


def finish(prepared: weight_int4.Prepared, request: Request) -> ir.Model:
    """Choose rounding and bits on data kept apart, and store the weights; arithmetic is float16 where values fit."""
    return _rest.everywhere(prepared.original, weight_int4.stored(prepared, request, integer=False), request)
