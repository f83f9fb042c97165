"""Nodes that compute in a half type, and the Casts where they meet the rest.

In float16 the nodes themselves have that type. In bfloat16, which neither ONNX's Conv before opset 22 nor most of ONNX
Runtime's kernels take, they compute in float32 on rounded values, as the hardware's sums are float32: a Cast to
bfloat16 and one back stand behind each of them, and a runtime with such kernels leaves out the inner ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import constant, drop_initializer, fresh_name, initializer

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.quantize.numerics.half import Half

FLOAT = 1  # TensorProto's
# What the others are done in a half type for.
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
NORMS = frozenset({"InstanceNormalization", "LayerNormalization"})
# What follows such a result in the same type. Not among them: sums over many terms, powers, exponentials and what
# divides by them, which overflow or cancel; recurrent layers, which have no kernel there on most runtimes.
FOLLOWS = frozenset({
    "Abs", "Add", "AveragePool", "Clip", "Concat", "DepthToSpace", "Div", "Elu", "Erf", "Expand", "Flatten", "Gather",
    "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization",
    "LayerNormalization", "LeakyRelu", "Max", "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pad", "Relu", "Reshape",
    "Resize", "Sigmoid", "Slice", "Softmax", "Softplus", "SpaceToDepth", "Split", "Squeeze", "Sub", "Tanh", "Tile",
    "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
STAYS = {"Resize": {1, 2}}  # inputs that are float32 by the operator's definition


def candidates(graph: ir.Graph, refused: Set[str], half: Half) -> list[ir.Node]:
    """The nodes that can compute in `half`, in the graph's order: products, rows of tables, and what follows them.

    Not those named in `refused`, nor those with a constant that it does not hold.
    """
    found: dict[ir.Node, None] = {}
    able = PRODUCTS | FOLLOWS if half.norms else (PRODUCTS | FOLLOWS) - NORMS
    for node in graph:
        if node.domain or node.name in refused or node.op_type not in able:
            continue
        floats = list(_floats(node))
        begins = node.op_type in PRODUCTS or _table(node)
        if not floats or not (begins or any(value.producer() in found for _, value in floats)):
            continue
        if any(
            dtype is None for dtype in (value.dtype for value in (*node.inputs, *node.outputs) if value is not None)
        ):
            continue
        if all(_stored(node, value, half) is not None for _, value in floats if constant(value) is not None):
            found[node] = None
    return list(found)


def leading(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """Those of `nodes`, which are in the graph's order, that are products or lead to one, and the tables, which are
    half the size: the rest gains nothing."""
    chosen, found = set(nodes), set[object]()
    for node in reversed(nodes):
        readers = {user for value in node.outputs for user, _ in value.uses()} & chosen
        if node.op_type in PRODUCTS or _table(node) or readers & found:
            found.add(node)
    return [node for node in nodes if node in found]


def narrow(graph: ir.Graph, nodes: Sequence[ir.Node], half: Half) -> None:
    """Let `nodes` compute in `half`, in place: their constants are stored so, and Casts stand at their borders."""
    chosen, borders = set(nodes), _Borders(graph, half)
    for node in nodes:
        for index, value in list(_floats(node)):
            if constant(value) is not None:
                node.replace_input_with(index, borders.stored(node, value))
            elif value.producer() not in chosen:
                node.replace_input_with(index, borders.narrowed(value))
    for node in nodes:
        for value in node.outputs:
            if _is_float(value):
                _widened(graph, value, chosen, half)
    borders.drop_unused()


def surround(graph: ir.Graph, nodes: Sequence[ir.Node], half: Half) -> None:
    """Let `nodes` compute on values of `half`, in place: constants are stored so, and Casts to it and back stand behind
    what a node writes and in front of what it reads from elsewhere."""
    chosen, borders = set(nodes), _Borders(graph, half)
    wide: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        for index, value in list(_floats(node)):
            if value.producer() in chosen:
                continue
            narrowed = borders.stored(node, value) if constant(value) is not None else borders.narrowed(value)
            if narrowed not in wide:
                wide[narrowed] = _cast(graph, narrowed, FLOAT)
            node.replace_input_with(index, wide[narrowed])
    for value in [value for node in nodes for value in node.outputs if _is_float(value)]:
        uses = list(value.uses())
        if uses or value.is_graph_output():
            narrowed = borders.narrowed(value)
            _hand_over(graph, value, _cast(graph, narrowed, FLOAT), uses)
    borders.drop_unused()


class _Borders:
    """What is narrowed where nodes in a half type begin, once for all readers."""

    def __init__(self, graph: ir.Graph, half: Half) -> None:
        self._graph, self._half = graph, half
        self._constants: dict[tuple[ir.Value, bool], ir.Value] = {}
        self._casts: dict[ir.Value, ir.Value] = {}

    def stored(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """The constant `value` of `node`."""
        key = (value, node.op_type == "Clip")
        if key not in self._constants:
            stored = _stored(node, value, self._half)
            assert stored is not None
            self._constants[key] = initializer(self._graph, f"{value.name}/half", stored)
        return self._constants[key]

    def narrowed(self, value: ir.Value) -> ir.Value:
        """A computed one; of a weight behind DequantizeLinear that one with a scale in `half`, which a product's kernel
        reads with the codes, where a Cast would be a pass over the weight."""
        if value not in self._casts:
            self._casts[value] = self._dequantized(value) or _cast(self._graph, value, self._half.number)
        return self._casts[value]

    def _dequantized(self, value: ir.Value) -> ir.Value | None:
        import onnx_ir as ir

        node = value.producer()
        scale = constant(node.inputs[1]) if node is not None and node.op_type == "DequantizeLinear" else None
        if node is None or scale is None or not node.inputs[0].is_initializer():  # type: ignore[union-attr]
            return None
        if (stored := self._half.stored(scale)) is None:
            return None
        held = initializer(self._graph, f"{node.inputs[1].name}/half", stored)  # type: ignore[union-attr]
        made = ir.node("DequantizeLinear", [node.inputs[0], held, *node.inputs[2:]],
                       attributes=node.attributes, name=fresh_name(self._graph, f"{node.name}/half"))  # fmt: skip
        result = made.outputs[0]
        result.name, result.shape = fresh_name(self._graph, f"{value.name}/half"), value.shape
        result.type = ir.TensorType(ir.DataType(self._half.number))
        self._graph.insert_after(node, made)
        return result

    def drop_unused(self) -> None:
        """Remove the constants that only these nodes read."""
        for value in {value: None for value, _ in self._constants}:
            if not value.uses() and not value.is_graph_output():
                drop_initializer(self._graph, value)


def _floats(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """The float32 inputs of a node that are of the half type that it computes in."""
    for index, value in enumerate(node.inputs):
        if value is not None and _is_float(value) and index not in STAYS.get(node.op_type, set()):
            yield index, value


def _table(node: ir.Node) -> bool:
    return node.op_type == "Gather" and constant(node.inputs[0]) is not None


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and int(value.dtype) == FLOAT


def _stored(node: ir.Node, value: ir.Value, half: Half) -> np.ndarray | None:
    """A constant in `half`, if it holds it."""
    array = constant(value)
    assert array is not None
    return half.clipped(array) if node.op_type == "Clip" else half.stored(array)


def _widened(graph: ir.Graph, value: ir.Value, chosen: Set[ir.Node], half: Half) -> None:
    """`value` is of the type `half` from here on; who reads it outside of `chosen`, or at the model's door, reads a
    Cast."""
    import onnx_ir as ir

    outside = [(user, i) for user, i in value.uses() if user not in chosen or i in STAYS.get(user.op_type, set())]
    if outside or value.is_graph_output():
        _hand_over(graph, value, _cast(graph, value, FLOAT), outside)
    value.type = ir.TensorType(ir.DataType(half.number))


def _hand_over(graph: ir.Graph, value: ir.Value, wide: ir.Value, uses: Sequence[tuple[ir.Node, int]]) -> None:
    """`uses` of `value` read `wide`, and so does the model's door, under the name that it has there."""
    for user, index in uses:
        user.replace_input_with(index, wide)
    for place, output in enumerate(graph.outputs):
        if output is value:
            name = value.name
            graph.outputs[place] = wide
            value.name, wide.name = fresh_name(graph, f"{name}/half"), name


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
