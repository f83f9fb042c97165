"""Bias correction by measurement: what quantization shifts, layer by layer, with the layers before already corrected.

Two runs over the same batches: the float model tells the mean of every layer's output; the quantized stream takes
these means as inputs and moves each layer's output onto them before it goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import constant, fresh_name, reduction, set_constant, sole_consumer
from edgerun.quantize.graphs.placement import Plan

if TYPE_CHECKING:
    import onnx_ir as ir

MEANS = "edgerun/mean/"
SHARE = "edgerun/share"
SPREAD = 64  # positions: a mean over so many hides nothing of a single value


@dataclass(frozen=True)
class Layer:
    """A layer whose bias can be moved: the node that holds it (and whose output it shifts), at which input."""

    holder: ir.Node
    index: int
    bias: ir.Value | None

    @property
    def mean(self) -> str:
        """Name of the float output's mean, `[1, C, 1, …]` or `[1, …, C]`: an output there, an input here."""
        return f"{MEANS}{self.holder.name}"

    @property
    def fixed(self) -> str:
        """Name of the shift that is given, an input of the same shape."""
        return f"edgerun/fixed/{self.holder.name}"

    @property
    def missing(self) -> str:
        """Name of mean(float) − mean(quantized) before any shift, an output of the same shape."""
        return f"edgerun/missing/{self.holder.name}"


def layers(plan: Plan) -> list[Layer]:
    """The layers with quantized weights whose bias is a constant or absent.

    Conv and Gemm hold their own; a MatMul's is the constant of the Add that alone reads it, if there is one.
    """
    found: list[Layer] = []
    for node in plan.weights:
        if node.op_type != "MatMul":
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if (bias is None or constant(bias) is not None) and _has_positions(node):
                found.append(Layer(node, 2, bias))
            continue
        add = sole_consumer(node.outputs[0])
        if add is None or add.op_type != "Add":
            continue
        index = 1 if add.inputs[0] is node.outputs[0] else 0
        array = constant(add.inputs[index])
        if array is not None and array.ndim == 1 and _has_positions(add):
            found.append(Layer(add, index, add.inputs[index]))
    return found


def _has_positions(node: ir.Node) -> bool:
    """Whether a mean over everything but the channels can be taken: the rank is known and there is a batch axis."""
    shape = node.outputs[0].shape
    return shape is not None and len(shape) > 1


def spread(layer: Layer) -> bool:
    """Whether a sample has SPREAD positions at least, over which its means are taken; sizes that are open are many."""
    shape = list(layer.holder.outputs[0].shape or ())
    positions = shape[2:] if layer.holder.op_type in ("Conv", "ConvTranspose") else shape[1:-1]
    return math.prod(size if isinstance(size, int) else SPREAD for size in positions) >= SPREAD


def move(graph: ir.Graph, plan: Plan, shifts: Mapping[str, np.ndarray]) -> None:
    """Put `shifts` `[C]`, by the name of the layer's holder, into the biases of the plan's layers."""
    for layer in layers(plan) if shifts else ():
        bias, name = constant(layer.bias), str(layer.holder.name)
        if name not in shifts:
            continue
        moved = shifts[name] + (0.0 if bias is None else bias.reshape(-1))
        set_constant(graph, layer.holder, layer.index, moved.astype(np.float32), name=f"{name}/bias")


def over_taps(weight: np.ndarray | None, scale: float | np.ndarray = 1.0) -> np.ndarray:
    """The sum of a Conv's weights, or of its codes times their `scale`, over the window: `[C out, C in / groups]`."""
    assert weight is not None
    flat = weight.reshape(*weight.shape[:2], -1)
    # A third of the time of a sum over so short an axis.
    total = flat[..., 0] if flat.shape[2] == 1 else np.einsum("oct->oc", flat, dtype=np.float32)
    scaled: np.ndarray = total * np.reshape(scale, (-1, 1))
    return scaled


def expected(plan: Plan, means: Mapping[str, np.ndarray], lost: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What rounding takes from the mean of every layer's output, `[C]` by its holder's name: of convolutions (W −
    Q(W))·E[x], by `means` `[C]` of what they read and what their weights `lost`, `over_taps`, by name. (Nagel et al.
    2019, 4.2.)"""
    found: dict[str, np.ndarray] = {}
    for layer in layers(plan):
        node = layer.holder
        lacking, mean = lost.get(str(node.name)), means.get(str(node.inputs[0].name))  # type: ignore[union-attr]
        if lacking is None or mean is None:
            continue
        groups = node.attributes.get_int("group", 1)
        taps = lacking.reshape(groups, -1, lacking.shape[1])
        found[str(node.name)] = np.einsum("goc,gc->go", taps, mean.reshape(groups, -1)).reshape(-1).astype(np.float32)
    return found


def together(plan: Plan, shifts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`shifts` where layers with one weight, and one scale for what they read, have one shift: the mean of theirs."""
    found = dict(shifts)
    for nodes in plan.sharing():
        if len({plan.points[node.inputs[0]] for node in nodes}) > 1:  # type: ignore[index]
            continue
        holders = [node if node.op_type != "MatMul" else sole_consumer(node.outputs[0]) for node in nodes]
        names = [str(node.name) for node in holders if node is not None and str(node.name) in shifts]
        if names:
            mean: np.ndarray = np.mean([shifts[name] for name in names], axis=0)
            found |= dict.fromkeys(names, mean)
    return found


def add_means(graph: ir.Graph, names: Mapping[str, ir.Node], plan: Plan) -> None:
    """Give each layer's mean over batch and positions as an output of a float `graph` whose nodes are `names`."""
    for layer in layers(plan):
        holder = names[str(layer.holder.name)]
        graph.outputs.append(_mean(graph, holder, holder.outputs[0], layer.mean))


def add_shifts(graph: ir.Graph, nodes: Mapping[str, ir.Node], plan: Plan, own: Plan) -> None:
    """Measure every layer against its given mean and move it, in a graph that computes what the quantized model will.

    `plan` is the float model's, `own` the same on this graph, whose nodes are `nodes` by name. Two inputs per layer,
    its float mean m and a shift s, and one more, the share λ; each layer's output y goes on as y + s + λ·d with
    d = m − mean(y), which is an output. With λ = 1 a run puts every layer onto its mean before the next one reads it
    (sequential bias correction, Nagel et al. 2019, section 4.2, by data, in one pass); with λ = 0 it is the finished
    model with biases moved by s.
    """
    import onnx_ir as ir

    share = ir.Value(name=SHARE, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
    graph.inputs.append(share)
    for layer in layers(plan):
        _measure(graph, layer, nodes[str(layer.holder.name)], own, share)


def _measure(graph: ir.Graph, layer: Layer, holder: ir.Node, plan: Plan, share: ir.Value) -> None:
    import onnx_ir as ir

    output = holder.outputs[0]
    uses, floats = list(output.uses()), ir.TensorType(ir.DataType.FLOAT)
    mean = _mean(graph, holder, output, f"{layer.mean}/quantized")
    given, fixed = (ir.Value(name=name, type=floats, shape=mean.shape) for name in (layer.mean, layer.fixed))
    graph.inputs.extend([given, fixed])
    last = mean.producer()
    assert last is not None

    def emit(op: str, inputs: list[ir.Value], name: str, shape: ir.Shape | None) -> ir.Value:
        nonlocal last
        node = ir.node(op, inputs, name=name)
        made = node.outputs[0]
        made.name, made.type, made.shape = name, floats, shape
        graph.insert_after(last, node)  # type: ignore[arg-type]
        last = node
        return made

    missing = emit("Sub", [given, mean], layer.missing, mean.shape)
    graph.outputs.append(missing)
    part = emit("Mul", [missing, share], f"{layer.missing}/part", mean.shape)
    shift = emit("Add", [part, fixed], f"{layer.missing}/shift", mean.shape)
    moved = emit("Add", [output, shift], fresh_name(graph, f"edgerun/corrected/{output.name}"), output.shape)
    for user, index in uses:
        user.replace_input_with(index, moved)
    if output.is_graph_output():
        graph.outputs[list(graph.outputs).index(output)] = moved
        name, output.name = str(output.name), fresh_name(graph, f"edgerun/uncorrected/{output.name}")
        moved.name = name
    if output in plan.points:
        plan.points[moved] = plan.points.pop(output)
        plan.integer.add(str(last.name))  # the sum stands for its layer


def _mean(graph: ir.Graph, holder: ir.Node, value: ir.Value, name: str) -> ir.Value:
    """The mean over batch and positions, `[1, C, 1, …]` behind convolutions, `[1, …, C]` behind matrix products."""
    import onnx_ir as ir

    rank = len(value.shape or ())
    channel = 1 if holder.op_type in ("Conv", "ConvTranspose") else rank - 1
    axes, source = [i for i in range(rank) if i != channel], value
    if channel == 1 and rank > 2:
        # Runtimes pool in their own blocked layout; a reduction would first have to leave it.
        pool = ir.node("GlobalAveragePool", [value], name=f"{name}/positions")
        source, axes = pool.outputs[0], [0]
        source.name, source.type = f"{name}/positions", ir.TensorType(ir.DataType.FLOAT)
        graph.insert_after(holder, pool)
        holder = pool
    node = reduction(graph, "ReduceMean", source, axes, name)
    mean = node.outputs[0]
    mean.shape = ir.Shape([value.shape[i] if i == channel else 1 for i in range(rank)])  # type: ignore[index]
    graph.insert_after(holder, node)
    return mean
