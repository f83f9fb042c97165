"""Small edits on an `onnx_ir` graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

_NAMES = "edgerun.names"
COPIES = 4096  # elements: what is less is not worth a change


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer, or None when the value is computed or absent."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    array: np.ndarray = value.const_value.numpy()
    return array


def number(value: ir.Value | None) -> float | None:
    """The one number of an initializer of a single element, or None."""
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def picture_channels(value: ir.Value | None) -> int | None:
    """The channels of a computed `[N, C, H, W]`; None of anything else, and where their number is open."""
    if value is None or value.producer() is None or value.shape is None or len(value.shape) != 4:
        return None
    channels = value.shape[1]
    return channels if isinstance(channels, int) else None


def row_bias(node: ir.Node, channels: int) -> np.ndarray | None:
    """The constant bias of a Conv or Gemm as `[C]` (zeros when there is none), or None when it is no such bias.

    A Gemm's C may be a scalar, [N] or [1, N]; a matrix or a column is something else.
    """
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return np.zeros(channels, np.float32)
    bias = constant(node.inputs[2])
    if bias is None or bias.size not in (1, channels) or (bias.ndim > 1 and bias.shape[-1] != bias.size):
        return None
    row: np.ndarray = np.broadcast_to(bias.reshape(-1), (channels,))
    return row


def shared(value: ir.Value | None) -> bool:
    """Whether a weight has so many readers that a copy for each would add more than COPIES elements."""
    array = constant(value)
    return value is not None and array is not None and array.size * (len(value.uses()) - 1) > COPIES


def sole_consumer(value: ir.Value | None) -> ir.Node | None:
    """The one node that reads `value`, or None when it is read elsewhere too or is a graph output."""
    if value is None or value.is_graph_output():
        return None
    uses = list(value.uses())
    # A reader inside an If or Loop body is not one that could be fused with.
    return uses[0].node if len(uses) == 1 and uses[0].node.graph is value.graph else None


def fresh_name(graph: ir.Graph, wanted: str) -> str:
    """`wanted`, or `wanted_2`, `wanted_3` … when a value or a node has that name; it counts as taken from now on."""
    owner, taken = graph.meta.get(_NAMES, (None, set()))
    if owner is not graph:  # a clone's notes are its original's
        taken = {str(v.name) for v in (*graph.inputs, *graph.initializers.values())}
        for node in graph.all_nodes():
            taken.add(str(node.name))
            taken.update(str(output.name) for output in node.outputs)
        graph.meta[_NAMES] = graph, taken
    name, n = wanted, 1
    while name in taken:
        n += 1
        name = f"{wanted}_{n}"
    taken.add(name)
    return name


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Register `array` as a new initializer under `name` (made unique)."""
    import onnx_ir as ir

    name = fresh_name(graph, name)
    array = np.ascontiguousarray(array) if array.ndim else array
    tensor = ir.Tensor(array, name=name)  # `ir.tensor` looks for ten times as long what kind of array it is
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def reduction(graph: ir.Graph, op: str, value: ir.Value, axes: list[int], name: str) -> ir.Node:
    """A node that reduces `value` over `axes`, which stay as 1, in the form of the model's opset; in no graph yet.

    Its output has the name and type, and no shape.
    """
    import onnx_ir as ir

    attributes: dict[str, int | list[int]] = {"keepdims": 1}
    inputs = [value]
    if graph.opset_imports.get("", 0) >= 18:
        listed = f"edgerun/axes/{axes}"
        known = graph.initializers.get(listed)
        inputs.append(known if known is not None else initializer(graph, listed, np.array(axes, np.int64)))
    else:
        attributes["axes"] = axes
    node = ir.node(op, inputs, attributes=attributes, name=name)
    node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
    return node


def set_constant(graph: ir.Graph, node: ir.Node, index: int, array: np.ndarray, name: str | None = None) -> None:
    """Make input `index` of `node` the constant `array`; other users of the old initializer keep it.

    The initializer stays, with another content, when nobody else uses it.
    """
    import onnx_ir as ir

    old = node.inputs[index] if index < len(node.inputs) else None
    if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output():
        array = np.ascontiguousarray(array) if array.ndim else array
        tensor = ir.Tensor(array, name=old.name)
        old.const_value, old.shape, old.type = tensor, ir.Shape(array.shape), ir.TensorType(tensor.dtype)
        return
    base = old.name if old is not None and old.name else name or f"{node.name}_{index}"
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, initializer(graph, base, array))


def drop_initializer(graph: ir.Graph, value: ir.Value) -> None:
    """Remove an initializer that nothing reads, and let go of its content: the graph's own notes may keep the value."""
    graph.initializers.pop(str(value.name))
    value.const_value = None


def forget(value: ir.Value | None) -> None:
    """Let go of an initializer's content where it is mapped from a file: whoever reads it next maps it again."""
    from edgerun import external

    if value is not None and isinstance(value.const_value, external.Mapped):
        value.const_value.forget()


def drop_node(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a one-output node; its consumers read its first input. A graph output keeps its name."""
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    if result.is_graph_output():
        name, result.name = result.name, f"{result.name}_dropped"
        result.replace_all_uses_with(source, replace_graph_outputs=True)
        source.name = name
    else:
        result.replace_all_uses_with(source)
    graph.remove(node, safe=True)


def replace(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Put `value` in the place of what a one-output node gives, name included, and remove the node."""
    result = node.outputs[0]
    value.shape, value.type = result.shape, result.type
    name, result.name = result.name, fresh_name(graph, f"{result.name}/replaced")
    result.replace_all_uses_with(value, replace_graph_outputs=True)
    value.name = name
    graph.remove(node, safe=True)


def drop_unused(model: ir.Model) -> None:
    """Remove nodes and initializers that nothing reads."""
    import onnx_ir.passes.common as common

    common.RemoveUnusedNodesPass()(model)
