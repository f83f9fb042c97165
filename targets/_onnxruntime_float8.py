"""Models with 8-bit floats on ONNX Runtime, which computes them in float32 and optimizes them wrongly."""

# It fuses Q/DQ of 8-bit floats into integer ops, which it then refuses, and takes a Relu or Clip away from in front of
# a quantizer whose zero point is 0, as if codes below zero did not exist (1.31; found by comparing with the reference).

from __future__ import annotations

from typing import Any

from edgerun import _wire
from edgerun.runtime import Engine
from edgerun.targets import _onnxruntime_settings as setting

NAME, NUMBER = "float8_e4m3fn", 17  # numpy's, and TensorProto's
UNFUSED = "session.disable_quant_qdq"
FAULTY = ["ReluQuantRewrite", "ClipQuantRewrite"]
GRAPH, INITIALIZER, DTYPE = 7, 5, 2  # fields of ModelProto, GraphProto and TensorProto


def present(engine: Engine) -> bool:
    """Whether any weight of the engine is an E4M3 number; a malformed file is for others to refuse."""
    if any(array.dtype.name == NAME for array in engine.weights.values()):
        return True
    if engine.elements is not None:
        return NUMBER in engine.elements
    try:
        return _stored(_wire.view(engine.payload))
    except (OSError, ValueError):  # no such file, an empty or a malformed one
        return False


def tamed(settings: Any) -> list[str]:
    """Keep Q/DQ as they are in session `settings`; the optimizers that are to be disabled as well."""
    setting.leave(settings, UNFUSED, "1")
    return FAULTY


def _stored(model: memoryview) -> bool:
    return any(
        (field, dtype) == (DTYPE, NUMBER)
        for number, graph in _wire.fields(model)
        if number == GRAPH
        for kind, tensor in _wire.fields(_wire.message(graph))
        if kind == INITIALIZER
        for field, dtype in _wire.fields(_wire.message(tensor))
    )
