"""Matrix products in forms of their own as plain ones, so that what rounds in them can be taken out, and back again.

MatMulInteger behind DynamicQuantizeLinear computes what a MatMul behind two DequantizeLinears does, float(Σ q·q)·s·s,
and MatMulNBits what a MatMul of its dequantized weight does, of an input rounded by blocks where it may compute with
int8 (`rowwise`), all but for float32's rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs import compressed, dynamic, rowwise
from edgerun.quantize.graphs.compressed import Blocks
from edgerun.quantize.graphs.edit import constant, drop_unused, fresh_name, initializer, sole_consumer
from edgerun.quantize.graphs.quantizers import transposed
from edgerun.quantize.numerics.blocks import unpacked

if TYPE_CHECKING:
    import onnx_ir as ir

SUFFIXES = ("/MatMulInteger", "/MatMulNBits", "_MatMul_quant", "_quant", "_Q4", "_Q8")  # edgerun's, ONNX Runtime's


@dataclass(frozen=True)
class _Weight:
    """A product's weight `[K, N]` as integers, with scale and zero point that broadcast against it."""

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray


def unfold(graph: ir.Graph, original: ir.Graph) -> dict[str, Blocks | None]:
    """Write products of both forms as their float layers are written in `original`; what they were, by new name.

    None stands for an integer product. What has another shape stays as it is.
    """
    layers = {str(node.name): node for node in original}
    done: dict[str, Blocks | None] = {}
    for node in list(graph):
        if node.op_type == "MatMulInteger" and (parts := _integer(node)) is not None:
            source, weight, last = parts
            done[_plain(graph, node, last, source, weight, layers)] = None
        elif node.op_type == "MatMulNBits" and (blocks := _blocks(node)) is not None:
            value = node.inputs[0]
            assert value is not None
            if node.attributes.get_int("accuracy_level", 0) >= compressed.INT8_MATH:
                value = rowwise.rounded(graph, value, blocks.inputs, blocks.block)
            done[_plain(graph, node, node, value, _dequantizable(blocks), layers)] = blocks
    return done


def fold(model: ir.Model, done: Mapping[str, Blocks | None]) -> None:
    """What `unfold` did, undone in every product that still reads what it read: with its own scales, or new ones."""
    for node in [node for node in model.graph if str(node.name) in done]:
        source, blocks = node.inputs[1].producer(), done[str(node.name)]  # type: ignore[union-attr]
        rounded = node.inputs[0].producer()  # type: ignore[union-attr]
        if blocks is not None and source is not None and source.op_type == "Mul":
            integer = rounded is not None and rowwise.block_of(rounded) > 0
            if rounded is not None and integer:
                node.replace_input_with(0, rowwise.source(rounded))
            compressed.blocked_product(model, node, blocks, integer=integer)
            continue
        both = all(n is not None and n.op_type == "DequantizeLinear" for n in (source, rounded))
        if blocks is None and both and source is not None and rounded is not None:
            codes, scale = constant(source.inputs[0]), constant(source.inputs[1])
            point = constant(source.inputs[2])
            assert codes is not None and scale is not None and point is not None
            codes = codes.T if transposed(node) else codes
            node.replace_input_with(0, rounded.inputs[0].producer().inputs[0])  # type: ignore[union-attr]
            dynamic.product(model.graph, node, np.ascontiguousarray(codes), scale, point if point.any() else None)
    if done:
        drop_unused(model)


def _integer(node: ir.Node) -> tuple[ir.Value, _Weight, ir.Node] | None:
    """Of an integer product: its dequantized input (made here), its weight, and the node that gives its result."""
    rounded, codes = _maker(node.inputs[0], "DynamicQuantizeLinear"), constant(node.inputs[1])
    cast = sole_consumer(node.outputs[0])
    last = sole_consumer(cast.outputs[0]) if cast is not None and cast.op_type == "Cast" else None
    if rounded is None or codes is None or codes.ndim != 2 or last is None or last.op_type != "Mul":
        return None
    scales = next((made for value in last.inputs if (made := _maker(value, "Mul")) is not None), None)
    if scales is None or rounded.outputs[1] not in scales.inputs:
        return None
    scale = next((found for value in scales.inputs if (found := constant(value)) is not None), None)
    point = constant(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    if (
        scale is None
        or scale.size not in (1, codes.shape[1])
        or (point is not None and point.size not in (1, scale.size))
    ):
        return None
    shape = () if scale.size == 1 else (1, -1)
    point = np.zeros(scale.size, codes.dtype) if point is None else np.broadcast_to(point.reshape(-1), (scale.size,))
    weight = _Weight(codes, scale.reshape(shape), point.reshape(shape).astype(codes.dtype))
    return _dequantized(rounded), weight, last


def _maker(value: ir.Value | None, op: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op else None


def _dequantized(rounded: ir.Node) -> ir.Value:
    """The float behind a DynamicQuantizeLinear: one DequantizeLinear for all who want it."""
    import onnx_ir as ir

    for user, _ in rounded.outputs[0].uses():
        if user.op_type == "DequantizeLinear":
            return user.outputs[0]
    graph, value = rounded.graph, rounded.inputs[0]
    assert isinstance(graph, ir.Graph) and value is not None
    node = ir.node("DequantizeLinear", list(rounded.outputs), name=fresh_name(graph, f"{value.name}/DequantizeLinear"))
    _tell(graph, node, value.shape)
    graph.insert_after(rounded, node)
    return node.outputs[0]


def _blocks(node: ir.Node) -> Blocks | None:
    arrays = [constant(value) for value in node.inputs[1:4]]
    simple = all(v is None for v in node.inputs[4:])
    bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 32)
    if not simple or bits not in (4, 8) or len(arrays) != 3 or any(a is None for a in arrays):
        return None
    stored, scale, point = arrays
    assert stored is not None and scale is not None and point is not None
    if scale.dtype != np.float32 or point.dtype != np.uint8:
        return None
    return Blocks(stored, scale, point, node.attributes.get_int("K", 0), bits, block)


def _dequantizable(blocks: Blocks) -> _Weight:
    """Of blocks: codes less their zero points, int16, and a scale for each."""
    codes, grid = unpacked(blocks.stored, blocks.scale, blocks.zero_point, blocks.inputs, blocks.bits, blocks.block)
    scale, point = grid.columns(blocks.inputs)
    whole = codes.astype(np.int16) - point.astype(np.int16)
    return _Weight(np.ascontiguousarray(whole.T), np.ascontiguousarray(scale.T), np.zeros((), np.int16))


def _plain(
    graph: ir.Graph, product: ir.Node, last: ir.Node, source: ir.Value, weight: _Weight, layers: Mapping[str, ir.Node]
) -> str:
    """Put MatMul, or the Gemm that the float layer is, in place of what ends with `last`; its name."""
    import onnx_ir as ir

    name = str(product.name)
    name = next((cut for end in SUFFIXES if (cut := name.removesuffix(end)) in layers), name)
    layer, add = layers.get(name), sole_consumer(last.outputs[0])
    bias = None
    if (
        layer is not None
        and layer.op_type == "Gemm"
        and len(layer.inputs) > 2
        and add is not None
        and add.op_type == "Add"
    ):
        bias = next((v for v in add.inputs if v is not last.outputs[0]), None)
    gemm = layer is not None and layer.op_type == "Gemm" and (bias is not None or len(layer.inputs) < 3)
    attributes = {"transB": layer.attributes.get_int("transB", 0)} if gemm and layer is not None else {}
    inputs = [
        source,
        _stored(graph, name, weight, bool(attributes.get("transB"))),
        *([bias] if bias is not None else []),
    ]
    name = name if name in layers else fresh_name(graph, name)
    made = ir.node("Gemm" if gemm else "MatMul", inputs, attributes=attributes, name=name)
    end = add if bias is not None and add is not None else last
    before = [value.producer() for node in (end, last) for value in node.inputs if value is not None]
    compressed.replace(graph, end, [made])
    for node in before:
        if node is not None:
            _drop(graph, node)
    return name


def _stored(graph: ir.Graph, name: str, weight: _Weight, turn: bool) -> ir.Value:
    """The weight behind DequantizeLinear, or behind Cast and Mul where it has a scale for each element."""
    import onnx_ir as ir

    turned = weight.codes.T if turn else weight.codes
    codes = initializer(graph, f"{name}/stored", np.ascontiguousarray(turned))
    if weight.scale.size == weight.codes.size > 1:
        scale = np.ascontiguousarray(weight.scale.T if turn else weight.scale)
        cast = ir.node("Cast", [codes], attributes={"to": compressed.FLOAT}, name=fresh_name(graph, f"{name}/Cast"))
        nodes = [cast, ir.node("Mul", [cast.outputs[0], initializer(graph, f"{name}/scale", scale)],
                               name=fresh_name(graph, f"{name}/Mul"))]  # fmt: skip
    else:
        flat = [a.reshape(-1) if a.ndim else a for a in (weight.scale, weight.zero_point)]
        rest = [initializer(graph, f"{name}/{kind}", a) for kind, a in zip(("scale", "point"), flat, strict=True)]
        axis = {"axis": 0 if turn else 1} if weight.scale.ndim else {}
        nodes = [ir.node("DequantizeLinear", [codes, *rest], attributes=axis,
                         name=fresh_name(graph, f"{name}/DequantizeLinear"))]  # fmt: skip
    for node in nodes:
        _tell(graph, node, ir.Shape(turned.shape))
    graph.insert_before(graph[0], nodes)
    return nodes[-1].outputs[0]


def _tell(graph: ir.Graph, node: ir.Node, shape: ir.Shape | None) -> None:
    import onnx_ir as ir

    value = node.outputs[0]
    value.name, value.shape = fresh_name(graph, f"{node.name}/value"), shape
    value.type = ir.TensorType(ir.DataType.FLOAT)


def _drop(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node that nobody reads any more, and what only it read."""
    if node.graph is not graph or any(value.uses() or value.is_graph_output() for value in node.outputs):
        return
    before = [value.producer() for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for other in before:
        if other is not None:
            _drop(graph, other)
