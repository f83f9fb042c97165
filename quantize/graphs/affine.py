"""Per-channel affine maps (BatchNormalization, Mul and Add with constants) into the layers next to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import constant, drop_node, row_bias, set_constant, sole_consumer
from edgerun.quantize.numerics.batchnorm import affine, fold_into, fold_onward

if TYPE_CHECKING:
    import onnx_ir as ir

LAYERS = ("Conv", "ConvTranspose", "Gemm")


def fold_back(graph: ir.Graph) -> int:
    """Fold each map that alone consumes a Conv, ConvTranspose or Gemm into it; return how many."""
    folded = 0
    for node in list(graph):
        found = _map(node)
        if found is None:
            continue
        source, gain, shift = found
        layer = source.producer()
        if layer is None or layer.op_type not in LAYERS or layer.domain != "" or sole_consumer(source) is not node:
            continue
        if _into_layer(graph, layer, gain, shift):
            _drop(graph, node, source)
            folded += 1
    return folded


def fold_on(graph: ir.Graph, nodes: Sequence[ir.Node] | None = None) -> int:
    """Fold each remaining map (of `nodes`, where given) into the Conv or Gemm that alone reads it; return how many.

    The usual place is Conv -> Relu -> BatchNormalization -> [MaxPool, Flatten …] -> Conv. Exact where nothing is padded
    in between (padding would put zeros where the shift belongs) and, behind a MaxPool, where every gain is positive.
    """
    folded = 0
    for node in reversed(list(graph) if nodes is None else nodes):
        found = _map(node)
        if found is None:
            continue
        source, gain, shift = found
        reader = reader_of_map(node.outputs[0], bool((gain > 0).all()))
        if reader is not None and _into_reader(graph, reader, gain, shift):
            _drop(graph, node, source)
            folded += 1
        elif _swapped(graph, node, gain, shift):
            _drop(graph, node, source)
            folded += 1
    return folded


def _map(node: ir.Node) -> tuple[ir.Value, np.ndarray, np.ndarray] | None:
    """(x, g, t), `[C]` each, of a node that computes g∘x + t over the channels on axis 1; else None."""
    if node.domain != "" or len(node.outputs) != 1:
        return None
    if node.op_type == "BatchNormalization":
        scale, offset, mean, variance = (constant(v) for v in node.inputs[1:5])
        if node.inputs[0] is None or scale is None or offset is None or mean is None or variance is None:
            return None
        return node.inputs[0], *affine(scale, offset, mean, variance, node.attributes.get_float("epsilon", 1e-5))
    if node.op_type not in ("Mul", "Add", "Sub", "Div") or len(node.inputs) != 2:
        return None
    first, second = node.inputs
    swapped = constant(first) is not None and node.op_type in ("Mul", "Add")
    source, number = (second, constant(first)) if swapped else (first, constant(second))
    if source is None or number is None or constant(source) is not None or number.dtype != np.float32:
        return None
    row = _per_channel(source, number)
    if row is None or not np.isfinite(row).all() or (node.op_type == "Div" and not row.all()):
        return None  # what is not finite is a mask, and no layer's
    one, zero = np.ones_like(row), np.zeros_like(row)
    maps = {"Mul": (row, zero), "Div": (1 / np.where(row, row, 1), zero), "Add": (one, row), "Sub": (one, -row)}
    return source, *maps[node.op_type]


def _per_channel(value: ir.Value, number: np.ndarray) -> np.ndarray | None:
    """A constant that is broadcast against `value` as one number per channel, float64 `[C]`; None when it is more."""
    shape = value.shape
    if shape is None or len(shape) < 2 or not isinstance(channels := shape[1], int) or number.ndim > len(shape):
        return None
    full = number.reshape(*[1] * (len(shape) - number.ndim), *number.shape)
    if any(d != 1 for i, d in enumerate(full.shape) if i != 1) or full.shape[1] not in (1, channels):
        return None
    row: np.ndarray = np.broadcast_to(full.reshape(-1).astype(np.float64), (channels,))
    return row


def _into_layer(graph: ir.Graph, layer: ir.Node, gain: np.ndarray, shift: np.ndarray) -> bool:
    weight, bias = constant(layer.inputs[1]), row_bias(layer, len(gain))
    if weight is None or bias is None:
        return False
    if layer.op_type == "Gemm" and any(layer.attributes.get_float(k, 1.0) != 1.0 for k in ("alpha", "beta")):
        return False
    transposed = layer.op_type == "ConvTranspose"
    axis = 1 if transposed else 0
    if layer.op_type == "Gemm":
        axis = 0 if layer.attributes.get_int("transB", 0) else 1
    group = layer.attributes.get_int("group", 1) if transposed else 1
    if weight.shape[axis] * group != len(gain):
        return False
    new_weight, new_bias = fold_into(weight, bias, gain, shift, axis, group)
    set_constant(graph, layer, 1, new_weight)
    set_constant(graph, layer, 2, new_bias, name=f"{layer.inputs[1].name}_bias")  # type: ignore[union-attr]
    return True


def _swapped(graph: ir.Graph, node: ir.Node, gain: np.ndarray, shift: np.ndarray) -> bool:
    """g∘x + b = g∘(x + b/g): the gain goes on into a layer that pads, and the sum stays in front of the padding."""
    add = sole_consumer(node.outputs[0])
    if node.op_type not in ("Mul", "Div") or add is None or add.op_type != "Add" or not gain.all():
        return False
    found = _map(add)
    reader = reader_of_map(add.outputs[0], bool((gain > 0).all()))
    if found is None or reader is None or not _into_reader(graph, reader, gain, np.zeros_like(gain)):
        return False
    rank = len(node.outputs[0].shape or ())
    index = 0 if constant(add.inputs[0]) is not None else 1
    moved = (found[2] / gain).reshape(1, -1, *[1] * (rank - 2))
    set_constant(graph, add, index, moved.astype(np.float32))
    return True


def _drop(graph: ir.Graph, node: ir.Node, source: ir.Value) -> None:
    if node.inputs[0] is not source:  # drop_node keeps the first input
        node.replace_input_with(0, source)
    drop_node(graph, node)


def reader_of_map(value: ir.Value, positive: bool) -> ir.Node | None:
    """The Conv, Gemm or MatMul that alone reads `value`, looking through what keeps a per-channel map in place."""
    node = sole_consumer(value)
    while node is not None and node.domain == "":
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            return node if node.inputs[0] is value else None
        pool = node.op_type == "MaxPool" and positive and len(node.outputs) == 1 and not any(
            node.attributes.get_ints("pads", [])
        ) and node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")  # fmt: skip
        # Behind one position per channel, every flattening order is the channel order.
        flat = node.op_type in ("Flatten", "Reshape", "Transpose", "Squeeze") and _one_position(node.inputs[0])
        if node.op_type == "Transpose" and node.attributes.get_ints("perm", [1])[0] != 0:
            flat = False
        if not (pool or flat):
            return None
        value = node.outputs[0]
        node = sole_consumer(value)
    return None


def _one_position(value: ir.Value | None) -> bool:
    if value is None or value.shape is None:
        return False
    sizes = [d for d in list(value.shape)[1:] if d != 1]
    return len(sizes) <= 1 and all(isinstance(d, int) for d in sizes)


def _into_reader(graph: ir.Graph, node: ir.Node, gain: np.ndarray, shift: np.ndarray) -> bool:
    weight = constant(node.inputs[1])
    if weight is None or node.op_type == "MatMul":
        return False
    if node.op_type == "Conv":
        padded = any(node.attributes.get_ints("pads", [])) and bool(np.any(shift))
        if padded or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return False
        axis, group = 1, node.attributes.get_int("group", 1)
    else:
        if node.attributes.get_int("transA", 0) or any(
            node.attributes.get_float(k, 1.0) != 1.0 for k in ("alpha", "beta")
        ):
            return False
        axis, group = (1 if node.attributes.get_int("transB", 0) else 0), 1
    if weight.shape[axis] * group != len(gain):
        return False
    bias = row_bias(node, weight.shape[1] if axis == 0 else weight.shape[0])
    if bias is None:
        return False
    new_weight, new_bias = fold_onward(weight, bias, gain, shift, axis, group)
    set_constant(graph, node, 1, new_weight)
    set_constant(graph, node, 2, new_bias, name=f"{node.inputs[1].name}_bias")  # type: ignore[union-attr]
    return True
