"""What is seen of a model's float tensors on data, and which causes that shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.diagnosis.trials import Open
from edgerun.quantize.graphs import loops, recurrent, statistics, switches
from edgerun.quantize.graphs.activation import Channels
from edgerun.quantize.graphs.align import Counterpart
from edgerun.quantize.graphs.quantizers import HOLDERS, Activation, Constant, Loop, Quantizer, Running
from edgerun.quantize.numerics import causes
from edgerun.quantize.numerics.causes import Cause, Seen
from edgerun.quantize.numerics.grid import Grid

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Feeds

PER_BATCH = 1 << 13  # elements sampled of each activation and batch


@dataclass(frozen=True)
class Evidence:
    """By the key of an activation, or of a recurrent layer on integers, whose input that is, what was `seen`, its
    `channels` and the `axis` they lie on; `rms` of layers' outputs `[C]`."""

    seen: dict[str, Seen]
    channels: dict[str, Channels]
    axis: dict[str, int]
    rms: dict[str, np.ndarray]


def gather(
    model: ir.Model, counterpart: Counterpart, quantizers: Sequence[Quantizer], feeds: Iterable[Feeds], open_: Open
) -> Evidence:
    """Run the float counterpart of `model` on all `feeds` once: extremes of everything, and a sample of each."""
    told = switches.off(model, counterpart, quantizers)
    nodes = {str(node.name): node for node in told.graph}
    activations = [q for q in quantizers if isinstance(q, Activation)]
    values = {a.name: [switches.FLOAT + pair.value for pair in a.pairs] for a in activations}
    outputs = {
        q.layer: str(nodes[q.layer].outputs[0].name)
        for q in quantizers
        if isinstance(q, Constant) and q.kind == "bias" and q.layer in nodes
    }
    parts = {a.name: _parts(nodes, a) for a in activations}
    twins = {q.key: nodes[switches.FLOAT + q.layer] for q in quantizers if isinstance(q, Loop)}
    read = {key: str(node.inputs[0].name) for key, node in twins.items()}  # type: ignore[union-attr]
    read |= {q.key: switches.FLOAT + q.name for q in quantizers if isinstance(q, Running)}
    names = [n for found in (*values.values(), outputs.values(), *parts.values(), read.values()) for n in found]
    watch = statistics.Watch(told, list(dict.fromkeys(names)), PER_BATCH)
    with open_(watch.graph(full=True)) as session:
        for feed in feeds:
            watch.add(session.run(feed))
    all_ = watch.activations()
    seen, channels, axis = {}, {}, {}
    for a in activations:
        found = [all_[value] for value in values[a.name]]
        low, high = min(float(f.channels.low.min()) for f in found), max(float(f.channels.high.max()) for f in found)
        peaks = tuple(float(all_[p].channels.peak.max()) for p in parts[a.name])
        seen[a.name] = Seen(low, high, found[0].channels.peak, found[0].sample, a.op, peaks)
        channels[a.name], axis[a.name] = found[0].channels, 1 if found[0].axis is None else found[0].axis
    for key, value in read.items():
        own = all_[value]
        ends = float(own.channels.low.min()), float(own.channels.high.max())
        seen[key] = Seen(*ends, own.channels.peak, own.sample, loops.FLOAT)
        channels[key], axis[key] = own.channels, 1 if own.axis is None else own.axis
    rms = {layer: np.sqrt(all_[value].channels.power) for layer, value in outputs.items()}
    return Evidence(seen, channels, axis, rms)


def _parts(nodes: Mapping[str, ir.Node], activation: Activation) -> list[str]:
    """The float tensors that a Concat joins, when one computes the activation."""
    node = nodes.get(activation.layer) if activation.op == "Concat" else None
    return [str(v.name) for v in node.inputs if v is not None and not v.is_initializer()] if node is not None else []


def cause(quantizer: Quantizer, evidence: Evidence, counterpart: Counterpart) -> Cause:
    """The cause of one quantizer's noise, but for recurrent layers on integers (`diagnosis.recurrent`)."""
    if isinstance(quantizer, Activation):
        if quantizer.grid.scale.size > 1:
            return Cause(causes.ROUNDING, "one scale per channel", 0.0)
        seen = evidence.seen[quantizer.name]
        return causes.of_activation(seen, quantizer.grid, quantizer.low, quantizer.high)
    if isinstance(quantizer, Running) and quantizer.block:
        return Cause(causes.ROUNDING, f"one scale for each {quantizer.block} elements of a row", 0.0)
    if isinstance(quantizer, Running):
        return causes.of_input(evidence.seen[quantizer.key])
    assert isinstance(quantizer, Constant)
    array = counterpart.constants.get(quantizer.key)
    if array is not None and quantizer.op in recurrent.OPS and array.ndim == 3 and quantizer.stored.dtype.kind != "f":
        return _of_recurrent(quantizer, array)
    if quantizer.kind == "bias":
        reference = np.zeros_like(quantizer.values) if array is None else array
        rms = evidence.rms.get(quantizer.layer)
        sigma = float(np.sqrt((rms**2).mean())) if rms is not None else 1.0
        return causes.of_bias(reference, quantizer.values, sigma)
    if array is None or quantizer.grid is None or quantizer.op not in HOLDERS or quantizer.stored.dtype.kind == "f":
        return Cause(causes.ROUNDING, "weights", 0.0)
    axis = weight_axis(quantizer)
    return causes.of_weight(array, quantizer.grid, quantizer.stored, axis)


def _of_recurrent(quantizer: Constant, array: np.ndarray) -> Cause:
    """The oddest of what the directions show, rows of W `[G·H, K]` being the channels."""
    assert quantizer.grid is not None
    scale, zero = quantizer.grid.broadcast(array.ndim)
    one = scale.size <= len(array)  # for all channels
    scales, zeros = (np.broadcast_to(part, array.shape)[..., 0] for part in (scale, zero))
    found = []
    for weight, stored, step, middle in zip(array, quantizer.stored, scales, zeros, strict=True):
        grid = Grid(np.asarray(step[0]), np.asarray(middle[0])) if one else Grid(step, middle, 0)
        found.append(causes.of_weight(weight, grid, stored, 0))
    return max(found, key=lambda one: (one.name != causes.ROUNDING, one.number))


def weight_axis(quantizer: Constant) -> int:
    """The output-channel axis of a stored weight: its scales', else its op's."""
    if quantizer.grid is not None and quantizer.grid.axis is not None:
        return quantizer.grid.axis % quantizer.stored.ndim
    if quantizer.transposed:
        return 0
    return {"Conv": 0, "ConvTranspose": 1}.get(quantizer.op, quantizer.stored.ndim - 1)


def bias_shift(quantizer: Constant, evidence: Evidence, counterpart: Counterpart) -> float:
    """How far a bias is from the float model's, in units of its layer's output."""
    return cause(quantizer, evidence, counterpart).number
