"""Where Q/DQ stand: decided from the target's rules alone, before any data is seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgerun.passes import Quantization
from edgerun.quantize.graphs import between, gates, lifted, recurrent, thin
from edgerun.quantize.graphs.edit import COPIES, constant, sole_consumer
from edgerun.quantize.graphs.suitable import is_layer, refusal
from edgerun.quantize.graphs.suitable import weight_axis as weight_axis

if TYPE_CHECKING:
    import onnx_ir as ir

BIAS_BYTES = 8  # an int32 and its scale
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass
class Plan:
    """What is to be quantized.

    `points` maps each activation that gets Q/DQ to the name of its scale group: values of one group share a scale
    because only their elements' places differ. `compute` are the nodes that run on integer kernels; `weights` those of
    them with constant weights; `absorbed` are activations whose clipping the quantizer behind does; `integer` are the
    names of all nodes that read integers: `compute`, and the joins and movers between; `centred` the scale groups whose
    grid has its zero in the middle; `thin` the Convs left by that rule, by name.
    """

    points: dict[ir.Value, str] = field(default_factory=dict)
    compute: list[ir.Node] = field(default_factory=list)
    weights: list[ir.Node] = field(default_factory=list)
    absorbed: list[ir.Node] = field(default_factory=list)
    integer: set[str] = field(default_factory=set)
    centred: set[str] = field(default_factory=set)
    thin: frozenset[str] = frozenset()

    def in_float(self, node: ir.Node) -> bool:
        """Whether `node` runs in float with nothing to do with the integers around it."""
        return str(node.name) not in self.integer and node not in self.absorbed

    def on(self, graph: ir.Graph) -> Plan:
        """The same plan for a clone of the graph (or one that grew from it), by the names of its values and nodes."""
        nodes = {node.name: node for node in graph}
        values = {v.name: v for v in [*graph.inputs, *(o for node in graph for o in node.outputs)]}
        points = {values[value.name]: group for value, group in self.points.items()}
        lists = self.compute, self.weights, self.absorbed
        compute, weights, absorbed = ([nodes[node.name] for node in listed] for listed in lists)
        return Plan(points, compute, weights, absorbed, set(self.integer), set(self.centred), self.thin)

    def sharing(self) -> list[list[ir.Node]]:
        """The layers of each weight: several where they read one constant in the same way, as unrolled cells do."""
        found: dict[tuple[object, ...], list[ir.Node]] = {}
        for node in self.weights:
            value = node.inputs[1]
            stored = value.producer() if value is not None else None
            way = node.op_type, node.attributes.get_int("transB", 0), node.attributes.get_int("group", 1)
            found.setdefault((value if stored is None else stored.inputs[0], *way), []).append(node)
        return list(found.values())

    def groups(self) -> dict[str, list[ir.Value]]:
        """The values of each scale group, in graph order."""
        found: dict[str, list[ir.Value]] = {}
        for value, group in self.points.items():
            found.setdefault(group, []).append(value)
        return found


def plan(graph: ir.Graph, rules: Quantization, keep_float: frozenset[str] = frozenset()) -> Plan:
    """Choose points, integer nodes and absorbed activations for one target, but of nodes named in `keep_float`.

    Cost: a walk over the graph per rule; no data is touched.
    """
    found = _plan(graph, rules, keep_float)
    while more := thin.layers(found.weights, found.in_float, rules):  # what one reads may then be thin too
        left = found.thin | more
        if not (other := _plan(graph, rules, keep_float | left)).compute:
            break
        found, found.thin = other, left
    return found


def _plan(graph: ir.Graph, rules: Quantization, keep_float: frozenset[str]) -> Plan:
    placement = Plan()
    stem: set[ir.Node] = set()
    left = {*(gates.nodes(graph) if rules.float_gates else ()), *recurrent.heads(graph)}
    for node in graph:
        if node.name in keep_float or node in left or not is_layer(node, rules) or refusal(node, rules):
            continue
        if node.op_type == "Conv" and _stem(node, stem, rules):
            stem.add(node)
            continue
        paired = constant(node.inputs[1]) is None
        if paired and not all(_from_layer(value, placement, rules) for value in node.inputs):
            continue
        placement.compute.append(node)
        if not paired:
            placement.weights.append(node)
    integer = set(placement.compute)
    for node in placement.compute:
        for value in _activations(node):
            _mark(placement, value)
    _extend_outputs(placement, rules)
    _extend_joins(graph, placement, rules, integer, keep_float)
    _extend_through(graph, placement, rules, integer)
    lifted.lift(graph, placement.points, rules, integer)
    if not rules.float_bias:
        _share_scales(placement)
    _absorb(placement, rules)
    placement.integer = {str(node.name) for node in integer}
    pairs = [node for node in placement.compute if constant(node.inputs[1]) is None]
    placement.centred = {placement.points[value] for node in pairs for value in _activations(node)}
    return placement


def _stem(node: ir.Node, before: set[ir.Node], rules: Quantization) -> bool:
    """A first layer that is faster in float: few input channels, and an integer op right behind it; or a depthwise one
    that reads the `before` found ones.

    A pooling in between would have to pool in the float layout.
    """
    weight, source = constant(node.inputs[1]), node.inputs[0]
    groups = node.attributes.get_int("group", 1)
    if weight is None or source is None or weight.shape[1] > rules.float_stem:
        return False
    if groups != 1 and (groups != weight.shape[0] or between.source(source, rules) not in before):
        return False
    readers = [user for user, _ in between.behind(node.outputs[0], rules).uses()]
    if rules.depthwise_stem and groups == 1 and not all(map(depthwise, readers)):
        return False
    return bool(readers) and all(reader.op_type in rules.compute for reader in readers)


def depthwise(node: ir.Node) -> bool:
    """Whether every output channel of a Conv reads a single input channel, and not all the same one."""
    weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
    return weight is not None and weight.shape[1] == 1 < node.attributes.get_int("group", 1)


def _float32(node: ir.Node) -> bool:
    dtype = node.outputs[0].dtype
    return dtype is not None and dtype.name == "FLOAT"


def _activations(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs[:2] if value is not None and constant(value) is None)


def _mark(placement: Plan, value: ir.Value, group: str | None = None) -> None:
    placement.points.setdefault(value, group or str(value.name))


def _from_layer(value: ir.Value | None, placement: Plan, rules: Quantization) -> bool:
    """Whether an integer layer writes `value`, looking back over movers and the bias that is added to a product."""
    node = value.producer() if value is not None else None
    while node is not None and between.moves(node, rules) and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is not None and node.op_type == "Add" and node.domain == "":
        products = [v.producer() for v in node.inputs if v is not None and constant(v) is None]
        node = products[0] if len(products) == 1 else None
    return node in placement.weights


def _extend_outputs(placement: Plan, rules: Quantization) -> None:
    """Ops without a float-writing integer kernel need a quantizer behind them."""
    for node in placement.compute:
        if node.op_type in rules.float_output:
            continue
        _mark(placement, between.behind(node.outputs[0], rules))


def _extend_joins(
    graph: ir.Graph, placement: Plan, rules: Quantization, integer: set[ir.Node], keep_float: frozenset[str]
) -> None:
    """Residual adds and the like run on integers when integers come in and integers are wanted behind."""
    wanted = _wanted(graph, placement, rules)
    for node in list(graph):
        if not between.joins(node, rules) or node.name in keep_float or not _float32(node):
            continue
        inputs = [v for v in node.inputs if v is not None]
        final = between.behind(node.outputs[0], rules)
        if not all(
            constant(v) is None and (v in placement.points or between.moved(v, rules) in integer) for v in inputs
        ):
            continue
        # An Add of quantized values is cheaper on integers even when floats are read behind it; a Concat would
        # press values of different sizes into one scale for nothing.
        if final in wanted or (node.op_type == "Add" and all(v in placement.points for v in inputs)):
            summed = _fused_sum(node, inputs, placement, rules)
            for value in (*inputs, final):
                if value is not summed:
                    _mark(placement, value)
            integer.add(node)


def _fused_sum(node: ir.Node, inputs: list[ir.Value], placement: Plan, rules: Quantization) -> ir.Value | None:
    """The input of an Add that its own layer adds to before rounding: one written for this Add alone."""
    if not rules.fused_sum or node.op_type != "Add":
        return None
    for value in reversed(inputs):
        producer = value.producer()
        alone = sole_consumer(value) is node and value not in placement.points
        if alone and producer is not None and producer in placement.compute and producer.op_type in rules.float_output:
            return value
    return None


def _wanted(graph: ir.Graph, placement: Plan, rules: Quantization) -> set[ir.Value]:
    """The values that some integer op reads, directly or through joins, movers and absorbed activations."""
    wanted = set(placement.points)
    for node in reversed(list(graph)):
        passes_on = between.joins(node, rules) or between.moves(node, rules) or between.absorbable(node, rules)
        if node.domain == "" and passes_on and wanted.intersection(node.outputs):
            wanted.update(v for v in node.inputs if v is not None)
    return wanted


def _extend_through(graph: ir.Graph, placement: Plan, rules: Quantization, integer: set[ir.Node]) -> None:
    """A mover between integer ops works on integers: its input and all that it writes have one scale."""
    for node in reversed(list(graph)):
        if not between.moves(node, rules) or (source := node.inputs[0]) is None or constant(source) is not None:
            continue
        parts = node.outputs if node.op_type == "Split" else node.outputs[:1]
        groups = [placement.points[result] for result in parts if result in placement.points]
        if not groups:
            continue
        if source in placement.points:
            _merge(placement, placement.points[source], groups[0])
        elif between.source(source, rules) in integer or _from_layer(source, placement, rules):
            _mark(placement, source, groups[0])
        else:
            continue
        for result in parts:
            _mark(placement, result, groups[0])
            _merge(placement, placement.points[result], groups[0])
        integer.add(node)


def _merge(placement: Plan, old: str, new: str) -> None:
    for value, group in placement.points.items():
        if group == old:
            placement.points[value] = new


def _share_scales(placement: Plan) -> None:
    """What many layers read with one small weight has one scale, so that they share their bias too.

    An int32 bias stands in steps of s_x·s_w, 8 bytes an output with its scale: apart, those of a cell that is unrolled
    over n steps are more than its weights are where 8·n exceeds what an output reads.
    """
    for nodes in placement.sharing():
        weight, value = constant(nodes[0].inputs[1]), nodes[0].inputs[0]
        assert weight is not None and value is not None
        biases = BIAS_BYTES * (len(nodes) - 1) * weight.shape[weight_axis(nodes[0])]
        if biases > max(weight.size, COPIES):
            for node in nodes[1:]:
                _merge(placement, placement.points[node.inputs[0]], placement.points[value])  # type: ignore[index]


def _absorb(placement: Plan, rules: Quantization) -> None:
    """List the activations right before a quantizer, the one next to it first."""
    for value in placement.points:
        node = value.producer()
        while node is not None and between.absorbable(node, rules):
            source = node.inputs[0]
            if source is None or source in placement.points or sole_consumer(source) is not node:
                break
            placement.absorbed.append(node)
            node = source.producer()
