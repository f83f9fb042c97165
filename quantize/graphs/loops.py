"""Recurrent layers that quantize while they run (DynamicQuantizeLSTM): read back, and in float again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import constant, fresh_name, initializer

if TYPE_CHECKING:
    import onnx_ir as ir

INTEGER = "DynamicQuantizeLSTM"
FLOAT = "LSTM"
W, R, SCALES = 1, 2, 8  # inputs: the weights, and from where their scales and zero points stand in turns

Stored = tuple[np.ndarray, np.ndarray, np.ndarray]  # codes [D, 4H, inputs], scale and zero point [D, 4H or 1, 1]


def stored(node: ir.Node) -> tuple[Stored, Stored] | None:
    """W and R of a recurrent layer on integers, with their axes as LSTM has them; None where one is computed."""
    if node.op_type != INTEGER or len(node.inputs) < SCALES + 4:
        return None
    found: list[Stored] = []
    for place, index in enumerate((W, R)):
        arrays = [constant(node.inputs[i]) for i in (index, SCALES + 2 * place, SCALES + 2 * place + 1)]
        codes, scale, zero = arrays
        if codes is None or scale is None or zero is None or codes.ndim != 3:
            return None
        turned = np.ascontiguousarray(codes.transpose(0, 2, 1))
        found.append((turned, scale.reshape(len(codes), -1, 1), zero.reshape(len(codes), -1, 1)))
    return found[0], found[1]


def twin(graph: ir.Graph, node: ir.Node, weights: tuple[np.ndarray, np.ndarray], name: str) -> ir.Node:
    """A float LSTM behind `node`, a layer on integers, that reads what it does with the float `weights` W and R."""
    import onnx_ir as ir

    held = [initializer(graph, f"{name}/{kind}", array) for kind, array in zip("WR", weights, strict=True)]
    inputs = [node.inputs[0], *held, *node.inputs[R + 1 : SCALES]]
    made = ir.Node("", FLOAT, inputs, node.attributes.values(), num_outputs=len(node.outputs), name=name)
    for old, new in zip(node.outputs, made.outputs, strict=True):
        new.shape, new.type = old.shape, old.type
        new.name = fresh_name(graph, f"{old.name}/float") if old.name else ""
    graph.insert_after(node, made)
    return made


def to_float(graph: ir.Graph, node: ir.Node, weights: tuple[np.ndarray, np.ndarray]) -> ir.Node:
    """The float LSTM in the place of `node`, under its name."""
    name = str(node.name)
    made = twin(graph, node, weights, f"{name}/float")
    for old, new in zip(node.outputs, made.outputs, strict=True):
        text = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = None, text
    graph.remove(node, safe=True)
    made.name = name
    return made


def scale_input(graph: ir.Graph, node: ir.Node, factors: np.ndarray) -> None:
    """A Mul by `factors` `[inputs]` in front of what a recurrent layer reads over time."""
    import onnx_ir as ir

    value = node.inputs[0]
    assert value is not None
    by = initializer(graph, f"{node.name}/factors", factors.astype(np.float32))
    made = ir.node("Mul", [value, by], name=fresh_name(graph, f"{node.name}/evened"))
    result = made.outputs[0]
    result.name, result.type, result.shape = fresh_name(graph, f"{node.name}/evened/value"), value.type, value.shape
    graph.insert_before(node, made)
    node.replace_input_with(0, result)
