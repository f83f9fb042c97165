"""Dynamic INT8: integer matrix products and LSTMs whose inputs get their range in every run; no calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerun.errors import Unsupported
from edgerun.quantize import _sequences, _weights, fold, weight_int8
from edgerun.quantize.graphs import dynamic, edit

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.model import Model
    from edgerun.passes import Quantization, Request

summary = "dynamic INT8: per-channel weights, activations quantized as they come; matrix products, LSTM, tables"
needs_calibration = False
scheme = "w8a8_dynamic"


def apply(model: ir.Model, request: Request) -> ir.Model:
    """Quantize every op of the target's `dynamic` rules. Raises Unsupported when there is none."""
    ops = request.rules.dynamic
    if not ops:
        raise Unsupported("the target has no kernels that quantize while they run")
    original = _weights.begin(model, request)
    graph = model.graph
    what = f"{', '.join(sorted(ops))} with constant float32 weights"
    able = [node for node in graph if node.op_type in ops and _fits(node)]
    nodes = _weights.chosen(able, request, what, weight_int8.others(graph))
    held = _sequences.found(graph, request.keep_float)
    steps = 63 if request.rules.reduced_range else 127
    loops = [node for node in nodes if node.op_type == "LSTM"]
    for node in nodes:
        if node not in loops:
            matrix = dynamic.weight(node)
            assert matrix is not None
            codes, scale = _weights.per_channel(_weights.finite(node, matrix), (0,), steps)
            dynamic.product(graph, node, codes, scale.reshape(-1))
        elif request.calibration is None:
            _sequences.to_integers(model, node, {}, steps)
    stored = weight_int8.tables(graph, request.keep_float)
    request.found |= {"integer nodes": len(nodes), "tables in 8 bits": stored}
    if request.calibration is None or not held:
        rest = [node for node in held if node not in loops]
        for node in rest:
            weight_int8.store(node, weight_int8.LEAST, request.keep_float)
        if held:
            names = {"on integers": loops, "weights in 8 bits": rest}
            request.found[_sequences.LAYERS] = {key: [str(n.name) for n in group] for key, group in names.items()}
        edit.drop_unused(model)
        _weights.evidence(original, model, request)
        return model
    edit.drop_unused(model)
    request.found["integer nodes"] -= len(loops)
    return _sequences.apply(original, model, request, {})


def integers(model: Model, rules: Quantization, keep_float: frozenset[str]) -> list[str]:
    """The nodes that go on integers, in graph order."""
    folded = fold.apply(model.clone())
    return [str(n.name) for n in folded.graph if n.op_type in rules.dynamic and _fits(n) and n.name not in keep_float]


def _fits(node: ir.Node) -> bool:
    return dynamic.recurrent(node) or dynamic.weight(node) is not None
