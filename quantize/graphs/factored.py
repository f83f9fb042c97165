"""Per-channel factors beside quantizers, found again in a finished model, where `early` moved them too."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs import equalize
from edgerun.quantize.graphs.edit import constant, sole_consumer
from edgerun.quantize.graphs.factors import NAME, by_channel, multiply, scalar

if TYPE_CHECKING:
    import onnx_ir as ir


LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Evened:
    """A pair that rounds its activation times `factors` `[C]`.

    By name, the layer that writes the activation so (empty: a Mul does) and the layers that read it so.
    """

    factors: np.ndarray
    writer: str
    readers: tuple[str, ...]


def unfold(graph: ir.Graph) -> int:
    """Undo `fold`: where a QuantizeLinear and its DequantizeLinear differ in scale, a Mul stands beside equal ones."""
    unfolded = 0
    for quantize, pairs in _pairs(graph):
        common = constant(quantize.inputs[1])
        front = pairs[0] if common is not None and common.ndim == 1 and all(map(scalar, pairs)) else None
        if front is not None and quantize.inputs[0] is not None and quantize.inputs[0].shape is not None:
            factors = _scale(front) / _scale(quantize)
            quantize.replace_input_with(0, multiply(graph, quantize.inputs[0], factors))
            _share(quantize, front)
            unfolded += 1
        for pair in pairs if common is not None and common.ndim == 0 else ():
            result = pair.outputs[0]
            if _scale(pair).ndim != 1 or result.shape is None:
                continue
            factors, uses = _scale(pair) / _scale(quantize), list(result.uses())
            _share(pair, quantize)
            back = multiply(graph, result, factors)
            for user, index in uses:
                user.replace_input_with(index, back)
            unfolded += 1
    return unfolded


def evened(graph: ir.Graph, known: Collection[str]) -> list[Evened]:
    """The pairs beside which a Mul by factors stands, unless its name is `known`: then it is the float model's own."""
    found: list[Evened] = []
    for quantize, pairs in _pairs(graph):
        source = quantize.inputs[0]
        front = source.producer() if source is not None else None
        factors = _in_front(source, known)
        if factors is not None:
            if readers := _reading(pairs):  # none behind a quantizer that was moved to an earlier place
                found.append(Evened(factors, "", readers))
            continue
        behind = [_behind(use.node, known) for pair in pairs for use in pair.outputs[0].uses()]
        factors = next((each for each in behind if each is not None), None)
        if factors is not None:
            found.append(Evened(1 / factors, str(front.name) if front is not None else "", _reading(pairs)))
    return found


def _in_front(source: ir.Value | None, known: Collection[str]) -> np.ndarray | None:
    """The factors that what is quantized was multiplied by, at once or before it was joined and repeated."""
    front = source.producer() if source is not None else None
    if front is None or str(front.name) in known:
        return None
    if (factors := by_channel(front)) is None:
        factors = _by_column(front)
    if factors is not None:
        return factors.astype(np.float64)
    site, even, _ = str(front.name).partition(f"{NAME}/")
    return _spread(source, f"{site}{even}") if even else None


def _by_column(node: ir.Node) -> np.ndarray | None:
    """`[C]` of a Mul of `[…, C]` by one positive factor for each column, as smoothing puts it there."""
    array = constant(node.inputs[1]) if node.op_type == "Mul" and node.domain == "" else None
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if array is None or shape is None or len(shape) < 2 or array.ndim != 1 or array.size < 2:
        return None
    return array if array.size == shape[-1] and bool((array > 0).all()) else None


def _spread(value: ir.Value | None, site: str) -> np.ndarray | None:
    """The factors `[C]` of Muls of that `site`, whose names begin so, wherever they stand."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        return _spread(node.inputs[0], site)
    if node is None or not str(node.name).startswith(site):
        return None
    if node.op_type == "Mul" and (factors := by_channel(node)) is not None:
        return factors.astype(np.float64)
    if node.op_type == "BatchNormalization" and (variance := constant(node.inputs[4])) is not None:  # of `blocked`
        return variance.astype(np.float64) ** -0.5
    parts = [_spread(each, site) for each in node.inputs]
    known = [part for part in parts if part is not None]
    if node.op_type == "Concat":
        return np.concatenate(known) if len(known) == len(parts) else None
    return known[0] if known else None


def _behind(node: ir.Node, known: Collection[str]) -> np.ndarray | None:
    """The factors that a reader multiplies by, or those of a mean that it is."""
    if node.op_type == "GlobalAveragePool" and (following := sole_consumer(node.outputs[0])) is not None:
        node = following
    factors = by_channel(node) if str(node.name) not in known else None
    return None if factors is None else factors.astype(np.float64)


def _pairs(graph: ir.Graph) -> list[tuple[ir.Node, list[ir.Node]]]:
    """Each activation's QuantizeLinear with the DequantizeLinears that read it, where nothing else does."""
    found = []
    for node in graph:
        if node.op_type == "QuantizeLinear" and node.domain == "" and constant(node.inputs[0]) is None:
            readers = [use.node for use in node.outputs[0].uses()]
            if readers and all(reader.op_type == "DequantizeLinear" for reader in readers):
                found.append((node, readers))
    return found


def _scale(node: ir.Node) -> np.ndarray:
    scale = constant(node.inputs[1])
    return np.zeros(()) if scale is None else scale.astype(np.float64)


def _share(node: ir.Node, other: ir.Node) -> None:
    """Give `node` the scale and zero point of its other half."""
    for index in (1, 2):
        node.replace_input_with(index, other.inputs[index])
    node.attributes.pop("axis", None)


def _reading(pairs: list[ir.Node]) -> tuple[str, ...]:
    """The layers that read a pair as their input."""
    uses = [use for pair in pairs for use in pair.outputs[0].uses()]
    return tuple(str(use.node.name) for use in uses if use.node.op_type in LAYERS and use.idx == 0)


def follow(nodes: Mapping[str, ir.Node], graph: ir.Graph, found: Collection[Evened]) -> None:
    """Give the float layers `nodes` (by the quantized graph's names) the factors that the quantized ones have."""
    for each in found:
        for name in each.readers:
            if name in nodes and constant(nodes[name].inputs[1]) is not None:
                equalize.scale_input(graph, nodes[name], 1 / each.factors)
        if each.writer in nodes and equalize.is_layer(nodes[each.writer]):
            equalize.scale_output(graph, nodes[each.writer], each.factors)
