"""A Q/DQ model in the form that a target's runtime is fastest on; what it computes stays, to float rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerun.quantize.graphs import blocked, early, factors, forks, requantized, sigmoids, subpixel

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Quantization
    from edgerun.quantize.graphs.placement import Plan


def suit(graph: ir.Graph, plan: Plan, rules: Quantization) -> None:
    """Edit a graph whose quantizers are those of `plan` as `rules` have it, in place."""
    if rules.channel_scales:
        factors.fold(graph)
    if rules.requantizes:
        requantized.prevent(graph)
    if rules.forked_bias:
        forks.hold(graph)
    sigmoids.hold_apart(graph, plan.weights, rules.sigmoid_apart)
    if rules.early:
        early.move(graph)
        subpixel.stack(graph)
    if rules.blocked:
        blocked.keep(graph)
