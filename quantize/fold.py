"""Fold what is constant: constant subgraphs, BatchNorm into the convolution before it, dead code away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import constant, drop_node, row_bias, set_constant, sole_consumer
from edgerun.quantize.numerics.batchnorm import affine, fold_into, fold_onward

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

summary = "constant folding, BatchNorm into Conv/ConvTranspose/Gemm, dead code elimination"
needs_calibration = False
scheme = ""

# A folded constant may be this much larger than what it was computed from before it is left alone (bytes).
GROWTH_CAP = 1 << 20


def apply(model: ir.Model, request: Request | None = None) -> ir.Model:
    """Return `model` with everything constant folded; values agree with the input's to float rounding."""
    import onnx_ir.passes.common as common
    from onnxscript.optimizer import fold_constants

    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    fold_constants(model, onnx_shape_inference=True, input_size_limit=1 << 62, output_size_limit=GROWTH_CAP)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.IdentityEliminationPass()(model)
    fold_batchnorm(model.graph)
    infer_shapes(model)
    fold_onward_batchnorm(model.graph)
    join_matmul_bias(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.NameFixPass()(model)
    common.TopologicalSortPass()(model)
    infer_shapes(model)
    return model


def fold_batchnorm(graph: ir.Graph) -> int:
    """Fold each BatchNormalization that alone consumes a Conv, ConvTranspose or Gemm; return how many."""
    folded = 0
    for norm in [n for n in graph if n.op_type == "BatchNormalization" and n.domain == ""]:
        source = norm.inputs[0]
        node = source.producer() if source is not None else None
        if node is None or node.op_type not in ("Conv", "ConvTranspose", "Gemm") or sole_consumer(source) is not norm:
            continue
        if _fold_one(graph, node, norm):
            folded += 1
    return folded


def _fold_one(graph: ir.Graph, node: ir.Node, norm: ir.Node) -> bool:
    weight = constant(node.inputs[1])
    scale, shift, mean, variance = (constant(v) for v in norm.inputs[1:5])
    if weight is None or scale is None or shift is None or mean is None or variance is None:
        return False
    start = row_bias(node, len(scale))
    if start is None or len(norm.outputs) != 1:
        return False
    if node.op_type == "Gemm" and any(node.attributes.get_float(k, 1.0) != 1.0 for k in ("alpha", "beta")):
        return False
    transposed = node.op_type == "ConvTranspose"
    group = node.attributes.get_int("group", 1)
    axis = 1 if transposed else 0
    if node.op_type == "Gemm":
        axis = 0 if node.attributes.get_int("transB", 0) else 1
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    new_weight, new_bias = fold_into(
        weight, start, scale, shift, mean, variance, epsilon, axis, group if transposed else 1
    )
    set_constant(graph, node, 1, new_weight)
    set_constant(graph, node, 2, new_bias, name=f"{node.inputs[1].name}_bias")  # type: ignore[union-attr]
    drop_node(graph, norm)
    return True


def fold_onward_batchnorm(graph: ir.Graph) -> int:
    """Fold each remaining BatchNormalization into the Conv, Gemm or MatMul that alone reads it; return how many.

    The usual place is Conv -> Relu -> BatchNormalization -> [MaxPool, Flatten …] -> Conv. Exact where nothing is padded
    in between (padding would put zeros where the shift belongs) and, behind a MaxPool, where every gain is positive.
    """
    folded = 0
    for norm in [n for n in graph if n.op_type == "BatchNormalization" and n.domain == ""]:
        scale, offset, mean, variance = (constant(v) for v in norm.inputs[1:5])
        if scale is None or offset is None or mean is None or variance is None or len(norm.outputs) != 1:
            continue
        gain, shift = affine(scale, offset, mean, variance, norm.attributes.get_float("epsilon", 1e-5))
        reader = _affine_reader(norm.outputs[0], bool((gain > 0).all()))
        if reader is not None and _fold_into_reader(graph, reader, gain, shift):
            drop_node(graph, norm)
            folded += 1
    return folded


def _affine_reader(value: ir.Value, positive: bool) -> ir.Node | None:
    """The Conv, Gemm or MatMul that alone reads `value`, looking through what keeps a per-channel map in place."""
    node = sole_consumer(value)
    while node is not None and node.domain == "":
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            return node if node.inputs[0] is value else None
        pool = node.op_type == "MaxPool" and positive and len(node.outputs) == 1 and not any(
            node.attributes.get_ints("pads", [])
        ) and node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")  # fmt: skip
        # Behind one position per channel, every flattening order is the channel order.
        flat = node.op_type in ("Flatten", "Reshape", "Transpose", "Squeeze") and _one_position(node.inputs[0])
        if node.op_type == "Transpose" and node.attributes.get_ints("perm", [1])[0] != 0:
            flat = False
        if not (pool or flat):
            return None
        value = node.outputs[0]
        node = sole_consumer(value)
    return None


def _one_position(value: ir.Value | None) -> bool:
    if value is None or value.shape is None:
        return False
    sizes = [d for d in list(value.shape)[1:] if d != 1]
    return len(sizes) <= 1 and all(isinstance(d, int) for d in sizes)


def _fold_into_reader(graph: ir.Graph, node: ir.Node, gain: np.ndarray, shift: np.ndarray) -> bool:
    weight = constant(node.inputs[1])
    if weight is None or node.op_type == "MatMul":
        return False
    if node.op_type == "Conv":
        padded = any(node.attributes.get_ints("pads", [])) and bool(np.any(shift))
        if padded or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return False
        axis, group = 1, node.attributes.get_int("group", 1)
    else:
        if node.attributes.get_int("transA", 0) or any(
            node.attributes.get_float(k, 1.0) != 1.0 for k in ("alpha", "beta")
        ):
            return False
        axis, group = (1 if node.attributes.get_int("transB", 0) else 0), 1
    if weight.shape[axis] * group != len(gain):
        return False
    bias = row_bias(node, weight.shape[1] if axis == 0 else weight.shape[0])
    if bias is None:
        return False
    new_weight, new_bias = fold_onward(weight, bias, gain, shift, axis, group)
    set_constant(graph, node, 1, new_weight)
    set_constant(graph, node, 2, new_bias, name=f"{node.inputs[1].name}_bias")  # type: ignore[union-attr]
    return True


def join_matmul_bias(graph: ir.Graph) -> int:
    """MatMul of rank 2 with a constant, and the Add of a row behind it, become one Gemm; return how many.

    Runtimes do the same, but around Q/DQ some do it too early and leave the product in float.
    """
    import onnx_ir as ir

    joined = 0
    for node in [n for n in graph if n.op_type == "MatMul" and n.domain == ""]:
        weight, add = constant(node.inputs[1]), sole_consumer(node.outputs[0])
        source = node.inputs[0]
        if weight is None or weight.ndim != 2 or add is None or add.op_type != "Add" or source is None:
            continue
        bias = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
        row = constant(bias)
        if row is None or row.shape != (weight.shape[1],) or source.shape is None or len(source.shape) != 2:
            continue
        gemm = ir.node("Gemm", [source, node.inputs[1], bias], name=add.name)
        graph.insert_before(add, gemm)
        result = add.outputs[0]
        gemm.outputs[0].shape, gemm.outputs[0].type = result.shape, result.type
        name = result.name
        result.replace_all_uses_with(gemm.outputs[0], replace_graph_outputs=True)
        graph.remove([add, node], safe=True)
        gemm.outputs[0].name = name
        joined += 1
    return joined


def infer_shapes(model: ir.Model) -> None:
    """Fill in the dtypes and shapes of every value, as far as inference finds them."""
    import onnx_ir.passes.common as common

    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
