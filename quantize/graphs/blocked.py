"""Scales and sums per channel between float convolutions as BatchNormalization, which ONNX Runtime keeps in its layout.

On x86 it computes convolutions in float on blocks of channels (NCHWc). A Mul or Add by constants has no kernel for
those: values are put in order before it and into blocks behind it, two passes more than its own. A BatchNormalization
has one, as a convolution of depth and size one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs import between
from edgerun.quantize.graphs.edit import constant, fresh_name, initializer, picture_channels, replace, sole_consumer
from edgerun.quantize.graphs.factors import NAME

if TYPE_CHECKING:
    import onnx_ir as ir


def keep(graph: ir.Graph) -> int:
    """Rewrite chains of Mul and Add by constants that have an Add, stand behind a float Conv, and are read by another;
    float32 `[N, C, H, W]`, in place. Return how many; values agree to float rounding."""
    kept = 0
    for node in list(graph):
        if node.graph is not graph or (first := _step(node)) is None or not _in_blocks(first[0]):
            continue
        chain = [node]
        while (following := sole_consumer(chain[-1].outputs[0])) is not None and _step(following) is not None:
            chain.append(following)
        if any(step.op_type == "Add" for step in chain) and any(map(_float_conv, _readers(chain[-1]))):
            _rewrite(graph, first[0], chain)
            kept += 1
    return kept


def _step(node: ir.Node) -> tuple[ir.Value, np.ndarray] | None:
    """What a Mul or Add takes with constants, and these by channel: `[C]`."""
    if node.op_type not in ("Mul", "Add") or node.domain != "":
        return None
    for value, other in (node.inputs, node.inputs[::-1]):
        array, channels = constant(value), picture_channels(other)
        if array is None or array.dtype != np.float32 or channels is None or other is None:
            continue
        if array.ndim <= 4 and (array.size == 1 or (array.size == channels and array.shape[-3:] == (channels, 1, 1))):
            return other, np.broadcast_to(array.reshape(-1), (channels,))
    return None


def _in_blocks(value: ir.Value) -> bool:
    made = value.producer()
    if made is not None and made.op_type in between.ACTIVATIONS and made.domain == "" and made.inputs[0] is not None:
        made = made.inputs[0].producer()
    return made is not None and _float_conv(made)


def _float_conv(node: ir.Node) -> bool:
    """Whether it is a Conv that stays in float: its result, at least, is not rounded at once."""
    if node.op_type != "Conv" or node.domain != "":
        return False
    following = sole_consumer(node.outputs[0])
    return following is None or following.op_type != "QuantizeLinear"


def _readers(node: ir.Node) -> list[ir.Node]:
    return [user for user, index in node.outputs[0].uses() if index == 0]


def _rewrite(graph: ir.Graph, value: ir.Value, chain: list[ir.Node]) -> None:
    import onnx_ir as ir

    channels, last = picture_channels(value) or 0, chain[-1]
    scale, shift, evened = np.ones(channels), np.zeros(channels), np.ones(channels)
    for node in chain:
        step = _step(node)
        assert step is not None
        if node.op_type == "Add":
            shift = shift + step[1]
        elif NAME in str(node.name):
            evened, shift = evened * step[1], shift * step[1]
        else:
            scale, shift = scale * step[1], shift * step[1]
    # Evening out stands in the variance, where `factored` finds it.
    parts = {"scale": scale, "shift": shift, "mean": np.zeros(channels), "variance": evened**-2.0}
    inputs = [
        initializer(graph, f"{last.outputs[0].name}/{name}", part.astype(np.float32)) for name, part in parts.items()
    ]
    node = ir.node(
        "BatchNormalization", [value, *inputs], {"epsilon": 0.0}, name=fresh_name(graph, f"{last.name}/blocked")
    )
    node.outputs[0].name = fresh_name(graph, f"{node.name}/result")
    graph.insert_before(last, node)
    replace(graph, last, node.outputs[0])
    graph.remove(chain[-2::-1], safe=True)
