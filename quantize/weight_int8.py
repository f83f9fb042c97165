"""Weight-only INT8: a file a quarter the size; activations and arithmetic stay float."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerun.quantize import _weights
from edgerun.quantize.graphs import compressed, edit

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

summary = "weight-only INT8: per-channel weights, one scale per table row; float arithmetic, so smaller but no faster"
needs_calibration = False
scheme = "w8a16"

LEAST = 256  # elements below which a scale and two nodes are no saving
LEAST_TABLE = 1 << 14  # the same for the tables of the schemes that are about other weights
WHAT = "Conv, Gemm, MatMul, LSTM, GRU, RNN or Gather with a constant float32 weight of at least 256 elements"


def apply(model: ir.Model, request: Request) -> ir.Model:
    """Store the weights of matrix products, convolutions, recurrent layers and tables as int8."""
    original = _weights.begin(model, request)
    nodes = _weights.chosen(
        [node for node in model.graph.all_nodes() if any(size >= LEAST for size in _sizes(node))], request, WHAT
    )
    request.found["weights stored in 8 bits"] = sum(store(node, LEAST, request.keep_float) for node in nodes)
    edit.drop_unused(model)
    _weights.evidence(original, model, request)
    return model


def _sizes(node: ir.Node) -> list[int]:
    return [int(w.size) for i, _ in compressed.weight_inputs(node) if (w := edit.constant(node.inputs[i])) is not None]


def store(node: ir.Node, least: int, keep_float: frozenset[str]) -> int:
    """Replace the weights of `node` that have `least` elements or more; return how many there were.

    A weight that a node of `keep_float` reads too stays as it is.
    """
    found = 0
    for index, axes in list(compressed.weight_inputs(node)):
        value = node.inputs[index]
        weight = edit.constant(value)
        if value is None or weight is None or weight.size < least or value.is_graph_output():
            continue
        if any(user.name in keep_float for user, _ in value.uses()):
            continue
        codes, scale = _weights.per_channel(_weights.finite(node, weight), axes)
        if node.op_type == "Gather":
            compressed.expand_rows(node, codes, scale)
        else:
            compressed.expand(value, codes, scale)
        found += 1
    return found
