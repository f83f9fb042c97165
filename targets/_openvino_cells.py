"""LSTMs of one step, as a streaming model has them, written out: one product and elementwise ops."""

# OpenVINO runs an LSTMSequence on oneDNN's recurrent kernel, whatever its length; for one step a product of [x, h] by
# the weights of both is faster, and the rest is fused. With the gates in OpenVINO's order f, i, c, o:
#
#     f, i, c, o = [x h]·[W R]ᵀ + B;   C = σ(f)·C₀ + σ(i)·tanh(c);   H = σ(o)·tanh(C)

from __future__ import annotations

from typing import Any

import numpy as np

from edgerun.targets import _openvino_ir as ir

ACTIVATIONS = ["sigmoid", "tanh", "tanh"]


def write_out(graph: Any) -> int:
    """Rewrite every such LSTM in place; return how many there were."""
    found = [op for op in graph.get_ordered_ops() if op.get_type_name() == "LSTMSequence" and _one_step(op)]
    for op in found:
        _write(op)
    if found:
        graph.validate_nodes_and_infer_types()
    return len(found)


def _one_step(op: Any) -> bool:
    told = op.get_attributes()
    values = [op.input_value(i) for i in range(7)]
    steps = values[0].get_partial_shape()
    return (
        list(told["activations"]) == ACTIVATIONS
        and told["clip"] == 0
        and told["direction"] != "bidirectional"
        and steps.is_static
        and steps[1].get_length() == 1
        and all(_fixed(value) for value in values[3:])  # a length that is fed may be 0
    )


def _fixed(output: Any) -> bool:
    """Whether a value is the same in every run of a graph whose shapes are known."""
    waiting = [output.get_node()]
    while waiting:
        node = waiting.pop()
        if node.get_type_name() in ("Parameter", "ReadValue"):
            return False
        if node.get_type_name() != "ShapeOf":
            waiting += [value.get_node() for value in node.input_values()]
    return True


def _write(op: Any) -> None:
    make, name = ir.runtime().opset13, op.get_friendly_name()
    x, hidden, cell, _, weight, recurrence, bias = (op.input_value(i) for i in range(7))
    batch, _, size = x.get_shape()
    width = hidden.get_shape()[2]

    def shaped(value: Any, *shape: int) -> Any:
        return make.reshape(value, make.constant(np.array(shape, np.int64)), False)

    def parts(value: Any, axis: int, *sizes: int) -> list[Any]:
        split = make.variadic_split(value, make.constant(np.int64(axis)), make.constant(np.array(sizes, np.int64)))
        return list(split.outputs())

    both = make.concat([shaped(weight, 4 * width, size), shaped(recurrence, 4 * width, width)], 1)
    joined = make.concat([shaped(x, batch, size), shaped(hidden, batch, width)], 1)
    gates = make.add(make.matmul(joined, both, False, True), shaped(bias, 1, 4 * width))
    gates.set_friendly_name(f"{name}/gates")
    forget_input, candidate, out = parts(gates, 1, 2 * width, width, width)
    forget, taken = parts(make.sigmoid(forget_input), 1, width, width)
    kept = make.multiply(forget, shaped(cell, batch, width))
    state = make.add(kept, make.multiply(taken, make.tanh(candidate)))
    result = make.multiply(make.sigmoid(out), make.tanh(state))
    result.set_friendly_name(name)
    made = (shaped(result, batch, 1, 1, width), shaped(result, batch, 1, width), shaped(state, batch, 1, width))
    for old, new in zip(op.outputs(), made, strict=True):
        names = old.get_names()
        for reader in old.get_target_inputs():
            reader.replace_source_output(new.output(0))
        new.output(0).add_names(names)
