"""The same computation in another form: wider types around a node, Q/DQ for QLinear operators, int8 for uint8."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

# What may be computed in a wider type and brought back, or in float32 with what that rounds.
WIDER = {
    "float64": "float32", "float16": "float32", "bfloat16": "float32",
    "int8": "int32", "uint8": "int32", "int16": "int32", "uint16": "int32",
}  # fmt: skip
INTEGER_OPS = ("QLinearConv", "QLinearMatMul")
NO_ARITHMETIC = ("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
Made = tuple["onnx.ModelProto", str]


def widened(proto: onnx.ModelProto, names: Collection[str]) -> Made | None:
    """The nodes called so (or writing a value called so) computed in the type of WIDER, between Casts.

    Constants are stored in that type. None where no such node has a type that could be wider.
    """
    import onnx

    made = onnx.ModelProto.FromString(proto.SerializeToString())
    types = _types(proto)
    graph, nodes, told = made.graph, list[onnx.NodeProto](), dict[str, str]()
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in proto.graph.node:
        dtypes = {name: types.get(name, "") for name in (*node.input, *node.output) if name}
        kinds = {WIDER[dtype] for dtype in dtypes.values() if dtype in WIDER}
        if not (node.name in names or node.output[0] in names) or not kinds or node.op_type in NO_ARITHMETIC:
            nodes.append(node)
            continue
        own = onnx.NodeProto.FromString(node.SerializeToString())
        before, after = list[onnx.NodeProto](), list[onnx.NodeProto]()
        for index, name in enumerate(node.input):
            if (wide := WIDER.get(dtypes.get(name, ""))) is None:
                continue
            own.input[index] = value = f"{name}_as_{wide}"
            if name in constants:
                if value not in constants:
                    array = onnx.numpy_helper.to_array(constants[name]).astype(wide)
                    constants[value] = onnx.numpy_helper.from_array(array, value)
            elif all(value not in cast.output for cast in (*nodes, *before)):
                before.append(_cast(name, value, wide))
        for index, name in enumerate(node.output):
            if (wide := WIDER.get(dtypes.get(name, ""))) is not None:
                own.output[index] = f"{name}_as_{wide}"
                after.append(_cast(own.output[index], name, dtypes[name]))
        nodes += [*before, own, *after]
        told[node.name or node.output[0]] = f"{node.op_type} in {', '.join(sorted(kinds))}"
    if not told:
        return None
    _replace(graph, nodes, constants)
    return made, "cast around " + ", ".join(f"{name} ({how})" for name, how in told.items())


def plain(proto: onnx.ModelProto) -> Made | None:
    """QLinearConv and QLinearMatMul as Conv and MatMul between Q/DQ: r = s·(q − z), a bias b as s_x·s_w·b.

    None where there are none, or none whose scales are constant.
    """
    import onnx

    made = onnx.ModelProto.FromString(proto.SerializeToString())
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    nodes, count = list[onnx.NodeProto](), 0
    for node in proto.graph.node:
        if node.op_type not in INTEGER_OPS or node.domain not in ("", "ai.onnx"):
            nodes.append(node)
            continue
        count += 1
        name, conv = node.name or node.output[0], node.op_type == "QLinearConv"
        x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.input[:8]
        inputs = [f"{name}_x", f"{name}_w"]
        nodes.append(_dequantize([x, x_scale, x_zero], inputs[0]))
        nodes.append(_dequantize([w, w_scale, w_zero], inputs[1], axis=0 if conv else -1))
        if len(node.input) > 8 and node.input[8]:
            if not {x_scale, w_scale, node.input[8]} <= set(constants):
                return None
            scales = [onnx.numpy_helper.to_array(constants[s]) for s in (x_scale, w_scale)]
            bias = onnx.numpy_helper.to_array(constants[node.input[8]]) * (scales[0] * scales[1]).reshape(-1)
            inputs.append(f"{name}_bias")
            constants[inputs[2]] = onnx.numpy_helper.from_array(bias.astype(np.float32), inputs[2])
        nodes.append(onnx.helper.make_node("Conv" if conv else "MatMul", inputs, [f"{name}_y"], name))
        nodes[-1].attribute.extend(node.attribute)
        nodes.append(onnx.helper.make_node("QuantizeLinear", [f"{name}_y", y_scale, y_zero], node.output))
    if not count:
        return None
    _replace(made.graph, nodes, constants)
    return made, f"QLinear operators written as Q/DQ around float ones ({count})"


def signed(proto: onnx.ModelProto) -> Made | None:
    """uint8 Q/DQ as int8: q' = q − 128 and z' = z − 128 stand for the same numbers.

    A quantized value is left alone where something else than DequantizeLinear reads it. None where there is none.
    """
    import onnx

    made = onnx.ModelProto.FromString(proto.SerializeToString())
    graph, types = made.graph, _types(proto)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    makers = {name: node for node in graph.node for name in node.output}
    shifted: set[str] = set()
    for name in [n for n in dict.fromkeys((*makers, *constants)) if types.get(n) == "uint8" and n not in outputs]:
        maker, after = makers.get(name), readers.get(name, [])
        fits = (maker.op_type == "QuantizeLinear") if maker is not None else name in constants
        if fits and after and all(n.op_type == "DequantizeLinear" and n.input[0] == name for n in after):
            if any(len(n.input) > 2 and n.input[2] not in constants for n in (*after, *([maker] if maker else []))):
                continue  # a zero point that is computed
            if name in constants:
                constants[name].CopyFrom(_shifted(constants[name], name))
            for node in (*after, *([maker] if maker is not None else [])):
                _shift_zero(node, constants)
            shifted.add(name)
    if not shifted:
        return None
    stay = [value for value in graph.value_info if value.name not in shifted]
    del graph.value_info[:]
    graph.value_info.extend(stay)
    _replace(graph, list(graph.node), constants)
    count = f"{len(shifted)} value{'s' if len(shifted) > 1 else ''}"
    return made, f"uint8 written as int8, which stands for the same numbers ({count})"


def asymmetric(proto: onnx.ModelProto) -> int:
    """How many quantizers keep a zero point other than 0 when they are written with int8: of uint8, other than 128."""
    import onnx

    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    count, types = 0, _types(proto)
    for node in (n for n in proto.graph.node if n.op_type in QUANTIZERS and n.domain in ("", "ai.onnx")):
        stored = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        middle = 128 if types.get(stored) == "uint8" else 0
        count += bool((onnx.numpy_helper.to_array(zero) != middle).any()) if zero is not None else middle != 0
    return count


def _shift_zero(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    """Give a quantizer the int8 form of its zero point; without one, that of 0 in uint8."""
    import onnx

    old = node.input[2] if len(node.input) > 2 else ""
    new = f"{old or node.input[1]}_signed"
    if new not in constants:
        zero = constants.get(old) or onnx.numpy_helper.from_array(
            np.zeros(list(constants[node.input[1]].dims) if node.input[1] in constants else [], np.uint8), ""
        )
        constants[new] = _shifted(zero, new)
    del node.input[2:]
    node.input.append(new)
    for attribute in [a for a in node.attribute if a.name == "output_dtype" and node.op_type == "QuantizeLinear"]:
        node.attribute.remove(attribute)


def _shifted(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    import onnx

    array = onnx.numpy_helper.to_array(tensor).astype(np.int16) - 128
    return onnx.numpy_helper.from_array(array.astype(np.int8), name)


def _types(proto: onnx.ModelProto) -> dict[str, str]:
    """The dtype name of every value that shape inference knows."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(proto).graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    found |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: str(onnx.TensorProto.DataType.Name(kind)).lower() for name, kind in found.items() if kind} | {
        name: {"float": "float32", "double": "float64"}[text]
        for name, kind in found.items()
        if kind and (text := str(onnx.TensorProto.DataType.Name(kind)).lower()) in ("float", "double")
    }


def _cast(source: str, name: str, dtype: str) -> onnx.NodeProto:
    import onnx

    kind = {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())
    return onnx.helper.make_node("Cast", [source], [name], f"cast_{name}", to=onnx.TensorProto.DataType.Value(kind))


def _dequantize(inputs: list[str], name: str, axis: int = 1) -> onnx.NodeProto:
    import onnx

    return onnx.helper.make_node("DequantizeLinear", inputs, [name], f"dequantize_{name}", axis=axis)


def _replace(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]) -> None:
    """Give a graph these nodes, and of the constants those that something reads."""
    from edgerun.converters._bodies import nodes as every

    nodes = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in every(graph) for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for name, tensor in constants.items() if name in used]
    kept = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(kept)
