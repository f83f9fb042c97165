"""What is seen of a model's float tensors on data, and which causes that shows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.diagnosis.trials import Open
from edgerun.quantize.graphs import statistics, switches
from edgerun.quantize.graphs.align import Counterpart
from edgerun.quantize.graphs.quantizers import HOLDERS, Activation, Constant, Quantizer
from edgerun.quantize.graphs.statistics import Channels
from edgerun.quantize.numerics import causes
from edgerun.quantize.numerics.causes import Cause, Seen

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Feeds

PER_BATCH, SAMPLED = 1 << 13, 8  # elements sampled of each activation and batch, and of how many batches


@dataclass(frozen=True)
class Evidence:
    """By activation name what was `seen`, its `channels` and the `axis` they lie on; `rms` of layers' outputs `[C]`."""

    seen: dict[str, Seen]
    channels: dict[str, Channels]
    axis: dict[str, int]
    rms: dict[str, np.ndarray]


def gather(
    model: ir.Model, counterpart: Counterpart, quantizers: Sequence[Quantizer], feeds: Iterable[Feeds], open_: Open
) -> Evidence:
    """Run the float counterpart of `model` on all `feeds` for extremes, and on the first of them for samples."""
    told = switches.off(model, counterpart, quantizers)
    nodes = {str(node.name): node for node in told.graph}
    activations = [q for q in quantizers if isinstance(q, Activation)]
    axis = {a.name: _axis(told.graph, a) for a in activations}
    values = {a.name: [switches.FLOAT + pair.value for pair in a.pairs] for a in activations}
    axes = {value: axis[a.name] for a in activations for value in values[a.name]}
    outputs = {}
    for constant in quantizers:
        if isinstance(constant, Constant) and constant.kind == "bias" and constant.layer in nodes:
            node = nodes[constant.layer]
            outputs[constant.layer] = str(node.outputs[0].name)
            axes[outputs[constant.layer]] = 1 if node.op_type in ("Conv", "ConvTranspose") else -1
    parts = {a.name: _parts(nodes, a) for a in activations}
    names = list(dict.fromkeys([*axes, *(p for found in parts.values() for p in found)]))
    with open_(statistics.with_channel_probes(told, names, axes)) as session:
        channels = statistics.observe_channels(session.run, feeds, names)
    first = [found[0] for found in values.values()]
    with open_(statistics.with_samples(told, first, PER_BATCH)) as session:
        samples = statistics.sample(session.run, itertools.islice(feeds, SAMPLED), first)
    seen = {}
    for a in activations:
        all_ = [channels[value] for value in values[a.name]]
        low, high = min(float(c.low.min()) for c in all_), max(float(c.high.max()) for c in all_)
        peaks = tuple(float(channels[p].peak.max()) for p in parts[a.name])
        seen[a.name] = Seen(low, high, all_[0].peak, samples[values[a.name][0]], a.op, peaks)
    rms = {layer: np.sqrt(channels[value].power) for layer, value in outputs.items()}
    return Evidence(seen, {a.name: channels[values[a.name][0]] for a in activations}, axis, rms)


def _axis(graph: ir.Graph, activation: Activation) -> int:
    """Where the channels lie: the last axis where a matrix product reads or writes the tensor, else 1."""
    producer = next((n for n in graph if n.name == activation.layer), None)
    readers = [n for n in graph if n.name in activation.readers]
    near = [*readers, *([producer] if producer is not None else [])]
    if any(n.op_type == "Conv" for n in near):
        return 1
    return -1 if any(n.op_type in ("MatMul", "Gemm", "LayerNormalization", "Softmax") for n in near) else 1


def _parts(nodes: Mapping[str, ir.Node], activation: Activation) -> list[str]:
    """The float tensors that a Concat joins, when one computes the activation."""
    node = nodes.get(activation.layer) if activation.op == "Concat" else None
    return [str(v.name) for v in node.inputs if v is not None and not v.is_initializer()] if node is not None else []


def cause(quantizer: Quantizer, evidence: Evidence, counterpart: Counterpart) -> Cause:
    """The cause of one quantizer's noise."""
    if isinstance(quantizer, Activation):
        if quantizer.grid.scale.size > 1:
            return Cause(causes.ROUNDING, "one scale per channel", 0.0)
        seen = evidence.seen[quantizer.name]
        return causes.of_activation(seen, quantizer.grid, quantizer.low, quantizer.high)
    array = counterpart.constants.get(quantizer.key)
    if quantizer.kind == "bias":
        reference = np.zeros_like(quantizer.values) if array is None else array
        rms = evidence.rms.get(quantizer.layer)
        sigma = float(np.sqrt((rms**2).mean())) if rms is not None else 1.0
        return causes.of_bias(reference, quantizer.values, sigma)
    if array is None or quantizer.grid is None or quantizer.op not in HOLDERS or quantizer.stored.dtype.kind == "f":
        return Cause(causes.ROUNDING, "weights", 0.0)
    axis = weight_axis(quantizer)
    return causes.of_weight(array, quantizer.grid, quantizer.stored, axis)


def weight_axis(quantizer: Constant) -> int:
    """The output-channel axis of a stored weight: its scales', else its op's."""
    if quantizer.grid is not None and quantizer.grid.axis is not None:
        return quantizer.grid.axis % quantizer.stored.ndim
    return {"Conv": 0, "ConvTranspose": 1}.get(quantizer.op, quantizer.stored.ndim - 1)


def bias_shift(quantizer: Constant, evidence: Evidence, counterpart: Counterpart) -> float:
    """How far a bias is from the float model's, in units of its layer's output."""
    return cause(quantizer, evidence, counterpart).number
