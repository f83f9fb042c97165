"""What is not quantized to 8 bits, and what is asked for in vain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerun.errors import EdgerunError, Unsupported
from edgerun.quantize import _sequences
from edgerun.quantize._weights import all_kept
from edgerun.quantize.graphs import placement, suitable
from edgerun.quantize.graphs.work import keepable

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request


def quantized(model: ir.Model) -> None:
    """Raise EdgerunError for a model that is quantized already."""
    for node in model.graph.all_nodes():
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear") or "Integer" in node.op_type:
            raise EdgerunError("the model is quantized already", got=f"{node.op_type} {node.name!r}",
                               wanted="a float model", do="compress the model that it was made from")  # fmt: skip


def kept_in_vain(model: ir.Model, request: Request) -> None:
    """Raise EdgerunError where a node that is to stay float would anyway."""
    candidates = keepable(model.graph, request.rules)
    for name in request.keep_float:
        if name not in candidates:
            ops = sorted({node.op_type for node in model.graph if node.name in candidates})
            wanted = f"the name of a {', '.join(ops)} node" if ops else None
            raise EdgerunError(f"keeping {name!r} in float has no effect: it is never quantized", wanted=wanted)


def nothing(model: ir.Model, request: Request) -> EdgerunError:
    """Why nothing of `model` runs on integers."""
    if placement.plan(model.graph, request.rules).compute or _sequences.found(model.graph):
        return all_kept(request)
    wanted = f"float32 {', '.join(sorted(request.rules.compute))} with constant weights"
    got = suitable.refusals(model.graph, request.rules)
    return Unsupported("nothing in this model runs on integers on the target", got=got, wanted=wanted)
