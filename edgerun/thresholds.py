"""Feeds at which operators that step have to decide: equal values, and values at a threshold.

Numbers from N(0, 1) never tie, and never meet a constant, so that they show nothing of what ONNX says of both: equal
values of TopK come with the lower index first, ArgMax takes the first or the last, Round goes to the even number.
What ONNX leaves open (the order where TopK has `sorted` 0) is not asked for. Everything stays exact: only inputs that
are no more than moved to such operators are taken, and boxes whose overlap has no rounding in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.input_ranges import MOVES

if TYPE_CHECKING:
    import onnx_ir as ir

LEVEL = 1  # what all elements are where they tie
COMPARING = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
STEPPING = frozenset({"ArgMax", "ArgMin", "Ceil", "Floor", "Hardmax", "NonZero", "Round", "Sign", "TopK", "Unique"})
BENDS = {"Shrink": ("lambd", 0.5), "ThresholdedRelu": ("alpha", 1.0)}  # the attribute that says where, and its default
BITS = 12  # of a threshold at which an overlap of boxes is exact in float32, whatever the order of operations
APART, WHOLE = (9, 8), (0.0, 0.0, 1.0, 1.0)  # scores above any threshold; a box, as corners


@dataclass(frozen=True)
class Decided:
    """What a model decides by: `values` are the constants that each input is compared with (none: it is only ordered
    or rounded), `counts` the inputs that say how many TopK takes, `boxes` its NonMaxSuppressions."""

    values: Mapping[str, tuple[float, ...]]
    counts: frozenset[str]
    boxes: tuple[Boxes, ...]


@dataclass(frozen=True)
class Boxes:
    """A NonMaxSuppression by the names of its inputs (None: it is not one of the model's); `iou` is its threshold."""

    boxes: str
    scores: str
    most: str | None
    told: str | None
    iou: float
    centred: bool


def decided(model: ir.Model) -> Decided:
    """The inputs that are only moved to operators that step, and the boxes that are suppressed."""
    found: dict[str, tuple[float, ...]] = {}
    counts = set[str]()
    for value in model.graph.inputs:
        steps = list(_steps(value))
        if value.name and steps and None not in steps:
            found[value.name] = tuple(dict.fromkeys(at for step in steps if step is not None for at in step))
        if value.name and any(node.op_type == "TopK" and slot == 1 for node, slot in value.uses()):
            counts.add(value.name)
    nodes = [node for node in model.graph if node.op_type == "NonMaxSuppression"]
    return Decided(found, frozenset(counts), tuple(boxes for node in nodes for boxes in _boxes(node)))


def at_steps(feeds: Mapping[str, np.ndarray], told: Decided) -> dict[str, np.ndarray]:
    """The feeds with halves and the constants where a model compares, orders or rounds; boxes as they are."""
    found = dict(feeds)
    for name, values in told.values.items():
        array = feeds[name]
        if array.dtype.kind == "f":  # the sum makes 0 of -0
            array = (np.round(array.astype(np.float64) * 2) / 2 + 0.0).astype(array.dtype)
        found[name] = _begun(array, [value for value in values if _fits(value, array.dtype)])
    return found


def tied(feeds: Mapping[str, np.ndarray], told: Decided) -> dict[str, np.ndarray]:
    """The feeds with one value all over where a model compares, orders or rounds, of which TopK takes two, and with
    two boxes that overlap by just the threshold where it suppresses them."""
    numbers = [name for name in told.values if feeds[name].dtype.kind != "O"]
    found = dict(feeds) | {name: np.full_like(feeds[name], LEVEL) for name in numbers}
    found |= {name: np.full_like(feeds[name], 2) for name in told.counts}
    for each in told.boxes:
        boxes, scores = found[each.boxes].copy(), found[each.scores].copy()
        if boxes.ndim != 3 or boxes.shape[1] < 2 or boxes.shape[2] != 4 or scores.ndim != 3:
            continue
        part = np.array([WHOLE, (*WHOLE[:3], each.iou)])
        corners = part if not each.centred else np.concatenate([part[:, 2:] / 2, part[:, 2:]], axis=1)
        boxes[:, :2], scores[:, :, :2] = corners, APART
        found |= {each.boxes: boxes, each.scores: scores}
        given = ((each.most, 2), (each.told, each.iou))
        found |= {name: np.full_like(found[name], value) for name, value in given if name is not None}
    return found


def _begun(array: np.ndarray, values: list[float]) -> np.ndarray:
    found = array.copy()
    found.reshape(-1)[: len(values)] = values[: found.size]
    return found


def _fits(value: float, dtype: np.dtype) -> bool:
    if dtype.kind == "f":
        return bool(np.isfinite(np.float64(value).astype(dtype)))
    return dtype.kind in "iu" and float(value).is_integer() and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def _steps(value: ir.Value) -> Iterator[tuple[float, ...] | None]:
    """For each operator that `value` is moved to, where it steps; None for one that does not."""
    for node, slot in value.uses():
        if node.op_type in MOVES and slot == 0:
            yield from _steps(node.outputs[0])
        else:
            yield _step(node, slot)


def _step(node: ir.Node, slot: int) -> tuple[float, ...] | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in COMPARING:
        other = node.inputs[1 - slot]
        number = _number(other)
        # A table that it is looked up in, as a one of many is made: what is one everywhere is no usual input.
        table = number is None and other is not None and other.const_value is not None
        return None if table else () if number is None else (number,)
    if node.op_type in BENDS:
        name, usual = BENDS[node.op_type]
        at = node.attributes.get_float(name, usual)
        return at, -at
    ordered = node.op_type != "TopK" or (slot == 0 and node.attributes.get_int("sorted", 1) == 1)
    return () if node.op_type in STEPPING and ordered else None


def _boxes(node: ir.Node) -> Iterator[Boxes]:
    """What is known of a NonMaxSuppression of the model's own inputs whose threshold can be met exactly."""
    given = [*node.inputs, None, None, None]
    names = [str(value.name) if value is not None and value.is_graph_input() else None for value in given]
    iou = 0.5 if names[3] is not None else _number(given[3])
    if names[0] is None or names[1] is None or iou is None or not 0 < iou < 1 or not (iou * 2**BITS).is_integer():
        return
    centred = node.attributes.get_int("center_point_box", 0) == 1
    yield Boxes(names[0], names[1], names[2], names[3], iou, centred)


def _number(value: ir.Value | None) -> float | None:
    """A constant's only element, where it is finite."""
    import onnx_ir as ir

    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    number = float(tensor.numpy().reshape(-1)[0])
    return number if np.isfinite(number) else None
