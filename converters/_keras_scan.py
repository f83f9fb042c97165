"""A recurrent layer as an ONNX Scan whose body is the cell's own `call`: masks, cells of any kind, ConvLSTM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgerun.converters._keras_elementwise import apply
from edgerun.converters._keras_graph import Graph, weight
from edgerun.converters._layout import Value


def scan(
    graph: Graph, operation: Any, value: Value, states: Sequence[Value], mask: Value | None, in_order: bool
) -> list[Value]:
    """The layer's output and its states at the end.

    Where the mask is False a step changes no state, and its output is that before it, or zero (`zero_output_for_mask`).
    A sequence comes in the order of the work, or where `in_order` in that of time.
    """
    from keras import tree  # type: ignore[import-untyped]
    from onnx import helper

    value = graph.plain(graph.cast(value, "float32"))
    structure = operation.get_initial_state(batch_size=1)
    begins = list(states) or [_spread(graph, weight(state), value) for state in tree.flatten(structure)]
    begins = [graph.plain(state) for state in begins]
    repeats = mask is not None and not getattr(operation, "zero_output_for_mask", False)
    carries = repeats or not operation.return_sequences
    outer, turned, before = graph.nodes, dict(graph._turned), graph.scope
    graph.nodes, graph.scope = [], f"{before}/step"
    try:
        x = Value(f"{graph.scope}/x", (value.shape[0], *value.shape[2:]))
        held = [Value(f"{graph.scope}/state_{index}", state.shape) for index, state in enumerate(begins)]
        found = graph.walk.layer(operation.cell, x, tree.pack_sequence_as(structure, held))
        output, new = graph.plain(found[0]), [graph.plain(state) for state in found[1:]]
        last = Value(f"{graph.scope}/last", output.shape)
        keeps = Value(f"{graph.scope}/keeps", (value.shape[0],), "bool")
        if mask is not None:
            shown = last if repeats else graph.value(0.0)
            output = apply(graph, "Where", _ranked(graph, keeps, output.rank), output, shown)
            new = [
                apply(graph, "Where", _ranked(graph, keeps, state.rank), state, old)
                for state, old in zip(new, held, strict=True)
            ]
        results = [*new, *([output] if carries else []), *([output] if operation.return_sequences else [])]
        names = [graph.node("Identity", [item.name]) for item in results]
        body = graph.nodes
    finally:
        graph.nodes, graph.scope = outer, before
        graph._turned = turned
    enters = [*held, *([last] if carries else []), x, *([keeps] if mask is not None else [])]
    kinds = [helper.np_dtype_to_tensor_dtype(np.dtype(item.dtype)) for item in enters]
    inside = helper.make_graph(
        body,
        "step",
        [helper.make_tensor_value_info(i.name, kind, [None] * i.rank) for i, kind in zip(enters, kinds, strict=True)],
        [helper.make_tensor_value_info(n, 1, [None] * r.rank) for n, r in zip(names, results, strict=True)],
    )
    carried = [*begins, *([_nothing(graph, output, value)] if carries else [])]
    steps = [value.name, *([graph.plain(mask).name] if mask is not None else [])]
    backwards, count = bool(operation.go_backwards), 1 if operation.return_sequences else 0
    told: dict[str, Any] = {"scan_output_axes": [1], "scan_output_directions": [int(in_order)]} if count else {}
    made = graph.several(
        "Scan", [*(item.name for item in carried), *steps], len(carried) + count, body=inside,
        num_scan_inputs=len(steps), scan_input_axes=[1] * len(steps),
        scan_input_directions=[int(backwards)] * len(steps), **told,
    )  # fmt: skip
    ends = [Value(name, state.shape) for name, state in zip(made, begins, strict=False)]
    if operation.return_sequences:
        return [Value(made[-1], (output.shape[0], value.shape[1], *output.shape[1:])), *ends]
    return [Value(made[-1], output.shape), *ends]


def _ranked(graph: Graph, keeps: Value, rank: int) -> Value:
    """[batch] as [batch, 1, …]."""
    name = graph.node("Unsqueeze", [keeps.name, graph.ints(range(1, rank), "axes")])
    return Value(name, (keeps.shape[0], *[1] * (rank - 1)), "bool")


def _spread(graph: Graph, row: np.ndarray, value: Value) -> Value:
    """A state of one sample for every sample of the batch."""
    count = graph.node("Gather", [graph.node("Shape", [value.name]), graph.ints([0], "batch")], axis=0)
    shape = graph.node("Concat", [count, graph.ints(row.shape[1:], "shape")], axis=0)
    name = graph.node("Expand", [graph.const(row.astype(np.float32), "state"), shape])
    return Value(name, (value.shape[0], *row.shape[1:]))


def _nothing(graph: Graph, output: Value, value: Value) -> Value:
    return _spread(graph, np.zeros((1, *(int(size or 0) for size in output.shape[1:])), np.float32), value)
