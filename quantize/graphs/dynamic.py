"""Matrix products and LSTMs on integers whose inputs are quantized while they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.compressed import FLOAT, MICROSOFT, replace
from edgerun.quantize.graphs.edit import constant, fresh_name, initializer

if TYPE_CHECKING:
    import onnx_ir as ir


def weight(node: ir.Node) -> np.ndarray | None:
    """The constant float32 matrix `[K, N]` of a plain MatMul or Gemm (α = β = 1, A as it is), or None."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return None
    found = constant(node.inputs[1])
    if found is None or found.ndim != 2 or found.dtype != np.float32 or constant(node.inputs[0]) is not None:
        return None
    if node.op_type == "Gemm":
        if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
            return None
        if node.attributes.get_int("transA", 0):
            return None
        return found.T if node.attributes.get_int("transB", 0) else found
    return found


def recurrent(node: ir.Node) -> bool:
    """Whether a node is an LSTM that DynamicQuantizeLSTM can stand for: constant float32 W and R, time first."""
    if node.domain != "" or node.op_type != "LSTM" or node.attributes.get_int("layout", 0) == 1:
        return False
    found = [constant(value) for value in node.inputs[1:3]]
    return all(array is not None and array.dtype == np.float32 for array in found)


def quantized_input(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Codes uint8, scale and zero point of input 0: one DynamicQuantizeLinear for all who read the value."""
    import onnx_ir as ir

    value = node.inputs[0]
    assert value is not None
    for user, _ in value.uses():
        if user.op_type == "DynamicQuantizeLinear" and user.graph is graph:
            return user.outputs[0], user.outputs[1], user.outputs[2]
    name = fresh_name(graph, f"{value.name}/DynamicQuantizeLinear")
    made = ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=name)
    kinds = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
    for output, kind, dtype in zip(made.outputs, ("quantized", "scale", "zero_point"), kinds, strict=True):
        output.name, output.type = fresh_name(graph, f"{value.name}/{kind}"), ir.TensorType(dtype)
        output.shape = value.shape if kind == "quantized" else ir.Shape([])
    producer = value.producer()
    if producer is None or producer.graph is not graph:
        graph.insert_before(graph[0], [made])
    else:
        graph.insert_after(producer, [made])
    return made.outputs[0], made.outputs[1], made.outputs[2]


def product(
    graph: ir.Graph, node: ir.Node, codes: np.ndarray, scale: np.ndarray, point: np.ndarray | None = None
) -> None:
    """MatMul or Gemm becomes float(MatMulInteger)·(s_x·s_w) [+ C]; codes int8 `[K, N]`, scale float32 `[N]`.

    Scale and zero `point` (None: 0, of the codes' dtype) may be scalars.
    """
    import onnx_ir as ir

    name = str(node.name)
    quantized, input_scale, zero_point = quantized_input(graph, node)
    points = [zero_point] if point is None else [zero_point, initializer(graph, f"{name}/zero_point", point)]
    integer = ir.node("MatMulInteger", [quantized, initializer(graph, f"{name}/weight", codes), *points],
                      name=fresh_name(graph, f"{name}/MatMulInteger"))  # fmt: skip
    cast = ir.node("Cast", [integer.outputs[0]], attributes={"to": FLOAT}, name=fresh_name(graph, f"{name}/Cast"))
    scales = ir.node("Mul", [input_scale, initializer(graph, f"{name}/scale", scale)],
                     name=fresh_name(graph, f"{name}/scales"))  # fmt: skip
    nodes = [integer, cast, scales]
    nodes.append(ir.node("Mul", [cast.outputs[0], scales.outputs[0]], name=fresh_name(graph, f"{name}/Mul")))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias], name=fresh_name(graph, f"{name}/Add")))
    for made in nodes[:-1]:
        value = made.outputs[0]
        value.name = fresh_name(graph, f"{made.name}/value")
        value.shape = ir.Shape(scale.shape) if made is scales else node.outputs[0].shape
        value.type = ir.TensorType(ir.DataType.INT32 if made is integer else ir.DataType.FLOAT)
    replace(graph, node, nodes)


def lstm(graph: ir.Graph, node: ir.Node, weights: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """LSTM becomes com.microsoft's DynamicQuantizeLSTM: W and R as int8 `[D, inputs, 4H]` with scales `[D, 4H]`.

    It keeps its name, by which profiles find it again.
    """
    import onnx_ir as ir

    name = str(node.name)
    inputs: list[ir.Value | None] = [*node.inputs, *[None] * (8 - len(node.inputs))]
    tail: list[ir.Value | None] = []
    for index, (codes, scale) in enumerate(weights, start=1):
        kind = "WR"[index - 1]
        inputs[index] = initializer(graph, f"{name}/{kind}", np.ascontiguousarray(codes.transpose(0, 2, 1)))
        flat = scale.reshape(scale.shape[:2])
        tail += [initializer(graph, f"{name}/{kind}/scale", flat),
                 initializer(graph, f"{name}/{kind}/zero_point", np.zeros(flat.shape, np.int8))]  # fmt: skip
    attributes = {key: value for key, value in node.attributes.items() if key != "layout"}
    made = ir.Node(
        MICROSOFT, "DynamicQuantizeLSTM", [*inputs, *tail], attributes.values(),
        num_outputs=len(node.outputs), name=name,
    )  # fmt: skip
    graph.insert_before(node, made)
    for old, new in zip(node.outputs, made.outputs, strict=True):
        new.shape, new.type, text = old.shape, old.type, old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = None, text
    graph.remove(node, safe=True)
    graph.opset_imports.setdefault(MICROSOFT, 1)
