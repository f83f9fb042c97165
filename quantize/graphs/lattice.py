"""Inputs whose channels lie on grids of their own: moved and scaled onto one that the quantizer's steps fall on.

A picture's pixels have 8 bits, and what preprocessing makes of them, (p − m)/s with other numbers for each channel, has
256 values a channel still. A grid for all channels falls between these, and rounds what need not be rounded. With p
itself in front of the quantizer, and m and 1/s in the first layer's weights and bias, nothing is. A layer that pads
with zeros gets its padding in front, where zero is still zero.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs import centre, correction, equalize, qdq
from edgerun.quantize.graphs.edit import constant, drop_node, fresh_name, initializer, sole_consumer
from edgerun.quantize.graphs.placement import Plan

if TYPE_CHECKING:
    import onnx_ir as ir

NAME = "/own_grid"  # how the name of the Add ends
PADS = 11  # the first opset whose Pad takes its places as an input
BETWEEN = ("Transpose", "QuantizeLinear", "DequantizeLinear")  # from there to the layers
NHWC = (0, 3, 1, 2)  # such an input's axes as the layers read them


@dataclass(frozen=True)
class Site:
    """An `image` that the Conv `reader` reads as `value`, `[N, C, H, W]`, padding by `pads` (H and W, then behind).

    `axis` is the one of the channels in the image; `known` are the steps and the lowest values of their grids, `[C]`,
    where the graph computes the image from bytes.
    """

    image: ir.Value
    value: ir.Value
    reader: ir.Node
    pads: tuple[int, int, int, int]
    axis: int
    known: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def channels(self) -> int:
        channels = None if self.image.shape is None else self.image.shape[self.axis]
        assert isinstance(channels, int)
        return channels


def sites(graph: ir.Graph, plan: Plan) -> list[Site]:
    """The pictures that only one layer of `plan` reads: inputs of the graph, behind a Transpose at most, and what it
    computes of bytes by a Cast, factors and offsets."""
    layers = [node for node in plan.weights if node.op_type == "Conv" and node.inputs[0] is not None]
    return [site for node in layers if (site := _site(graph, node)) is not None]


def _site(graph: ir.Graph, reader: ir.Node) -> Site | None:
    import onnx_ir as ir

    value, told = reader.inputs[0], reader.attributes
    image, axis = value, 1
    if value is None or sole_consumer(value) is None or not equalize.is_layer(reader) or told.get_int("group", 1) != 1:
        return None
    if _turns(node := value.producer()) and node is not None and sole_consumer(node.inputs[0]) is not None:
        image, axis = node.inputs[0], 3
    if image is None or image.shape is None or len(image.shape) != 4 or image.dtype != ir.DataType.FLOAT:
        return None
    known = None
    if image not in graph.inputs:
        image, axis, known = value, 1, _of_bytes(value, 1)
        if known is None:
            return None
    assert image.shape is not None
    if not isinstance(channels := image.shape[axis], int) or (axis == 3 and not isinstance(image.shape[2], int)):
        return None  # what is added to a row is a constant of the row's length
    top, left, bottom, right = told.get_ints("pads", (0, 0, 0, 0))
    pads, automatic = (top, left, bottom, right), told.get_string("auto_pad", "NOTSET") not in ("", "NOTSET")
    if automatic or min(pads) < 0 or (any(pads) and graph.opset_imports.get("", 0) < PADS):
        return None
    wide = None if known is None else (np.broadcast_to(known[0], channels), np.broadcast_to(known[1], channels))
    return Site(image, value, reader, pads, axis, wide)


def _turns(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Transpose" and node.attributes.get_ints("perm", ()) == NHWC


def _of_bytes(value: ir.Value | None, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """f and o, `[C]` or `[1]`, of a value that is f∘p + o of bytes p with their channels on `axis`."""
    import onnx_ir as ir

    node = None if value is None else value.producer()
    if value is not None and value.dtype == ir.DataType.UINT8:
        return np.ones(1), np.zeros(1)
    if node is None or node.domain != "" or node.op_type not in ("Cast", "Transpose", "Mul", "Add"):
        return None
    if node.op_type == "Transpose" and (axis != 1 or not _turns(node)):
        return None
    found = _of_bytes(node.inputs[0], 3 if node.op_type == "Transpose" else axis)
    if found is None or node.op_type in ("Cast", "Transpose"):
        return found
    array = constant(node.inputs[1])
    if array is None or array.ndim > 4 or array.size != ((1,) * (4 - array.ndim) + array.shape)[axis]:
        return None
    row = array.reshape(-1).astype(np.float64)
    if node.op_type == "Add":
        return found[0], found[1] + row
    return (found[0] * row, found[1] * row) if (row > 0).all() else None


def apply(graph: ir.Graph, site: Site, factors: np.ndarray, offsets: np.ndarray) -> ir.Value:
    """Let f∘x + o, f and o `[C]`, be what is quantized, with f and o in the layers' constants: the same in real
    arithmetic. Returns the value that it is; factors that are all 1 need no Mul."""
    import onnx_ir as ir

    made, before = site.image, next(node for node in graph if site.image in node.inputs)
    name = str(site.image.name)
    if any(site.pads):
        top, left, bottom, right = site.pads
        places = (0, 0, top, left, 0, 0, bottom, right) if site.axis == 1 else (0, top, left, 0, 0, bottom, right, 0)
        pads = initializer(graph, f"{name}/pads", np.array(places, np.int64))
        made = _emit(graph, "Pad", [made, pads], before, site, f"{name}/Pad")
        site.reader.attributes.pop("pads", None)
    if (factors != 1).any():
        by = initializer(graph, f"{name}/factors", _spread(factors, site))
        made = _emit(graph, "Mul", [made, by], before, site, f"{name}/factors")
    by = initializer(graph, f"{name}/offsets", _spread(offsets, site))
    made = _emit(graph, "Add", [made, by], before, site, f"{name}{NAME}")
    if site.value is not site.image:
        before.replace_input_with(0, made)
        made, shape = site.value, _padded(site)
        made.shape = ir.Shape([shape[axis] for axis in NHWC])
    else:
        site.reader.replace_input_with(0, made)
    _take(graph, [site.reader], factors, offsets)
    return made


def _take(graph: ir.Graph, layers: Collection[ir.Node], factors: np.ndarray, offsets: np.ndarray) -> None:
    """Let layers that read x read f∘x + o."""
    for node in layers:
        equalize.scale_input(graph, node, 1 / factors)
        centre.offset_input(graph, node, -offsets)


def _spread(numbers: np.ndarray, site: Site) -> np.ndarray:
    """`[C]` so that it broadcasts fast: over rows of W·C numbers where the channels stand last, or may for a runtime
    that moves the Transpose of bytes behind."""
    told, width = numbers.astype(np.float32), _padded(site)[3 if site.axis == 1 else 2]
    if site.axis == 1:
        times = width if site.known is not None and isinstance(width, int) else 1
        return np.tile(told.reshape(-1, 1, 1), (1, 1, times))
    assert isinstance(width, int)
    return np.tile(told, (width, 1))


def _padded(site: Site) -> list[int | ir.SymbolicDim | None]:
    """The image's shape with its padding; None for an open size that grows."""
    top, left, bottom, right = site.pads
    more = (0, 0, top + bottom, left + right) if site.axis == 1 else (0, top + bottom, left + right, 0)
    assert site.image.shape is not None
    grown = [dim + by if isinstance(dim, int) else None for dim, by in zip(site.image.shape, more, strict=True)]
    return [new if by else dim for dim, new, by in zip(site.image.shape, grown, more, strict=True)]


def _emit(graph: ir.Graph, op: str, inputs: list[ir.Value], before: ir.Node, site: Site, name: str) -> ir.Value:
    import onnx_ir as ir

    node = ir.node(op, inputs, name=fresh_name(graph, name))
    result = node.outputs[0]
    result.name, result.type = fresh_name(graph, f"{name}/value"), inputs[0].type
    result.shape = ir.Shape(_padded(site))
    graph.insert_before(before, node)
    return result


@dataclass(frozen=True)
class Moved:
    """What `apply` did, found again: the Add, the Mul and the Pad in front of it, the layers behind, f and o."""

    add: ir.Node
    mul: ir.Node | None
    pad: ir.Node | None
    layers: tuple[ir.Node, ...]
    factors: np.ndarray
    offsets: np.ndarray


def moved(graph: ir.Graph) -> list[Moved]:
    """Every place in a graph, quantized or not, where `apply` was."""
    found = []
    for add in [node for node in graph if node.op_type == "Add" and NAME in str(node.name)]:
        steps: dict[str, ir.Node] = {}
        source, own = add.inputs[0], str(add.name).partition(NAME)[0]
        while source is not None and (node := source.producer()) is not None and str(node.name).startswith(f"{own}/"):
            if node.op_type not in ("Mul", "Pad"):
                break
            steps[node.op_type] = node
            source = node.inputs[0]
        offsets = _channels(add)
        factors = _channels(steps["Mul"]) if "Mul" in steps else np.ones_like(offsets)
        layers = tuple(_behind(add.outputs[0]))
        found.append(Moved(add, steps.get("Mul"), steps.get("Pad"), layers, factors, offsets))
    return found


def _channels(node: ir.Node) -> np.ndarray:
    array = constant(node.inputs[1])
    assert array is not None
    return (array[:, 0, 0] if array.ndim == 3 else array[0]).astype(np.float64)


def _behind(value: ir.Value) -> list[ir.Node]:
    """The Convs that read a value, behind what only moves or rounds it."""
    found = []
    for node, _ in value.uses():
        found += _behind(node.outputs[0]) if node.op_type in BETWEEN else [node] if node.op_type == "Conv" else []
    return found


def follow(nodes: Mapping[str, ir.Node], graph: ir.Graph, found: Collection[Moved]) -> None:
    """Give the float layers `nodes` (by the quantized graph's names) the constants that the quantized ones have."""
    for each in found:
        layers = [nodes[str(node.name)] for node in each.layers if str(node.name) in nodes]
        _take(graph, [node for node in layers if equalize.is_layer(node)], each.factors, each.offsets)


def taken(graph: ir.Graph) -> dict[str, np.ndarray]:
    """Of the layers that read such a place, by name, what an offset takes in their float weights: `over_taps`."""
    layers = [node for each in moved(graph) for node in each.layers]
    weights = {str(node.name): constant(node.inputs[1]) for node in layers}
    return {name: correction.over_taps(weight) for name, weight in weights.items() if weight is not None}


def settle(graph: ir.Graph, before: Mapping[str, np.ndarray]) -> None:
    """What rounding the weights took from what o brings is put into the biases: of rounded weights W′, b − W′·o."""
    for each in moved(graph):
        for node in each.layers:
            if str(node.name) in before:
                centre.move_bias(graph, node, (before[str(node.name)] - _weights(node)) @ each.offsets)


def release(graph: ir.Graph, plan: Plan) -> list[tuple[ir.Node, np.ndarray]]:
    """Undo it where layers stay in float after all, whose weights may be stored as yet.

    Returns these with the factors `[C]` that their float weights are still to take.
    """
    import onnx_ir as ir

    scaled = []
    for each in moved(graph):
        if not each.layers or any(node in plan.weights for node in each.layers):
            continue
        pads = constant(each.pad.inputs[1]) if each.pad is not None else None
        for node in each.layers:
            centre.move_bias(graph, node, _weights(node) @ each.offsets)
            scaled.append((node, each.factors))
            if pads is not None:
                places = pads.reshape(2, 4)[:, 2:] if _first(each) else pads.reshape(2, 4)[:, 1:3]
                node.attributes["pads"] = ir.AttrInt64s("pads", places.reshape(-1).tolist())
        image = (each.pad or each.mul or each.add).inputs[0]
        assert image is not None and image.shape is not None
        for made in (each.add, each.mul, each.pad):
            if made is not None:
                drop_node(graph, made)
        for node, _ in image.uses():
            if node.op_type == "Transpose":
                node.outputs[0].shape = ir.Shape([image.shape[axis] for axis in NHWC])
    return scaled


def given_back(graph: ir.Graph, plan: Plan) -> None:
    """`release` of layers that stay in float and have float weights still."""
    for node, factors in release(graph, plan):
        equalize.scale_input(graph, node, factors)


def _weights(node: ir.Node) -> np.ndarray:
    """`over_taps` of a Conv whose weight is stored, or float."""
    pair = node.inputs[1].producer()  # type: ignore[union-attr]
    scale = None if pair is None else constant(pair.inputs[1])
    if scale is None:
        weight = constant(node.inputs[1])
        assert weight is not None
        return correction.over_taps(weight)
    return correction.over_taps(qdq.stored_weight(node), scale)


def _first(each: Moved) -> bool:
    """Whether the channels stand in front of the places."""
    array = constant(each.add.inputs[1])
    return array is not None and array.ndim == 3
