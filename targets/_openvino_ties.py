"""Equal values and boxes at the threshold, where OpenVINO's operators decide otherwise than ONNX's (2026.4)."""

# TopK gives equal values in any order, where ONNX has the lower index first. OpenVINO's own stable order costs k·n (a
# hundredth of a microsecond each), so that TopK gets it where that is little, and wherever its values are a model's
# inputs as they come, which tie as the caller likes. Scores from within a large net, as a detector's, stay in the fast
# order. NonMaxSuppression drops boxes at the threshold too, so that the default of 0 leaves one box of all, where ONNX
# drops those above it: the threshold goes up by the least that a float32 can.

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.targets import _openvino_ir as ir

MOST = 20_000  # k·n of a TopK that is stable at a cost that nobody notices
UP, TINY = np.float32(1 + 2**-23), np.float32(1e-30)


def mend(ops: Mapping[str, list[Any]], payload: bytes | Path) -> int:
    """Make such operators among `ops`, by kind, of an ONNX model decide as ONNX says, in place; return how many.

    IR is left as it is: ours is mended, and another's means OpenVINO's operators.
    """
    if not ir.is_onnx(payload):
        return 0
    found = [node for node in ops.get("TopK", []) if _unstable(node)]
    for node in found:
        _order(node)
    suppressing = [node for node in ops.get("NonMaxSuppression", []) if node.get_input_size() > 3]
    for node in suppressing:
        _raise(node.input(3))
    return len(found) + len(suppressing)


def _unstable(node: Any) -> bool:
    """Whether a TopK orders equal values as it likes, though ONNX does not, and can be told at a fair price."""
    told = node.get_attributes()
    if told.get("stable") is not False or told["sort"] == "none":
        return False
    source, k = node.input_value(0), node.input_value(1).get_node()
    known = int(k.data) if k.get_type_name() == "Constant" else None
    axis = source.get_partial_shape()[told["axis"]]
    if known == 1:
        return False
    return ir.origin(source) == "Parameter" or (
        known is not None and axis.is_static and known * axis.get_length() <= MOST
    )


def _order(node: Any) -> None:
    told = node.get_attributes()
    made = ir.runtime().opset11.topk(
        node.input_value(0), node.input_value(1), told["axis"], told["mode"], told["sort"], told["index_element_type"],
        stable=True,
    )  # fmt: skip
    made.set_friendly_name(node.get_friendly_name())
    for number in range(2):
        node.output(number).replace(made.output(number))


def _raise(threshold: Any) -> None:
    make = ir.runtime().opset1
    above = make.maximum(make.multiply(threshold.get_source_output(), make.constant(UP)), make.constant(TINY))
    threshold.replace_source_output(above.output(0))
