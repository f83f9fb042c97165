"""Fold what is constant: constant subgraphs, per-channel maps into the layers next to them, dead code away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun import rearranged
from edgerun.quantize.graphs import affine, gates, hardswish, plain, tables
from edgerun.quantize.graphs.edit import constant, sole_consumer

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

summary = "constant folding, BatchNorm, Mul and Add into Conv/ConvTranspose/Gemm, dead code elimination"
needs_calibration = False
scheme = ""

# A folded constant may have this many elements more than what it was computed from before it is left alone.
GROWTH_CAP = 1 << 20
_FILLED = 1024  # elements of a ConstantOfShape that are written out: more are a node's work to make
_WORK = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN", "Loop", "Scan", "Resize")
_WORKED = 1 << 20  # elements that one of these may read: arithmetic on weights belongs to the runtime


def apply(model: ir.Model, request: Request | None = None) -> ir.Model:
    """Return `model` with everything constant folded; values agree with the input's to float rounding. Its nodes have
    names (`node_name`)."""
    import onnx_ir.passes.common as common

    for node in model.graph.all_nodes():
        node.name = node_name(node)
    constants(model)
    maps(model)
    gates.join(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.NameFixPass()(model)
    common.TopologicalSortPass()(model)
    infer_shapes(model)
    return model


def node_name(node: ir.Node) -> str:
    """What a node is called, here and by who tells of it: one without a name as its first output."""
    return str(node.name or next((value.name for value in node.outputs if value.name), ""))


def constants(model: ir.Model) -> None:
    """Compute what is constant, in branches and loops too; a branch that is always taken takes its node's place."""
    import onnx_ir.passes.common as common
    from onnxscript.optimizer import fold_constants

    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    rearranged.weights(model)
    # The pass keeps quantizers as they are, and what draws random numbers.
    fold_constants(
        model, onnx_shape_inference=True, input_size_limit=1 << 62, output_size_limit=GROWTH_CAP, should_fold=_folds
    )
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if not has_branches(model):  # a branch may return a value of the graph around it only through an Identity
        common.IdentityEliminationPass()(model)


def maps(model: ir.Model) -> None:
    """Make lookups of one-hot products, join hard-swish, put factors of products and per-channel maps into the layers,
    and a row that is added to a product into a Gemm."""
    import onnx_ir.passes.common as common

    infer_shapes(model)
    if tables.join(model):
        constants(model)
        common.RemoveUnusedNodesPass()(model)
        infer_shapes(model)
    if hardswish.join(model):
        common.RemoveUnusedNodesPass()(model)
        infer_shapes(model)
    if plain.write(model.graph):
        infer_shapes(model)
    affine.fold_back(model.graph)
    infer_shapes(model)
    affine.fold_on(model.graph)
    join_matmul_bias(model.graph)


def has_branches(model: ir.Model) -> bool:
    """Whether there are graphs in the graph: branches, or the bodies of loops."""
    return any(node.graph is not model.graph for node in model.graph.all_nodes())


def _folds(node: ir.Node) -> bool | None:
    """False for what is left to the runtime, True for a small tensor of one number; None: as the pass has it."""
    if node.op_type == "ConstantOfShape" and node.domain == "":
        sizes = constant(node.inputs[0])
        return True if sizes is not None and 0 <= sizes.astype(float).prod() <= _FILLED else None
    if node.op_type in _WORK and any(v is not None and v.const_value is not None and v.const_value.size > _WORKED
                                     for v in node.inputs):  # fmt: skip
        return False
    return None


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
        if not np.isfinite(row).all():  # a mask, which is no bias
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
