"""Lookups as lookups: a one-hot row times a matrix is a row of it, and what is done to every row, the table holds.

JAX and TensorFlow write both in full: 257 comparisons and multiplications for each byte that a model reads, and an
activation of rows of which there are 257.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.compressed import replace
from edgerun.quantize.graphs.edit import constant, fresh_name, initializer, shared

if TYPE_CHECKING:
    import onnx_ir as ir

SINCE = 13  # before that opset Squeeze takes its axes otherwise, and Clip no integers
MOST = 1 << 20  # elements of a table that is made anew
UNARY = frozenset({
    "Abs", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Neg", "Reciprocal",
    "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh",
})  # fmt: skip
ELEMENTWISE = UNARY | {"Add", "Clip", "Div", "Max", "Min", "Mul", "Pow", "Sub"}


def join(model: ir.Model) -> int:
    """Make Gathers of products with one-hot rows, and put what follows a Gather element by element before it, where it
    is constant; in place. Return how many changed; values agree to float rounding."""
    graph = model.graph
    if graph.opset_imports.get("", 0) < SINCE:
        return 0
    found = sum([_lookup(graph, node) for node in list(graph) if node.op_type == "MatMul" and node.domain == ""])
    return found + sum([_before(graph, node) for node in list(graph) if node.op_type == "Gather" and node.domain == ""])


def _lookup(graph: ir.Graph, product: ir.Node) -> bool:
    """MatMul(Cast(ids == [0, 1, … K−1]), table `[K, E]`) becomes Gather(table, ids).

    Another id has a row of zeros: one before and one behind the table, where the Clip of ids ends.
    """
    import onnx_ir as ir

    table, ids = constant(product.inputs[1]), _one_hot(product.inputs[0])
    if table is None or table.ndim != 2 or table.dtype != np.float32 or ids is None or ids.shape is None:
        return False
    if table.size > MOST or not np.isfinite(table).all():
        return False
    name, rows = str(product.name), len(table)
    nodes = []

    def emit(op: str, inputs: list[ir.Value], dtype: ir.DataType, shape: list[int | ir.SymbolicDim]) -> ir.Value:
        node = ir.node(op, inputs, name=fresh_name(graph, f"{name}/{op}"))
        made = node.outputs[0]
        made.name, made.type, made.shape = (
            fresh_name(graph, f"{node.name}/value"),
            ir.TensorType(dtype),
            ir.Shape(shape),
        )
        nodes.append(node)
        return made

    def number(label: str, value: np.ndarray) -> ir.Value:
        return initializer(graph, fresh_name(graph, f"{name}/{label}"), value)

    whole, dims = ir.DataType.INT64, list(ids.shape)
    if ids.dtype != whole:
        ids = emit("Cast", [ids], whole, dims)
        nodes[-1].attributes["to"] = ir.AttrInt64("to", whole.value)
    ends = [number(label, np.array(end, np.int64)) for label, end in (("before", -1), ("behind", rows))]
    clipped = emit("Clip", [ids, *ends], whole, dims)
    place = emit("Add", [clipped, number("one", np.array(1, np.int64))], whole, dims)
    flat = emit("Squeeze", [place, number("last", np.array([len(dims) - 1], np.int64))], whole, dims[:-1])
    padded = number("table", np.pad(table, ((1, 1), (0, 0))))
    emit("Gather", [padded, flat], ir.DataType.FLOAT, [*dims[:-1], table.shape[1]])
    replace(graph, product, nodes)
    return True


def _one_hot(value: ir.Value | None) -> ir.Value | None:
    """The integers `[…, 1]` whose one-hot rows `value` holds; else None."""
    import onnx_ir as ir

    cast = value.producer() if value is not None else None
    if cast is None or cast.op_type != "Cast" or cast.attributes.get_int("to", 0) != ir.DataType.FLOAT.value:
        return None
    equal = cast.inputs[0].producer() if cast.inputs[0] is not None else None
    if equal is None or equal.op_type != "Equal":
        return None
    for ids, other in (equal.inputs, reversed(equal.inputs)):
        row = constant(other)
        if row is None or ids is None or ids.shape is None or ids.dtype is None or row.ndim > len(ids.shape):
            continue
        counted = row.size == row.shape[-1] > 1 if row.ndim else False
        if counted and np.array_equal(row.reshape(-1), np.arange(row.size)) and ids.dtype.is_integer():
            return ids if ids.shape[-1] == 1 else None
    return None


def _before(graph: ir.Graph, gather: ir.Node) -> bool:
    """What is computed element by element from a Gather's rows and constants `[E]` alone, and read as one value, is
    computed of the table; the Gather follows."""
    import onnx_ir as ir

    table = constant(gather.inputs[0])
    if table is None or table.ndim != 2 or table.dtype != np.float32 or table.size > MOST or shared(gather.inputs[0]):
        return False
    if gather.attributes.get_int("axis", 0) != 0:
        return False
    nodes, last = _elementwise(graph, gather, table.shape[1])
    if last is None:
        return False
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is gather.outputs[0]:
                node.replace_input_with(index, gather.inputs[0])
            elif (array := constant(value)) is not None and array.ndim > 1:
                row = initializer(graph, fresh_name(graph, f"{node.name}/row"), array.reshape(array.shape[-1:]))
                node.replace_input_with(index, row)
        node.outputs[0].shape = ir.Shape(table.shape)
    readers = list(last.uses())
    after = ir.node("Gather", [last, gather.inputs[1]], name=str(gather.name))
    result = after.outputs[0]
    result.shape, result.type = gather.outputs[0].shape, gather.outputs[0].type
    for reader, index in readers:
        reader.replace_input_with(index, result)
    if last.is_graph_output():
        graph.outputs[list(graph.outputs).index(last)] = result
        result.name, last.name = last.name, fresh_name(graph, f"{gather.name}/table")
    else:
        result.name = fresh_name(graph, f"{gather.name}/rows")
    graph.insert_after(nodes[-1], after)
    graph.remove(gather, safe=True)
    return True


def _elementwise(graph: ir.Graph, gather: ir.Node, width: int) -> tuple[list[ir.Node], ir.Value | None]:
    """The nodes behind a Gather that compute of its rows, each element by itself, in order, and what others read of
    them; no value where there are none, or where others read several."""
    inside: set[ir.Value] = {gather.outputs[0]}
    nodes: list[ir.Node] = []
    for node in graph:
        if not any(value in inside for value in node.inputs) or node.domain != "" or len(node.outputs) != 1:
            continue
        if node.op_type in ELEMENTWISE and all(v in inside or v is None or _row(v, width) for v in node.inputs):
            nodes.append(node)
            inside.add(node.outputs[0])
    ends = [
        value for value in inside if value.is_graph_output() or any(reader not in nodes for reader, _ in value.uses())
    ]
    return nodes, ends[0] if nodes and len(ends) == 1 and ends[0] is not gather.outputs[0] else None


def _row(value: ir.Value, width: int) -> bool:
    """Whether it is a constant number, or one for every column."""
    array = constant(value)
    return array is not None and (array.size == 1 or (array.size == width == array.shape[-1]))
