"""The float counterpart of a Q/DQ graph: the float model with channels scaled and moved as the quantized one has them.

A compressor may fold BatchNormalization, move scale between channels and move channels onto zero, so the float model's
inner tensors are not those of the quantized one. All are exact changes: fold the float model too, estimate from the
stored weights which factor every chain of channels was given, and from the biases what was taken off, and do the same.
Its function stays that of the float model, and its tensors become the ones that the quantized model rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize import fold
from edgerun.quantize.graphs import centre, equalize, factored, flatten, lattice, loops, recurrent
from edgerun.quantize.graphs.edit import constant, drop_unused, row_bias, sole_consumer
from edgerun.quantize.graphs.factored import Evened
from edgerun.quantize.graphs.quantizers import HOLDERS, Activation, Constant, Loop, Quantizer
from edgerun.quantize.numerics import grid, rescaling
from edgerun.quantize.numerics.rescaling import Tie

if TYPE_CHECKING:
    import onnx_ir as ir

CLIPPING = ("Relu", "Clip", "Min", "Max", "LeakyRelu", "HardSigmoid")
FOREIGN = 0.5  # more of a weight's energy unexplained than this: another layer, or another weight


@dataclass
class Counterpart:
    """`constants` are float arrays by `Constant.key`; `absorbed` the float nodes that a quantizer replaced, by value.

    `rescaled` counts the chains whose channels had other factors than 1, `recentred` those that were moved; `foreign`
    are the layers without a float weight (they keep their dequantized one, and its damage is not seen). `named` has the
    float model's names of layers.
    """

    constants: dict[str, np.ndarray] = field(default_factory=dict)
    absorbed: dict[str, list[ir.Node]] = field(default_factory=dict)
    rescaled: int = 0
    recentred: int = 0
    foreign: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)


def align(
    model: ir.Model, quantized: ir.Model, quantizers: Sequence[Quantizer], evened: Sequence[Evened] = ()
) -> Counterpart:
    """The counterpart of `quantized` in the float `model`; a clone of it is folded unless BatchNorms stand in both.

    `evened` are the factors that stand as Muls beside pairs of `quantized`.
    """
    own = {str(node.name) for node in model.graph if node.op_type == "BatchNormalization"}
    kept = any(node.op_type == "BatchNormalization" and str(node.name) in own for node in quantized.graph)
    told = model.clone()
    if kept:
        fold.infer_shapes(told)
    else:
        fold.apply(told)
    if _flat(told.graph, quantized.graph) and flatten.every(told.graph):
        drop_unused(told)
        fold.infer_shapes(told)
    constants = [
        c for q in quantizers for c in (q.weights if isinstance(q, Loop) else [q] if isinstance(q, Constant) else [])
    ]
    nodes = _named(told.graph, quantized.graph, constants)
    factored.follow(nodes, told.graph, evened)
    lattice.follow(nodes, told.graph, lattice.moved(quantized.graph))
    stored = _stored(quantized.graph, constants, nodes)
    result = Counterpart(rescaled=_rescale(told.graph, stored), named={name: str(n.name) for name, n in nodes.items()})
    result.recentred = _recentre(told.graph, quantized.graph, constants, nodes)
    for found in constants:
        node = nodes.get(found.layer)
        array = constant(node.inputs[found.index]) if node is not None and found.index < len(node.inputs) else None
        if array is None and found.kind == "bias" and node is not None and node.op_type in HOLDERS:
            array = np.zeros_like(found.values)  # the float layer has none: what is there was put there
        if array is not None and array.size == found.stored.size and _same(array, found):
            result.constants[found.key] = array.reshape(found.stored.shape).astype(np.float32)
        elif found.kind == "weight":
            result.foreign.append(found.layer)
    for quantizer in quantizers:
        if isinstance(quantizer, Activation):
            _absorbed(quantizer, told.graph, quantized.graph, nodes, result)
    return result


def _flat(graph: ir.Graph, quantized: ir.Graph) -> bool:
    """Whether products of the float model are Gemms in the quantized one, which `flatten` makes of rows."""
    products = {str(node.name) for node in graph if node.op_type == "MatMul"}
    return any(node.op_type == "Gemm" and str(node.name) in products for node in quantized)


def _named(graph: ir.Graph, quantized: ir.Graph, constants: Sequence[Constant]) -> dict[str, ir.Node]:
    """The float node of each of the quantized graph's nodes: by name and op, else by op and weight shape in order."""
    by_name = {(str(n.name), n.op_type): n for n in graph if n.name}
    ops = {loops.INTEGER: loops.FLOAT}
    keys = [(str(n.name), ops.get(n.op_type, n.op_type)) for n in quantized]
    found = {key[0]: by_name[key] for key in keys if key in by_name}
    taken = set(found.values())
    waiting: dict[tuple[object, ...], list[ir.Node]] = {}
    for node in graph:
        weighted = node.op_type in (*HOLDERS, *recurrent.OPS)
        weight = constant(node.inputs[1]) if weighted and node not in taken else None
        if weight is not None:
            waiting.setdefault((node.op_type, weight.shape), []).append(node)
    for c in constants:
        if c.kind == "weight" and c.layer not in found:
            same = waiting.get((c.op, c.stored.shape))
            if same:
                found[c.layer] = same.pop(0)
    return found


def _same(array: np.ndarray, found: Constant) -> bool:
    """Whether a weight is this float weight, rounded; biases are moved and may be anything."""
    if found.kind == "bias":
        return True
    if array.shape != found.stored.shape:
        return False
    energy = float((found.values.astype(np.float64) ** 2).sum())
    seen = _steps(found) < np.inf
    error = float((np.where(seen, found.values - array, 0.0).astype(np.float64) ** 2).sum())
    coarse = float((np.where(seen, _steps(found), 0.0) ** 2).sum()) / 4
    return error <= FOREIGN * energy + coarse


@dataclass(frozen=True)
class _Stored:
    """What the quantized model computes with at a float node: values, and their steps (inf: at the grid's end)."""

    values: np.ndarray
    steps: np.ndarray


def _stored(quantized: ir.Graph, constants: Sequence[Constant], nodes: Mapping[str, ir.Node]) -> dict[ir.Node, _Stored]:
    found = {
        nodes[c.layer]: _Stored(c.values, _steps(c))
        for c in constants
        if c.kind == "weight" and c.index == 1 and c.layer in nodes
    }
    for node in quantized:
        weight = constant(node.inputs[1]) if node.op_type in HOLDERS and str(node.name) in nodes else None
        if weight is not None:  # left in float, and yet rescaled
            found[nodes[str(node.name)]] = _Stored(weight, np.full(weight.shape, 1e-6 * float(np.abs(weight).max())))
    return {
        node: s
        for node, s in found.items()
        if (w := constant(node.inputs[1])) is not None and w.shape == s.values.shape
    }


def _steps(found: Constant) -> np.ndarray:
    """The step of every element, inf where its integer is the grid's last: there the float weight may lie anywhere."""
    assert found.grid is not None
    ones = grid.Grid(found.grid.scale, np.zeros_like(found.grid.zero_point), found.grid.axis)
    steps = ones.dequantize(np.ones(found.stored.shape, np.int8)).astype(np.float64)
    codes = found.stored if found.stored.dtype.kind != "f" else found.grid.quantize(found.stored)
    low, high = grid.BOUNDS[codes.dtype.name] if codes.dtype.name in grid.BOUNDS else (-(2**31), 2**31 - 1)
    clipped = (codes >= high) | (codes <= low)
    # The largest weight of every channel stands at the end by design; many there are clipped.
    return np.where(clipped & (clipped.mean() > 0.02), np.inf, steps)


def _rescale(graph: ir.Graph, stored: Mapping[ir.Node, _Stored]) -> int:
    """Give every chain the factors that the stored weights show. Returns how many chains had other factors than 1."""
    nodes = [node for node in stored if node.op_type in ("Conv", "Gemm")]
    chains = [c for c in equalize.chains(graph) if any(n in nodes for n in (*c.writers, *c.readers))]
    ratios = [_ratio(node, stored[node]) for node in nodes]
    logs: list[np.ndarray] = []
    for _ in range(2):
        written = {node: index for index, c in enumerate(chains) for node in c.writers}
        read = {node: index for index, c in enumerate(chains) for node in c.readers}
        ties = [
            _tie(node, ratio, chains, written.get(node, -1), read.get(node, -1))
            for node, ratio in zip(nodes, ratios, strict=True)
        ]
        logs, precision = rescaling.solve(ties, [c.channels for c in chains])
        # What is 1 up to estimation error is 1; then the others once more.
        moved = [not rescaling.is_one(log, p) for log, p in zip(logs, precision, strict=True)]
        logs = [log for log, other in zip(logs, moved, strict=True) if other]
        if all(moved):
            break
        chains = [chain for chain, other in zip(chains, moved, strict=True) if other]
    for chain, log in zip(chains, logs, strict=True):
        equalize.rescale(graph, chain, np.exp(log))
    return len(chains)


def _tie(
    node: ir.Node, ratio: tuple[np.ndarray, np.ndarray], chains: Sequence[equalize.Chain], writes: int, reads: int
) -> Tie:
    """What `node` says of the chains that it writes and reads (-1: none)."""
    none = np.zeros(0, np.int64)
    rows = none if writes < 0 else chains[writes].writers[node]
    columns = none if reads < 0 else chains[reads].readers[node]
    return Tie(*ratio, writes, reads, _groups(node), rows, columns)


def _recentre(graph: ir.Graph, quantized: ir.Graph, constants: Sequence[Constant], nodes: Mapping[str, ir.Node]) -> int:
    """Move the channels of linear chains as the quantized model's biases show. Returns how many chains were moved."""
    stored = {c.layer: c.values for c in constants if c.kind == "bias"}
    here = {str(node.name): node for node in quantized}
    differ: dict[ir.Node, np.ndarray] = {}
    for name, node in nodes.items():
        if not equalize.is_layer(node):
            continue
        own = row_bias(node, equalize.output_channels(node))
        array = stored.get(name)
        if array is None:
            bias = here[name].inputs[2] if len(here[name].inputs) > 2 else None
            array = np.zeros(1) if bias is None else constant(bias)
        if own is not None and array is not None and array.size in (1, own.size):
            differ[node] = array.reshape(-1).astype(np.float64) - own
    return centre.recentre(graph, equalize.chains(graph), differ)


def _ratio(node: ir.Node, stored: _Stored) -> tuple[np.ndarray, np.ndarray]:
    weight = constant(node.inputs[1])
    assert weight is not None
    arrays = [weight, stored.values, stored.steps]
    if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0):
        arrays = [a.T for a in arrays]
    weight, values, steps = (a.reshape(*a.shape[:2], -1) for a in arrays)
    return rescaling.log_ratios(weight, values, steps)


def _groups(node: ir.Node) -> int:
    return node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1


def _absorbed(
    quantizer: Activation, graph: ir.Graph, quantized: ir.Graph, nodes: Mapping[str, ir.Node], result: Counterpart
) -> None:
    """The clipping ops that follow the value's node in the float model and that the quantized one does not have."""
    here = {str(node.name) for node in quantized}
    producers = {str(node.outputs[0].name): str(node.name) for node in quantized}
    for pair in quantizer.pairs:
        node = nodes.get(producers.get(pair.value, ""))
        chain: list[ir.Node] = []
        while node is not None:
            node = sole_consumer(node.outputs[0])
            if node is None or node.op_type not in CLIPPING or str(node.name) in here:
                break
            chain.append(node)
        if chain:
            result.absorbed[pair.value] = chain
