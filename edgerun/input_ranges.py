"""What a model's inputs may hold, as its graph tells: rows of a table, a size, words that it knows, infinities."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgerun.draws import Range
from edgerun.runtime.spec import WORDS

if TYPE_CHECKING:
    import onnx_ir as ir

NUMERALS = ("0", "1", "-2", "7")
_FLOATS = frozenset({"FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"})
MOVES = frozenset({"Cast", "CastLike", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})


def moved(model: ir.Model) -> frozenset[str]:
    """The inputs of floats that the model only moves to outputs, in these or other floats: nothing is computed of them,
    so that no infinity spreads."""
    return frozenset(value.name for value in model.graph.inputs if value.name and _moved(value, value.dtype))


def _moved(value: ir.Value, dtype: ir.DataType | None) -> bool:
    """Whether all that is made of `value`, whose elements are of `dtype`, are floats that are its own."""
    if dtype is None or dtype.name not in _FLOATS:
        return False
    uses = list(value.uses())
    if not all(node.op_type in MOVES and slot == 0 for node, slot in uses):
        return False
    return (bool(uses) or value.is_graph_output()) and all(
        _moved(node.outputs[0], _cast(node, dtype)) for node, _ in uses
    )


def _cast(node: ir.Node, dtype: ir.DataType) -> ir.DataType | None:
    """What a move makes of elements of `dtype`."""
    if node.op_type == "CastLike":
        like = node.inputs[1]
        return None if like is None else like.dtype
    return type(dtype)(node.attributes["to"].as_int()) if node.op_type == "Cast" else dtype


def masked(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The feeds, the first row of every boolean table all False: an attention mask that hides all, as padding does."""
    found = dict(feeds)
    for name, array in feeds.items():
        if array.dtype == np.bool_ and array.ndim > 1 and array.size:
            found[name] = array.copy()
            found[name].reshape(-1, array.shape[-1])[0] = False
    return found


def extreme(feeds: Mapping[str, np.ndarray], names: Collection[str]) -> dict[str, np.ndarray]:
    """The feeds, infinities and a NaN first in those of these `names`: a runtime may clamp them on the way."""
    found = dict(feeds)
    for name in names:
        found[name] = feeds[name].copy()
        found[name].reshape(-1)[:3] = np.array([np.inf, -np.inf, np.nan])[: found[name].size]
    return found


# Numbers that say a size, by operator and input: with 0 there, a draw leaves the output empty, and shows nothing.
SIZES_SAID = {
    ("Tile", 1): Range(1, 4),
    ("Expand", 1): Range(1, 2),
    ("ConstantOfShape", 0): Range(1, 5),
    ("TopK", 1): Range(1, 3),
    ("OneHot", 1): Range(2, 6),
    ("Range", 0): Range(0, 2),
    ("Range", 1): Range(3, 8),
    ("Range", 2): Range(1, 3),
    ("Slice", 1): Range(0, 1),
    ("Slice", 2): Range(1, 4),
    ("Slice", 4): Range(1, 2),
    ("Loop", 0): Range(1, 4),
    ("NonMaxSuppression", 2): Range(1, 4),
    ("NonMaxSuppression", 3): Range(0.1, 0.9, whole=False),
    ("HannWindow", 0): Range(4, 9),
    ("HammingWindow", 0): Range(4, 9),
    ("BlackmanWindow", 0): Range(4, 9),
}
DIVISOR = Range(1, 3)  # of integers: by 0 a runtime refuses to divide
_PASS_INDICES = frozenset({"Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Expand"})


def ranges(model: ir.Model) -> dict[str, Range]:
    """For every graph input that only selects rows of constant tables: numbers below the smallest one's row count; for
    one that says which of many, or a size: those that there are, or those of SIZES_SAID; for a divisor: no 0. For one
    of strings: words that the model knows, and others."""
    found: dict[str, Range] = {}
    for value in model.graph.inputs:
        if value.name and value.dtype is not None and value.dtype.name == "STRING":
            found[value.name] = Range(0, 0, words=_words(value))
            continue
        told = list(_told(value))
        if value.name and told:
            low, high = max(r.low for r in told), min(r.high for r in told)
            found[value.name] = Range(low, high, all(r.whole for r in told)) if low < high else told[0]
    return found


def _words(value: ir.Value) -> tuple[str, ...]:
    """Those that its readers know, and WORDS unless one refuses what it does not know; numbers where one reads them."""
    readers = list(_readers(value))
    if any(node.op_type == "Cast" for node in readers):
        return NUMERALS
    own = [word for node in readers for word in _strings(node)]
    closed = any(node.op_type == "OneHotEncoder" and not node.attributes.get_int("zeros", 1) for node in readers)
    return tuple(dict.fromkeys(own if own and closed else (*own, *WORDS)))


def _readers(value: ir.Value) -> Iterator[ir.Node]:
    for node, slot in value.uses():
        if node.op_type in MOVES - {"Cast", "CastLike"} and slot == 0:
            yield from _readers(node.outputs[0])
        else:
            yield node


def _strings(node: ir.Node) -> Iterator[str]:
    """The texts in its attributes' lists and its constants."""
    for attribute in node.attributes.values():
        if attribute.type.name == "STRINGS":
            yield from attribute.as_strings()
    for value in node.inputs:
        constant = None if value is None else value.const_value
        if constant is not None and constant.dtype.name == "STRING":
            yield from (
                word.decode() if isinstance(word, bytes) else str(word) for word in constant.numpy().reshape(-1)
            )


def _told(value: ir.Value) -> Iterator[Range]:
    for node, slot in value.uses():
        if node.op_type == "Gather" and slot == 1 and node.inputs[0] is not None:
            table, axis = node.inputs[0].const_value, node.attributes.get_int("axis", 0)
            if table is not None:
                yield Range(0, table.shape.numpy()[axis])
        elif said := SIZES_SAID.get((node.op_type, slot)):
            yield said
        elif node.op_type in ("Div", "Mod") and slot == 1 and value.dtype is not None and value.dtype.is_integer():
            yield DIVISOR
        elif known := _hot(node, slot):
            yield known
        elif node.op_type in _PASS_INDICES and slot == 0:
            yield from _told(node.outputs[0])


def _hot(node: ir.Node, slot: int) -> Range | None:
    """What numbers are told apart that become a one of many: by OneHot, or by Equal with every one that there is."""
    if (node.op_type, slot) != ("OneHot", 0) and node.op_type != "Equal":
        return None
    other = node.inputs[1 - slot]
    if other is None or other.const_value is None:
        return None
    held = np.unique(other.const_value.numpy())
    if node.op_type == "OneHot":
        return Range(0, int(held[-1]))
    table = held.dtype.kind in "iu" and len(held) > 2 and held[-1] - held[0] == len(held) - 1
    return Range(int(held[0]), int(held[-1]) + 1) if table else None
