"""Convolutions that would be faster on integers, were it not for what reads them: short sums, read in float alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerun.quantize.graphs import between
from edgerun.quantize.graphs.edit import constant

if TYPE_CHECKING:
    from edgerun.passes import Quantization
    from edgerun.quantize.graphs.placement import Plan


def layers(plan: Plan, rules: Quantization) -> frozenset[str]:
    """The names of the plan's Convs whose outputs are sums of at most `rules.thin` products, and read in float alone.

    Their integer kernels save less than it takes to turn what they write into floats, and into another layout. What a
    model gives out counts as read on integers.
    """
    found = set()
    for node in plan.weights:
        weight = constant(node.inputs[1])
        if node.op_type != "Conv" or weight is None or weight[0].size > rules.thin:
            continue
        result = node.outputs[0]
        written = {result, between.behind(result, rules)}
        readers = [user for value in written for user, _ in value.uses()]
        inside = not any(value.is_graph_output() for value in written)
        if readers and inside and all(map(plan.in_float, readers)):
            found.add(str(node.name))
    return frozenset(found)
