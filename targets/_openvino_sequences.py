"""Recurrent layers whose sequences have lengths of their own, written as a loop over the steps."""

# The CPU plugin (2026.4) runs all sequences to the end of the longest where a size is open, whatever the lengths say,
# and where all sizes are known, it reads beyond the data when a length is larger than that. In step t of a sequence of
# length n, with the states H and C before it:
#
#     h, c = cell(x_t, H, C);   y_t = t < n ? h : 0;   H, C = t < n ? h, c : H, C
#
# The last states of a sequence of length 0 are zero, in both plugin and ONNX Runtime; ONNX leaves it open.

from __future__ import annotations

from typing import Any

import numpy as np

from edgerun.targets import _openvino_ir as ir

CELLS = {"LSTMSequence": "lstm_cell", "GRUSequence": "gru_cell", "RNNSequence": "rnn_cell"}
KINDS = {*CELLS, "If", "Loop", "TensorIterator"}  # and what may have such layers inside
MOVED = ("Broadcast", "Convert", "Reshape", "Squeeze", "Unsqueeze")
TIME = 1  # the axis of x [batch, steps, inputs] that the lengths count


def write_out(graph: Any) -> int:
    """Rewrite every such layer in place, those of branches and loops included; return how many there were."""
    ops = list(graph.get_ordered_ops())
    inside = sum(write_out(body) for op in ops for body in ir.bodies(op))
    found = [op for op in ops if op.get_type_name() in CELLS and not _whole(op)]
    for op in found:
        _write(op)
    if inside or found:
        graph.validate_nodes_and_infer_types()
    return inside + len(found)


def _states(op: Any) -> int:
    return 2 if op.get_type_name() == "LSTMSequence" else 1


def _whole(op: Any) -> bool:
    """Whether all sequences are as long as the data: their length is a size, or a constant that is no less."""
    length = op.input_value(1 + _states(op))
    while length.get_node().get_type_name() in MOVED:
        length = length.get_node().input_value(0)
    node, steps = length.get_node(), op.input_value(0).get_partial_shape()[TIME]
    if node.get_type_name() == "Constant":
        return bool(steps.is_static and (node.get_data() >= steps.get_length()).all())
    if node.get_type_name() != "Gather":
        return False
    size = node.input_value(0).get_node()
    if size.get_type_name() == "Convert":
        size = size.input_value(0).get_node()
    return bool(size.get_type_name() == "ShapeOf")


def _write(op: Any) -> None:
    make, name, direction = ir.runtime().opset13, op.get_friendly_name(), op.get_attributes()["direction"]
    if direction == "bidirectional":
        halves = [_loop(op, way, index) for index, way in enumerate(("forward", "reverse"))]
        made = [make.concat(list(pair), 1) for pair in zip(*halves, strict=True)]
    else:
        made = _loop(op, direction, 0)
    for number, (old, new) in enumerate(zip(op.outputs(), made, strict=True)):
        new.set_friendly_name(f"{name}.{number}" if number else name)
        names = old.get_names()
        for reader in old.get_target_inputs():
            reader.replace_source_output(new.output(0))
        new.output(0).add_names(names)


def _loop(op: Any, direction: str, index: int) -> list[Any]:
    """y [batch, 1, steps, units] and the last states [batch, 1, units] of the `index`-th direction."""
    make, states = ir.runtime().opset13, _states(op)
    x, *initial = (op.input_value(i) for i in range(1 + states))
    lengths, *weights = (op.input_value(i) for i in range(1 + states, 5 + states))
    lengths = make.unsqueeze(make.convert(lengths, "i64"), _integers(1)).output(0)
    some, zero = make.greater(lengths, _integers(0)), make.convert_like(make.constant(np.float32(0)), x)
    initial = [make.select(some, _part(value, index, 1), zero).output(0) for value in initial]
    weights = [_part(value, index, 0) for value in weights]
    last = make.subtract(_part(make.shape_of(x), [TIME], 0), _integers(1))
    if direction == "forward":
        first, way, ends = _integers(0), 1, (0, 1, 1, -1, TIME)  # start, stride, part size, end, axis
    else:
        first, way, ends = last, -1, (-1, -1, 1, 0, TIME)
    shape = ir.runtime().PartialShape([-1, 1, x.get_partial_shape()[2]])
    step, limit = make.parameter(shape, x.get_element_type()), make.parameter([-1, 1], np.int64)
    inside = [make.parameter(value.get_partial_shape(), value.get_element_type()) for value in weights]
    before, after, result = _step(op, step, limit, inside, way)
    loop = ir.runtime().op.tensor_iterator()
    loop.set_body(ir.runtime().Model([result, *after], [step, *before, limit, *inside], "step"))
    loop.set_sliced_input(step, x, *ends)
    for parameter, start, value in zip(before, [*initial, first.output(0)], after, strict=True):
        loop.set_merged_input(parameter, start, value.output(0))
    for parameter, value in zip([limit, *inside], [lengths, *weights], strict=True):
        loop.set_invariant_input(parameter, value)
    made = loop.get_concatenated_slices(result.output(0), *ends)
    made = [made, *(loop.get_iter_value(value.output(0), -1) for value in after[:states])]
    return [make.unsqueeze(value, _integers(1)) for value in made]


def _step(op: Any, x: Any, limit: Any, weights: list[Any], way: int) -> tuple[list[Any], list[Any], Any]:
    """The states and the step's number before and after one step, and its y [batch, 1, units]."""
    make, told, kind = ir.runtime().opset13, op.get_attributes(), x.get_element_type()
    names = {"activations_alpha", "activations_beta", "linear_before_reset", "hidden_size", "activations", "clip"}
    states = [make.parameter([-1, told["hidden_size"]], kind) for _ in range(_states(op))]
    number = make.parameter([1], np.int64)
    settings = {key: value for key, value in told.items() if key in names}
    cell = getattr(make, CELLS[op.get_type_name()])(make.squeeze(x, _integers(1)), *states, *weights, **settings)
    counts = make.less(number, limit)
    after = [make.select(counts, cell.output(i), state) for i, state in enumerate(states)]
    y = make.select(counts, cell.output(0), make.convert_like(make.constant(np.float32(0)), cell.output(0)))
    return [*states, number], [*after, make.add(number, _integers(way))], make.unsqueeze(y, _integers(1))


def _part(value: Any, index: int | list[int], axis: int) -> Any:
    make = ir.runtime().opset13
    return make.gather(value, make.constant(np.array(index, np.int64)), make.constant(np.int64(axis))).output(0)


def _integers(*values: int) -> Any:
    return ir.runtime().opset13.constant(np.array(values, np.int64))
