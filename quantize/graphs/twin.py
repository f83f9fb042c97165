"""Two streams in one graph, float and quantized, so that one run measures what quantization shifts, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import constant, initializer, sole_consumer
from edgerun.quantize.graphs.placement import Plan
from edgerun.quantize.numerics.grid import Grid

if TYPE_CHECKING:
    import onnx_ir as ir

PREFIX = "edgerun/twin/"


@dataclass(frozen=True)
class Layer:
    """A layer whose bias can be moved: the node that holds it (and whose output it shifts), at which input."""

    holder: ir.Node
    index: int
    bias: ir.Value | None


@dataclass(frozen=True)
class Twin:
    """Both streams in one model: `shifts` names each layer's probe by its holder, `outputs` pairs (float, quantized).

    A probe is float32 with C elements: mean(float) − mean(quantized) over batch and positions.
    """

    model: ir.Model
    shifts: dict[str, str]
    outputs: list[tuple[str, str]]


def correctable(plan: Plan) -> list[Layer]:
    """The layers with quantized weights whose bias is a constant or absent.

    Conv and Gemm hold their own; a MatMul's is the constant of the Add that alone reads it, if there is one.
    """
    found: list[Layer] = []
    for node in plan.weights:
        if node.op_type != "MatMul":
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if bias is None or constant(bias) is not None:
                found.append(Layer(node, 2, bias))
            continue
        add = sole_consumer(node.outputs[0])
        if add is None or add.op_type != "Add":
            continue
        index = 1 if add.inputs[0] is node.outputs[0] else 0
        array = constant(add.inputs[index])
        if array is not None and array.ndim == 1:
            found.append(Layer(add, index, add.inputs[index]))
    return found


def build(model: ir.Model, plan: Plan, grids: Mapping[str, Grid], weights: Mapping[str, np.ndarray]) -> Twin:
    """Put a quantized stream beside the float one.

    `grids` gives each scale group's grid, `weights` each weighted node's dequantized weight by node name. In the
    quantized stream every correctable layer's output is shifted by that batch's own mean difference before it goes
    on, so that each layer is measured with its predecessors already corrected (sequential bias correction,
    Nagel et al. 2019, section 4.2, by data) at the price of one pass.
    """
    twin = model.clone()
    builder = _Builder(twin.graph, plan, grids, weights)
    for value in twin.graph.inputs:
        builder.mapped[value] = builder.quantized(value, value)
    for node in list(twin.graph):
        builder.copy(node)
    pairs = [(value, builder.mapped[value]) for value in twin.graph.outputs if value in builder.mapped]
    for index, (value, stream) in enumerate(pairs):
        if stream is value:
            continue
        if stream.is_graph_output():
            pairs[index] = value, builder.emit("Identity", [stream], f"output/{index}")
        twin.graph.outputs.append(pairs[index][1])
    return Twin(twin, builder.shifts, [(str(a.name), str(b.name)) for a, b in pairs])


class _Builder:
    """Copies nodes into the second stream; `mapped` leads from a float value to its quantized counterpart."""

    def __init__(
        self, graph: ir.Graph, plan: Plan, grids: Mapping[str, Grid], weights: Mapping[str, np.ndarray]
    ) -> None:
        values = {v.name: v for v in [*graph.inputs, *(o for node in graph for o in node.outputs)]}
        self.graph, self.grids, self.weights = graph, grids, weights
        self.points = {values[v.name]: group for v, group in plan.points.items()}
        self.holders = {str(layer.holder.name) for layer in correctable(plan)}
        self.mapped: dict[ir.Value, ir.Value] = {}
        self.shifts: dict[str, str] = {}

    def emit(
        self, op: str, inputs: Sequence[ir.Value | None], name: str, **attributes: int | Sequence[int]
    ) -> ir.Value:
        import onnx_ir as ir

        node = ir.node(op, list(inputs), attributes=attributes, name=PREFIX + name)
        node.outputs[0].name = PREFIX + name
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        self.graph.append(node)
        return node.outputs[0]

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        known = self.graph.initializers.get(PREFIX + name)
        return known if known is not None else initializer(self.graph, PREFIX + name, array)

    def quantized(self, value: ir.Value, stream: ir.Value) -> ir.Value:
        """`stream` rounded to the grid of the point `value`; itself where there is none."""
        import onnx_ir as ir

        group = self.points.get(value)
        if group is None:
            return stream
        grid = self.grids[group]
        parameters = [self.constant(f"{group}/scale", grid.scale), self.constant(f"{group}/zero", grid.zero_point)]
        stored = self.emit("QuantizeLinear", [stream, *parameters], f"{value.name}/q")
        stored.type = ir.TensorType(ir.DataType[grid.zero_point.dtype.name.upper()])
        return self.emit("DequantizeLinear", [stored, *parameters], f"{value.name}/dq")

    def copy(self, node: ir.Node) -> None:
        """Repeat `node` on the quantized stream, with its quantized weight and its layer's shift."""
        import onnx_ir as ir

        inputs = [self.mapped.get(v, v) if v is not None else None for v in node.inputs]
        if node.name in self.weights:
            inputs[1] = self.constant(f"{node.name}/weight", self.weights[str(node.name)])
        twin = ir.Node(
            node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs),
            version=node.version, name=PREFIX + str(node.name),
        )  # fmt: skip
        self.graph.append(twin)
        for old, new in zip(node.outputs, twin.outputs, strict=True):
            new.name, new.type, new.shape = f"{PREFIX}{old.name}/raw", old.type, old.shape
            stream = self._shifted(node, old, new) if node.name in self.holders else new
            self.mapped[old] = self.quantized(old, stream)

    def _shifted(self, node: ir.Node, old: ir.Value, new: ir.Value) -> ir.Value:
        axes = _mean_axes(node, len(old.shape or ()))
        difference = self.emit("Sub", [old, new], f"{node.name}/difference")
        name = f"{node.name}/shift"
        if self.graph.opset_imports.get("", 0) >= 18:
            listed = self.constant(f"axes/{','.join(map(str, axes))}", np.array(axes, np.int64))
            mean = self.emit("ReduceMean", [difference, listed], name, keepdims=1)
        else:
            mean = self.emit("ReduceMean", [difference], name, keepdims=1, axes=axes)
        mean.shape = None
        self.shifts[str(node.name)] = str(mean.name)
        self.graph.outputs.append(mean)
        return self.emit("Add", [new, mean], f"{node.name}/corrected")


def _mean_axes(node: ir.Node, rank: int) -> tuple[int, ...]:
    """Everything but the channel axis: 1 for convolutions, the last one for matrix products and their Adds."""
    channel = 1 if node.op_type in ("Conv", "ConvTranspose") else rank - 1
    return tuple(i for i in range(rank) if i != channel)
