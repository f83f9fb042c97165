"""Write a placement into the graph as QuantizeLinear/DequantizeLinear pairs (opset 13 and later)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs import between
from edgerun.quantize.graphs.edit import constant, drop_initializer, drop_node, fresh_name, initializer, set_constant
from edgerun.quantize.graphs.placement import Plan
from edgerun.quantize.numerics.grid import Grid, quantize_bias

if TYPE_CHECKING:
    import onnx_ir as ir


SCALE, ZERO_POINT = "edgerun/scale/", "edgerun/zero_point/"


def absorb(graph: ir.Graph, plan: Plan, grids: Mapping[str, Grid]) -> None:
    """Drop the activations whose clipping their quantizer does.

    That is so when the grid begins where the activation does, to half a step, and ends no later than the Clip (or
    per-channel Min) does. An activation that fails this stays, and so do those before it.
    """
    for node in plan.absorbed:
        group = plan.points.get(node.outputs[0])
        if group is None:
            continue
        grid = grids[group]
        step, below = float(grid.scale), int(grid.zero_point) - {"uint8": 0, "int8": -128}[grid.zero_point.dtype.name]
        if -below * step < between.lower(node) - step / 2 or (255 - below) * step > upper(node) * (1 + 1e-6):
            continue
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        plan.points[source] = plan.points.pop(result)
        producer = source.producer()
        if producer is not None:  # whoever read the clipped value must not read this one as it is
            plan.integer.add(str(producer.name))
        drop_node(graph, node)


def upper(node: ir.Node | None) -> float:
    """The lowest cap that a Clip or a two-input Min with a constant puts on any channel; infinite for other nodes."""
    if node is None or node.op_type not in ("Clip", "Min") or (node.op_type == "Min" and len(node.inputs) != 2):
        return np.inf
    index = 2 if node.op_type == "Clip" else 1
    cap = constant(node.inputs[index]) if len(node.inputs) > index else None
    return float(cap.min()) if cap is not None else np.inf


def insert_points(graph: ir.Graph, plan: Plan, grids: Mapping[str, Grid]) -> None:
    """Put one Q/DQ pair behind every point; its readers read the dequantized value.

    Of a point that is computed in float, only the integer readers do: the residual beside a LayerNorm's products stays
    as exact as it was, and nothing has to be dequantized for it.
    """
    stored = {
        group: (
            initializer(graph, f"{group}/scale", grids[group].scale),
            initializer(graph, f"{group}/zero_point", grids[group].zero_point),
        )
        for group in plan.groups()
    }
    for value, group in plan.points.items():
        _pair(graph, value, _readers(plan, value), *stored[group])


def insert_open_points(graph: ir.Graph, plan: Plan, dtype: str) -> None:
    """The same, with every group's grid as two inputs of the graph: `open_feeds` makes their feeds."""
    import onnx_ir as ir

    given: dict[str, tuple[ir.Value, ir.Value]] = {}
    for group in plan.groups():
        kinds = zip((SCALE, ZERO_POINT), (ir.DataType.FLOAT, ir.DataType[dtype.upper()]), strict=True)
        scale, zero = (ir.Value(name=f"{k}{group}", type=ir.TensorType(t), shape=ir.Shape([])) for k, t in kinds)
        graph.inputs.extend([scale, zero])
        given[group] = scale, zero
    for value, group in plan.points.items():
        _pair(graph, value, _readers(plan, value), *given[group])


def open_feeds(grids: Mapping[str, Grid]) -> dict[str, np.ndarray]:
    """Feeds for the inputs that `insert_open_points` made."""
    scales = {f"{SCALE}{group}": grid.scale for group, grid in grids.items()}
    return scales | {f"{ZERO_POINT}{group}": grid.zero_point for group, grid in grids.items()}


def _readers(plan: Plan, value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Who reads the dequantized value, and at which input."""
    producer, uses = value.producer(), list(value.uses())
    if producer is None or not plan.in_float(producer):
        return [(node, index) for node, index in uses]
    return [(node, index) for node, index in uses if not plan.in_float(node)]


def _pair(
    graph: ir.Graph, value: ir.Value, uses: list[tuple[ir.Node, int]], scale: ir.Value, zero_point: ir.Value
) -> None:
    import onnx_ir as ir

    name = str(value.name)
    quantize = ir.node("QuantizeLinear", [value, scale, zero_point], name=fresh_name(graph, f"{name}/QuantizeLinear"))
    stored = quantize.outputs[0]
    back = ir.node("DequantizeLinear", [stored, scale, zero_point], name=fresh_name(graph, f"{name}/DequantizeLinear"))
    result = back.outputs[0]
    stored.name, stored.shape = fresh_name(graph, f"{name}/quantized"), value.shape
    stored.type = ir.TensorType(zero_point.dtype)  # type: ignore[arg-type]
    result.name, result.shape, result.type = fresh_name(graph, f"{name}/dequantized"), value.shape, value.type
    for user, index in uses:
        user.replace_input_with(index, result)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantize, back])
    else:
        graph.insert_after(producer, [quantize, back])
    if value.is_graph_output() and producer is not None:
        graph.outputs[list(graph.outputs).index(value)] = result
        value.name, result.name = fresh_name(graph, f"{name}/float"), name


def store_weight(graph: ir.Graph, nodes: Sequence[ir.Node], grid: Grid, stored: np.ndarray) -> None:
    """Replace the one float weight of `nodes` by int8 `stored` and a DequantizeLinear in front of each node."""
    _constant_pair(graph, nodes, 1, "weight", grid.scale, grid.zero_point, stored, grid.axis)


def stored_weight(node: ir.Node) -> np.ndarray | None:
    """The codes that `store_weight` gave a layer."""
    pair = node.inputs[1].producer()  # type: ignore[union-attr]
    return None if pair is None else constant(pair.inputs[0])


def rescale_weight(graph: ir.Graph, node: ir.Node, old: Grid, new: Grid) -> None:
    """Put a weight that `store_weight` stored onto another grid."""
    pair, stored = node.inputs[1].producer(), stored_weight(node)  # type: ignore[union-attr]
    assert pair is not None and stored is not None
    set_constant(graph, pair, 0, new.quantize(old.dequantize(stored)))
    set_constant(graph, pair, 1, new.scale)


def store_bias(graph: ir.Graph, node: ir.Node, bias: np.ndarray, input_scale: np.ndarray, grid: Grid) -> None:
    """Replace a node's float bias by int32 with scale s_x·s_w and a DequantizeLinear in front of the node."""
    stored, scale = quantize_bias(bias, input_scale, grid)
    zero_point = np.zeros(scale.shape, np.int32)
    _constant_pair(graph, [node], 2, "bias", scale, zero_point, stored, 0 if scale.ndim else None)


def share_constants(graph: ir.Graph) -> None:
    """Biases, their zero points and all scales that are the same stand in the graph once.

    Weights keep zero points of their own: where two read one, OpenVINO 2026.4 runs a layer in float.
    """
    known: dict[tuple[str, bytes], ir.Value] = {}
    for node in graph:
        if node.op_type != "DequantizeLinear" or constant(node.inputs[0]) is None:
            continue
        for index, value in enumerate(node.inputs):
            array = constant(value)
            if array is not None and array.ndim == 1 and value is not None and array.dtype != np.int8:
                node.replace_input_with(index, known.setdefault((array.dtype.name, array.tobytes()), value))


def _constant_pair(
    graph: ir.Graph,
    nodes: Sequence[ir.Node],
    index: int,
    kind: str,
    scale: np.ndarray,
    zero_point: np.ndarray,
    stored: np.ndarray,
    axis: int | None,
) -> None:
    import onnx_ir as ir

    old = nodes[0].inputs[index] if index < len(nodes[0].inputs) else None
    base = old.name if old is not None and len(list(old.uses())) == len(nodes) else f"{nodes[0].name}/{kind}"
    inputs = [
        initializer(graph, f"{base}/quantized", stored),
        initializer(graph, f"{base}/scale", scale),
        initializer(graph, f"{base}/zero_point", zero_point),
    ]
    attributes = {} if axis is None else {"axis": axis}
    for node in nodes:
        name = fresh_name(graph, f"{base}/DequantizeLinear")
        dequantize = ir.node("DequantizeLinear", inputs, attributes=attributes, name=name)
        dequantize.outputs[0].name = fresh_name(graph, f"{base}/dequantized")
        dequantize.outputs[0].shape = ir.Shape(stored.shape)
        dequantize.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.insert_before(node, dequantize)
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, dequantize.outputs[0])
    if old is not None and old.is_initializer() and not old.uses() and not old.is_graph_output():
        drop_initializer(graph, old)
