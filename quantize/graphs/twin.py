"""Two streams in one graph, float and quantized, so that one run measures what quantization shifts, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import constant, sole_consumer
from edgerun.quantize.graphs.placement import Plan
from edgerun.quantize.numerics.grid import Grid

if TYPE_CHECKING:
    import onnx_ir as ir

PREFIX = "edgerun/twin/"


@dataclass(frozen=True)
class Shift:
    """One correctable layer: the node whose output is corrected, and the node and input that hold its bias."""

    output: str  # probe name: float32 `[C]`, mean(float) − mean(quantized) over batch and positions
    node: ir.Node
    index: int


def correctable(plan: Plan) -> list[tuple[ir.Node, ir.Node, int]]:
    """(node whose output has the bias added, bias holder, input index) for each node with quantized weights.

    Conv and Gemm hold their own bias; a MatMul's is the constant of the Add that alone reads it, if there is one.
    """
    found: list[tuple[ir.Node, ir.Node, int]] = []
    for node in plan.weights:
        if node.op_type != "MatMul":
            found.append((node, node, 2))
            continue
        add = sole_consumer(node.outputs[0])
        if add is None or add.op_type != "Add":
            continue
        index = 1 if add.inputs[0] is node.outputs[0] else 0
        bias = constant(add.inputs[index])
        if bias is not None and bias.ndim == 1:
            found.append((add, add, index))
    return found


def build(
    model: ir.Model, plan: Plan, grids: Mapping[str, Grid], weights: Mapping[str, np.ndarray]
) -> tuple[ir.Model, list[str]]:
    """A model with both streams; outputs are the shifts (one per correctable layer) and both streams' outputs.

    `grids` gives each scale group's grid, `weights` each weighted node's dequantized weight by node name. In the
    quantized stream every correctable layer's output is shifted by that batch's own mean difference before it goes
    on, so that each layer is measured with its predecessors already corrected (sequential bias correction,
    Nagel et al. 2019, section 4.2, by data) at the price of one pass. Returns the names of the shifts, in plan order.
    """
    import onnx_ir as ir

    twin = model.clone()
    graph = twin.graph
    names = {node.name: node for node in graph}
    shift_of = {names[node.name].name: position for position, (node, _, _) in enumerate(correctable(plan))}
    mapped: dict[ir.Value, ir.Value] = {}
    values = {v.name: v for v in [*graph.inputs, *(o for node in graph for o in node.outputs)]}
    points = {values[v.name]: group for v, group in plan.points.items()}
    shifts: dict[int, str] = {}

    def register(name: str, array: np.ndarray) -> ir.Value:
        if name in graph.initializers:
            return graph.initializers[name]
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
        return value

    def emit(op: str, inputs: Sequence[ir.Value | None], name: str, **attributes: int) -> ir.Value:
        node = ir.node(op, list(inputs), attributes=attributes, name=PREFIX + name)
        node.outputs[0].name = PREFIX + name
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.append(node)
        return node.outputs[0]

    def quantized(value: ir.Value, stream: ir.Value) -> ir.Value:
        group = points.get(value)
        if group is None:
            return stream
        scale = register(f"{PREFIX}{group}/scale", grids[group].scale)
        zero = register(f"{PREFIX}{group}/zero", grids[group].zero_point)
        stored = emit("QuantizeLinear", [stream, scale, zero], f"{value.name}/q")
        stored.type = ir.TensorType(ir.DataType[grids[group].zero_point.dtype.name.upper()])
        return emit("DequantizeLinear", [stored, scale, zero], f"{value.name}/dq")

    for value in graph.inputs:
        mapped[value] = quantized(value, value)
    for node in list(graph):
        inputs = [mapped.get(v, v) if v is not None else None for v in node.inputs]
        if node.name in weights:
            inputs[1] = register(f"{PREFIX}{node.name}/weight", weights[node.name])
        copy = ir.Node(
            node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs), version=node.version,
            name=PREFIX + str(node.name),
        )  # fmt: skip
        graph.append(copy)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.type, new.shape = f"{PREFIX}{old.name}/raw", old.type, old.shape
            stream = new
            if node.name in shift_of:
                axes = _mean_axes(node, len(old.shape or ()))
                position = shift_of[str(node.name)]
                axis_list = register(f"{PREFIX}axes/{','.join(map(str, axes))}", np.array(axes, np.int64))
                difference = emit("Sub", [old, new], f"{position}/difference")
                mean = _reduce_mean(emit, graph, difference, axes, axis_list, f"{position}/shift")
                stream = emit("Add", [new, mean], f"{position}/corrected")
                shifts[position] = str(mean.name)
                graph.outputs.append(mean)
            mapped[old] = quantized(old, stream)
    for value in list(graph.outputs):
        if value in mapped:
            graph.outputs.append(mapped[value])
    return twin, [shifts[i] for i in sorted(shifts)]


def _reduce_mean(emit, graph, value, axes, axis_list, name):  # type: ignore[no-untyped-def]
    if graph.opset_imports.get("", 0) >= 18:
        return emit("ReduceMean", [value, axis_list], name, keepdims=1)
    return emit("ReduceMean", [value], name, keepdims=1, axes=axes)


def _mean_axes(node: ir.Node, rank: int) -> tuple[int, ...]:
    """Everything but the channel axis: 1 for convolutions, the last one for matrix products and their Adds."""
    channel = 1 if node.op_type in ("Conv", "ConvTranspose") else rank - 1
    return tuple(i for i in range(rank) if i != channel)
