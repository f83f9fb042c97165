"""Quantizers behind ReduceMax and ReduceMin, which the CPU plugin must not make part of these.

Its kernel (2026.4) then rounds what it has seen so far in steps of the wrong size: 19 dB are left where 8 bits have 40.
A Maximum with the least float between the two changes nothing, and is part of neither. This is done where a model is
compiled, not where a file is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgerun.targets import _openvino_ir as ir

KINDS = ("ReduceMax", "ReduceMin")
FUSED = frozenset(
    {"Clamp", "Relu", "ReLU", "Reshape", "Squeeze", "Unsqueeze"}
)  # that stand between, and change nothing
LEAST = np.finfo(np.float32).min


def part(ops: Mapping[str, list[Any]]) -> int:
    """Put one behind every such op among `ops`, by kind, in place; return how many there were."""
    found = [op for kind in KINDS for op in ops.get(kind, []) if _rounded(op.output(0))]
    make = ir.runtime().opset13
    for op in found:
        result, readers, names = op.output(0), list(op.output(0).get_target_inputs()), op.output(0).get_names()
        held = make.maximum(result, make.constant(LEAST)).output(0)
        for reader in readers:
            reader.replace_source_output(held)
        result.get_tensor().set_names(set())
        held.get_tensor().set_names(names)
    return len(found)


def _rounded(value: Any) -> bool:
    """Whether a quantizer reads it, or what becomes of it."""
    readers = [port.get_node() for port in value.get_target_inputs()]
    return any(
        node.get_type_name() == "FakeQuantize" or (node.get_type_name() in FUSED and _rounded(node.output(0)))
        for node in readers
    )
