"""Which output channels of a graph can saturate on CPUs without a dot-product instruction, and their repair."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.quantize.graphs.edit import constant
from edgerun.quantize.graphs.placement import WEIGHTED, weight_axis
from edgerun.quantize.numerics import saturation

if TYPE_CHECKING:
    import onnx_ir as ir

CLASSES = ("SSE4.1", "AVX2", "AVX-512", "AVX-VNNI", "AVX-512 VNNI", "AMX", "ARM")
BLOCK = 1 << 20  # pairs that are looked at together
MOVES = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Identity"})
TURNS = frozenset({"Transpose", "Identity"})


def repair(node: ir.Node, weight: np.ndarray, power: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Steps of each output channel's largest weight, float32 `[C]` for `grid.symmetric`, and how many could saturate.

    Those that could not have 127. `weight` is the node's float weight; `power` is E[x²] of its input by channel, where
    it is known. What is rounded on that grid still goes through `fitted`.
    """
    rows, pairs, inputs = _rows(node, weight), _pairs(node, weight), _inputs(node, weight)
    known = _spread(node, power, inputs, weight) if power is not None else np.ones((1, 1))
    found = [saturation.repair(rows[b], pairs, known[b] if len(known) > 1 else known) for b in _blocks(rows, pairs)]
    return np.concatenate([steps for steps, _ in found]), sum(int(could.sum()) for _, could in found)


def fitted(node: ir.Node, stored: np.ndarray) -> np.ndarray:
    """The node's int8 weight with all pairs inside 16 bits, whatever the input; the same where they were."""
    rows, pairs, inputs = _rows(node, stored), _pairs(node, stored), _inputs(node, stored)
    rows = np.concatenate([saturation.fitted(rows[b], pairs) for b in _blocks(rows, pairs)])
    turned = np.moveaxis(stored, _axis(node, stored), 0).shape
    back = rows.reshape(len(rows), -1, inputs).swapaxes(1, 2).reshape(turned)
    return np.ascontiguousarray(np.moveaxis(back, 0, _axis(node, stored)))


def layers(graph: ir.Graph) -> list[tuple[ir.Node, int, int]]:
    """The products of a Q/DQ graph, whoever made it: how many output channels can saturate whatever their input, of how
    many. Weights are int8, or constants behind QuantizeLinear that become so; activations have 8 bits, signed or not,
    since kernels move signed ones into uint8."""
    found = []
    for node in graph:
        stored = _stored(node)
        if stored is not None:
            rows, pairs = _rows(node, stored), _pairs(node, stored)
            could = sum(int(saturation.saturates(rows[b], pairs).sum()) for b in _blocks(rows, pairs))
            found.append((node, could, len(rows)))
    return found


def channels(graph: ir.Graph) -> tuple[int, int]:
    """Of a Q/DQ graph: how many output channels can saturate whatever their input, of how many with int8 weights."""
    found = layers(graph)
    return sum(could for _, could, _ in found), sum(total for _, _, total in found)


def certificate(graph: ir.Graph, repaired: int, paired: Collection[str]) -> dict[str, Any]:
    """What a finished Q/DQ graph promises on each class of CPU, for any input, as JSON values.

    `can saturate` is counted in the stored weights: on the classes in `paired` two products meet in 16 bits, on the
    others each is added to 32. `repaired` says how many channels could before.
    """
    could, total = channels(graph)
    return {
        "channels": total,
        "can saturate": {name: could if name in paired else 0 for name in CLASSES},
        "repaired": repaired,
        "holds for": "any input",
    }


def _stored(node: ir.Node) -> np.ndarray | None:
    """The int8 weight of a node that reads DequantizeLinear twice; None for others."""
    if node.op_type not in WEIGHTED or len(node.inputs) < 2:
        return None
    (source, _), (weight, turned) = _dequantizer(node.inputs[0], MOVES), _dequantizer(node.inputs[1], TURNS)
    if source is None or weight is None or _wide(source):
        return None
    stored = _codes(weight)
    if stored is None or stored.dtype != np.int8 or stored.ndim < 2:
        return None
    for order in reversed(turned):
        stored = stored.transpose(order)
    return stored


def _dequantizer(value: ir.Value | None, moves: frozenset[str]) -> tuple[ir.Node | None, list[list[int] | None]]:
    """The DequantizeLinear that a value comes from, perhaps moved, and how it is transposed on the way."""
    node, turned = value.producer() if value is not None else None, list[list[int] | None]()
    while node is not None and node.op_type in moves and node.inputs[0] is not None:
        if node.op_type == "Transpose":
            turned.append(list(node.attributes.get_ints("perm", ())) or None)
        node = node.inputs[0].producer()
    return (node if node is not None and node.op_type == "DequantizeLinear" else None), turned


def _wide(dequantizer: ir.Node) -> bool:
    """Whether it reads codes of other than 8 bits."""
    codes, zero = dequantizer.inputs[0], dequantizer.inputs[2] if len(dequantizer.inputs) > 2 else None
    kind = next((v.dtype.name for v in (zero, codes) if v is not None and v.dtype is not None), "UINT8")
    return kind not in ("UINT8", "INT8")


def _codes(dequantizer: ir.Node) -> np.ndarray | None:
    """The constant that it reads, or what QuantizeLinear makes of one; None where that is computed."""
    source = dequantizer.inputs[0]
    made = source.producer() if source is not None else None
    if made is None or made.op_type != "QuantizeLinear":
        return constant(source)
    weight, scale = (constant(value) for value in made.inputs[:2])
    zero = constant(made.inputs[2]) if len(made.inputs) > 2 else None
    if weight is None or scale is None or zero is None or zero.dtype != np.int8 or scale.ndim > 1:
        return None
    shape = [-1 if axis == made.attributes.get_int("axis", 1) % weight.ndim else 1 for axis in range(weight.ndim)]
    scale, zero = (a.reshape(shape) if a.size > 1 else a.reshape(()) for a in (scale, zero.astype(np.float32)))
    codes: np.ndarray = np.clip(np.rint(weight / scale) + zero, -128, 127).astype(np.int8)
    return codes


def _axis(node: ir.Node, weight: np.ndarray) -> int:
    return weight.ndim - 1 if node.op_type == "MatMul" else weight_axis(node)


def _rows(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """`[O, K]`: every output channel's weights by kernel position and input channel, the channel fastest."""
    turned = np.moveaxis(weight, _axis(node, weight), 0)
    rows: np.ndarray = turned.reshape(*turned.shape[:2], -1).swapaxes(1, 2).reshape(len(turned), -1)
    return rows


def _inputs(node: ir.Node, weight: np.ndarray) -> int:
    """Input channels of one group."""
    return int(np.moveaxis(weight, _axis(node, weight), 0).shape[1])


def _pairs(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """A depthwise Conv's kernels widen before they multiply: no pairs."""
    outputs, inputs = weight.shape[_axis(node, weight)], _inputs(node, weight)
    groups = node.attributes.get_int("group", 1)
    if inputs == 1 and groups == outputs > 1:
        return np.empty((0, 2), np.int64)
    return saturation.pairs(weight.size // (outputs * inputs), inputs)


def _spread(node: ir.Node, power: np.ndarray, inputs: int, weight: np.ndarray) -> np.ndarray:
    """`power` by input channel as `[1 or O, K]`; ones where it is of something else than what the layer sums over."""
    groups = node.attributes.get_int("group", 1)
    if power.size != groups * inputs:
        return np.ones((1, 1))
    outputs = weight.shape[_axis(node, weight)]
    rows = np.tile(power.reshape(groups, inputs), (1, weight.size // (outputs * inputs)))
    return np.repeat(rows, outputs // groups, axis=0) if groups > 1 else rows


def _blocks(rows: np.ndarray, pairs: np.ndarray) -> Iterator[slice]:
    """Slices of output channels with at most BLOCK pairs and products, or one channel."""
    count = max(1, BLOCK // max(1, len(pairs), rows.shape[1]))
    return (slice(start, start + count) for start in range(0, len(rows), count))
