"""BatchNormalization into the layer before it: W' = W·g, b' = (b − μ)·g + β with g = γ/√(σ² + ε)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.converters._keras_graph import Graph

if TYPE_CHECKING:
    import onnx

_OUT_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1}  # of a kernel, as this package writes them


def fold(graph: Graph, outputs: Iterable[str]) -> None:
    """Fold every BatchNormalization whose input is the result of a layer with weights that nothing else reads, or of
    several such layers, joined along the channels.

    In place, in float64 and rounded once. A transposed convolution in groups stays as it is.
    """
    readers = Counter([*outputs, *_read(graph.nodes)])
    makers = {node.output[0]: node for node in graph.nodes}
    kept = []
    for node in graph.nodes:
        maker = makers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        layers = [] if maker is None else _layers(maker, makers)
        alone = all(readers[name] == 1 for name in (node.input[0], *(layer.output[0] for layer in layers)))
        if maker is None or not layers or not alone or not _folded(graph, layers, node):
            kept.append(node)
            continue
        for slot, layer in enumerate(layers if maker.op_type == "Concat" else []):
            name = f"{layer.output[0]}_normalized"  # it is another value now
            layer.output[0] = maker.input[slot] = name
            makers[name], readers[name] = layer, 1
        maker.output[0] = node.output[0]
        makers[node.output[0]] = maker
    graph.nodes = kept


def _layers(maker: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The layer itself, or those whose results it joins along the channels; [] where something else is among them."""
    if maker.op_type != "Concat":
        return [maker]
    found = [makers[name] for name in maker.input if name in makers]
    whole = len(found) == len(maker.input) and maker.attribute[0].i == 1
    return found if whole and len({id(layer) for layer in found}) == len(found) else []


def _read(nodes: Iterable[onnx.NodeProto]) -> Iterable[str]:
    """What nodes read, those of a loop's body included."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read(attribute.g.node)


def _folded(graph: Graph, layers: Sequence[onnx.NodeProto], norm: onnx.NodeProto) -> bool:
    from onnx import numpy_helper

    names = [*norm.input[1:], *(name for layer in layers for name in layer.input[1:])]
    if not all(map(_takes, layers)) or any(name not in graph.initializers for name in names):
        return False
    parts = (numpy_helper.to_array(graph.initializers[name]).astype(np.float64) for name in norm.input[1:])
    scale, shift, mean, variance = parts
    epsilon = next(attribute.f for attribute in norm.attribute if attribute.name == "epsilon")
    factor, start = scale / np.sqrt(variance + epsilon), 0
    for layer in layers:
        axis = _OUT_AXIS[layer.op_type]
        kernel, *bias = (numpy_helper.to_array(graph.initializers[name]) for name in layer.input[1:])
        own = slice(start, start := start + kernel.shape[axis])
        column = [-1 if a == axis else 1 for a in range(kernel.ndim)]
        before = bias[0] if bias else np.zeros_like(mean[own])
        moved = ((before - mean[own]) * factor[own] + shift[own]).astype(np.float32)
        scaled = (kernel * factor[own].reshape(column)).astype(np.float32)
        graph.initializers[layer.input[1]] = numpy_helper.from_array(scaled, layer.input[1])
        if bias:
            graph.initializers[layer.input[2]] = numpy_helper.from_array(moved, layer.input[2])
        else:
            layer.input.append(graph.const(moved, "bias"))
    return True


def _takes(layer: onnx.NodeProto) -> bool:
    groups = next((attribute.i for attribute in layer.attribute if attribute.name == "group"), 1)
    return layer.op_type in _OUT_AXIS and (_OUT_AXIS[layer.op_type] == 0 or groups == 1)
