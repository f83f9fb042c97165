"""SmoothQuant on graphs: a Mul by 1/s before the products that read an activation, s in their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize._lanes import in_lanes
from edgerun.quantize.graphs.activation import Channels
from edgerun.quantize.graphs.edit import constant, fresh_name, initializer, set_constant, shared
from edgerun.quantize.graphs.placement import Plan
from edgerun.quantize.numerics.smoothing import factors

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Quantization

# The Mul is one more pass over the activation: it must at least halve the noise of rounding there (dB).
WORTH = 3.0
ROWS = 256  # of a weight's outputs, evenly spread, on which the noise is predicted (up to twice as many)


@dataclass(frozen=True)
class Site:
    """An activation that float nodes compute, and the integer products that read it along its last axis."""

    value: ir.Value
    readers: tuple[ir.Node, ...]


def sites(plan: Plan, rules: Quantization) -> list[Site]:
    """The points of `plan` whose channels could be smoothed: typically outputs of LayerNorm and GELU.

    Its integer readers must all be MatMul or Gemm with constant weights of rank 2 of their own. Behind integer nodes a
    Mul would stand between what the target runs as one; behind a product, attention's mean, outliers are rare.
    """
    found: list[Site] = []
    for value in plan.points:
        producer = _source(value, rules)
        if producer is None or not plan.in_float(producer) or producer.op_type in rules.compute:
            continue
        if value.shape is None or len(value.shape) < 2 or not isinstance(value.shape[-1], int):
            continue
        readers = [node for node, _ in value.uses() if str(node.name) in plan.integer]
        if readers and all(_product(node, value) for node in readers):
            found.append(Site(value, tuple(readers)))
    return found


def _source(value: ir.Value, rules: Quantization) -> ir.Node | None:
    """The node that computes `value`, looking back over what only moves it."""
    node = value.producer()
    while node is not None and node.op_type in rules.through and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _product(node: ir.Node, value: ir.Value) -> bool:
    weight = constant(node.inputs[1]) if node.op_type in ("MatMul", "Gemm") else None
    plain = weight is not None and weight.ndim == 2 and not node.attributes.get_int("transA", 0)
    plain = plain and not shared(node.inputs[1])
    return plain and node.inputs[0] is value and value not in node.inputs[1:]


def apply(
    graph: ir.Graph, found: list[Site], seen: Mapping[str, Channels], lanes: int = 1
) -> tuple[dict[str, float], dict[str, tuple[str, np.ndarray]]]:
    """Smooth every site whose `seen` channels (by value name, along the last axis `[C]`) say that it pays.

    Returns {value name: predicted gain in dB}, and {new name: (old name, factors `[C]`)} for the values that the
    products read now: the old ones times the factors. `lanes` sites are looked at at once.
    """

    def judged(site: Site) -> tuple[np.ndarray, float]:
        channels = seen[str(site.value.name)]
        weights = [np.ascontiguousarray(w[:: max(1, len(w) // ROWS)]) for w in map(_matrix, site.readers)]
        return factors(channels.lows, channels.highs, channels.power, weights, channels.count)

    gains: dict[str, float] = {}
    made: dict[str, tuple[str, np.ndarray]] = {}
    for site, (scale, gain) in list(in_lanes(judged, found, lanes)):
        if gain < WORTH:
            continue
        scale = scale.astype(np.float32)
        smoothed = _multiply(graph, site.value, scale)
        for node in site.readers:
            _divide_rows(graph, node, scale)
            node.replace_input_with(0, smoothed)
        gains[str(site.value.name)] = round(gain, 2)
        made[str(smoothed.name)] = str(site.value.name), scale
    return gains, made


def _rows(node: ir.Node) -> bool:
    """Whether the weight is stored `[O, C]`."""
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0


def _matrix(node: ir.Node) -> np.ndarray:
    """The weight as `[O, C]`."""
    weight = constant(node.inputs[1])
    assert weight is not None
    return weight if _rows(node) else weight.T


def _multiply(graph: ir.Graph, value: ir.Value, scale: np.ndarray) -> ir.Value:
    import onnx_ir as ir

    by = initializer(graph, f"{value.name}/smoothing", scale)
    node = ir.node("Mul", [value, by], name=fresh_name(graph, f"{value.name}/Mul"))
    result = node.outputs[0]
    result.name, result.type, result.shape = fresh_name(graph, f"{value.name}/smoothed"), value.type, value.shape
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, node)
    return result


def _divide_rows(graph: ir.Graph, node: ir.Node, scale: np.ndarray) -> None:
    weight = constant(node.inputs[1])
    assert weight is not None
    by = scale.reshape((1, -1) if _rows(node) else (-1, 1))
    set_constant(graph, node, 1, (weight / by).astype(weight.dtype))
