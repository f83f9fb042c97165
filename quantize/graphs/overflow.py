"""What a CPU without VNNI makes of a Q/DQ graph: sums of two u8·s8 products that stop at 16 bits (vpmaddubsw).

The instruction multiplies bytes and adds neighbours in pairs, saturating each sum to int16, before anything is added in
32 bits. Neighbours are input channels 2j and 2j+1 at one kernel position, in the order kernel position, channel. The
excess over 16 bits is computed by float nodes and taken off the layer's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs import quantizers
from edgerun.quantize.graphs.edit import fresh_name, initializer
from edgerun.quantize.graphs.quantizers import Activation, Constant
from edgerun.quantize.graphs.repairs import output_axis
from edgerun.quantize.numerics import saturation
from edgerun.quantize.numerics.grid import Grid

if TYPE_CHECKING:
    import onnx_ir as ir

MOST_PAIRS = 1024  # of a layer; the ones that can exceed most


@dataclass(frozen=True)
class Risk:
    """A layer with pairs of weights whose products with two u8 can exceed 16 bits.

    `pairs` `[P, K]` holds the two weights of each in their places, `rows` `[P]` the output channel it belongs to;
    K is kernel positions times input channels, channels fastest. `step` `[O]` is s_x·s_w.
    """

    layer: str
    pairs: np.ndarray
    rows: np.ndarray
    step: np.ndarray
    grid: Grid

    @property
    def key(self) -> str:
        """Unique in its graph."""
        return f"{self.layer}:saturation"

    @property
    def channels(self) -> np.ndarray:
        """The output channels at risk."""
        return np.unique(self.rows)


def risks(graph: ir.Graph) -> list[Risk]:
    """The layers of a Q/DQ graph that can saturate: u8 activations, s8 weights without zero point, not depthwise."""
    found = quantizers.find(graph)
    inputs = {layer: a.grid for a in found if isinstance(a, Activation) for layer in a.readers}
    nodes = {str(node.name): node for node in graph}
    result = []
    for q in found:
        if not isinstance(q, Constant) or q.kind != "weight" or q.grid is None or q.layer not in inputs:
            continue
        node, grid = nodes[q.layer], inputs[q.layer]
        usable = node.op_type in ("Conv", "Gemm", "MatMul") and node.attributes.get_int("group", 1) == 1
        plain = q.stored.dtype == np.int8 and not q.grid.zero_point.any() and grid.zero_point.dtype == np.uint8
        if (
            not usable
            or not plain
            or grid.scale.size > 1
            or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
        ):
            continue
        rows = np.moveaxis(q.stored, output_axis(node, q.stored.ndim), 0)
        flat = np.moveaxis(rows, 1, -1).reshape(len(rows), -1)
        pairs, owner = saturation.pairs_at_risk(flat, MOST_PAIRS)
        if len(pairs):
            step = np.broadcast_to(grid.scale * q.grid.scale, (len(rows),)).astype(np.float32)
            result.append(Risk(q.layer, pairs, owner, step, grid))
    return result


def add(model: ir.Model, found: Sequence[Risk]) -> ir.Model:
    """A clone in which the layers of `found` saturate."""
    told = model.clone()
    nodes = {str(node.name): node for node in told.graph}
    for risk in found:
        if risk.layer in nodes:
            _saturate(told.graph, nodes[risk.layer], risk)
    return told


def _saturate(graph: ir.Graph, node: ir.Node, risk: Risk) -> None:
    import onnx_ir as ir

    name, conv, made = f"edgerun/saturation/{risk.layer}", node.op_type == "Conv", []
    output, source = node.outputs[0], node.inputs[0]
    assert source is not None

    def emit(op: str, inputs: Sequence[ir.Value], **attributes: object) -> ir.Value:
        step = ir.node(op, list(inputs), attributes=attributes, name=fresh_name(graph, f"{name}/{op}"))  # type: ignore[arg-type]
        step.outputs[0].name = fresh_name(graph, f"{name}/{op}/value")
        made.append(step)
        return step.outputs[0]

    def held(label: str, array: np.ndarray) -> ir.Value:
        return initializer(graph, f"{name}/{label}", array)

    scale, point = held("scale", risk.grid.scale), held("zero_point", risk.grid.zero_point)
    codes = emit("Cast", [emit("QuantizeLinear", [source, scale, point])], to=1)
    summed = np.zeros((len(risk.step), len(risk.pairs)), np.float32)
    summed[risk.rows, np.arange(len(risk.rows))] = risk.step[risk.rows]
    if conv:
        rank, kernel = _kernel(node)
        pads = list(node.attributes.get_ints("pads", [0] * 2 * rank) or [0] * 2 * rank)
        amounts = np.array([0, 0, *pads[:rank], 0, 0, *pads[rank:]], np.int64)
        padded = emit("Pad", [codes, held("pads", amounts), held("code", risk.grid.zero_point.astype(np.float32))])
        channels = risk.pairs.shape[1] // int(np.prod(kernel))
        weight = np.moveaxis(risk.pairs.reshape(-1, *kernel, channels), -1, 1).astype(np.float32)
        same = {k: list(v) for k in ("strides", "dilations") if (v := node.attributes.get_ints(k, None)) is not None}
        sums = emit("Conv", [padded, held("pairs", weight)], **same)
    else:
        kernel = ()
        sums = emit("MatMul", [codes, held("pairs", risk.pairs.T.astype(np.float32))])
    top, bottom = held("top", np.array(32767, np.float32)), held("bottom", np.array(-32768, np.float32))
    above = emit("Relu", [emit("Sub", [sums, top])])
    excess = emit("Sub", [above, emit("Relu", [emit("Sub", [bottom, sums])])])
    if conv:
        total = emit("Conv", [excess, held("sum", summed.reshape(*summed.shape, *[1] * len(kernel)))])
    else:
        total = emit("MatMul", [excess, held("sum", summed.T)])
    uses = list(output.uses())
    result = emit("Sub", [output, total])
    result.type, result.shape = output.type, output.shape
    graph.insert_after(node, made)
    for user, index in uses:
        user.replace_input_with(index, result)
    if output.is_graph_output():
        graph.outputs[list(graph.outputs).index(output)] = result
        label, output.name = str(output.name), fresh_name(graph, f"{name}/exact")
        result.name = label


def _kernel(node: ir.Node) -> tuple[int, tuple[int, ...]]:
    shape = node.inputs[1].shape  # type: ignore[union-attr]
    assert shape is not None
    kernel = shape.numpy()[2:]
    return len(kernel), kernel
