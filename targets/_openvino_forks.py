"""Integer convolutions whose result is read more than once: each gets a bias that holds its scale."""

# Without one, and with a batch or a size left open, the CPU plugin (2026.4) gives one of the readers the sums without
# their scale. A bias of zeros is dropped before that and does not help; this one is lost in every float32 sum.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgerun.targets import _openvino_ir as ir

LAYERS = ("Convolution", "GroupConvolution")
TINY = np.float32(1e-12)


def mend(ops: Mapping[str, list[Any]]) -> int:
    """Put an Add of TINY behind every such convolution among `ops`, by kind, in place; return how many there were."""
    found = 0
    for node in (node for kind in LAYERS for node in ops.get(kind, []) if not _float_weights(node)):
        result = _past_zeros(node.output(0))
        if len(result.get_target_inputs()) > 1:
            _add(result)
            found += 1
    return found


def _float_weights(node: Any) -> bool:
    """Whether the weights are stored as floats, in the shape that the layer takes or (of a grouped one) another."""
    weight = node.input_value(1).get_node()
    while weight.get_type_name() == "Reshape" or _widens(weight):
        weight = weight.input_value(0).get_node()
    return str(weight.get_type_name()) == "Constant"


def _widens(node: Any) -> bool:
    """Whether it is a Convert from float16, in which weights of float layers are stored."""
    return node.get_type_name() == "Convert" and str(node.get_input_element_type(0).get_type_name()) == "f16"


def _past_zeros(result: Any) -> Any:
    """What an Add of zeros makes of `result`, if that is all that reads it."""
    readers = list(result.get_target_inputs())
    behind = readers[0].get_node() if len(readers) == 1 else None
    if behind is None or behind.get_type_name() != "Add":
        return result
    other = behind.input_value(1 - readers[0].get_index()).get_node()
    return behind.output(0) if other.get_type_name() == "Constant" and not np.any(other.data) else result


def _add(result: Any) -> None:
    make, readers, names = ir.runtime().opset13, list(result.get_target_inputs()), result.get_names()
    held = make.add(result, make.constant(TINY)).output(0)
    for reader in readers:
        reader.replace_source_output(held)
    result.get_tensor().set_names(set())
    held.get_tensor().set_names(names)
