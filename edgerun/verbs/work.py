"""What a model asks of who compares it: how much there is to compute, and whether it rounds."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import sandbox
from edgerun.errors import EdgerunError
from edgerun.metrics import SQNR_DB

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.model import Model

ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "MatMulNBits"})
PLAIN = frozenset({"half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"})  # of Resize, beyond dispute
HALVES = {10: 10, 16: 7}  # TensorProto's float16 and bfloat16, and the bits behind the point
# Of large models in half precision, where rounding leaves more as a rule (bfloat16, five networks, drawn inputs: 28 to
# 48 dB). Below, the same model without its rounding is the judge.
HALF_DB = 30.0
TYPES = ("to", "dtype", "output_dtype")  # attributes that say one
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
    """The same with float32 for every float16 and bfloat16, so that nothing is rounded on the way but what the file
    has rounded. None for a model that has other steps too, or none, and for one with functions of its own."""
    if not halved(model):
        return None
    import onnx_ir as ir

    graph = (found := model.clone()).graph
    for value in filter(_halved, _values(graph)):
        value.type = _widened(value.type)  # a clone has the types of what it was cloned from
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    for node in graph.all_nodes():
        for attribute in list(node.attributes.values()):
            if attribute.type == ir.AttributeType.INT and attribute.name in TYPES and attribute.value in HALVES:
                node.attributes.add(ir.AttrInt64(attribute.name, int(ir.DataType.FLOAT)))
            elif attribute.type == ir.AttributeType.TENSOR and int(attribute.value.dtype) in HALVES:
                wide = ir.tensor(attribute.value.numpy().astype(np.float32), name=attribute.value.name)
                node.attributes.add(ir.AttrTensor(attribute.name, wide))
    return type(model).of(found)


def least_db(model: Model) -> float:
    """The SQNR that its own rounding must leave where it has steps: of a model in half precision what is left where
    every node is off by one step of the coarser type, which add up in power, of a large one HALF_DB."""
    if not halved(model):
        return SQNR_DB
    bits = min(HALVES[kind] for kind in _halves(model))
    nodes = sum(1 for _ in model.ir.graph.all_nodes())
    return max(HALF_DB, 20 * math.log10(2**bits) - 10 * math.log10(max(1, nodes)))


def halved(model: Model) -> bool:
    """Whether `unrounded` has another form of it: whether it has values in half precision, and no other steps."""
    return not (quantized(model) or model.ir.functions) and bool(_halves(model))


def _halves(model: Model) -> set[int]:
    """The types of half precision in it, of its values and of what Casts make: values inside may have none told."""
    graph = model.ir.graph
    kinds = {int(value.dtype) for value in _values(graph) if value.dtype is not None}
    kinds |= {node.attributes.get_int("to", 0) for node in graph.all_nodes() if node.op_type == "Cast"}
    return kinds & HALVES.keys()


def _halved(value: ir.Value) -> bool:
    return value.dtype is not None and int(value.dtype) in HALVES


def _widened(kind: Any) -> Any:
    """A type with float32 in it, of a tensor, or of a sequence or optional of such."""
    import onnx_ir as ir

    return ir.TensorType(ir.DataType.FLOAT) if isinstance(kind, ir.TensorType) else type(kind)(_widened(kind.elem_type))


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """All that a graph reads and computes, in its branches and loops too."""
    yield from (*graph.inputs, *graph.initializers.values())
    for node in graph:
        yield from node.outputs
        for attribute in node.attributes.values():
            for inner in attribute.value if attribute.type.name == "GRAPHS" else [attribute.value]:
                if attribute.type.name in ("GRAPH", "GRAPHS"):
                    yield from _values(inner)


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
