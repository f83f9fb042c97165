"""Scales and rounding where there are fewer numbers: before upsampling and concatenation, in gates, in means.

What a factor per channel is multiplied with may be a product with a gate, of which the gate alone can take the factor;
nearest neighbours repeat values, rounded ones as well; what joins integers may join integers alone. A runtime that
fuses none of these reads and writes the whole tensor for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs import gates
from edgerun.quantize.graphs.edit import constant, fresh_name, initializer, picture_channels, replace, sole_consumer

if TYPE_CHECKING:
    import onnx_ir as ir

    Maybe = ir.Value | None


def move(graph: ir.Graph) -> int:
    """Move factors `[C, 1, 1]`, means and quantizers with one scale to earlier places; return how many moved.

    Tensors are `[N, C, H, W]`, float32. In place; values agree to float rounding, of quantizers exactly.
    """
    muls = [node for node in graph if node.op_type == "Mul" and node.domain == "" and _factors(node) is not None]
    moved = sum([_into_gates(graph, node) for node in muls])
    moved += sum([_before(graph, node) for node in muls if node.graph is graph])
    moved += sum([_mean_before(graph, node) for node in list(graph) if _is_mean(node)])
    return moved + sum([_quantized_before(graph, node) for node in list(graph) if node.op_type == "QuantizeLinear"])


def _into_gates(graph: ir.Graph, node: ir.Node) -> bool:
    """x·f, where its mean and products with gates are all that is read of it: the mean and the gates take f."""
    scaled, x, factors = node.outputs[0], *_parts(node)
    users = [user for user, _ in scaled.uses()]
    if not users or scaled.is_graph_output() or any(user.graph is not graph for user in users):
        return False  # what a branch or loop reads stays
    if not all(_is_mean(user) or _gate(user, scaled) is not None for user in users):
        return False
    for user in users:
        result, gate = user.outputs[0], _gate(user, scaled)
        if gate is None:
            mean = _made(graph, user, "GlobalAveragePool", [x], result)
            new = _made(graph, user, "Mul", [mean, factors], result)
        else:
            new = _made(graph, user, "Mul", [x, _made(graph, user, "Mul", [gate, factors], gate)], result)
        replace(graph, user, new)
    graph.remove(node, safe=True)
    return True


def _before(graph: ir.Graph, node: ir.Node) -> bool:
    """x·f, where x is made of what can take f with less to do."""
    x, factors = _parts(node)
    if node.outputs[0].is_graph_output() or not _takes(x):
        return False
    replace(graph, node, _scaled(graph, node, x, factors))
    return True


def _takes(x: Maybe) -> bool:
    """Whether scaling what `x` is computed from costs less than scaling it."""
    made = _made_for_one(x)
    if made is None:
        return False
    if made.op_type == "Concat":
        joined = made.attributes.get_int("axis") == 1 and all(picture_channels(value) for value in made.inputs)
        return joined and any(map(_takes, made.inputs))
    if made.op_type == "Add":
        return all(picture_channels(value) == picture_channels(x) and _takes(value) for value in made.inputs)
    return _repeats(made) or _gate(made) is not None


def _scaled(graph: ir.Graph, place: ir.Node, x: Maybe, factors: ir.Value) -> ir.Value:
    """x·factors, computed in front of `place`."""
    assert x is not None
    made = _made_for_one(x)
    if made is None or not _takes(x):
        return _made(graph, place, "Mul", [x, factors], x)
    gate = _gate(made)
    if made.op_type == "Concat":
        sizes = [picture_channels(value) or 0 for value in made.inputs]
        shares = np.split(_array(factors), np.cumsum(sizes)[:-1])
        own = [initializer(graph, f"{factors.name}/share", share) for share in shares]
        inputs = [_scaled(graph, place, value, share) for value, share in zip(made.inputs, own, strict=True)]
    elif made.op_type == "Add":
        inputs = [_scaled(graph, place, value, factors) for value in made.inputs]
    elif gate is not None:
        rest = next(value for value in made.inputs if value is not gate and value is not None)
        inputs = [rest, _made(graph, place, "Mul", [gate, factors], gate)]
    else:
        return _made(
            graph, place, made.op_type, [_scaled(graph, place, made.inputs[0], factors), *made.inputs[1:]], x, made
        )
    return _made(graph, place, made.op_type, inputs, x, made)


def _mean_before(graph: ir.Graph, node: ir.Node) -> bool:
    """The mean of what a Conv of size one gives is that Conv of its input's mean, where that has fewer channels."""
    x = node.inputs[0]
    layer = x.producer() if x is not None else None
    if x is None or layer is None or layer.op_type != "Conv" or layer.domain != "":
        return False
    weight, told = layer.inputs[1], layer.attributes
    shape = list(weight.shape.numpy()) if weight is not None and weight.shape is not None else []
    plain = told.get_int("group", 1) == 1 and all(n == 1 for n in told.get_ints("strides", ()))
    if not plain or any(told.get_ints("pads", ())) or "auto_pad" in told or shape[2:] != [1, 1]:
        return False
    if shape[1] >= shape[0] or any(user.op_type == "QuantizeLinear" for user, _ in x.uses()):
        return False
    mean = _made(graph, node, "GlobalAveragePool", [layer.inputs[0]], node.outputs[0])
    mean.shape = None
    replace(graph, node, _made(graph, node, "Conv", [mean, *layer.inputs[1:]], node.outputs[0], layer))
    return True


def _quantized_before(graph: ir.Graph, node: ir.Node) -> bool:
    """Quantize what upsampling and concatenation are made of too, on the same grid, and these run on it; exact but for
    integers of another grid, which a Concat rounds once more as it is."""
    x, scale = node.inputs[0], constant(node.inputs[1])
    if x is None or scale is None or scale.size != 1 or not _moves(x):
        return False
    _round_inputs(graph, node, x)
    return True


def _moves(x: Maybe) -> bool:
    made = _made_for_one(x)
    if made is None or made.op_type != "Concat":
        return made is not None and _repeats(made)
    return any(_moves(value) or _dequantized(value) for value in made.inputs)


def _dequantized(value: Maybe) -> bool:
    """Whether integers were computed for it, which a Concat of integers brings onto its own grid."""
    made = None if value is None else value.producer()
    codes = made.inputs[0] if made is not None and made.op_type == "DequantizeLinear" else None
    return codes is not None and codes.producer() is not None


def _round_inputs(graph: ir.Graph, quantizer: ir.Node, x: ir.Value) -> None:
    made = x.producer()
    assert made is not None
    for index, value in enumerate(made.inputs if made.op_type == "Concat" else made.inputs[:1]):
        assert value is not None
        if made.op_type == "Concat" and _dequantized(value):
            continue
        if _moves(value):
            _round_inputs(graph, quantizer, value)
        codes = _made(graph, made, "QuantizeLinear", [value, *quantizer.inputs[1:]], quantizer.outputs[0], quantizer)
        codes.shape = value.shape
        pair = [codes, *quantizer.inputs[1:]]
        made.replace_input_with(index, _made(graph, made, "DequantizeLinear", pair, value))


def _factors(node: ir.Node) -> ir.Value | None:
    """The constant `[C, 1, 1]` float32 that a Mul scales the channels of another input by."""
    for value, other in (node.inputs, node.inputs[::-1]):
        array = constant(value)
        if array is not None and array.dtype == np.float32 and array.shape == (picture_channels(other), 1, 1):
            return value
    return None


def _parts(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """What a Mul scales, and by which factors."""
    factors = _factors(node)
    x = next(value for value in node.inputs if value is not factors)
    assert factors is not None and x is not None
    return x, factors


def _array(factors: ir.Value) -> np.ndarray:
    array = constant(factors)
    assert array is not None
    return array


def _made_for_one(x: Maybe) -> ir.Node | None:
    """What computes a value that is read once."""
    made = x.producer() if sole_consumer(x) is not None and x is not None else None
    return made if made is not None and made.domain == "" else None


def _is_mean(node: ir.Node) -> bool:
    return node.op_type == "GlobalAveragePool" and node.domain == ""


def _gate(node: ir.Node, x: Maybe = None) -> ir.Value | None:
    """The input of one position, `[N, C, 1, 1]`, that a Mul scales another (`x`, if given) by."""
    if node.op_type != "Mul" or node.domain != "":
        return None
    for gate, other in (node.inputs, node.inputs[::-1]):
        fits = picture_channels(gate) is not None and picture_channels(gate) == picture_channels(other)
        if fits and gates.one_position(gate) and not gates.one_position(other) and (x is None or x is other):
            return gate
    return None


def _repeats(node: ir.Node) -> bool:
    """Whether it is a Resize that gives nearest neighbours, several of each."""
    told, scales = node.attributes, constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if node.op_type != "Resize" or told.get_string("mode", "nearest") != "nearest" or scales is None:
        return False
    whole = told.get_string("coordinate_transformation_mode") != "tf_crop_and_resize" and scales.size == 4
    return whole and bool((scales[:2] == 1).all() and scales.prod() >= 2)


def _made(
    graph: ir.Graph, place: ir.Node, op: str, inputs: Sequence[Maybe], like: ir.Value,
    attributes_of: ir.Node | None = None,
) -> ir.Value:  # fmt: skip
    """What a new node in front of `place` gives, of the type of `like`; its name begins as that of `place`, by which
    `factored` finds it."""
    import onnx_ir as ir

    attributes = attributes_of.attributes.values() if attributes_of is not None else ()
    node = ir.Node("", op, inputs, attributes, name=fresh_name(graph, f"{place.name}/{op}"))
    result = node.outputs[0]
    result.name, result.type, result.shape = fresh_name(graph, f"{node.name}/result"), like.type, like.shape
    graph.insert_before(place, node)
    return result
