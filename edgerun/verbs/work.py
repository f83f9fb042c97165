"""What a model asks of who compares it: how much there is to compute, and whether it rounds."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from edgerun import sandbox
from edgerun.errors import EdgerunError

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.model import Model

ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "MatMulNBits"})
PLAIN = frozenset({"half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"})  # of Resize, beyond dispute
BFLOAT16 = 16  # TensorProto's
_COUNTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
FASTEST = 2e11  # multiply-accumulates of float32 a second that no core reaches: two 16-wide units at 6 GHz
LIGHT_MACS, LIGHT_WEIGHTS = 25e6, 20e6  # above either, the evaluator takes too long


def rounds(model: Model) -> bool:
    """Whether it has steps that a tie can move: quantizers, or float16."""
    graph = model.ir.graph
    constants = (value.const_value for value in graph.initializers.values())
    half = any(tensor is not None and tensor.dtype.name in ("FLOAT16", "BFLOAT16") for tensor in constants)
    half = half or any(spec.dtype == "float16" for spec in (*model.inputs, *model.outputs))
    return half or quantized(model)


def quantized(model: Model) -> bool:
    """Whether it has quantizers."""
    return any(node.op_type in ROUNDING for node in model.ir.graph.all_nodes())


def unrounded(model: Model) -> Model | None:
    """One that computes in bfloat16 (Casts to it and back stand around its nodes, `quantize/graphs/halves.py`), with
    its constants but nothing rounded on the way. None for a model that has other steps too, or none."""
    import onnx_ir as ir

    if quantized(model) or not any(map(_narrows, model.ir.graph)):
        return None
    graph = (found := model.clone()).graph
    narrows = [node for node in graph if _narrows(node)]
    stored = [v for v in graph.initializers.values() if v.dtype is not None and int(v.dtype) == BFLOAT16]
    readers = {user for value in (*(n.outputs[0] for n in narrows), *stored) for user, _ in value.uses()}
    if any(node.op_type != "Cast" for node in readers):
        return None
    for node in narrows:
        node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return type(model).of(found)


def _narrows(node: ir.Node) -> bool:
    return node.op_type == "Cast" and node.attributes["to"].as_int() == BFLOAT16


def disputed(model: Model) -> bool:
    """Whether two runtimes that agree against the evaluator may share a fault: in a Resize, where ONNX's conformance
    cases side with the evaluator; but not where one only interpolates between given sizes."""
    return any(node.op_type == "Resize" and not _plain(node) for node in model.ir.graph.all_nodes())


def _plain(node: ir.Node) -> bool:
    told = node.attributes
    between = told.get_string("mode", "nearest") in ("linear", "cubic") and len(node.inputs) > 3
    usual = told.get_string("keep_aspect_ratio_policy", "stretch") == "stretch"
    usual = usual and not told.get_int("antialias", 0) and not told.get_int("exclude_outside", 0)
    return between and usual and told.get_string("coordinate_transformation_mode", "half_pixel") in PLAIN


def heavy(model: Model) -> bool:
    """Whether the reference evaluator would take too long for it."""
    tensors = (value.const_value for value in model.ir.graph.initializers.values())
    return sum(t.size for t in tensors if t is not None) > LIGHT_WEIGHTS or _macs(model) > LIGHT_MACS


def large(model: Model) -> bool:
    """Whether its weights are over 1.8 GB as floats, which a runtime may make of them: too much for two sessions."""
    from edgerun import external

    tensors = (value.const_value for value in model.ir.graph.initializers.values())
    return 4 * sum(t.size for t in tensors if t is not None) > external.ABOVE


def refuse_endless(model: Model) -> None:
    """Raise for a model of which a run of the source and one of its own, at batch 1, take longer than all work in this
    process may: by the shapes that are known, on cores faster than any."""
    least = 2 * least_macs(model) / (FASTEST * (os.cpu_count() or 1))
    if least > (limit := sandbox.seconds()):
        raise EdgerunError(
            "the model computes too much to be compared in time", got=f"{least_macs(model):.2g} multiply-accumulates "
            f"in one run, which is over {least:.3g} s for two", wanted=f"at most {limit:g} s",
            do="--timeout allows more",
        )  # fmt: skip


def least_macs(model: Model) -> float:
    """Multiply-accumulates of a run with every symbolic dimension 1, of the operators whose shapes are known; those in
    branches and loops left out."""
    total = 0.0
    for node in model.ir.graph:
        if node.op_type in _COUNTED and len(node.inputs) > 1:
            first, second, out = (_least(value) for value in (*node.inputs[:2], node.outputs[0]))
            if first is not None and second is not None and out is not None:
                total += _node_macs(node.op_type, first, second, out)
    return total


def _least(value: ir.Value | None) -> list[int] | None:
    if value is None or value.shape is None:
        return None
    return [dim if isinstance(dim, int) else 1 for dim in value.shape]


def _node_macs(op: str, first: list[int], second: list[int], out: list[int]) -> float:
    if op == "Conv":
        return math.prod(out) * math.prod(second[1:])
    if op == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    if op == "Gemm":  # whose first input may lie either way
        return math.prod(out) * math.prod(first) / max(1, out[0])
    return math.prod(out) * first[-1]


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
        if node.op_type in _COUNTED:
            first, second, out = (shapes.get(name) for name in (*node.input[:2], node.output[0]))
            if first is None or second is None or out is None:
                return math.inf
            total += _node_macs(node.op_type, first, second, out)
    return total
