"""Stacked upsampling convolutions as convolutions at the low resolution (sub-pixel convolution, Shi et al. 2016).

A ConvTranspose whose stride is its kernel computes each input position's own tile, and another one behind it each
position's in that: both are convolutions of size one over the channels, and what they give is put in its place once, at
the end, in as many channels as the end has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.between import ACTIVATIONS
from edgerun.quantize.graphs.edit import constant, fresh_name, initializer, replace, row_bias, sole_consumer

if TYPE_CHECKING:
    import onnx_ir as ir


def stack(graph: ir.Graph) -> int:
    """Rewrite pairs of such ConvTransposes with activations between and behind; float32 `[N, C, H, W]`, in place.

    Only where the second, whose weights are mostly zeros then, has no more products than the first. Return how many
    pairs; values agree to float rounding.
    """
    stacked = 0
    for first in list(graph):
        if first.graph is not graph or (tile := _tile(first)) is None:
            continue
        between, second = _behind(first)
        if second is None or (other := _tile(second)) is None:
            continue
        if (tile * other) ** 2 * _weight(second).shape[1] <= _weight(first).shape[0]:
            _rewrite(graph, first, between, second, tile, other)
            stacked += 1
    return stacked


def _tile(node: ir.Node) -> int | None:
    """The size of the square tiles that a ConvTranspose computes, next to each other; None where they are not."""
    weight = constant(node.inputs[1]) if node.op_type == "ConvTranspose" and node.domain == "" else None
    if weight is None or weight.dtype != np.float32 or weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        return None
    told, size = node.attributes, weight.shape[2]
    plain = told.get_int("group", 1) == 1 and told.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    numbers = [n for name in ("pads", "output_padding") for n in told.get_ints(name, ())]
    ones = all(n == 1 for n in told.get_ints("dilations", ()))
    if (
        not plain
        or any(numbers)
        or not ones
        or "output_shape" in told
        or list(told.get_ints("strides", ())) != [size] * 2
    ):
        return None
    return size if row_bias(node, weight.shape[1]) is not None else None


def _behind(node: ir.Node) -> tuple[list[ir.Node], ir.Node | None]:
    """The activations that are all that is computed of a result, and what follows them."""
    between: list[ir.Node] = []
    following = sole_consumer(node.outputs[0])
    while following is not None and following.op_type in ACTIVATIONS and following.domain == "":
        between.append(following)
        following = sole_consumer(following.outputs[0])
    return between, following


def _rewrite(
    graph: ir.Graph, first: ir.Node, between: list[ir.Node], second: ir.Node, tile: int, other: int
) -> None:  # fmt: skip
    import onnx_ir as ir

    behind, _ = _behind(second)
    last = behind[-1] if behind else second

    def made(op: str, inputs: list[ir.Value | None], name: str, like: ir.Node | None = None) -> ir.Value:
        attributes = like.attributes.values() if like is not None else ()
        node = ir.Node("", op, inputs, attributes, name=fresh_name(graph, f"{name}/tiles"))
        node.outputs[0].name, node.outputs[0].type = fresh_name(graph, f"{node.name}/result"), last.outputs[0].type
        graph.insert_before(last, node)
        return node.outputs[0]

    def layer(value: ir.Value | None, node: ir.Node, weight: np.ndarray, bias: np.ndarray) -> ir.Value:
        arrays = (("weight", weight[:, :, None, None]), ("bias", bias))
        inputs = [value, *(initializer(graph, f"{node.name}/{name}", array) for name, array in arrays)]
        return made("Conv", inputs, str(node.name))

    value = layer(first.inputs[0], first, *_once(first, tile))
    for node in between:
        value = made(node.op_type, [value, *node.inputs[1:]], str(node.name), node)
    value = layer(value, second, *_twice(second, tile, other))
    for node in behind:
        value = made(node.op_type, [value, *node.inputs[1:]], str(node.name), node)
    place = ir.node("DepthToSpace", [value], {"blocksize": tile * other}, name=fresh_name(graph, f"{last.name}/placed"))
    place.outputs[0].name = fresh_name(graph, f"{place.name}/result")
    graph.insert_before(last, place)
    replace(graph, last, place.outputs[0])
    old = [first, *between, second, *behind]
    graph.remove(old[-2::-1], safe=True)


def _weight(node: ir.Node) -> np.ndarray:
    weight = constant(node.inputs[1])
    assert weight is not None
    return weight


def _bias(node: ir.Node) -> np.ndarray:
    bias = row_bias(node, _weight(node).shape[1])
    assert bias is not None
    return bias.astype(np.float32)


def _once(node: ir.Node, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """Its weight as `[tile² · O, C]`, positions in the tile outermost, and its bias."""
    weight = _weight(node)
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0]), np.tile(_bias(node), tile**2)


def _twice(node: ir.Node, tile: int, other: int) -> tuple[np.ndarray, np.ndarray]:
    """Its weight as `[(tile · other)² · O, tile² · C]`: each position of the first tile has channels of its own, and
    positions in the tile of both are outermost, as DepthToSpace has them."""
    weight = _weight(node)
    own = weight.transpose(2, 3, 1, 0)  # [other, other, O, C]
    channels, outputs = weight.shape[:2]
    whole = np.zeros((tile, other, tile, other, outputs, tile, tile, channels), np.float32)
    for row in range(tile):
        for column in range(tile):
            whole[row, :, column, :, :, row, column] = own
    return whole.reshape(-1, tile**2 * channels), np.tile(_bias(node), (tile * other) ** 2)
