"""Sigmoid and SiLU behind integer layers, in a form that OpenVINO does not take into these: 1 / (1 + exp(−x)).

An exponential inside oneDNN's integer kernels is computed for whole vectors of 16 channels, however many there are, and
on CPUs with AMX takes longer there than in a kernel of its own. Sigmoid(x), x·Sigmoid(x), and an exponential of x's
Negative below one would be put into the layer again; one of −1·x is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import fresh_name, initializer, replace, sole_consumer

if TYPE_CHECKING:
    import onnx_ir as ir


def hold_apart(graph: ir.Graph, layers: Iterable[ir.Node], below: float) -> None:
    """Rewrite Sigmoid(x) and x·Sigmoid(x) where x is what a Conv or ConvTranspose among `layers` writes, has fewer
    channels than `below`, and is read by nothing else; float32, in place.

    Values agree to float rounding: where exp overflows, x / ∞ is the 0 that x·Sigmoid(x) tends to.
    """
    for node in layers:
        x = node.outputs[0]
        if node.op_type not in ("Conv", "ConvTranspose") or not _narrower(x, below):
            continue
        if (product := _silu(x)) is not None:
            _rewrite(graph, product, x, x)
        elif (gate := sole_consumer(x)) is not None and gate.op_type == "Sigmoid":
            _rewrite(graph, gate, x)


def _narrower(x: ir.Value, below: float) -> bool:
    channels = x.shape[1] if x.shape is not None else None
    return isinstance(channels, int) and channels < below


def _silu(x: ir.Value) -> ir.Node | None:
    """The Mul of `x` and its Sigmoid, where nothing else reads `x`."""
    users = {user.op_type: user for user, _ in x.uses()}
    if x.is_graph_output() or len(x.uses()) != 2 or users.keys() != {"Sigmoid", "Mul"}:
        return None
    gate, product = users["Sigmoid"].outputs[0], users["Mul"]
    return product if sole_consumer(gate) is product and {*product.inputs} == {x, gate} else None


def _rewrite(graph: ir.Graph, node: ir.Node, x: ir.Value, above: ir.Value | None = None) -> None:
    """`above` (None: one) over 1 + exp(−x) in the place of `node`."""
    import onnx_ir as ir

    def made(op: str, *inputs: ir.Value) -> ir.Value:
        step = ir.node(op, inputs, name=fresh_name(graph, f"{node.name}/{op}"))
        step.outputs[0].name = fresh_name(graph, f"{step.name}/result")
        step.outputs[0].shape, step.outputs[0].type = x.shape, x.type
        graph.insert_before(node, step)
        return step.outputs[0]

    minus, one = (initializer(graph, f"{node.name}/{name}", np.array(number, np.float32))
                  for name, number in (("minus_one", -1), ("one", 1)))  # fmt: skip
    power = made("Exp", made("Mul", x, minus))
    replace(graph, node, made("Div", one if above is None else above, made("Add", power, one)))
