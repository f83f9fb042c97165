"""Which layers an integer kernel of the target takes, and why it takes no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerun.quantize.graphs.edit import constant, row_bias

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Quantization


def weight_axis(node: ir.Node) -> int:
    """The output-channel axis of a node's weight (input 1)."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    weight = constant(node.inputs[1])
    assert weight is not None
    return weight.ndim - 1


def is_layer(node: ir.Node, rules: Quantization) -> bool:
    """Whether the target has an integer kernel for nodes of this kind."""
    return node.domain == "" and node.op_type in rules.compute


def refusal(node: ir.Node, rules: Quantization) -> str | None:
    """Why no integer kernel takes this layer; None of one that it takes."""
    dtype, weight = node.outputs[0].dtype, constant(node.inputs[1])
    if dtype is None or dtype.name != "FLOAT":
        return "of an unknown type" if dtype is None else f"computed in {dtype.name.lower()}"
    if node.op_type == "MatMul":
        return _product(node, rules)
    if weight is None:
        return "the weight is computed"
    if node.op_type in ("Conv", "Gemm") and row_bias(node, weight.shape[weight_axis(node)]) is None:
        return "the bias is computed, or more than a row"
    if node.op_type == "Gemm":
        told = ("transA", node.attributes.get_int("transA", 0), 0), *(
            (name, node.attributes.get_float(name, 1.0), 1.0) for name in ("alpha", "beta")
        )  # fmt: skip
        return next((f"{name} is {value:g}" for name, value, usual in told if value != usual), None)
    grouped = node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) != 1
    return "in groups" if grouped else None


def _product(node: ir.Node, rules: Quantization) -> str | None:
    weight = constant(node.inputs[1])
    if weight is not None:
        return None if weight.ndim == 2 else f"the constant has {weight.ndim} axes"
    if constant(node.inputs[0]) is not None:
        return "the constant is on the left"
    return None if rules.pair_matmul else "both sides are computed"


def refusals(graph: ir.Graph, rules: Quantization) -> str:
    """Of a graph in which nothing runs on integers, why: how many layers for each reason, and one of them by name."""
    found: dict[str, list[str]] = {}
    for node in graph.all_nodes():
        if is_layer(node, rules):
            found.setdefault(f"{node.op_type}: {_why(node, graph, rules)}", []).append(str(node.name))
    told = [f"{len(names)} {reason} ({names[0]}{', …' if names[1:] else ''})" for reason, names in found.items()]
    return "; ".join(told) or "no layer of these kinds"


def _why(node: ir.Node, graph: ir.Graph, rules: Quantization) -> str:
    if node.graph is not graph:
        return "in a branch or a loop"
    paired = constant(node.inputs[1]) is None
    return refusal(node, rules) or ("not between integer layers" if paired else "faster in float there")
