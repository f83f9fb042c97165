"""Variants of a Q/DQ graph in which chosen quantizers are off, on, or switched at run time by an input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs import loops, rowwise
from edgerun.quantize.graphs.align import Counterpart
from edgerun.quantize.graphs.edit import constant, drop_unused, fresh_name, initializer
from edgerun.quantize.graphs.quantizers import Activation, Constant, Loop, Quantizer, Running

if TYPE_CHECKING:
    import onnx_ir as ir

# Before a value's name: the tensor that its quantizer rounds, activation restored; before a layer's: its float twin.
FLOAT = "edgerun/float/"
SWITCH = "edgerun/on/"  # before a quantizer's key: a bool scalar input


def off(model: ir.Model, counterpart: Counterpart, quantizers: Sequence[Quantizer]) -> ir.Model:
    """A clone that computes in float where `quantizers` round; its tensors before them are named FLOAT + value."""
    told = model.clone()
    _edit(told.graph, counterpart, quantizers, switched=False)
    drop_unused(told)
    return told


def switched(
    model: ir.Model, counterpart: Counterpart, quantizers: Sequence[Quantizer], others_off: Sequence[Quantizer] = ()
) -> ir.Model:
    """A clone with a bool input SWITCH + key for each of `quantizers`: true rounds, false computes in float.

    `others_off` compute in float for good; what is in neither list rounds.
    """
    told = model.clone()
    _edit(told.graph, counterpart, quantizers, switched=True)
    _edit(told.graph, counterpart, others_off, switched=False)
    drop_unused(told)
    return told


def feeds(quantizers: Sequence[Quantizer], on: Sequence[Quantizer] = ()) -> dict[str, np.ndarray]:
    """Feeds for the switches of `quantizers`: those in `on` are true."""
    keys = {q.key for q in on}
    return {SWITCH + q.key: np.array(q.key in keys) for q in quantizers}


def take_out(graph: ir.Graph, counterpart: Counterpart, quantizers: Sequence[Quantizer]) -> None:
    """Make `quantizers` compute in float, in place."""
    _edit(graph, counterpart, quantizers, switched=False)


def _edit(graph: ir.Graph, counterpart: Counterpart, quantizers: Sequence[Quantizer], switched: bool) -> None:
    nodes = {str(node.name): node for node in graph}
    for quantizer in quantizers:
        gate = _gate(graph, quantizer) if switched else None
        if isinstance(quantizer, Activation):
            for pair in quantizer.pairs:
                value = nodes[pair.quantize].inputs[0]
                assert value is not None
                restored = restore(graph, value, counterpart.absorbed.get(pair.value, ()), pair.value)
                for name in pair.dequantize:
                    _redirect(graph, nodes[name].outputs[0], restored, gate)
        elif isinstance(quantizer, Running):
            last = nodes[quantizer.dequantize[0]]
            value = rowwise.source(last) if quantizer.block else last.inputs[0].producer().inputs[0]  # type: ignore[union-attr]
            assert value is not None
            restored = restore(graph, value, ())
            for name in quantizer.dequantize:
                _redirect(graph, nodes[name].outputs[0], restored, gate)
        elif isinstance(quantizer, Loop):
            node = nodes[quantizer.layer]
            twin = loops.twin(graph, node, floats(quantizer, counterpart), FLOAT + quantizer.layer)
            for rounded, plain in zip(node.outputs, twin.outputs, strict=True):
                if rounded.uses() or rounded.is_graph_output():
                    _redirect(graph, rounded, plain, gate)
        else:
            _set_float(graph, nodes[quantizer.layer], quantizer, counterpart, gate)


def floats(loop: Loop, counterpart: Counterpart) -> tuple[np.ndarray, np.ndarray]:
    """W and R of the float model, or what is stored where it has none."""
    w, r = (counterpart.constants.get(weight.key, weight.values) for weight in loop.weights)
    return w, r


def _gate(graph: ir.Graph, quantizer: Quantizer) -> ir.Value:
    import onnx_ir as ir

    gate = ir.Value(name=SWITCH + quantizer.key, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    graph.inputs.append(gate)
    return gate


def restore(graph: ir.Graph, value: ir.Value, absorbed: Sequence[ir.Node], name: str = "") -> ir.Value:
    """`value` behind copies of the float nodes that its quantizer replaced, named FLOAT + its name, or the `name` that
    it had before a quantizer in front of it was taken out."""
    import onnx_ir as ir

    result, place = value, value.producer()
    wanted = f"{FLOAT}{name or value.name}"
    for node in absorbed or (None,):
        inputs = [result]
        for other in node.inputs[1:] if node is not None else ():
            array = constant(other)
            inputs.append(initializer(graph, f"{wanted}/constant", array) if array is not None else None)  # type: ignore[arg-type]
        op, attributes = (node.op_type, list(node.attributes.values())) if node is not None else ("Identity", [])
        made = ir.Node("", op, inputs, attributes, name=fresh_name(graph, f"{wanted}/{op}"))
        made.outputs[0].name = fresh_name(graph, f"{wanted}/{op}/value")
        made.outputs[0].type, made.outputs[0].shape = value.type, value.shape
        if place is None:
            graph.insert_before(graph[0], made)
        else:
            graph.insert_after(place, made)
        result, place = made.outputs[0], made
    result.name = wanted
    return result


def _redirect(graph: ir.Graph, rounded: ir.Value, plain: ir.Value, gate: ir.Value | None) -> None:
    """What read `rounded` reads `plain`, or the one of both that `gate` chooses. A graph output keeps its name."""
    import onnx_ir as ir

    uses, name = list(rounded.uses()), str(rounded.name)
    result = plain
    if gate is not None or rounded.is_graph_output():
        inputs = [gate, rounded, plain] if gate is not None else [plain]
        node = ir.node("Where" if gate is not None else "Identity", inputs, name=fresh_name(graph, f"{name}/chosen"))
        result = node.outputs[0]
        result.name, result.type, result.shape = fresh_name(graph, f"{name}/choice"), rounded.type, rounded.shape
        graph.insert_after(_later(graph, rounded, plain), node)
    for user, index in uses:
        user.replace_input_with(index, result)
    if rounded.is_graph_output():
        graph.outputs[list(graph.outputs).index(rounded)] = result
        rounded.name, result.name = fresh_name(graph, f"{name}/rounded"), name


def _later(graph: ir.Graph, *values: ir.Value) -> ir.Node:
    """Of the values' producers the one that stands last; what reads both must follow it."""
    producers = [node for v in values if (node := v.producer()) is not None]
    if len(producers) == 1:
        return producers[0]
    return next(node for node in reversed(list(graph)) if node in producers)


def _set_float(
    graph: ir.Graph, node: ir.Node, quantizer: Constant, counterpart: Counterpart, gate: ir.Value | None
) -> None:
    import onnx_ir as ir

    array = counterpart.constants.get(quantizer.key, quantizer.values)
    rounded = node.inputs[quantizer.index]
    assert rounded is not None
    plain = initializer(graph, f"{FLOAT}{quantizer.key}", np.asarray(array, np.float32))
    result = plain
    if gate is not None:
        choice = ir.node("Where", [gate, rounded, plain], name=fresh_name(graph, f"{quantizer.key}/chosen"))
        result = choice.outputs[0]
        result.name, result.type, result.shape = fresh_name(graph, f"{quantizer.key}/choice"), plain.type, plain.shape
        graph.insert_before(node, choice)
    node.replace_input_with(quantizer.index, result)
