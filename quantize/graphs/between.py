"""What stands between layers and costs integers nothing: activations that a quantizer does, and ops that move data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import constant, sole_consumer

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Quantization
# One value of each: fused into the convolution in front, or with a kernel in its layout.
ACTIVATIONS = frozenset({"Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})


def absorbable(node: ir.Node | None, rules: Quantization) -> bool:
    """Whether a quantizer can do this node's clipping: it begins at zero or below, where a grid can, or is a Min with
    constants behind a Relu."""
    if node is None or node.domain != "" or node.op_type not in rules.absorbed:
        return False
    if node.op_type == "Min":
        before = node.inputs[0].producer() if node.inputs[0] is not None else None
        return (
            before is not None
            and before.op_type == "Relu"
            and len(node.inputs) == 2
            and constant(node.inputs[1]) is not None
        )
    return -np.inf < lower(node) <= 0


def joins(node: ir.Node, rules: Quantization) -> bool:
    """Whether it is integer where its neighbours are: not a mean that counts padding, which kernels take for the lowest
    code (OpenVINO 2026.4), or leave out of the last windows (ONNX Runtime 1.31), unless that code is zero."""
    if node.domain != "" or node.op_type not in rules.join:
        return False
    if node.op_type != "AveragePool" or not node.attributes.get_int("count_include_pad", 0):
        return True
    automatic = node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME")
    if not automatic and not any(node.attributes.get_ints("pads", ())) and not node.attributes.get_int("ceil_mode", 0):
        return True
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return not node.attributes.get_int("ceil_mode", 0) and producer is not None and lower(producer) >= 0


def lower(node: ir.Node) -> float:
    """The least that a Relu, a Clip, a Min behind a Relu, or a Max with one constant number lets through; else −∞."""
    if node.op_type in ("Relu", "Min"):
        return 0.0
    if node.op_type == "Max" and (len(node.inputs) != 2 or constant(node.inputs[0]) is not None):
        return -np.inf
    low = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return float(low.reshape(-1)[0]) if low is not None and low.size == 1 else -np.inf


def behind(value: ir.Value, rules: Quantization) -> ir.Value:
    """Where the quantizer of `value` belongs: behind the activations that it absorbs."""
    node = sole_consumer(value)
    while node is not None and absorbable(node, rules):
        value = node.outputs[0]
        node = sole_consumer(value)
    return value


def source(value: ir.Value, rules: Quantization) -> ir.Node | None:
    """The node that computes `value`, looking back over absorbed activations."""
    node = value.producer()
    while node is not None and absorbable(node, rules) and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def moved(value: ir.Value, rules: Quantization) -> ir.Node | None:
    """The same, looking back over movers as well."""
    node = source(value, rules)
    while node is not None and moves(node, rules) and node.inputs[0] is not None:
        node = source(node.inputs[0], rules)
    return node


def moves(node: ir.Node, rules: Quantization) -> bool:
    """Whether the node only moves data: a Resize does where it repeats the nearest element."""
    if node.domain != "" or node.op_type not in rules.through:
        return False
    return node.op_type != "Resize" or node.attributes.get_string("mode", "nearest") == "nearest"
