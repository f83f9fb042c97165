"""Find values whose channels can be moved for free, and centre them: exact in real arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.activation import Channels
from edgerun.quantize.graphs.edit import constant, row_bias, set_constant
from edgerun.quantize.graphs.equalize import Chain
from edgerun.quantize.numerics import centring

if TYPE_CHECKING:
    import onnx_ir as ir


def centre(graph: ir.Graph, found: Sequence[Chain], seen: Mapping[str, Channels]) -> dict[str, np.ndarray]:
    """Centre every linear chain that was `seen` (by value name): layers, sums of them, and layers that read these.

    What a layer writes moves by −o, which goes into its bias, and W·o into the biases of those that read it. Returns
    what was taken off each moved value, `[C]`.
    """
    moved: dict[str, np.ndarray] = {}
    for chain in found:
        known = [value for value in chain.values if value.name in seen]
        if not known or not linear(chain):
            continue
        sums = _sums(graph, chain)
        rows = np.stack([sums[value] for value in known])
        low, high = (np.stack([getattr(seen[str(v.name)], end) for v in known]) for end in ("low", "high"))
        shifts = centring.offsets(low, high, rows)
        if not shifts.any():
            continue
        moved |= _moved(graph, chain, sums, shifts)
    return moved


def recentre(graph: ir.Graph, found: Sequence[Chain], differ: Mapping[ir.Node, np.ndarray]) -> int:
    """Centre the linear chains of a float `graph` as another one of the same function has them; returns how many.

    `differ` `[O]` is what the other one's bias is more at a layer. What a layer that reads one chain and writes another
    differs by for the first is known by the time of the second.
    """
    left, count = dict(differ), 0
    for chain in found:
        if not linear(chain) or not all(node in left for node in (*chain.writers, *chain.readers)):
            continue
        sums = _sums(graph, chain)
        readers = [
            (left[node], _matrix(node, chain.channels), sums[node.inputs[0]])  # type: ignore[index]
            for node in chain.readers
        ]
        shifts = centring.recovered([left[node] for node in chain.writers], readers)
        if not shifts.any():
            continue
        count += 1
        _moved(graph, chain, sums, shifts)
        for node, (own, matrix, row) in zip(chain.readers, readers, strict=True):
            left[node] = own - matrix @ (row @ shifts)
    return count


def _moved(
    graph: ir.Graph, chain: Chain, sums: Mapping[ir.Value, np.ndarray], shifts: np.ndarray
) -> dict[str, np.ndarray]:
    """Take `shifts` `[W, C]` off what the writers write; what that takes off each value, by name."""
    for node, shift in zip(chain.writers, shifts, strict=True):
        move_bias(graph, node, -shift)
    offsets = {value: row @ shifts for value, row in sums.items()}
    for node in chain.readers:
        move_bias(graph, node, _matrix(node, chain.channels) @ offsets[node.inputs[0]])  # type: ignore[index]
    return {str(value.name): offset for value, offset in offsets.items()}


def linear(chain: Chain) -> bool:
    """Whether nothing but sums stands between layers, and no reader pads: a zero in a border would not move along."""
    for value in chain.values:
        producer = value.producer()
        if producer not in chain.writers and (producer is None or producer.op_type != "Add"):
            return False
        if any(node not in chain.readers and node.op_type != "Add" for node, _ in value.uses()):
            return False
    return not any(_pads(node) for node in chain.readers)


def _pads(node: ir.Node) -> bool:
    automatic = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return automatic or any(node.attributes.get_ints("pads", ()))


def _sums(graph: ir.Graph, chain: Chain) -> dict[ir.Value, np.ndarray]:
    """How often each value of the chain adds up each writer's output, `[W]`."""
    rows: list[np.ndarray] = list(np.eye(len(chain.writers)))
    found = {node.outputs[0]: row for node, row in zip(chain.writers, rows, strict=True)}
    for node in graph:
        if node.outputs[0] in chain.values and node not in chain.writers:
            found[node.outputs[0]] = found[node.inputs[0]] + found[node.inputs[1]]  # type: ignore[index]
    return found


def _matrix(node: ir.Node, channels: int) -> np.ndarray:
    """M `[O, C]`: M·o is what an offset o on every position of its input does to each output channel of a layer."""
    weight = constant(node.inputs[1])
    assert weight is not None
    if node.op_type == "Gemm":
        return np.asarray(weight if node.attributes.get_int("transB", 0) else weight.T, np.float64)
    groups = node.attributes.get_int("group", 1)
    flat = weight.reshape(*weight.shape[:2], -1).sum(axis=2, dtype=np.float64)
    if groups == 1:
        return np.asarray(flat)
    rows, columns = len(flat) // groups, channels // groups
    whole = np.zeros((len(flat), channels))
    for group in range(groups):
        whole[group * rows : (group + 1) * rows, group * columns : (group + 1) * columns] = flat[
            group * rows : (group + 1) * rows
        ]
    return whole


def offset_input(graph: ir.Graph, node: ir.Node, by: np.ndarray) -> None:
    """Let a layer that read x + `by`, `[C]`, read x: what that took is in its bias."""
    move_bias(graph, node, _matrix(node, len(by)) @ by)


def move_bias(graph: ir.Graph, node: ir.Node, by: np.ndarray) -> None:
    """Add `by` `[O]` to a layer's bias."""
    bias = row_bias(node, len(by))
    assert bias is not None
    set_constant(graph, node, 2, (bias + by).astype(np.float32), name=f"{node.name}/bias")
