"""Operators that OpenVINO (2026.4) computes as ONNX does, but for what lies at their edges: there they are mended."""

# ReduceMax of floats begins with the least finite number, and so gives that one of -infinities, as a row that a mask
# hides has, and of nothing; ReduceMin likewise. They are mended where infinities can come to them: from a constant, as
# in the functions of Attention, or a model's input, through nothing but sums, choices and moves.
#
# Tile reads beyond the data for some repeats that are no constant: it is written axis by axis, which is right.
#
# MaxPool with ceil_mode keeps a last window that lies in the padding alone, which ONNX drops.
#
# A Loop of no iteration leaves what it collects as the last run had it: there that is cut to nothing. (Not within
# another op's body, which is not looked into.)
#
# A Range whose end lies behind its begin counts on all the same, where ONNX has nothing.
#
# A NaN becomes 6 as an E2M1, the 4-bit float, and -0 in ONNX's own cases.
#
# An infinity that comes or goes as float64 becomes the largest float32, in which all is computed: numpy casts instead.

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.targets import _openvino_ir as ir

LEAST = {"ReduceMax": -np.inf, "ReduceMin": np.inf}  # what is left of nothing
CARRIES = ir.MOVES | {
    "Add", "Broadcast", "Concat", "ConvertLike", "Divide", "Gather", "Maximum", "Minimum", "Multiply", "Pad", "Select",
    "Slice", "StridedSlice", "Subtract", "Tile",
}  # fmt: skip
MOST = np.iinfo(np.int32).max  # of a size
FARTHEST = 100  # ops that are looked at


def mend(ops: Mapping[str, list[Any]], payload: bytes | Path) -> int:
    """Mend such operators among `ops`, by kind, of an ONNX model in place; return how many. IR is left as it is."""
    if not ir.is_onnx(payload):
        return 0
    reductions = [node for kind in LEAST for node in ops.get(kind, []) if _boundless(node.input_value(0))]
    tiles = [node for node in ops.get("Tile", []) if _repeated(node)]
    pools = [node for node in ops.get("MaxPool", []) if _ends_in_padding(node.get_attributes())]
    casts = [node for kind in ("Convert", "ConvertLike") for node in ops.get(kind, []) if _to_e2m1(node)]
    loops = [node for node in ops.get("Loop", []) if _may_not_run(node)]
    spans = [node for node in ops.get("Range", []) if _told_by_data(node)]
    pairs = (reductions, _bound), (tiles, _tile), (pools, _pool), (casts, _no_number), (loops, _loop), (spans, _range)
    for nodes, how in pairs:
        for node in nodes:
            how(node)
    return sum(len(nodes) for nodes, _ in pairs)


def narrow_doors(graph: Any) -> None:
    """Let inputs and outputs of float64 be float32, in place."""
    kinds, made = ir.runtime().Type, ir.runtime().preprocess.PrePostProcessor(graph)
    doors = (made.input, graph.inputs), (made.output, graph.outputs)
    wide = [at(i) for at, ports in doors for i, port in enumerate(ports) if port.element_type == kinds.f64]
    for door in wide:
        door.tensor().set_element_type(kinds.f32)
    if wide:
        made.build()


def _may_not_run(node: Any) -> bool:
    """Whether data says how often it runs, or that it does not."""
    told = [node.input_value(index).get_node() for index in range(2)]
    return any(one.get_type_name() != "Constant" or not np.all(one.data) for one in told)


def _loop(node: Any) -> None:
    make = ir.runtime().opset13
    one, zero = (np.array([number], np.int64) for number in (1, 0))
    trips, first = (make.reshape(node.input_value(index), one, False) for index in range(2))
    runs = make.logical_and(first, make.not_equal(make.convert(trips, "i64"), zero))
    end = make.select(runs, np.array([MOST], np.int64), zero)
    for told in node.get_output_descriptions():
        if (axis := getattr(told, "axis", None)) is not None:  # the others are values of the last iteration
            result = node.output(told.output_index)
            readers, names = list(result.get_target_inputs()), result.get_names()
            cut = make.slice(result, zero, end, one, np.array([axis], np.int64)).output(0)
            for reader in readers:
                reader.replace_source_output(cut)
            result.get_tensor().set_names(set())
            cut.get_tensor().set_names(names)


def _told_by_data(node: Any) -> bool:
    """Whether anything but constants and the sizes of arrays says where it begins and ends."""
    if node.get_input_element_type(0) != node.get_input_element_type(1):  # a window's, which is right
        return False
    left, seen = list(node.input_values()), set[str]()
    while left and len(seen) < FARTHEST:
        source = left.pop().get_node()
        if source.get_type_name() == "Parameter":
            return True
        if source.get_name() not in seen and source.get_type_name() != "ShapeOf":
            left += source.input_values()
        seen.add(source.get_name())
    return bool(left)


def _range(node: Any) -> None:
    make = ir.runtime().opset13
    start, stop, step = node.input_values()
    zero = make.convert_like(make.constant(np.float32(0)), step)
    end = make.select(make.greater(step, zero), make.maximum(start, stop), make.minimum(start, stop))
    node.input(1).replace_source_output(end.output(0))


def _to_e2m1(node: Any) -> bool:
    """Whether it casts floats to it that are no constant."""
    source = node.input_value(0)
    named = node.get_element_type().to_string() == "f4e2m1" and source.get_element_type().is_real()
    return bool(named and ir.origin(source) != "Constant")


def _no_number(node: Any) -> None:
    make, source = ir.runtime().opset13, node.input_value(0)
    nothing = make.convert_like(make.constant(np.float32(-0.0)), source)
    node.input(0).replace_source_output(make.select(make.is_nan(source), nothing, source).output(0))


def _boundless(value: Any) -> bool:
    """Whether an infinity can come to these floats."""
    left, seen = [value], set[str]()
    while left and len(seen) < FARTHEST:
        value = left.pop()
        node, kind = value.get_node(), value.get_node().get_type_name()
        if not value.get_element_type().is_real() or node.get_name() in seen:
            continue
        seen.add(node.get_name())
        if kind == "Parameter" or (kind == "Constant" and np.isinf(node.get_data()).any()):
            return True
        left += node.input_values() if kind in CARRIES else []
    return False


def _bound(node: Any) -> None:
    """Where every element is what is left of nothing, so is the result."""
    make, kind = ir.runtime().opset13, node.get_type_name()
    source, axes, keep = node.input_value(0), node.input_value(1), node.get_attributes()["keep_dims"]
    least = make.convert_like(make.constant(np.float32(LEAST[kind])), source)  # of bfloat16 no constant may be infinite
    others = make.reduce_max(make.convert(make.not_equal(source, least), "f32"), axes, keep)
    readers = list(node.output(0).get_target_inputs())
    _take_over(node.output(0), readers, make.select(make.greater(others, make.constant(np.float32(0))), node, least))


def _repeated(node: Any) -> bool:
    """Whether a Tile's repeats are no constant, a number for each axis of more than one."""
    rank = node.input_value(0).get_partial_shape().rank
    return bool(ir.origin(node.input_value(1)) != "Constant" and rank.is_static and rank.get_length() > 1)


def _tile(node: Any) -> None:
    make, repeats = ir.runtime().opset13, node.input_value(1)
    rank = node.input_value(0).get_partial_shape().rank.get_length()
    one, made = make.constant(np.ones(rank, np.int64)), node.input_value(0)
    counts = make.convert(repeats, "i64")
    for axis in reversed(range(rank)):
        here = make.constant(np.arange(rank) == axis)
        made = make.tile(made, make.select(here, counts, one)).output(0)
    made.get_node().set_friendly_name(node.get_friendly_name())
    node.output(0).replace(made)


def _ends_in_padding(told: Mapping[str, Any]) -> bool:
    # Whether of some size the last window can begin behind the data.
    #
    # Of a size n that is ceil((n + begin + end - reach) / stride)·stride ≥ n + begin; the left is at most n + begin +
    # end - reach + stride - 1.
    reach = [(size - 1) * apart + 1 for size, apart in zip(told["kernel"], told["dilations"], strict=True)]
    sides = zip(told["strides"], reach, told["pads_end"], strict=True)
    return told["rounding_type"] == "ceil" and any(stride > r - end for stride, r, end in sides)


def _pool(node: Any) -> None:
    told = node.get_attributes()
    made = ir.runtime().opset14.max_pool(
        node.input_value(0), told["strides"], told["dilations"], told["pads_begin"], told["pads_end"], told["kernel"],
        "ceil_torch", told["auto_pad"], told["index_element_type"], told["axis"],
    )  # fmt: skip
    made.set_friendly_name(node.get_friendly_name())
    for number in range(2):
        node.output(number).replace(made.output(number))


def _take_over(result: Any, readers: list[Any], made: Any) -> None:
    """Let `readers` of `result` read `made`, which gets its names."""
    names = result.get_names()
    for reader in readers:
        reader.replace_source_output(made.output(0))
    result.get_tensor().set_names(set())
    made.output(0).get_tensor().set_names(names)
