"""The smallest part of a model that still fails: one node with its constants where that is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgerun.errors import EdgerunError
from edgerun.model import Model

if TYPE_CHECKING:
    import onnx

Fails = Callable[[Model], bool]
LEVELS = (0, 1, 2, 4, 8)  # how many nodes before and behind are tried with the one to blame
TRIES = 60  # parts that are tried while nodes are taken away


@dataclass(frozen=True)
class Graph:
    """A graph, or one inside a branch or loop, with what is known around it: the types and constants that it sees."""

    proto: onnx.ModelProto
    graph: onnx.GraphProto
    types: dict[str, onnx.TypeProto]
    constants: dict[str, onnx.TensorProto]

    def part(self, chosen: set[int]) -> Model | None:
        """The nodes of these places as a model of their own; None where a value at its door has no known type.

        What nothing declares a type of, behind an operator that nobody knows, is written as its first input's.
        """
        import onnx

        nodes = [node for place, node in enumerate(self.graph.node) if place in chosen]
        made = {name for node in nodes for name in node.output if name}
        needed = dict.fromkeys(name for node in nodes for name in reads(node) if name not in made)
        outside = {v.name for v in self.graph.output}
        outside |= {n for place, node in enumerate(self.graph.node) if place not in chosen for n in reads(node)}
        within = {name for node in nodes for name in reads(node)}
        inputs, outputs = [], []
        for name in needed:
            if name in self.constants:
                continue
            if not known(self.types.get(name)):
                return None
            inputs.append(onnx.ValueInfoProto(name=name, type=self.types[name]))
        for node in nodes:
            for name in filter(None, node.output):
                if name in outside or name not in within:
                    kind = self.types.get(name)
                    if kind is None:
                        kind = next((self.types[n] for n in node.input if known(self.types.get(n))), None)
                    if kind is None or not known(kind):
                        return None
                    outputs.append(onnx.ValueInfoProto(name=name, type=kind))
        weights = [self.constants[name] for name in needed if name in self.constants]
        if not outputs:
            return None
        proto = onnx.ModelProto(
            ir_version=self.proto.ir_version, opset_import=self.proto.opset_import, functions=self.proto.functions
        )
        proto.graph.CopyFrom(onnx.helper.make_graph(nodes, "part", inputs, outputs, weights))
        try:
            return Model.from_proto(proto)
        except EdgerunError:
            return None

    def around(self, place: int, levels: int) -> set[int]:
        """The node with those up to so many steps before it and behind it, and the constants' own nodes."""
        makers = {name: i for i, node in enumerate(self.graph.node) for name in node.output if name}
        before = {i: {makers[n] for n in reads(node) if n in makers} for i, node in enumerate(self.graph.node)}
        behind: dict[int, set[int]] = {i: set() for i in before}
        for i, sources in before.items():
            for source in sources:
                behind[source].add(i)
        found = edge = {place}
        for _ in range(levels):
            edge = {near for i in edge for near in (*before[i], *behind[i])} - found
            found = found | edge
        lonely = {i for i, sources in before.items() if not sources and self.graph.node[i].op_type == "Constant"}
        return found | {i for j in found for i in before[j] & lonely}


def graphs(proto: onnx.ModelProto) -> Iterator[Graph]:
    """The model's graph, and those inside its branches and loops, each with what it sees."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(proto)
    yield from _within(inferred, inferred.graph, {}, {})


def smallest(proto: onnx.ModelProto, name: str, fails: Fails) -> Model | None:
    """The smallest part around the node called so (or writing a value called so) that fails; "" finds the node too.

    Every part that is given out has failed. None where no part of it fails: then the whole is the smallest.
    """
    found = list(graphs(proto))
    for graph in found:
        for place, node in enumerate(graph.graph.node):
            if name and name in (node.name, *node.output):
                return _around(graph, place, fails)
    first = None if name else _first(found[0], fails)
    if first is None:
        return None
    blamed = found[0].graph.node[first]
    inner = [g for g in found[1:] if any(g.graph.name == a.g.name for a in blamed.attribute if a.HasField("g"))]
    for graph in inner:
        for inside in range(len(graph.graph.node)):
            if (part := graph.part({inside})) is not None and fails(part):
                return part
    return _around(found[0], first, fails)


def first(proto: onnx.ModelProto, fails: Fails) -> onnx.NodeProto | None:
    """The first node that makes those before it fail, by halving: log2 of the nodes parts are tried, and the whole."""
    whole = next(graphs(proto))
    place = _first(whole, fails)
    return None if place is None else whole.graph.node[place]


def _around(graph: Graph, place: int, fails: Fails) -> Model | None:
    for levels in LEVELS:
        chosen = graph.around(place, levels)
        part = graph.part(chosen)
        if part is not None and fails(part):
            return _shrunk(graph, chosen, place, part, fails)
    return None


def _shrunk(graph: Graph, chosen: set[int], place: int, part: Model, fails: Fails) -> Model:
    """Without every node that can be left out, one at a time, the farthest first."""
    for other in sorted(chosen - {place}, key=lambda i: -abs(i - place))[:TRIES]:
        fewer = graph.part(chosen - {other})
        if fewer is not None and fails(fewer):
            chosen, part = chosen - {other}, fewer
    return part


def _first(graph: Graph, fails: Fails) -> int | None:
    """The place of the first node that makes its predecessors fail, by halving; None where the whole does not."""
    low, high = 0, len(graph.graph.node)
    whole = graph.part(set(range(high)))
    if whole is None or not fails(whole):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        part = graph.part(set(range(middle)))
        low, high = (low, middle) if part is not None and fails(part) else (middle, high)
    return high - 1


def _within(
    proto: onnx.ModelProto, graph: onnx.GraphProto, types: dict[str, onnx.TypeProto],
    constants: dict[str, onnx.TensorProto],
) -> Iterator[Graph]:  # fmt: skip
    types = types | {v.name: v.type for v in (*graph.input, *graph.value_info, *graph.output)}
    constants = constants | {tensor.name: tensor for tensor in graph.initializer}
    yield Graph(proto, graph, types, constants)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _within(proto, inner, types, constants)


def reads(node: onnx.NodeProto) -> list[str]:
    """What a node reads, in branches and loops of its own too, without what those make themselves."""
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            own = {v.name for v in inner.input} | {t.name for t in inner.initializer}
            own |= {name for n in inner.node for name in n.output}
            found += [name for n in inner.node for name in reads(n) if name not in own]
            found += [v.name for v in inner.output if v.name not in own]
    return found


def known(kind: onnx.TypeProto | None) -> bool:
    """Whether a type can stand at a model's door: a tensor with dtype and rank."""
    return kind is not None and kind.tensor_type.elem_type > 0 and kind.tensor_type.HasField("shape")
