"""BatchNormalization into the layer before it: W' = W·g, b' = (b − μ)·g + β with g = γ/√(σ² + ε)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from edgerun.converters._keras_graph import Graph

if TYPE_CHECKING:
    import onnx

_OUT_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1}  # of a kernel, as this package writes them


def fold(graph: Graph, outputs: Iterable[str]) -> None:
    """Fold every BatchNormalization whose input is the result of a layer with weights that nothing else reads.

    In place, in float64 and rounded once. A transposed convolution in groups stays as it is.
    """
    readers = Counter([*outputs, *_read(graph.nodes)])
    makers = {node.output[0]: node for node in graph.nodes}
    kept = []
    for node in graph.nodes:
        maker = makers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if maker is None or readers[node.input[0]] != 1 or not _folded(graph, maker, node):
            kept.append(node)
            continue
        maker.output[0] = node.output[0]
        makers[node.output[0]] = maker
    graph.nodes = kept


def _read(nodes: Iterable[onnx.NodeProto]) -> Iterable[str]:
    """What nodes read, those of a loop's body included."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read(attribute.g.node)


def _folded(graph: Graph, maker: onnx.NodeProto, norm: onnx.NodeProto) -> bool:
    from onnx import numpy_helper

    axis = _OUT_AXIS.get(maker.op_type)
    groups = next((attribute.i for attribute in maker.attribute if attribute.name == "group"), 1)
    names = [*maker.input[1:], *norm.input[1:]]
    if axis is None or (axis == 1 and groups != 1) or any(name not in graph.initializers for name in names):
        return False
    kernel, *bias = (numpy_helper.to_array(graph.initializers[name]) for name in maker.input[1:])
    parts = (numpy_helper.to_array(graph.initializers[name]).astype(np.float64) for name in norm.input[1:])
    scale, shift, mean, variance = parts
    epsilon = next(attribute.f for attribute in norm.attribute if attribute.name == "epsilon")
    factor = scale / np.sqrt(variance + epsilon)
    column = [-1 if a == axis else 1 for a in range(kernel.ndim)]
    before = bias[0] if bias else np.zeros_like(mean)
    moved = ((before - mean) * factor + shift).astype(np.float32)
    scaled = (kernel * factor.reshape(column)).astype(np.float32)
    graph.initializers[maker.input[1]] = numpy_helper.from_array(scaled, maker.input[1])
    if bias:
        graph.initializers[maker.input[2]] = numpy_helper.from_array(moved, maker.input[2])
    else:
        maker.input.append(graph.const(moved, "bias"))
    return True
