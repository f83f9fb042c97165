"""What a model asks of who compares it: how much there is to compute, and whether it rounds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgerun.model import Model

ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "MatMulNBits"})
# Where ONNX's conformance cases side with its evaluator against runtimes that agree with each other.
DISPUTED = frozenset({"Resize"})
LIGHT_MACS, LIGHT_WEIGHTS = 25e6, 20e6  # above either, the evaluator takes too long


def rounds(model: Model) -> bool:
    """Whether it has steps that a tie can move: quantizers, or float16."""
    graph = model.ir.graph
    constants = (value.const_value for value in graph.initializers.values())
    half = any(tensor is not None and tensor.dtype.name in ("FLOAT16", "BFLOAT16") for tensor in constants)
    half = half or any(spec.dtype == "float16" for spec in (*model.inputs, *model.outputs))
    return half or any(node.op_type in ROUNDING for node in graph.all_nodes())


def disputed(model: Model) -> bool:
    """Whether two runtimes that agree against the evaluator may share a fault."""
    return any(node.op_type in DISPUTED for node in model.ir.graph.all_nodes())


def heavy(model: Model) -> bool:
    """Whether the reference evaluator would take too long for it."""
    tensors = (value.const_value for value in model.ir.graph.initializers.values())
    return sum(t.size for t in tensors if t is not None) > LIGHT_WEIGHTS or _macs(model) > LIGHT_MACS


def large(model: Model) -> bool:
    """Whether its weights are over 1.8 GB as floats, which a runtime may make of them: too much for two sessions."""
    from edgerun import external

    tensors = (value.const_value for value in model.ir.graph.initializers.values())
    return 4 * sum(t.size for t in tensors if t is not None) > external.ABOVE


def _macs(model: Model) -> float:
    """Multiply-accumulates of a run with every symbolic dimension 1; inf when a shape stays unknown."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model.to_proto()).graph
    shapes = {t.name: list(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
    total = 0.0
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            first, second, out = (shapes.get(name) for name in (*node.input[:2], node.output[0]))
            if first is None or second is None or out is None:
                return math.inf
            if node.op_type == "Conv":
                total += math.prod(out) * math.prod(second[1:])
            elif node.op_type == "ConvTranspose":
                total += math.prod(first) * math.prod(second[1:])
            else:
                total += math.prod(out) * math.prod(first) / max(1, math.prod(out[:-1]))
    return total
