"""Arithmetic in bfloat16, by the types in the graph: the CPU plugin computes each op in the type that it has there."""

# Read from ONNX, such an op has float32, between Converts of its inputs from bfloat16 and of its result to it
# (`quantize/graphs/halves.py`). Here the Converts go and the op gets the type. That is more than the plugin's precision
# hint says, which is one for the whole graph: what the model keeps in float32 stays so, as masks near float32's end do,
# which would be infinite, and normalization, which loses more than a product.
#
# Some ops stay in float32 for the plugin's sake (2026.4): one with a constant per channel is fused into the convolution
# in front of it, and if that has a bias, and the batch is open and is 1, results of one position are wrong (0 to 11 dB,
# where others have 45). Under the precision hint a float model has that fault too.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from edgerun.targets import _openvino_ir as ir

OWN = ["edgerun_precision"]  # in rt_info: what products compute in, where that is not float32
WIDE, HALF = "f32", "bf16"
PRODUCTS = frozenset({
    "Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul",
})  # fmt: skip
# And what the compressor puts between products, as the frontend writes that: not what sums squares, or exponentials
# that something divides by.
ABLE = PRODUCTS | {
    "Abs", "Add", "AvgPool", "Broadcast", "Clamp", "Concat", "DepthToSpace", "Divide", "Elu", "Erf", "Gather", "Gelu",
    "HSigmoid", "HSwish", "HardSigmoid", "Interpolate", "MaxPool", "Maximum", "Minimum", "Multiply", "Negative",
    "PRelu", "Pad", "ReduceMax", "ReduceMean", "Relu", "ReLU", "Reshape", "Select", "Sigmoid", "Slice", "SoftMax",
    "SoftPlus", "Softmax", "SpaceToDepth", "Split", "Squeeze", "StridedSlice", "Subtract", "Swish", "Tanh", "Tile",
    "Transpose", "Unsqueeze", "VariadicSplit",
}  # fmt: skip
FIRST = frozenset({"Interpolate"})  # whose first input alone is data
FUSED = frozenset({"Add", "Divide", "Multiply", "PRelu", "Subtract"})  # into a convolution, with a constant a channel


def narrow(graph: Any, ops: Mapping[str, list[Any]]) -> int:
    """Give every op among `ops`, the graph's by kind, that stands between such Converts their type, in place, and note
    in the graph whether products are in bfloat16. Returns how many ops changed."""
    found = [op for part in _parts(graph) for op in part] if any(map(_narrows, ops.get("Convert", []))) else []
    members = {op.get_name() for op in found}
    for op in found:
        for port in op.inputs():
            source = port.get_source_output()
            if _type(source) == WIDE and source.get_node().get_name() not in members:
                port.replace_source_output(_narrowed(source))
    for op in found:
        for output in op.outputs():
            for reader in output.get_target_inputs():
                if _narrows(reader.get_node()):
                    _bypass(reader.get_node(), output)
    if found:
        graph.validate_nodes_and_infer_types()
    if any(_type(op.output(0)) == HALF for kind in PRODUCTS for op in ops.get(kind, [])):
        graph.set_rt_info(HALF, OWN)
    return len(found)


def precision(graph: Any) -> str:
    """What the products of a graph that was `narrow`ed compute in."""
    return str(graph.get_rt_info(OWN).value) if graph.has_rt_info(OWN) else WIDE


def widen(graph: Any) -> None:
    """Let all of a graph that was `narrow`ed compute in float32, in place; its constants keep the values they have."""
    make = ir.runtime().opset13
    doors = [_type(result.input_value(0)) for result in graph.get_results()]
    for op in graph.get_ordered_ops():
        kind = op.get_type_name()
        if kind in ("Constant", "Parameter") and _type(op.output(0)) == HALF:
            readers = op.output(0).get_target_inputs()
            wide = make.convert(op, WIDE)
            for reader in readers:
                reader.replace_source_output(wide.output(0))
        elif kind == "Convert" and _narrows(op):
            _bypass(op, make.convert(op.input_value(0), WIDE).output(0))
    graph.validate_nodes_and_infer_types()
    for result, kind in zip(graph.get_results(), doors, strict=True):
        source = result.input_value(0)
        if kind == HALF and _type(source) == WIDE:
            names = source.get_names()
            door = make.convert(source, HALF).output(0)
            source.get_tensor().set_names(set())
            door.get_tensor().set_names(names)
            result.input(0).replace_source_output(door)
    graph.validate_nodes_and_infer_types()
    graph.set_rt_info(WIDE, OWN)


def _parts(graph: Any) -> Iterator[list[Any]]:
    # Connected ops that stand between Converts on all sides: what one ONNX node became, with the weights' own ops.
    able = {op.get_name(): op for op in graph.get_ordered_ops() if op.get_type_name() in ABLE and not _misread(op)}
    whole: dict[str, Any] = {}
    for name, op in able.items():
        data = [value for value in _data(op) if not _number(value)]
        if data and all(_wide(value.get_node()) or value.get_node().get_name() in whole for value in data):
            whole[name] = op
    seen: set[str] = set()
    for name in whole:
        if name in seen:
            continue
        part, waiting, closed = [], [name], True
        seen.add(name)
        while waiting:
            op = whole[waiting.pop()]
            part.append(op)
            near = [value.get_node() for value in op.input_values()]
            for reader in _readers(op):
                near.append(reader)
                told = _narrows(reader) or reader.get_name() in whole or reader.get_type_name() == "ShapeOf"
                closed = closed and told
            for other in (node.get_name() for node in near):
                if other in whole and other not in seen:
                    seen.add(other)
                    waiting.append(other)
        if closed:
            yield part


def _misread(op: Any) -> bool:
    """Whether the plugin may fuse it into a convolution whose kernel misreads its constant."""
    if op.get_type_name() not in FUSED or not (shape := op.get_output_partial_shape(0)).is_dynamic:
        return False
    sources = [value.get_node() for value in op.input_values()]
    others = [node for node in sources if not _stored(node)]
    if len(others) != 1 or others[0].get_type_name().endswith(("Convolution", "ConvolutionBackpropData")):
        return False  # behind a convolution itself it is the bias
    if shape.rank.is_dynamic or len(shape) < 3:
        return bool(shape.rank.is_dynamic)
    return all(dim.is_dynamic or dim.get_length() == 1 for dim in list(shape)[2:])


def _stored(node: Any) -> bool:
    """Whether it is a constant of more than one number, or one in another type or shape."""
    while node.get_type_name() in ("Convert", "Reshape", "Unsqueeze"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and bool(np.prod(list(node.get_output_shape(0))) > 1)


def _data(op: Any) -> list[Any]:
    """What it reads in float32."""
    values = list(op.input_values())[: 1 if op.get_type_name() in FIRST else None]
    return [value for value in values if _type(value) == WIDE]


def _readers(op: Any) -> Iterable[Any]:
    outputs = [output for output in op.outputs() if _type(output) == WIDE]
    return [reader.get_node() for output in outputs for reader in output.get_target_inputs()]


def _type(value: Any) -> str:
    return str(value.get_element_type().get_type_name())


def _number(value: Any) -> bool:
    """Whether it is one constant number, which an attribute became."""
    node = value.get_node()
    return node.get_type_name() == "Constant" and bool(np.prod(list(node.get_output_shape(0))) == 1)


def _wide(op: Any) -> bool:
    """Whether it is a Convert from bfloat16 to float32."""
    return op.get_type_name() == "Convert" and _type(op.output(0)) == WIDE and _type(op.input_value(0)) == HALF


def _narrows(op: Any) -> bool:
    return op.get_type_name() == "Convert" and _type(op.output(0)) == HALF


def _narrowed(value: Any) -> Any:
    """`value`, which is float32, in bfloat16."""
    node = value.get_node()
    return node.input_value(0) if _wide(node) else ir.runtime().opset13.convert(value, HALF).output(0)


def _bypass(op: Any, value: Any) -> None:
    """Who reads `op` reads `value`."""
    for reader in op.output(0).get_target_inputs():
        reader.replace_source_output(value)
