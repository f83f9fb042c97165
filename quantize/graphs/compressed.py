"""Constant weights in a smaller format, expanded in front of the op that reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.quantize.graphs.edit import constant, drop_initializer, fresh_name, initializer
from edgerun.quantize.numerics.blocks import BlockGrid, packed

if TYPE_CHECKING:
    import onnx_ir as ir

FLOAT = 1  # TensorProto.FLOAT
MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own ops
# MatMulNBits' accuracy_level: what it may compute with.
FLOAT32_MATH, INT8_MATH = 1, 4
# Inputs that hold weights, and the axes over which one output channel's weights extend.
WEIGHTS: dict[str, dict[int, tuple[int, ...]]] = {
    "LSTM": {1: (2,), 2: (2,)},
    "GRU": {1: (2,), 2: (2,)},
    "RNN": {1: (2,), 2: (2,)},
}


def weight_inputs(node: ir.Node) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(input, axes within one output channel) of every constant float32 weight of a node of the default domain."""
    if node.domain != "":
        return
    if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        found = {1: _within(node)}
    elif node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
        found = {0: (1,)}
    else:
        found = WEIGHTS.get(node.op_type, {})
    for index, axes in found.items():
        weight = constant(node.inputs[index]) if index < len(node.inputs) else None
        if weight is not None and weight.dtype == np.float32 and weight.ndim > max(axes, default=0):
            if node.op_type != "Gather" or weight.ndim == 2:
                yield index, axes


def _within(node: ir.Node) -> tuple[int, ...]:
    weight = constant(node.inputs[1])
    dims = weight.ndim if weight is not None else 0
    if node.op_type == "Gemm":
        kept = 0 if node.attributes.get_int("transB", 0) else 1
    elif node.op_type == "MatMul":  # every matrix of a stack has channels of its own
        return (max(dims - 2, 0),)
    else:
        grouped = node.attributes.get_int("group", 1) != 1
        kept = 1 if node.op_type == "ConvTranspose" and not grouped else 0
    return tuple(i for i in range(dims) if i != kept)


def expand(value: ir.Value, stored: np.ndarray, scale: np.ndarray | None = None, *, qdq: bool = False) -> None:
    """All readers of the initializer `value` read float32(stored)·scale instead; runtimes compute that when they load.

    `scale` broadcasts against `stored`; None for a format that is a float itself. Cast and Mul stand where a
    DequantizeLinear could: that one is computed again in every run, for the sake of those who look for Q/DQ. With
    `qdq` one of scale 1 stands for the Cast, for targets that take no other reader of integers.
    """
    import onnx_ir as ir

    graph, name, uses = value.graph, str(value.name), list(value.uses())
    assert graph is not None
    held = initializer(graph, f"{name}/stored", stored)
    if qdq and scale is not None:
        one = initializer(graph, f"{name}/one", np.ones((), np.float32))
        wide = ir.node("DequantizeLinear", [held, one], name=fresh_name(graph, f"{name}/DequantizeLinear"))
    else:
        wide = ir.node("Cast", [held], attributes={"to": FLOAT}, name=fresh_name(graph, f"{name}/Cast"))
    nodes = [wide]
    if scale is not None:
        nodes.append(
            ir.node("Mul", [wide.outputs[0], initializer(graph, f"{name}/scale", scale)],
                    name=fresh_name(graph, f"{name}/Mul"))
        )  # fmt: skip
    for node in nodes:
        _tell(graph, node.outputs[0], str(node.name), value.shape)
    graph.insert_before(graph[0], nodes)
    for node, index in uses:
        node.replace_input_with(index, nodes[-1].outputs[0])
    drop_initializer(graph, value)


def expand_rows(node: ir.Node, stored: np.ndarray, scale: np.ndarray) -> None:
    """A Gather of rows reads int8 rows `[V, E]` and their scales `[V, 1]`, and multiplies what it got."""
    import onnx_ir as ir

    graph, table, indices, result = node.graph, node.inputs[0], node.inputs[1], node.outputs[0]
    assert graph is not None and table is not None and indices is not None and table.graph is not None
    name = str(table.name)
    rows = ir.node("Gather", [initializer(graph, f"{name}/stored", stored), indices],
                   name=fresh_name(graph, f"{node.name}/rows"))  # fmt: skip
    scales = ir.node("Gather", [initializer(graph, f"{name}/scale", scale), indices],
                     name=fresh_name(graph, f"{node.name}/scales"))  # fmt: skip
    cast = ir.node("Cast", [rows.outputs[0]], attributes={"to": FLOAT}, name=fresh_name(graph, f"{node.name}/Cast"))
    product = ir.node("Mul", [cast.outputs[0], scales.outputs[0]], name=fresh_name(graph, f"{node.name}/Mul"))
    _tell(graph, rows.outputs[0], str(rows.name), result.shape, ir.DataType.INT8)
    _tell(graph, scales.outputs[0], str(scales.name), None)
    _tell(graph, cast.outputs[0], str(cast.name), result.shape)
    replace(graph, node, [rows, scales, cast, product])
    if not table.uses():
        drop_initializer(table.graph, table)


def replace(graph: ir.Graph, node: ir.Node, nodes: list[ir.Node]) -> None:
    """`nodes` stand where `node` stood; the last one's output takes the name, shape and readers of its output."""
    old, new = node.outputs[0], nodes[-1].outputs[0]
    new.shape, new.type, name = old.shape, old.type, old.name
    graph.insert_before(node, nodes)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    old.name, new.name = None, name


def _tell(
    graph: ir.Graph, value: ir.Value, name: str, shape: ir.Shape | None, dtype: ir.DataType | None = None
) -> None:
    import onnx_ir as ir

    value.name, value.shape = fresh_name(graph, f"{name}/value"), shape
    value.type = ir.TensorType(dtype or ir.DataType.FLOAT)


@dataclass(frozen=True)
class Blocks:
    """A weight `[N, K]` as MatMulNBits stores it (`quantize/numerics/blocks.py`), K being `inputs`."""

    stored: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    inputs: int
    bits: int
    block: int

    @classmethod
    def of(cls, codes: np.ndarray, grid: BlockGrid) -> Blocks:
        """Codes uint8 `[N, K]` on their grid."""
        stored, zero_points = packed(codes, grid)
        return cls(stored, grid.scale.reshape(-1), zero_points, codes.shape[1], grid.bits, grid.block)

    def codes(self) -> np.ndarray:
        """uint8 `[N, K]`, one code each."""
        flat = self.stored.reshape(len(self.stored), -1)
        if self.bits == 4:
            flat = np.stack([flat & 0xF, flat >> 4], axis=-1).reshape(len(flat), -1)
        return flat[:, : self.inputs]


@dataclass(frozen=True)
class Form:
    """How weights in blocks of `block` inputs are stored: in MatMulNBits, or in 4-bit Q/DQ around zero (`qdq`)."""

    block: int
    qdq: bool = False

    def fits(self, inputs: int) -> bool:
        """Whether a weight of so many inputs has this form: DequantizeLinear's blocks are all full."""
        return not self.qdq or inputs % self.block == 0

    def store(self, model: ir.Model, node: ir.Node, weight: Blocks, *, integer: bool) -> None:
        """Replace the weight of a MatMul or Gemm."""
        if self.qdq:
            dequantized_product(model, node, weight)
        else:
            blocked_product(model, node, weight, integer=integer)


def dequantized_product(model: ir.Model, node: ir.Node, weight: Blocks) -> None:
    """The node reads DequantizeLinear(int4 `[K, N]`, scales `[K / block, N]`), whose zero point is 0 (opset 21)."""
    import ml_dtypes
    import onnx_ir as ir

    graph, value = model.graph, node.inputs[1]
    assert value is not None
    rows, inputs, name = len(weight.stored), weight.inputs, fresh_name(graph, f"{node.name}/weight")
    codes = weight.codes().astype(np.int8) - np.int8(2 ** (weight.bits - 1))
    scale = weight.scale.reshape(rows, -1)
    axis = int(node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1)
    if axis == 0:
        codes, scale = codes.T, scale.T
    shape = (rows, inputs) if axis else (inputs, rows)
    narrow: Any = np.ascontiguousarray(codes).astype(ml_dtypes.int4)
    stored = ir.Tensor(narrow, ir.DataType.INT4, name=name)
    holder = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT4), const_value=stored)
    graph.initializers.add(holder)
    wide = ir.node("DequantizeLinear", [holder, initializer(graph, f"{name}/scale", np.ascontiguousarray(scale))],
                   attributes={"axis": axis, "block_size": weight.block},
                   name=fresh_name(graph, f"{name}/DequantizeLinear"))  # fmt: skip
    _tell(graph, wide.outputs[0], str(wide.name), ir.Shape(shape))
    graph.insert_before(node, [wide])
    node.replace_input_with(1, wide.outputs[0])
    if not value.uses():
        drop_initializer(graph, value)


def blocked_product(model: ir.Model, node: ir.Node, weight: Blocks, *, integer: bool) -> None:
    """MatMul or Gemm becomes com.microsoft's MatMulNBits [+ C].

    Activations and products stay float32, or, with `integer`, each row's blocks are rounded to int8 as they come.
    """
    import onnx_ir as ir

    graph, name = model.graph, str(node.name)
    inputs = [
        node.inputs[0],
        initializer(graph, f"{name}/weight", weight.stored),
        initializer(graph, f"{name}/scale", weight.scale),
        initializer(graph, f"{name}/zero_point", weight.zero_point),
    ]
    level = INT8_MATH if integer else FLOAT32_MATH
    attributes = {"K": weight.inputs, "N": len(weight.stored), "bits": weight.bits, "block_size": weight.block,
                  "accuracy_level": level}  # fmt: skip
    nodes = [ir.node("MatMulNBits", inputs, attributes=attributes, domain=MICROSOFT,
                     name=fresh_name(graph, f"{name}/MatMulNBits"))]  # fmt: skip
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        nodes.append(ir.node("Add", [nodes[0].outputs[0], bias], name=fresh_name(graph, f"{name}/Add")))
        _tell(graph, nodes[0].outputs[0], f"{name}/product", node.outputs[0].shape)
    replace(graph, node, nodes)
    model.opset_imports.setdefault(MICROSOFT, 1)
