"""What MatMulNBits does to its input where it may compute with int8 (accuracy level 4), as float nodes.

Every row is cut into blocks of as many elements as its weights' have, and a block x becomes s·round(x / s) with
s = max|x| / 127: integers by integers, with scales of both sides, sum to what float products of both sum to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import fresh_name, initializer

if TYPE_CHECKING:
    import onnx_ir as ir

BLOCK = "edgerun.block"  # of the last node's metadata: the elements of a block
STEPS = 127
LEAST = 1e-30  # a scale, so that zeros are divided by something


def rounded(graph: ir.Graph, value: ir.Value, inputs: int, block: int) -> ir.Value:
    """`value` `[…, inputs]` rounded: one chain of nodes for all that want blocks of this size."""
    import onnx_ir as ir

    name = f"{value.name}/blocks of {block}"
    for node in graph:
        if node.metadata_props.get(BLOCK) == str(block) and source(node) is value:
            return node.outputs[0]
    nodes: list[ir.Node] = []

    def add(op: str, *operands: ir.Value | np.ndarray, outputs: int = 1) -> ir.Value:
        values = [initializer(graph, f"{name}/{op}", v) if isinstance(v, np.ndarray) else v for v in operands]
        node = ir.node(op, values, name=fresh_name(graph, f"{name}/{op}"), num_outputs=outputs)
        for number, made in enumerate(node.outputs):
            dtype = ir.DataType.INT64 if op == "Shape" or number else ir.DataType.FLOAT
            made.name, made.type = fresh_name(graph, f"{node.name}/{number}"), ir.TensorType(dtype)
        nodes.append(node)
        return node.outputs[0]

    shape = add("Shape", value)
    rows, short = add("Reshape", value, np.array([-1, inputs])), -inputs % block
    if short:
        rows = add("Pad", rows, np.array([0, 0, 0, short]))
    cut = add("Reshape", rows, np.array([-1, block]))
    peak = add("TopK", add("Abs", cut), np.array([1]), outputs=2)  # ReduceMax has its axes elsewhere in opset 18
    scale = add("Max", add("Div", peak, np.array(STEPS, np.float32)), np.array(LEAST, np.float32))
    whole = add("Reshape", add("Mul", add("Round", add("Div", cut, scale)), scale), np.array([-1, inputs + short]))
    if short:
        whole = add("Slice", whole, np.array([0]), np.array([inputs]), np.array([1]))
    result = add("Reshape", whole, shape)
    result.shape = value.shape
    nodes[-1].metadata_props[BLOCK] = str(block)
    if (maker := value.producer()) is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(maker, nodes)
    return result


def block_of(node: ir.Node) -> int:
    """The elements of a block of what ends with `node`; 0 of any other node."""
    return int(node.metadata_props.get(BLOCK, 0))


def source(node: ir.Node) -> ir.Value:
    """What is rounded by the nodes that end with `node`: what its shape is taken of."""
    shape = node.inputs[1].producer()  # type: ignore[union-attr]
    value = shape.inputs[0] if shape is not None else None
    assert value is not None
    return value
