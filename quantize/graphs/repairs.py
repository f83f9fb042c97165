"""Changes to a Q/DQ graph that repair a layer; each edits in place and keeps every integer bias on its scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs import qdq, switches
from edgerun.quantize.graphs.align import Counterpart
from edgerun.quantize.graphs.edit import constant, fresh_name, initializer, set_constant
from edgerun.quantize.graphs.quantizers import HOLDERS, Activation, Quantizer
from edgerun.quantize.numerics import grid as grids
from edgerun.quantize.numerics.grid import Grid

if TYPE_CHECKING:
    import onnx_ir as ir

MOST_STEPS = 2**30  # of a bias: beyond, an int32 could overflow when products are added


def set_ranges(graph: ir.Graph, ranges: Mapping[str, Grid], activations: Sequence[Activation]) -> None:
    """Give activations (by name) new per-tensor grids; all pairs of one keep sharing theirs."""
    nodes = {str(node.name): node for node in graph}
    for activation in activations:
        if activation.name not in ranges:
            continue
        new = ranges[activation.name]
        scale = initializer(graph, f"{activation.name}/scale", new.scale)
        point = initializer(graph, f"{activation.name}/zero_point", new.zero_point)
        for pair in activation.pairs:
            for name in (pair.quantize, *pair.dequantize):
                node = nodes[name]
                node.resize_inputs(3)
                node.replace_input_with(1, scale)
                node.replace_input_with(2, point)
    refresh_biases(graph)


def leave_float(graph: ir.Graph, counterpart: Counterpart, quantizers: Sequence[Quantizer]) -> None:
    """Take quantizers out; a layer that then reads a float activation gets its float weight and bias back."""
    switches.take_out(graph, counterpart, quantizers)
    for node in list(graph):
        if node.op_type not in HOLDERS or _dequantized(node.inputs[0]) or not _dequantized(node.inputs[1]):
            continue
        for index in range(1, len(node.inputs)):
            source = node.inputs[index].producer() if node.inputs[index] is not None else None  # type: ignore[union-attr]
            if source is None or source.op_type != "DequantizeLinear" or constant(source.inputs[0]) is None:
                continue
            values = counterpart.constants.get(f"{node.name}:{index}") if index == 1 else None
            set_constant(graph, node, index, _values(source) if values is None else values, f"{node.name}/{index}")


def requantize(graph: ir.Graph, layer: str, weight: np.ndarray, steps: np.ndarray | int = 127) -> None:
    """Store the float `weight` of a layer as int8 with one scale per output channel, each on ±`steps` (of 127)."""
    node = _node(graph, layer)
    axis = output_axis(node, weight.ndim)
    bias = _float_of(node, 2)
    new = grids.symmetric(grids.channel_bounds(weight, axis) * (127 / steps), axis=axis)
    scale = _input_scale(node)
    if bias is not None and scale is not None and _dequantized(node.inputs[2]) and bias.size == new.scale.size:
        new = grids.widen(new, bias.reshape(-1), scale, dead=not weight.any())
    qdq.store_weight(graph, [node], new, new.quantize(weight.astype(np.float32)))
    refresh_biases(graph)


def move_bias(graph: ir.Graph, layer: str, shift: np.ndarray) -> None:
    """Add `shift` `[C]` to the layer's output, through its bias (made when there is none)."""
    node = _node(graph, layer)
    index = 2 if node.op_type in HOLDERS else next(i for i in (0, 1) if _float_of(node, i) is not None)
    old = _float_of(node, index) if index < len(node.inputs) else None
    new = shift if old is None else old + shift.reshape(np.shape(old) if np.size(old) == np.size(shift) else -1)
    set_bias(graph, layer, index, new.astype(np.float32))


def set_bias(graph: ir.Graph, layer: str, index: int, bias: np.ndarray) -> None:
    """Give a layer this float bias, stored in integers where its weight and input are."""
    node = _node(graph, layer)
    stored = len(node.inputs) > index and _dequantized(node.inputs[index])
    set_constant(graph, node, index, bias, f"{layer}/bias")
    if stored:
        _store_bias(graph, node, bias)


def equalize(graph: ir.Graph, activation: Activation, factors: np.ndarray, counterpart: Counterpart, axis: int) -> bool:
    """Multiply an activation's channels (`axis`) by `factors` `[C]` before it is rounded, divide its readers' weights.

    The layer before takes the factors into its scales where it can (its integers stay), else a Mul is put in front.
    False, and nothing changed, where a reader is no layer or several tensors share the grid. `counterpart` follows.
    """
    nodes = {str(node.name): node for node in graph}
    readers = [nodes[name] for name in activation.readers]
    if len(activation.pairs) != 1 or not readers or not all(_reads(n, len(factors)) for n in readers):
        return False
    pair = activation.pairs[0]
    floats = {str(n.name): counterpart.constants.get(f"{n.name}:1", _float_of(n, 1)) for n in readers}
    quantize = nodes[pair.quantize]
    if not _scale_writer(graph, quantize.inputs[0].producer(), factors, pair.value, counterpart):  # type: ignore[union-attr]
        _multiply(graph, quantize, factors, axis)
    for node in readers:
        weight = floats[str(node.name)]
        assert weight is not None
        scaled = _divide_inputs(node, weight, factors)
        counterpart.constants[f"{node.name}:1"] = scaled
        if _dequantized(node.inputs[1]):
            requantize(graph, str(node.name), scaled)
        else:
            set_constant(graph, node, 1, scaled)
    return True


def refresh_biases(graph: ir.Graph) -> None:
    """Store every integer bias again whose scale is no longer s_x·s_w; runtimes don't read it and take that for it."""
    for node in list(graph):
        if node.op_type in HOLDERS and len(node.inputs) > 2 and _dequantized(node.inputs[2]):
            scale, weight = _input_scale(node), _weight_grid(node)
            if scale is None or weight is None:
                continue
            source = node.inputs[2].producer()  # type: ignore[union-attr]
            have = constant(source.inputs[1])  # type: ignore[union-attr]
            wanted = scale * weight.scale
            if (
                have is None
                or have.size != wanted.size
                or not np.allclose(have.reshape(-1), wanted.reshape(-1), 1e-6, 0)
            ):
                bias = _float_of(node, 2)
                assert bias is not None
                _store_bias(graph, node, bias)


def output_axis(node: ir.Node, rank: int) -> int:
    """The output-channel axis of a layer's weight, by its op."""
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, rank - 1)


def _store_bias(graph: ir.Graph, node: ir.Node, bias: np.ndarray) -> None:
    scale, weight = _input_scale(node), _weight_grid(node)
    if scale is not None and weight is not None and (np.abs(bias) <= MOST_STEPS * (scale * weight.scale)).all():
        qdq.store_bias(graph, node, bias.reshape(-1), scale, Grid(weight.scale, weight.zero_point, 0))
    else:
        set_constant(graph, node, 2, bias)


def _scale_writer(
    graph: ir.Graph, node: ir.Node | None, factors: np.ndarray, value: str, counterpart: Counterpart
) -> bool:
    """Take positive factors into the layer that writes `value`, if only a Relu, or nothing, was absorbed behind it."""
    absorbed = counterpart.absorbed.get(value, [])
    plain = node is not None and node.op_type in ("Conv", "Gemm") and len(list(node.outputs[0].uses())) == 1
    if not plain or node is None or any(n.op_type not in ("Relu", "LeakyRelu") for n in absorbed):
        return False
    weight = _float_of(node, 1)
    if weight is None or (len(node.inputs) > 2 and node.inputs[2] is not None and _float_of(node, 2) is None):
        return False
    axis = output_axis(node, weight.ndim)
    if weight.shape[axis] != len(factors):
        return False
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    bias = _float_of(node, 2) if len(node.inputs) > 2 else None
    old = _weight_grid(node)
    source = node.inputs[1].producer()  # type: ignore[union-attr]
    stored = constant(source.inputs[0]) if source is not None else None
    if old is not None and stored is not None:
        scale = (np.broadcast_to(old.scale, (len(factors),)) * factors).astype(np.float32)
        point = np.broadcast_to(old.zero_point, (len(factors),)).astype(old.zero_point.dtype)
        qdq.store_weight(graph, [node], Grid(scale, point, axis), stored)
    else:
        set_constant(graph, node, 1, (weight * factors.reshape(shape)).astype(np.float32))
    if bias is not None:
        set_bias(graph, str(node.name), 2, (bias.reshape(-1) * factors).astype(np.float32))
    for index, by in ((1, factors.reshape(shape)), (2, factors)):
        key = f"{node.name}:{index}"
        if key in counterpart.constants:
            counterpart.constants[key] = (counterpart.constants[key] * by).astype(np.float32)
    return True


def _multiply(graph: ir.Graph, quantize: ir.Node, factors: np.ndarray, axis: int) -> None:
    import onnx_ir as ir

    value = quantize.inputs[0]
    assert value is not None
    rank = len(value.shape) if value.shape is not None else 4
    shape = [-1 if i == axis % rank else 1 for i in range(rank)]
    by = initializer(graph, f"{value.name}/factors", factors.reshape(shape).astype(np.float32))
    node = ir.node("Mul", [value, by], name=fresh_name(graph, f"{value.name}/Mul"))
    result = node.outputs[0]
    result.name, result.type, result.shape = fresh_name(graph, f"{value.name}/scaled"), value.type, value.shape
    graph.insert_before(quantize, node)
    quantize.replace_input_with(0, result)


def _reads(node: ir.Node, channels: int) -> bool:
    """Whether a layer reads these channels with a weight that is known."""
    weight = _float_of(node, 1) if node.op_type in ("Conv", "Gemm", "MatMul") else None
    if weight is None or (node.op_type == "MatMul" and weight.ndim != 2):
        return False
    if node.op_type == "Conv":
        return bool(weight.shape[1] * node.attributes.get_int("group", 1) == channels)
    return bool(weight.shape[1 if node.attributes.get_int("transB", 0) else 0] == channels)


def _divide_inputs(node: ir.Node, weight: np.ndarray, factors: np.ndarray) -> np.ndarray:
    if node.op_type == "Conv":
        group = node.attributes.get_int("group", 1)
        per_row = np.repeat(factors.reshape(group, -1), len(weight) // group, axis=0)
        return np.asarray(weight / per_row.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2)), np.float32)
    shape = (1, -1) if node.attributes.get_int("transB", 0) else (-1, 1)
    return np.asarray(weight / factors.reshape(shape), np.float32)


def _node(graph: ir.Graph, name: str) -> ir.Node:
    return next(node for node in graph if node.name == name)


def _dequantized(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "DequantizeLinear"


def _input_scale(node: ir.Node) -> np.ndarray | None:
    """s_x of a layer's rounded input, as a scalar."""
    source = node.inputs[0].producer() if _dequantized(node.inputs[0]) else None  # type: ignore[union-attr]
    scale = constant(source.inputs[1]) if source is not None else None
    return scale.reshape(()) if scale is not None and scale.size == 1 else None


def _weight_grid(node: ir.Node) -> Grid | None:
    source = node.inputs[1].producer() if _dequantized(node.inputs[1]) else None  # type: ignore[union-attr]
    if source is None or (scale := constant(source.inputs[1])) is None:
        return None
    point = constant(source.inputs[2]) if len(source.inputs) > 2 else None
    point = np.zeros(scale.shape, np.int8) if point is None else point
    if scale.size == 1:
        return Grid(scale.reshape(()), point.reshape(()))
    return Grid(scale, point, source.attributes.get_int("axis", 1))


def _values(dequantize: ir.Node) -> np.ndarray:
    """What a DequantizeLinear of a constant gives, float32."""
    stored, scale = constant(dequantize.inputs[0]), constant(dequantize.inputs[1])
    assert stored is not None and scale is not None
    point = constant(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
    shape = [1] * stored.ndim
    if scale.size > 1:
        shape[dequantize.attributes.get_int("axis", 1)] = -1
    zero = 0.0 if point is None else point.reshape(shape).astype(np.float64)
    values: np.ndarray = ((stored.astype(np.float64) - zero) * scale.reshape(shape)).astype(np.float32)
    return values.reshape(stored.shape)


def _float_of(node: ir.Node, index: int) -> np.ndarray | None:
    """The float values of a constant input, dequantized or not; None where it is computed or absent."""
    value = node.inputs[index] if index < len(node.inputs) else None
    source = value.producer() if value is not None else None
    if source is not None and source.op_type == "DequantizeLinear" and constant(source.inputs[0]) is not None:
        return _values(source)
    found = constant(value)
    return None if found is None or found.dtype != np.float32 else found
