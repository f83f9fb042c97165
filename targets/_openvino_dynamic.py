"""Products that quantize their input while they run, in the form that OpenVINO has kernels for."""

# DynamicQuantizeLinear and MatMulInteger are translated into some forty plain ops. The CPU plugin does the same thing
# inside one fully connected kernel: int8 weights that are expanded in the graph, and a group size for the inputs. It
# rounds in groups of so many inputs of one token where ONNX has one scale for the whole tensor: it is nearer to float.
#
# MatMulNBits may compute on integers where its accuracy_level is 4. OpenVINO reads no such thing, and its group size is
# one for the whole graph: that of MatMulNBits' own blocks here.

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import _wire
from edgerun.targets import _openvino_ir as ir

KEY = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
OPTION = ["runtime_options", KEY]  # where OpenVINO itself looks for it
GROUP = "64"
BLOCK = "32"  # of MatMulNBits
# An attribute as protobuf writes it: its name, then field 3, an integer, which is 4.
INTEGER_BLOCKS = b"accuracy_level\x18\x04"
GRAPH, FUNCTION = 7, 25  # fields of ModelProto,
NODE = {GRAPH: 1, FUNCTION: 7}  # and where nodes stand in them
# From the codes of an input back to the input.
CHAIN = ("Convert", "Convert", "Clamp", "Add", "Round", "Divide", "Multiply")


def fuse(graph: Any, ops: Mapping[str, list[Any]], payload: bytes | Path) -> int:
    """Rewrite every dynamic product in place and say so in the graph's runtime options; return how many there were.

    `ops` are the graph's, by kind, and `payload` is what it was read from: of an ONNX file only its bytes tell what
    MatMulNBits may compute with.
    """
    found = sum([_fuse(node) for node in ops.get("MatMul", [])])
    if found:
        graph.set_rt_info(GROUP, OPTION)
    elif not graph.has_rt_info(OPTION) and _integer_blocks(payload):
        graph.set_rt_info(BLOCK, OPTION)
    return found


def _integer_blocks(payload: bytes | Path) -> bool:
    """Whether any node says so, or one of a function: weights, which are most of the bytes, are not looked at."""
    if payload.startswith(ir.MAGIC) if isinstance(payload, bytes) else payload.suffix != ".onnx":
        return False
    parts = [(number, part) for number, part in _wire.fields(_wire.view(payload)) if number in (GRAPH, FUNCTION)]
    for number, part in parts:
        for kind, value in _wire.fields(_wire.message(part)):
            if kind == NODE[number] and INTEGER_BLOCKS in bytes(_wire.message(value)):
                return True
    return False


def group_size(graph: Any) -> str:
    """The group size that the graph asks for; "0", which keeps float activations as they are, when it asks for none."""
    return str(graph.get_rt_info(OPTION).value) if graph.has_rt_info(OPTION) else "0"


def _fuse(product: Any) -> bool:
    value, weight = _input(product), _weight(product.input_value(1))
    readers = list(product.output(0).get_target_inputs())
    wide = readers[0].get_node() if len(readers) == 1 else None
    if value is None or weight is None or wide is None or wide.get_type_name() != "Convert":
        return False
    readers = list(wide.output(0).get_target_inputs())
    result = readers[0].get_node() if len(readers) == 1 else None
    scale = _scale(result, wide) if result is not None and result.get_type_name() == "Multiply" else None
    if result is None or scale is None:
        return False
    make = ir.runtime().opset13
    expanded = make.multiply(make.convert(weight, "f32"), make.constant(scale.reshape(1, -1)))
    made = make.matmul(value, expanded, False, False)
    made.set_friendly_name(product.get_friendly_name())
    names = result.output(0).get_names()
    ir.runtime().utils.replace_node(result, made)
    made.output(0).add_names(names)
    return True


def _input(product: Any) -> Any | None:
    """The float value that a product's first input is the codes of."""
    shifted = product.input_value(0).get_node()
    if shifted.get_type_name() != "Subtract":
        return None
    output = shifted.input_value(0)
    for kind in CHAIN:
        if output.get_node().get_type_name() != kind:
            return None
        output = output.get_node().input_value(0)
    return output


def _weight(output: Any) -> Any | None:
    """The int8 constant `[K, N]` behind Convert, and behind the Subtract of a zero point that is zero."""
    node = output.get_node()
    if node.get_type_name() == "Subtract":
        zero = node.input_value(1).get_node()
        while zero.get_type_name() in ("Convert", "Unsqueeze", "Reshape"):
            zero = zero.input_value(0).get_node()
        if zero.get_type_name() != "Constant" or np.any(zero.get_data()):
            return None
        node = node.input_value(0).get_node()
    stored = node.input_value(0).get_node() if node.get_type_name() == "Convert" else None
    if stored is None or stored.get_type_name() != "Constant" or stored.get_output_element_type(0).to_string() != "i8":
        return None
    return stored if len(stored.get_output_shape(0)) == 2 else None


def _scale(result: Any, wide: Any) -> np.ndarray | None:
    """s_w float32 `[N]` of Multiply(float product, Multiply(s_x, s_w))."""
    other = next((v.get_node() for v in result.input_values() if v.get_node() != wide), None)
    if other is None or other.get_type_name() != "Multiply":
        return None
    constants = [v.get_node() for v in other.input_values() if v.get_node().get_type_name() == "Constant"]
    return np.asarray(constants[0].get_data(), np.float32).reshape(-1) if len(constants) == 1 else None
