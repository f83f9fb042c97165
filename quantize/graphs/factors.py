"""Per-channel factors in quantizers: the channels of an activation evened out where equalization finds no layer.

A layer's weights take factors on its side of a quantizer. Where the other side computes in float, and scales do not pass
through what it computes (hard-swish, gates, sums of constants), the quantizer takes them itself: rounding f∘x on one
scale s is rounding x with s/f_c on channel c. In the graph these are a Mul in front of the pair or behind it, until
`fold` puts it into the pair's own scale: QuantizeLinear then has s/f and DequantizeLinear s, or the other way around.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs import equalize
from edgerun.quantize.graphs.edit import constant, drop_node, fresh_name, initializer, set_constant, sole_consumer
from edgerun.quantize.graphs.placement import Plan
from edgerun.quantize.graphs.statistics import Channels
from edgerun.quantize.numerics import equalization
from edgerun.quantize.numerics.equalization import Reader

if TYPE_CHECKING:
    import onnx_ir as ir

WORTH = 1.0  # dB of predicted noise: less is not worth another weight


@dataclass(frozen=True)
class Site:
    """An activation whose `readers` are layers, and `floats` float uses; a layer `writer` takes factors, or a Mul."""

    value: ir.Value
    writer: ir.Node | None
    readers: tuple[ir.Node, ...]
    floats: tuple[tuple[ir.Node, int], ...]


def sites(plan: Plan, done: Collection[str]) -> list[Site]:
    """The points of `plan` that could be evened out, without those of `done`, which equalization deals with.

    One side at least is float; what moves or joins integers on either side ties the scale to other tensors.
    """
    sizes = [len(values) for values in plan.groups().values()]
    alone = {group for group, size in zip(plan.groups(), sizes, strict=True) if size == 1}
    found: list[Site] = []
    for value, group in plan.points.items():
        shape, producer = value.shape, value.producer()
        if value.name in done or group not in alone or producer is None or value.is_graph_output():
            continue
        if shape is None or len(shape) < 3 or not isinstance(shape[1], int) or shape[1] == 1:
            continue
        written = producer in plan.weights and equalize.is_layer(producer)
        if not written and not plan.in_float(producer):
            continue
        uses = [(node, index) for node, index in value.uses()]
        readers = tuple(n for n, i in uses if _reads(n, i, plan, shape[1]))
        floats = tuple((n, i) for n, i in uses if plan.in_float(n))
        if len(readers) + len(floats) != len(uses) or not (readers if not written else floats):
            continue
        found.append(Site(value, producer if written else None, readers, floats))
    return found


def _reads(node: ir.Node, index: int, plan: Plan, channels: int) -> bool:
    layer = index == 0 and node.op_type == "Conv" and node in plan.weights and equalize.is_layer(node)
    return layer and equalize.reads_channels(node, channels)


def apply(
    graph: ir.Graph, found: list[Site], seen: Mapping[str, Channels]
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, tuple[str, np.ndarray]]]:
    """Even out every site whose `seen` channels (by value name) say that it pays.

    Returns {value name: predicted gain in dB}; the factors `[C]` of the values that their layers write rescaled; and
    {new name: (old name, factors)} of the values that are quantized now in place of the old ones, which they scale.
    """
    gains: dict[str, float] = {}
    written: dict[str, np.ndarray] = {}
    made: dict[str, tuple[str, np.ndarray]] = {}
    for site in found:
        name, channels = str(site.value.name), seen[str(site.value.name)]
        readers = [equalize.reader(node) for node in site.readers]
        if site.writer is not None:  # whatever is computed of it in float: every channel by its own noise
            power = np.maximum(channels.power, 1e-6 * channels.power.max(initial=0.0) + 1e-30)
            readers.append(Reader(1 / power, None, 1))
        factors, gain = equalization.even(channels.low, channels.high, channels.power, readers)
        if gain < WORTH:
            continue
        factors = factors.astype(np.float32).astype(np.float64)
        gains[name] = round(gain, 2)
        for node in site.readers:
            equalize.scale_input(graph, node, 1 / factors)
        if site.writer is not None:
            equalize.scale_output(graph, site.writer, factors)
            written[name] = factors
            back = _multiply(graph, site.value, 1 / factors)
            for node, index in site.floats:
                node.replace_input_with(index, back)
        else:
            evened = _multiply(graph, site.value, factors)
            for node in site.readers:
                node.replace_input_with(0, evened)
            made[str(evened.name)] = name, factors
    return gains, written, made


def _multiply(graph: ir.Graph, value: ir.Value, factors: np.ndarray) -> ir.Value:
    import onnx_ir as ir

    rank = len(value.shape or ())
    by = initializer(graph, f"{value.name}/factors", factors.reshape(-1, *[1] * (rank - 2)).astype(np.float32))
    node = ir.node("Mul", [value, by], name=fresh_name(graph, f"{value.name}/even"))
    result, producer = node.outputs[0], value.producer()
    result.name, result.type, result.shape = fresh_name(graph, f"{value.name}/evened"), value.type, value.shape
    assert producer is not None
    graph.insert_after(producer, node)
    return result


def fold(graph: ir.Graph) -> int:
    """Put each Mul by positive per-channel factors that touches a Q/DQ pair into the pair's scale; return how many."""
    folded = 0
    for node in list(graph):
        factors = _factors(node)
        source = node.inputs[0]
        if factors is None or source is None:
            continue
        after, before = sole_consumer(node.outputs[0]), source.producer()
        if after is not None and after.op_type == "QuantizeLinear" and _scalar(after):
            _per_channel(graph, after, 1 / factors)
            drop_node(graph, node)
            folded += 1
        elif before is not None and before.op_type == "DequantizeLinear" and _scalar(before):
            _per_channel(graph, _own(graph, before, node), factors)
            drop_node(graph, node)
            folded += 1
    return folded


def _factors(node: ir.Node) -> np.ndarray | None:
    """`[C]` of a Mul by `[C, 1, …]`, all positive."""
    if node.op_type != "Mul" or node.domain != "" or len(node.inputs) != 2 or node.inputs[0] is None:
        return None
    shape, array = node.inputs[0].shape, constant(node.inputs[1])
    if shape is None or array is None or constant(node.inputs[0]) is not None or array.ndim != len(shape) - 1:
        return None
    usable = array.size > 1 and array.shape[0] == array.size == shape[1] and bool((array > 0).all())
    return array.reshape(-1) if usable else None


def _scalar(node: ir.Node) -> bool:
    scale = constant(node.inputs[1])
    return scale is not None and scale.ndim == 0


def _own(graph: ir.Graph, dequantize: ir.Node, reader: ir.Node) -> ir.Node:
    """A DequantizeLinear that only `reader` reads: this one, or a copy."""
    import onnx_ir as ir

    value = dequantize.outputs[0]
    if sole_consumer(value) is reader:
        return dequantize
    copy = ir.node("DequantizeLinear", list(dequantize.inputs), name=fresh_name(graph, f"{dequantize.name}/even"))
    result = copy.outputs[0]
    result.name, result.type, result.shape = fresh_name(graph, f"{value.name}/even"), value.type, value.shape
    graph.insert_after(dequantize, copy)
    reader.replace_input_with(0, result)
    return copy


def _per_channel(graph: ir.Graph, node: ir.Node, by: np.ndarray) -> None:
    """Give a per-tensor QuantizeLinear or DequantizeLinear the scales s·`by`, `[C]`, on axis 1."""
    import onnx_ir as ir

    scale, zero_point = (constant(value) for value in node.inputs[1:3])
    assert scale is not None and zero_point is not None
    set_constant(graph, node, 1, (scale * by.astype(np.float64)).astype(np.float32))
    set_constant(graph, node, 2, np.full(by.shape, zero_point))
    node.attributes["axis"] = ir.AttrInt64("axis", 1)


@dataclass(frozen=True)
class Unfolded:
    """Factors `[C]` that `unfold` took out of a pair: what it rounds is the activation times them.

    By name, the layer that writes the activation so (empty: a Mul does) and the layers that read it so.
    """

    factors: np.ndarray
    writer: str
    readers: tuple[str, ...]


def unfold(graph: ir.Graph) -> list[Unfolded]:
    """Undo `fold`: where a QuantizeLinear and a DequantizeLinear differ in scale, a Mul stands between equal ones."""
    found: list[Unfolded] = []
    for node in list(graph):
        if node.op_type != "QuantizeLinear" or node.domain != "" or constant(node.inputs[0]) is not None:
            continue
        pairs = [use.node for use in node.outputs[0].uses()]
        if pairs and all(pair.op_type == "DequantizeLinear" for pair in pairs):
            found += _unfolded_front(graph, node, pairs) or _unfolded_behind(graph, node, pairs)
    return found


def _unfolded_front(graph: ir.Graph, quantize: ir.Node, pairs: list[ir.Node]) -> list[Unfolded]:
    scale, value = constant(quantize.inputs[1]), quantize.inputs[0]
    if scale is None or scale.ndim != 1 or value is None or value.shape is None or not all(map(_scalar, pairs)):
        return []
    common = constant(pairs[0].inputs[1])
    assert common is not None
    factors = common / scale.astype(np.float64)
    quantize.replace_input_with(0, _multiply(graph, value, factors))
    _share(quantize, pairs[0])
    return [Unfolded(factors, "", _reading(pairs))]


def _unfolded_behind(graph: ir.Graph, quantize: ir.Node, pairs: list[ir.Node]) -> list[Unfolded]:
    common = constant(quantize.inputs[1])
    if common is None or common.ndim != 0 or all(map(_scalar, pairs)):
        return []
    found: list[Unfolded] = []
    producer = quantize.inputs[0].producer()  # type: ignore[union-attr]
    for pair in pairs:
        scale, result = constant(pair.inputs[1]), pair.outputs[0]
        if scale is None or scale.ndim != 1 or result.shape is None:
            continue
        factors, uses = scale / common.astype(np.float64), list(result.uses())
        _share(pair, quantize)
        back = _multiply(graph, result, factors)
        for user, index in uses:
            user.replace_input_with(index, back)
        found = [Unfolded(1 / factors, str(producer.name) if producer is not None else "", _reading(pairs))]
    return found


def _share(node: ir.Node, other: ir.Node) -> None:
    """Give `node` the scale and zero point of its other half."""
    for index in (1, 2):
        node.replace_input_with(index, other.inputs[index])
    node.attributes.pop("axis", None)


def _reading(pairs: list[ir.Node]) -> tuple[str, ...]:
    """The layers that read a pair as their input."""
    uses = [use for pair in pairs for use in pair.outputs[0].uses()]
    return tuple(str(use.node.name) for use in uses if use.node.op_type == "Conv" and use.idx == 0)


def follow(nodes: Mapping[str, ir.Node], graph: ir.Graph, unfolded: Collection[Unfolded]) -> None:
    """Give the float layers `nodes` (by the quantized graph's names) the factors that the quantized ones have."""
    for each in unfolded:
        for name in each.readers:
            if name in nodes:
                equalize.scale_input(graph, nodes[name], 1 / each.factors)
        if each.writer in nodes and equalize.is_layer(nodes[each.writer]):
            equalize.scale_output(graph, nodes[each.writer], each.factors)
