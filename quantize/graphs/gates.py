"""Gates: a few numbers, one per channel, that scale a whole tensor (squeeze-and-excitation, Hu et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import fresh_name, initializer, sole_consumer

if TYPE_CHECKING:
    import onnx_ir as ir


def nodes(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that write one position and end in a Mul of one position with many."""
    found: dict[ir.Node, None] = {}
    for node in graph:
        if node.op_type != "Mul" or node.domain != "" or one_position(node.outputs[0]):
            continue
        ahead = [value for value in node.inputs if one_position(value)]
        while ahead:
            before = ahead.pop().producer()  # type: ignore[union-attr]
            if before is not None and before not in found:
                found[before] = None
                ahead += [value for value in before.inputs if one_position(value)]
    return list(found)


def join(graph: ir.Graph) -> int:
    """x + x·g becomes x·(1 + g), a pass over the tensor less for a sum of a few numbers; return how many.

    Only where g is one position, x is many, and nothing else reads x·g.
    """
    joined = 0
    for add in [node for node in graph if node.op_type == "Add" and node.domain == ""]:
        for value, other in (add.inputs, add.inputs[::-1]):
            mul = other.producer() if other is not None else None
            if mul is None or mul.op_type != "Mul" or mul.domain != "" or sole_consumer(other) is not add:
                continue
            gate = next((v for v in mul.inputs if v is not value), None)
            if value not in mul.inputs or gate is value or not one_position(gate) or one_position(value):
                continue
            if gate is None or gate.dtype is None or gate.dtype.name != "FLOAT" or value is None:
                continue
            _join(graph, add, mul, value, gate)
            joined += 1
            break
    return joined


def _join(graph: ir.Graph, add: ir.Node, mul: ir.Node, value: ir.Value, gate: ir.Value) -> None:
    import onnx_ir as ir

    one = initializer(graph, f"{gate.name}/one", np.array(1, np.float32))
    more = ir.node("Add", [gate, one], name=fresh_name(graph, f"{mul.name}/more"))
    result = more.outputs[0]
    result.name, result.type, result.shape = fresh_name(graph, f"{gate.name}/more"), gate.type, gate.shape
    graph.insert_before(add, more)
    joined = ir.node("Mul", [value, result], name=mul.name)
    graph.insert_before(add, joined)
    old, new = add.outputs[0], joined.outputs[0]
    new.type, new.shape, name = old.type, old.shape, old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove([add, mul], safe=True)
    new.name = name


def one_position(value: ir.Value | None) -> bool:
    """Whether a computed value has but channels beside its batch axis: `[N, C]`, `[N, C, 1, 1]`, `[N, 1, 1, C]`."""
    if value is None or value.producer() is None or value.shape is None or len(value.shape) < 2:
        return False
    return sum(dim != 1 for dim in list(value.shape)[1:]) <= 1
