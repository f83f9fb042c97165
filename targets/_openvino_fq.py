"""Q/DQ pairs as single FakeQuantize nodes: the form in which OpenVINO's graph passes leave them together."""

# Read from ONNX, a pair is FakeQuantize, Convert, Convert, Subtract, Multiply. Strides and transposes are then moved
# into the middle of it before it is recognised, and the layers behind run in float. Weights lose a zero Subtract.
#
# What depends on nothing but shapes, as the zeros that a cell's first step reads, is a constant once these are known. A
# FakeQuantize of one is taken for a weight's, and the plugin (2026.4) cannot compile a product of two of these.

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgerun.targets import _openvino_ir as ir


def fuse(ops: Mapping[str, list[Any]]) -> int:
    """Rewrite every activation pair and every weight among `ops`, by kind, in place; return how many there were."""
    fixed = _fixed(ops.get("ShapeOf", []))
    moving = [node for node in ops.get("FakeQuantize", []) if node.input_value(0).get_node().get_name() not in fixed]
    pairs = sum([_fuse_pair(node) for node in moving])
    return pairs + sum([_drop_zero(node) for node in ops.get("Subtract", [])])


def _fixed(shapes: Iterable[Any]) -> set[str]:
    """The nodes that compute from `shapes` (ShapeOf) and constants alone, by the name that a graph has but once."""
    found = {node.get_name() for node in shapes}
    waiting = list(shapes)
    while waiting:
        for reader in waiting.pop().output(0).get_target_inputs():
            node = reader.get_node()
            inputs = [value.get_node() for value in node.input_values()]
            known = all(other.get_name() in found or _constant_node(other) for other in inputs)
            if known and node.get_name() not in found and node.get_output_size() == 1:
                found.add(node.get_name())
                waiting.append(node)
    return found


def _constant_node(node: Any) -> bool:
    return str(node.get_type_name()) == "Constant"


def _fuse_pair(quantize: Any) -> bool:
    # FakeQuantize(x; il, ih, 0, 255) -> … -> ·s(q − z) becomes FakeQuantize(x; il, ih, −s·z, s·(255 − z)).
    stored = _only_reader(quantize, "Convert")
    widened = _only_reader(stored, "Convert") if stored is not None else None
    if widened is None:
        return False
    shifted = _only_reader(widened, "Subtract")
    zero_point = _constant(shifted.input_value(1)) if shifted is not None else np.float32(0)
    result = _only_reader(shifted or widened, "Multiply")
    scale = _constant(result.input_value(1)) if result is not None else None
    low, high = (_constant(quantize.input_value(i)) for i in (3, 4))
    if stored is None or scale is None or zero_point is None or low is None or high is None or result is None:
        return False
    make = ir.runtime().opset13
    ends = [make.constant(np.asarray((end - zero_point) * scale, np.float32)) for end in (low, high)]
    fused = make.fake_quantize(*(quantize.input_value(i) for i in range(3)), *ends, quantize.get_attributes()["levels"])
    for op in (stored, quantize):  # the frontend gives the QuantizeLinear's name to the cast, its last op
        if op.get_friendly_name() != op.get_name():  # a counted name differs from run to run
            fused.set_friendly_name(op.get_friendly_name())
            break
    names = result.output(0).get_names()
    ir.runtime().utils.replace_node(result, fused)
    fused.output(0).add_names(names)
    return True


def _drop_zero(node: Any) -> bool:
    """A weight's zero point that is zero everywhere."""
    stored = node.input_value(0).get_node()
    if stored.get_type_name() != "Convert" or stored.input_value(0).get_node().get_type_name() != "Constant":
        return False
    zero_point = _constant(node.input_value(1))
    if zero_point is None or np.any(zero_point):
        return False
    for reader in node.output(0).get_target_inputs():
        reader.replace_source_output(stored.output(0))
    return True


def _only_reader(node: Any, kind: str) -> Any | None:
    readers = list(node.output(0).get_target_inputs())
    found = readers[0].get_node() if len(readers) == 1 else None
    return found if found is not None and found.get_type_name() == kind else None


def _constant(output: Any) -> np.ndarray | None:
    """The array behind an output, looking through Convert and shape-only nodes; None when it is computed."""
    node = output.get_node()
    while node.get_type_name() in ("Convert", "Reshape", "Unsqueeze", "Squeeze"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    array = np.asarray(node.get_data(), np.float32)
    return array.reshape(()) if array.size == 1 else None if array.ndim < 2 else array
