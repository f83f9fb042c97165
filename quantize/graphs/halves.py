"""Nodes that compute in float16, and the Casts where they meet the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import constant, drop_initializer, fresh_name, initializer

if TYPE_CHECKING:
    import onnx_ir as ir

FLOAT, HALF = 1, 10  # TensorProto's
# What the others are done in float16 for.
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What follows a float16 result in float16. Not among them: sums over many terms, powers, exponentials and what divides
# by them, which overflow or cancel; recurrent layers, which have no kernel there on most runtimes.
FOLLOWS = frozenset({
    "Abs", "Add", "AveragePool", "Clip", "Concat", "DepthToSpace", "Div", "Elu", "Erf", "Expand", "Flatten", "Gather",
    "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization",
    "LayerNormalization", "LeakyRelu", "Max", "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pad", "Relu", "Reshape",
    "Resize", "Sigmoid", "Slice", "Softmax", "Softplus", "SpaceToDepth", "Split", "Squeeze", "Sub", "Tanh", "Tile",
    "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
STAYS = {"Resize": {1, 2}}  # inputs that are float32 by the operator's definition
Halved = Callable[[np.ndarray], np.ndarray | None]


def candidates(graph: ir.Graph, refused: Set[str], halved: Halved) -> list[ir.Node]:
    """The nodes that can compute in float16, in the graph's order: products, rows of tables, and what follows them.

    Not those named in `refused`, nor those with a constant that `halved` gives None for.
    """
    found: dict[ir.Node, None] = {}
    for node in graph:
        if node.domain or node.name in refused or node.op_type not in PRODUCTS | FOLLOWS:
            continue
        floats = list(_floats(node))
        begins = node.op_type in PRODUCTS or (node.op_type == "Gather" and constant(node.inputs[0]) is not None)
        if not floats or not (begins or any(value.producer() in found for _, value in floats)):
            continue
        if any(
            dtype is None for dtype in (value.dtype for value in (*node.inputs, *node.outputs) if value is not None)
        ):
            continue
        if all(_stored(node, value, halved) is not None for _, value in floats if constant(value) is not None):
            found[node] = None
    return list(found)


def narrow(graph: ir.Graph, nodes: list[ir.Node], halved: Halved) -> None:
    """Let `nodes` compute in float16, in place: their constants are stored so, and Casts stand at their borders."""
    chosen = set(nodes)
    constants: dict[tuple[ir.Value, bool], ir.Value] = {}
    casts: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        for index, value in list(_floats(node)):
            if constant(value) is not None:
                key = (value, node.op_type == "Clip")
                if key not in constants:
                    stored = _stored(node, value, halved)
                    assert stored is not None
                    constants[key] = initializer(graph, f"{value.name}/half", stored)
                node.replace_input_with(index, constants[key])
            elif value.producer() not in chosen:
                if value not in casts:
                    casts[value] = _cast(graph, value, HALF)
                node.replace_input_with(index, casts[value])
    for node in nodes:
        for value in node.outputs:
            if _is_float(value):
                _widened(graph, value, chosen)
    for value, _ in constants:
        if not value.uses() and not value.is_graph_output():
            drop_initializer(graph, value)


def _floats(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """The float32 inputs of a node that are float16 when it computes in float16."""
    for index, value in enumerate(node.inputs):
        if value is not None and _is_float(value) and index not in STAYS.get(node.op_type, set()):
            yield index, value


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and int(value.dtype) == FLOAT


def _stored(node: ir.Node, value: ir.Value, halved: Halved) -> np.ndarray | None:
    """A constant in float16; the ends of a Clip are cut off where float16 ends, as all values are."""
    array = constant(value)
    assert array is not None
    if node.op_type == "Clip":
        largest = np.finfo(np.float16).max
        clipped: np.ndarray = np.clip(array, -largest, largest).astype(np.float16)
        return clipped
    return halved(array)


def _widened(graph: ir.Graph, value: ir.Value, chosen: Set[ir.Node]) -> None:
    """`value` is float16 from here on; who reads it outside of `chosen`, or at the model's door, reads a Cast."""
    import onnx_ir as ir

    outside = [(user, i) for user, i in value.uses() if user not in chosen or i in STAYS.get(user.op_type, set())]
    if outside or value.is_graph_output():
        name, wide = value.name, _cast(graph, value, FLOAT)
        for user, index in outside:
            user.replace_input_with(index, wide)
        for place, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[place] = wide
                value.name, wide.name = fresh_name(graph, f"{name}/half"), name
    value.type = ir.TensorType(ir.DataType.FLOAT16)


def _cast(graph: ir.Graph, value: ir.Value, to: int) -> ir.Value:
    """A Cast of `value`, right behind what makes it."""
    import onnx_ir as ir

    node = ir.node("Cast", [value], attributes={"to": to}, name=fresh_name(graph, f"{value.name}/Cast"))
    made = node.outputs[0]
    made.name, made.shape = fresh_name(graph, f"{value.name}/Cast/value"), value.shape
    made.type = ir.TensorType(ir.DataType(to))
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return made
