"""Integer convolutions whose result is read more than once: each gets a bias that is not zero.

OpenVINO's CPU plugin (2026.4) gives one of the readers the sums without their scale where there is none and a batch or
a size is open. edgerun's OpenVINO target mends that in any model; here it is for those who load the file without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import constant, initializer

if TYPE_CHECKING:
    import onnx_ir as ir

TINY = np.float32(1e-12)  # lost in every float32 sum


def hold(graph: ir.Graph) -> None:
    """Give such convolutions a bias of TINY, in place."""
    for node in graph:
        if node.op_type != "Conv" or not _dequantized(node.inputs[1]):
            continue
        result = node.outputs[0]
        if len(list(result.uses())) + result.is_graph_output() < 2 or _any(node):
            continue
        bias = initializer(graph, f"{node.name}/held", np.full(_channels(node), TINY))
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, bias)


def _channels(node: ir.Node) -> int:
    pair = node.inputs[1].producer() if node.inputs[1] is not None else None
    stored = constant(pair.inputs[0]) if pair is not None else None
    assert stored is not None
    return len(stored)


def _dequantized(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear" and constant(producer.inputs[0]) is not None


def _any(node: ir.Node) -> bool:
    """Whether a Conv has a bias other than zeros."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    producer = value.producer() if value is not None else None
    known = constant(producer.inputs[0] if producer is not None else value)
    return value is not None and (known is None or bool(np.any(known)))
