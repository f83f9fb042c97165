"""Find tensors whose channels can be rescaled for free, and rescale them: exact in real arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.activation import Channels
from edgerun.quantize.graphs.edit import constant, fresh_name, initializer, row_bias, set_constant, shared
from edgerun.quantize.numerics.equalization import Read, Reader, scales

if TYPE_CHECKING:
    import onnx_ir as ir

# f(s∘x) = s∘f(x) for every positive per-channel s on axis 1.
HOMOGENEOUS = frozenset(
    {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity"}
)


Places = np.ndarray  # int64 [C]: which of a chain's scales each channel of a value has


@dataclass
class Chain:
    """Values whose channels are tied to `channels` scales, the layers that write them and the layers that read them,
    each with the places of its own channels among these: a Concat puts the scales of several values side by side."""

    channels: int = 0
    values: dict[ir.Value, Places] = field(default_factory=dict)
    writers: dict[ir.Node, Places] = field(default_factory=dict)
    readers: dict[ir.Node, Places] = field(default_factory=dict)
    clips: dict[ir.Node, Places] = field(default_factory=dict)

    def more(self, channels: int) -> Places:
        """So many scales of their own."""
        self.channels += channels
        return np.arange(self.channels - channels, self.channels)


def chains(graph: ir.Graph) -> list[Chain]:
    """Every rescalable chain, in graph order; a value belongs to at most one."""
    found: list[Chain] = []
    seen: set[ir.Value] = set()
    for node in graph:
        if not is_layer(node) or node.outputs[0] in seen:
            continue
        chain = Chain()
        closed = _collect(chain, node.outputs[0], chain.more(output_channels(node)))
        seen.update(chain.values)
        if closed and chain.readers:
            found.append(chain)
    return found


def is_layer(node: ir.Node) -> bool:
    """A Conv or Gemm whose weight and bias are constants."""
    if node.domain != "" or node.op_type not in ("Conv", "Gemm") or constant(node.inputs[1]) is None:
        return False
    transposed = node.attributes.get_int("transA", 0) != 0
    scaled = any(node.attributes.get_float(k, 1.0) != 1.0 for k in ("alpha", "beta"))
    return not transposed and not scaled and row_bias(node, output_channels(node)) is not None


def output_channels(node: ir.Node) -> int:
    """How many channels a layer writes."""
    weight = constant(node.inputs[1])
    assert weight is not None
    rows = node.op_type == "Conv" or node.attributes.get_int("transB", 0) != 0
    return int(weight.shape[0 if rows else 1])


Pending = list[tuple["ir.Value", Places]]


def _collect(chain: Chain, start: ir.Value, places: Places) -> bool:
    """Grow the chain over everything tied to `start`; False when something ties it to what cannot be rescaled."""
    pending: Pending = [(start, places)]
    while pending:
        value, places = pending.pop()
        if value in chain.values:
            if not np.array_equal(chain.values[value], places):
                return False  # two scales would have to be one
            continue
        chain.values[value] = places
        node = value.producer()
        if value.is_graph_output() or node is None:
            return False
        if is_layer(node):
            if output_channels(node) != len(places):
                return False
            chain.writers[node] = places
        elif not _tie(chain, node, places, pending):
            return False
        for reader, index in value.uses():
            if is_layer(reader) and index == 0:
                if not reads_channels(reader, len(places)):
                    return False
                chain.readers[reader] = places
            elif not _tie(chain, reader, places, pending, value):
                return False
    return True


def _tie(chain: Chain, node: ir.Node, places: Places, pending: Pending, read: ir.Value | None = None) -> bool:
    """Go on through `node`, whose output has these places, or where it is `read`, that input."""
    if node.domain != "":
        return False
    source, result = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or result.shape is None or len(node.outputs) != 1:
        return False
    if node.op_type == "Concat":
        return _join(chain, node, places, pending, read)
    if node.op_type == "Add":
        other = node.inputs[1]
        if other is None or constant(other) is not None or constant(source) is not None or other.shape != source.shape:
            return False
        pending.extend((value, places) for value in (source, other, result))
        return True
    if _is_relu_clip(node):
        chain.clips[node] = places
    elif not (node.op_type in HOMOGENEOUS or _averages_positions(node) or _keeps_channels(node)):
        return False
    pending.extend((value, places) for value in (source, result))
    return True


def _join(chain: Chain, node: ir.Node, places: Places, pending: Pending, read: ir.Value | None) -> bool:
    """Through a Concat of channels: its output has the scales of its inputs, side by side."""
    result, inputs = node.outputs[0], list(node.inputs)
    sizes = [value.shape[1] if value is not None and value.shape is not None and len(value.shape) > 1 else None
             for value in inputs]  # fmt: skip
    rank = len(result.shape or ())
    if node.attributes.get_int("axis", 0) not in (1, 1 - rank) or not all(isinstance(size, int) for size in sizes):
        return False
    known = {**dict(pending), **chain.values, **({} if read is None else {read: places})}
    whole = places if read is None else known.get(result)
    at = 0
    for value, size in zip(inputs, sizes, strict=True):
        assert value is not None and isinstance(size, int)
        if whole is not None:
            known.setdefault(value, whole[at : at + size])
        elif value not in known:
            known[value] = chain.more(size)
        at += size
    if any(len(known[value]) != size for value, size in zip(inputs, sizes, strict=True)):  # type: ignore[index]
        return False
    pending.extend((value, known[value]) for value in inputs)  # type: ignore[index, misc]
    pending.append((result, np.concatenate([known[value] for value in inputs])))  # type: ignore[index]
    return True


def _is_relu_clip(node: ir.Node) -> bool:
    if node.op_type != "Clip" or len(node.inputs) < 3:
        return False
    low, high = constant(node.inputs[1]), constant(node.inputs[2])
    return low is not None and high is not None and float(low) == 0.0 and float(high) > 0


def _averages_positions(node: ir.Node) -> bool:
    if node.op_type not in ("ReduceMean", "ReduceMax") or node.inputs[0] is None or node.inputs[0].shape is None:
        return False
    rank = len(node.inputs[0].shape)
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else node.attributes.get_ints("axes", None)
    return given is not None and {int(a) % rank for a in given} == set(range(2, rank)) and rank > 2


def _keeps_channels(node: ir.Node) -> bool:
    """A Flatten, Reshape or Squeeze from [N, C, 1, …] to [N, C] (or back)."""
    if node.op_type not in ("Flatten", "Reshape", "Squeeze", "Unsqueeze"):
        return False
    before, after = node.inputs[0].shape, node.outputs[0].shape  # type: ignore[union-attr]
    if before is None or after is None or len(before) < 2 or len(after) < 2:
        return False
    ones = all(d == 1 for d in [*list(before)[2:], *list(after)[2:]])
    return ones and before[1] == after[1] and isinstance(before[1], int)


def reads_channels(node: ir.Node, channels: int) -> bool:
    weight = constant(node.inputs[1])
    assert weight is not None
    if node.op_type == "Conv":
        return bool(weight.shape[1] * node.attributes.get_int("group", 1) == channels)
    return bool(weight.shape[1 if node.attributes.get_int("transB", 0) else 0] == channels)


def equalize(
    graph: ir.Graph, found: list[Chain], seen: Mapping[str, Channels]
) -> tuple[dict[str, float], list[float], dict[str, np.ndarray]]:
    """Rescale every chain that was `seen` (by value name). Where that would copy large weights
    that layers share, nothing is changed.

    Returns {name of its first seen value: exponent} for the chains changed, the predicted gain in dB of each, and every
    rescaled value's factors `[C]`.
    """
    changed, gains = dict[str, float](), list[float]()
    factors_of: dict[str, np.ndarray] = {}
    for chain in found:
        names = {str(v.name): places for v, places in chain.values.items() if v.name in seen}
        layers = (*chain.writers, *chain.readers)
        if not names or any(shared(node.inputs[1]) for node in layers):
            continue
        if any(seen[name].peaks.shape[1] != len(places) for name, places in names.items()):
            continue
        factors, exponent, gain = scales([_read(chain, name, at, seen[name]) for name, at in names.items()])
        if exponent == 0.0:
            continue
        changed[next(iter(names))] = exponent
        gains.append(gain)
        factors_of |= {str(value.name): factors[places] for value, places in chain.values.items()}
        rescale(graph, chain, factors)
    return changed, gains, factors_of


def _read(chain: Chain, name: str, places: Places, channels: Channels) -> Read:
    """What was seen of a value of the chain, and the layers of the chain that read it."""
    readers = [reader(node) for node in chain.readers if node.inputs[0].name == name]  # type: ignore[union-attr]
    return Read(channels.peaks, channels.power, channels.count, readers, places)


def rescale(graph: ir.Graph, chain: Chain, factors: np.ndarray) -> None:
    """Multiply the chain's channels by its `factors` (> 0) where they are written; divide where they are read."""
    for node, places in chain.writers.items():
        scale_output(graph, node, factors[places])
    for node, places in chain.readers.items():
        scale_input(graph, node, 1 / factors[places])
    for node, places in chain.clips.items():
        _scale_clip(graph, node, factors[places])


def reader(node: ir.Node) -> Reader:
    weight = constant(node.inputs[1])
    assert weight is not None
    group = node.attributes.get_int("group", 1)
    if node.op_type == "Gemm":
        matrix = weight if node.attributes.get_int("transB", 0) else weight.T
        return Reader((matrix**2).sum(axis=0), np.abs(matrix), 1)
    flat = weight.reshape(*weight.shape[:2], -1)
    energy = np.einsum("ock,ock->oc", flat, flat)
    peaks = np.abs(flat[:, :, 0]) if flat.shape[2] == 1 else np.abs(flat).max(axis=2)
    if group == 1:
        return Reader(energy.sum(axis=0), peaks, flat.shape[2])
    per_group = energy.reshape(group, -1, weight.shape[1]).sum(axis=1).reshape(-1)
    if weight.shape[1] == 1:
        return Reader(per_group, None, flat.shape[2])
    wide = np.zeros((weight.shape[0], group * weight.shape[1]), weight.dtype)
    for g, rows in enumerate(np.array_split(np.arange(weight.shape[0]), group)):
        wide[rows, g * weight.shape[1] : (g + 1) * weight.shape[1]] = peaks[rows]
    return Reader(per_group, wide, flat.shape[2])


def scale_output(graph: ir.Graph, node: ir.Node, factors: np.ndarray) -> None:
    weight = constant(node.inputs[1])
    assert weight is not None
    rows = node.op_type == "Conv" or bool(node.attributes.get_int("transB", 0))
    shape = (-1, *[1] * (weight.ndim - 1)) if rows else (1, -1)
    set_constant(graph, node, 1, weight * factors.reshape(shape).astype(weight.dtype))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = row_bias(node, len(factors))
        assert bias is not None
        set_constant(graph, node, 2, (bias * factors).astype(weight.dtype))


def scale_input(graph: ir.Graph, node: ir.Node, factors: np.ndarray) -> None:
    weight = constant(node.inputs[1])
    assert weight is not None
    if node.op_type in ("Gemm", "MatMul"):
        shape: tuple[int, ...] = (1, -1) if node.attributes.get_int("transB", 0) else (-1, 1)
        set_constant(graph, node, 1, weight * factors.reshape(shape).astype(weight.dtype))
        return
    group = node.attributes.get_int("group", 1)
    per_row = np.repeat(factors.reshape(group, -1), weight.shape[0] // group, axis=0).astype(weight.dtype)
    scaled = weight * per_row.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
    set_constant(graph, node, 1, scaled)


def _scale_clip(graph: ir.Graph, node: ir.Node, factors: np.ndarray) -> None:
    """Clip(x, 0, h) becomes Min(Relu(x), h·f): the cap now differs per channel."""
    import onnx_ir as ir

    high = constant(node.inputs[2])
    source, result = node.inputs[0], node.outputs[0]
    assert high is not None and source is not None and result.shape is not None
    cap = (float(high) * factors).reshape(-1, *[1] * (len(result.shape) - 2)).astype(np.float32)
    relu = ir.node("Relu", [source], name=fresh_name(graph, f"{node.name}/Relu"))
    caps = initializer(graph, f"{node.name}/cap", cap)
    least = ir.node("Min", [relu.outputs[0], caps], name=fresh_name(graph, f"{node.name}/Min"))
    relu.outputs[0].name = fresh_name(graph, f"{result.name}/relu")
    name = result.name
    for made in (relu.outputs[0], least.outputs[0]):
        made.shape, made.type = result.shape, result.type
    graph.insert_before(node, [relu, least])
    result.replace_all_uses_with(least.outputs[0])
    graph.remove(node, safe=True)
    least.outputs[0].name = name
