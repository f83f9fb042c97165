"""Convolutions that would be faster on integers, were it not for what reads them: short sums, read in float alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgerun.quantize.graphs import between
from edgerun.quantize.graphs.edit import constant

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Quantization

BETWEEN = between.ACTIVATIONS | {"Add", "Mul"}  # by constants


def layers(weights: list[ir.Node], in_float: Callable[[ir.Node], bool], rules: Quantization) -> frozenset[str]:
    """The names of those Convs among `weights`, a plan's, whose outputs are sums of at most `rules.thin` products, read
    by what is `in_float` alone, and in as many channels as they read or more, or of what a convolution in float writes.

    Their integer kernels save less than it takes to turn what they write into floats, and into another layout: it would
    pay where they write less than they read, and what they read is on integers. What a model gives out counts as read
    on integers.
    """
    found = set()
    for node in weights:
        weight = constant(node.inputs[1])
        if node.op_type != "Conv" or weight is None or weight[0].size > rules.thin:
            continue
        narrows = weight.shape[0] < weight.shape[1] * node.attributes.get_int("group", 1)
        if narrows and not _for_it_alone(node, in_float):
            continue
        result = node.outputs[0]
        written = {result, between.behind(result, rules)}
        readers = [user for value in written for user, _ in value.uses()]
        inside = not any(value.is_graph_output() for value in written)
        if readers and inside and all(map(in_float, readers)):
            found.add(str(node.name))
    return frozenset(found)


def _for_it_alone(node: ir.Node, in_float: Callable[[ir.Node], bool]) -> bool:
    """Whether what a layer reads comes from a convolution in float, and no other layer wants it on integers."""
    value = node.inputs[0]
    if value is None or not all(user is node or in_float(user) for user, _ in value.uses()):
        return False
    made = value.producer()
    while made is not None and made.op_type in BETWEEN and in_float(made):
        computed = [each for each in made.inputs if constant(each) is None]
        made = computed[0].producer() if len(computed) == 1 and computed[0] is not None else None
    return made is not None and made.op_type == "Conv" and in_float(made)
