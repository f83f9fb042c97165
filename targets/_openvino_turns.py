"""Transposes of quantized values that only swap two blocks of axes, in the form that the CPU plugin is fast with.

Of rows and columns in any other order than channels last to channels first it (2026.4) moves one element after the
other: 2 ns each, of 8 bits as of 32. As [batch, rows, 1, columns] to [batch, columns, rows, 1] it is a reorder, which
takes a fifth of that. This is done where a model is compiled, not where a file is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgerun.targets import _openvino_ir as ir

FAST = (0, 3, 1, 2)


def turn(ops: Mapping[str, list[Any]]) -> int:
    """Rewrite every such Transpose among `ops`, by kind, in place; return how many there were."""
    return sum([_turn(node) for node in ops.get("Transpose", [])])


def _turn(node: Any) -> bool:
    source, order = node.input_value(0), node.input_value(1).get_node()
    if order.get_type_name() != "Constant" or not _rounded(node) or source.get_partial_shape().rank.is_dynamic:
        return False
    perm = [int(axis) for axis in order.get_data()]
    sizes = [None if dim.is_dynamic else dim.get_length() for dim in source.get_partial_shape()]
    swapped = _swapped(perm, sizes)
    if swapped is None or tuple(perm) == FAST:
        return False
    make = ir.runtime().opset13
    # 0 is the batch as it comes, and -1 the one size that is open.
    flat = make.reshape(source, np.array([0, swapped[0], 1, swapped[1]]), True)
    turned = make.transpose(flat, np.array(FAST))
    ends = [-1 if sizes[axis] is None else sizes[axis] for axis in perm[1:]]
    made = make.reshape(turned, np.array([0, *ends]), True)
    made.set_friendly_name(node.get_friendly_name())
    names = node.output(0).get_names()
    ir.runtime().utils.replace_node(node, made)
    made.output(0).add_names(names)
    return True


def _swapped(perm: list[int], sizes: list[int | None]) -> tuple[int, int] | None:
    """The sizes (-1: open) of the two blocks behind the batch that `perm` swaps; axes of size 1 are in none."""
    if not perm or perm[0] != 0:
        return None
    order = [axis for axis in perm[1:] if sizes[axis] != 1]
    first = sorted(order)
    cut = first.index(order[0]) if order else 0
    if cut == 0 or order != first[cut:] + first[:cut] or sum(sizes[axis] is None for axis in order) > 1:
        return None
    blocks = ([sizes[axis] for axis in axes] for axes in (first[:cut], first[cut:]))
    rows, columns = (-1 if None in block else int(np.prod([size or 0 for size in block])) for block in blocks)
    return rows, columns


def _rounded(node: Any) -> bool:
    """Whether what it moves is a quantizer's, or goes to quantizers alone."""
    source = node.input_value(0).get_node()
    while source.get_type_name() == "Reshape":
        source = source.input_value(0).get_node()
    readers = [port.get_node().get_type_name() for port in node.output(0).get_target_inputs()]
    return source.get_type_name() == "FakeQuantize" or set(readers) == {"FakeQuantize"}
