"""Layers kept in float, kept so in the runtime too.

ONNX Runtime takes a float Conv, ConvTranspose or Gemm between DequantizeLinear and QuantizeLinear for a layer whose
weight was forgotten, and rounds that itself, to 8 bits with one scale for the whole tensor (its WeightBiasQuantization,
at every optimization level but none). Weights of a depthwise layer are worth little then. It leaves alone what reads an
input with a scale per channel; the same scale on every channel is the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import constant, fresh_name, initializer, sole_consumer

if TYPE_CHECKING:
    import onnx_ir as ir

PASSED = ("Relu", "Clip")  # between the layer and the quantizer


def prevent(graph: ir.Graph) -> None:
    """Give every float layer between a DequantizeLinear and a QuantizeLinear a dequantizer with a scale per channel."""
    for node in list(graph):
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and node.domain == "" and _taken(node):
            _read_by_channel(graph, node)


def _taken(node: ir.Node) -> bool:
    source = node.inputs[0]
    before = source.producer() if source is not None else None
    if constant(node.inputs[1]) is None or before is None or before.op_type != "DequantizeLinear":
        return False
    scale = constant(before.inputs[1])
    if scale is None or scale.ndim:  # one per channel already
        return False
    after = sole_consumer(node.outputs[0])
    while after is not None and after.op_type in PASSED:
        after = sole_consumer(after.outputs[0])
    return after is not None and after.op_type == "QuantizeLinear"


def _read_by_channel(graph: ir.Graph, node: ir.Node) -> None:
    import onnx_ir as ir

    source = node.inputs[0]
    shared = source.producer() if source is not None else None
    assert source is not None and shared is not None
    name, channels, grid = f"{node.name}/input", _channels(node), []
    for kind, value in zip(("scale", "zero_point"), shared.inputs[1:], strict=True):
        common = constant(value)
        assert common is not None
        grid.append(initializer(graph, f"{name}/{kind}", np.full(channels, common)))
    own = ir.node("DequantizeLinear", [shared.inputs[0], *grid], attributes={"axis": 1},
                  name=fresh_name(graph, f"{name}/DequantizeLinear"))  # fmt: skip
    own.outputs[0].name = fresh_name(graph, f"{name}/dequantized")
    own.outputs[0].shape, own.outputs[0].type = source.shape, source.type
    graph.insert_before(node, own)
    node.replace_input_with(0, own.outputs[0])


def _channels(node: ir.Node) -> int:
    """Of the input, on axis 1: ONNX keeps a Conv's weight as [M, C/group, …], a ConvTranspose's as [C, M/group, …]."""
    weight = constant(node.inputs[1])
    assert weight is not None
    if node.op_type == "Conv":
        return int(weight.shape[1]) * node.attributes.get_int("group", 1)
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
    return int(weight.shape[1 if transposed else 0])
