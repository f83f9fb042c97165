"""float16 weights: a file half the size, at no loss that matters; arithmetic stays float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun.errors import Unsupported
from edgerun.quantize import _weights
from edgerun.quantize.graphs import compressed, edit
from edgerun.quantize.numerics.half import halved

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

summary = "float16 weights, except where they overflow or underflow; float32 arithmetic, so half the size but no faster"
needs_calibration = False
scheme = "fp16"

LEAST = 64  # elements


def apply(model: ir.Model, request: Request) -> ir.Model:
    """Store every float32 weight as float16 that float16 can hold; the others stay, and are named in the history."""
    original = _weights.begin(model, request)
    kept: list[str] = []
    stored = 0
    candidates = [value for graph in model.graphs() for value in graph.initializers.values() if _large(value)]
    readers = [user for value in candidates for user, _ in value.uses()]
    free = _weights.chosen(dict.fromkeys(readers), request, f"node with a float32 weight of at least {LEAST} elements")
    for value in candidates:
        weight = edit.constant(value)
        assert weight is not None
        if not {user for user, _ in value.uses()} <= set(free):
            continue
        half = halved(weight)
        if half is None:
            kept.append(str(value.name))
            continue
        compressed.expand(value, half)
        stored += 1
    if not free:
        raise _weights.all_kept(request)
    if not stored:
        raise Unsupported("no weight of the model fits float16", got=", ".join(kept[:5]))
    edit.drop_unused(model)
    request.found |= {"weights in float16": stored, "left in float32": kept}
    _weights.evidence(original, model, request)
    return model


def _large(value: ir.Value) -> bool:
    weight = edit.constant(value)
    if weight is None or weight.dtype != np.float32 or weight.size < LEAST:
        return False
    return bool(value.uses()) and not value.is_graph_output() and not value.is_graph_input()
