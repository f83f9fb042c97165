"""Per-channel factors in quantizers: the channels of an activation evened out where equalization finds no layer.

A layer's weights take factors on its side of a quantizer. Where the other side computes in float, and scales do not
pass through what it computes (hard-swish, gates, sums of constants), the quantizer takes them itself: rounding f∘x on
one scale s is rounding x with s/f_c on channel c. In the graph these are a Mul in front of the pair or behind it, until
`fold` puts it into the pair's own scale, where the target says that this is fast: QuantizeLinear then has s/f and
DequantizeLinear s, or the other way around. (ONNX Runtime turns integer stretches to NHWC, where its kernels for a
scale per channel take many times as long: there the Mul stays.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs import edit, equalize
from edgerun.quantize.graphs.activation import Channels
from edgerun.quantize.graphs.edit import constant, drop_node, fresh_name, initializer, set_constant, sole_consumer
from edgerun.quantize.graphs.placement import Plan
from edgerun.quantize.numerics import equalization
from edgerun.quantize.numerics.equalization import Reader

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Quantization

NAME = "/even"  # how the names of the Muls end
# Between two pairs ONNX Runtime, which judges every result, makes tables of these, for one scale alone.
TABLES = ("LeakyRelu", "Sigmoid")
# dB of predicted noise that factors must take away: where pairs have them for nothing, and where a Mul is a pass more.
WORTH, WORTH_MUL = 1.0, 3.0


@dataclass(frozen=True)
class Site:
    """An activation whose `readers` are layers, and `floats` float uses; a layer `writer` takes factors, or a Mul."""

    value: ir.Value
    writer: ir.Node | None
    readers: tuple[ir.Node, ...]
    floats: tuple[tuple[ir.Node, int], ...]


def sites(plan: Plan, done: Collection[str]) -> list[Site]:
    """The points of `plan` that could be evened out, without those of `done`, which equalization deals with.

    One side at least is float; what moves or joins integers on either side, or shares its weight, ties scales.
    """
    sizes = [len(values) for values in plan.groups().values()]
    alone = {group for group, size in zip(plan.groups(), sizes, strict=True) if size == 1}
    found: list[Site] = []
    for value, group in plan.points.items():
        shape, producer = value.shape, value.producer()
        if value.name in done or group not in alone or producer is None or value.is_graph_output():
            continue
        if shape is None or len(shape) < 3 or not isinstance(channels := shape[1], int) or channels == 1:
            continue
        written = producer in plan.weights and equalize.is_layer(producer)
        if not written and not plan.in_float(producer):
            continue
        uses = [(node, index) for node, index in value.uses()]
        readers = tuple(n for n, i in uses if _reads(n, i, plan, channels))
        floats = tuple((n, i) for n, i in uses if plan.in_float(n))
        shares = any(edit.shared(node.inputs[1]) for node in (*readers, *[producer][:written]))
        if shares or len(readers) + len(floats) != len(uses) or not (readers if not written else floats):
            continue
        found.append(Site(value, producer if written else None, readers, floats))
    return found


def _reads(node: ir.Node, index: int, plan: Plan, channels: int) -> bool:
    layer = index == 0 and node.op_type == "Conv" and node in plan.weights and equalize.is_layer(node)
    return layer and equalize.reads_channels(node, channels)


def apply(
    graph: ir.Graph, found: list[Site], seen: Mapping[str, Channels], rules: Quantization
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, tuple[str, np.ndarray]]]:
    """Even out every site whose `seen` channels (by value name) say that it pays on a target with these `rules`.

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
        factors, gain = equalization.even(channels.lows, channels.highs, channels.power, readers, channels.count)
        if gain < (WORTH if rules.channel_scales else WORTH_MUL):
            continue
        factors = factors.astype(np.float32).astype(np.float64)
        gains[name] = round(gain, 2)
        for node in site.readers:
            equalize.scale_input(graph, node, 1 / factors)
        if site.writer is not None:
            equalize.scale_output(graph, site.writer, factors)
            written[name] = factors
            back = multiply(graph, site.value, 1 / factors)
            for node, index in site.floats:
                node.replace_input_with(index, back)
        else:
            evened = multiply(graph, site.value, factors)
            for node in site.readers:
                node.replace_input_with(0, evened)
            made[str(evened.name)] = name, factors
    return gains, written, made


def multiply(graph: ir.Graph, value: ir.Value, factors: np.ndarray) -> ir.Value:
    import onnx_ir as ir

    rank = len(value.shape or ())
    by = initializer(graph, f"{value.name}/factors", factors.reshape(-1, *[1] * (rank - 2)).astype(np.float32))
    node = ir.node("Mul", [value, by], name=fresh_name(graph, f"{value.name}{NAME}"))
    result, producer = node.outputs[0], value.producer()
    result.name, result.type, result.shape = fresh_name(graph, f"{value.name}/evened"), value.type, value.shape
    assert producer is not None
    graph.insert_after(producer, node)
    return result


def release(graph: ir.Graph, plan: Plan) -> None:
    """Give the factors of Muls that no quantizer of `plan` is beside back to the layers: these stay in float."""
    for node in list(graph):
        factors, source, result = by_channel(node), node.inputs[0], node.outputs[0]
        if factors is None or source is None or NAME not in str(node.name) or {source, result} & set(plan.points):
            continue
        writer, readers = source.producer(), [use.node for use in result.uses()]
        if writer is not None and equalize.is_layer(writer) and sole_consumer(source) is node:
            equalize.scale_output(graph, writer, factors)
        elif all(equalize.is_layer(reader) for reader in readers):
            for reader in readers:
                equalize.scale_input(graph, reader, factors)
        else:
            continue
        drop_node(graph, node)


def fold(graph: ir.Graph) -> int:
    """Put each Mul by positive per-channel factors beside a Q/DQ pair into the pair's scale; return how many."""
    folded = 0
    for node in list(graph):
        factors = by_channel(node)
        source = node.inputs[0]
        if factors is None or source is None:
            continue
        after, before = sole_consumer(node.outputs[0]), source.producer()
        if before is not None and before.op_type in TABLES:
            continue
        if after is not None and after.op_type == "QuantizeLinear" and scalar(after):
            _per_channel(graph, after, 1 / factors)
            drop_node(graph, node)
            folded += 1
        elif any(use.node.op_type in TABLES for use in node.outputs[0].uses()):
            continue
        elif before is not None and before.op_type == "DequantizeLinear" and scalar(before):
            _per_channel(graph, _own(graph, before, node), factors)
            drop_node(graph, node)
            folded += 1
    return folded


def by_channel(node: ir.Node) -> np.ndarray | None:
    """`[C]` of a Mul by `[C, 1, …]`, all positive."""
    if node.op_type != "Mul" or node.domain != "" or len(node.inputs) != 2 or node.inputs[0] is None:
        return None
    shape, array = node.inputs[0].shape, constant(node.inputs[1])
    if shape is None or array is None or constant(node.inputs[0]) is not None or array.ndim != len(shape) - 1:
        return None
    usable = array.size > 1 and array.shape[0] == array.size == shape[1] and bool((array > 0).all())
    return array.reshape(-1) if usable else None


def scalar(node: ir.Node) -> bool:
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
