"""The Q/DQ model of a placement: integers and their scales where float weights and values stood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs import correction, edit, placement, qdq, suited
from edgerun.quantize.numerics import grid
from edgerun.quantize.numerics.grid import Grid

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Quantization
    from edgerun.quantize._precision import Stored


def quantized(
    model: ir.Model,
    planned: placement.Plan,
    grids: Mapping[str, Grid],
    stored: Mapping[str, Stored],
    shifts: Mapping[str, np.ndarray],
    rules: Quantization,
) -> ir.Model:
    """The `model` of stored weights as Q/DQ, consumed; biases moved by `shifts`, int32 at the nodes in `stored`."""
    graph, plan = model.graph, planned.on(model.graph)
    correction.move(graph, plan, shifts)
    scale = {str(value.name): grids[group].scale for value, group in plan.points.items()}
    for node in plan.weights:
        if str(node.name) not in stored or node.op_type == "MatMul" or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        weight, input_scale = stored[str(node.name)], scale[str(node.inputs[0].name)]  # type: ignore[union-attr]
        bias = edit.row_bias(node, weight.channels)
        assert bias is not None
        wide = grid.widen(weight.grid, bias, input_scale, dead=weight.dead)
        if not np.array_equal(wide.scale, weight.grid.scale):
            qdq.rescale_weight(graph, node, weight.grid, wide)
        qdq.store_bias(graph, node, bias, input_scale, wide)
    qdq.absorb(graph, plan, grids)
    qdq.insert_points(graph, plan, grids)
    suited.suit(graph, plan, rules)
    qdq.share_constants(graph)
    edit.drop_unused(model)
    return model
