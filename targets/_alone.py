"""Which nodes a runtime refuses: each is given to it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from edgerun.passes import Issue

Refusal = Callable[[bytes], str | None]
SMALL = 1 << 12  # bytes of a constant that comes along with its node: axes, shapes and scales, no weights


@dataclass(frozen=True)
class _Known:
    """What a graph's nodes can read: the types of values, small constants (tensors or Constant nodes), and the names
    whose type is a guess."""

    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto | onnx.NodeProto] = field(default_factory=dict)
    guessed: set[str] = field(default_factory=set)
    inside: bool = False  # a branch or a loop

    def within(self, graph: onnx.GraphProto) -> _Known:
        """With what `graph` declares."""
        import onnx

        types = self.types | {v.name: v.type for v in (*graph.input, *graph.value_info, *graph.output)}
        constants = self.constants | {t.name: t for t in graph.initializer if t.ByteSize() <= SMALL}
        for tensor in graph.initializer:
            types.setdefault(tensor.name, onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims))
        for node in graph.node:
            if node.op_type == "Constant" and node.ByteSize() <= SMALL:
                constants[node.output[0]] = node
        return replace(self, types=types, constants=constants)

    def unsure(self, name: str) -> bool:
        """Whether a value's type is a guess, or its rank unknown, as in a loop: who has the loop knows it."""
        if name not in self.types or name in self.guessed:
            return True
        kind = self.types[name]
        return self.inside and kind.HasField("tensor_type") and not kind.tensor_type.HasField("shape")


def blame(proto: onnx.ModelProto, refusal: Refusal) -> Iterator[Issue]:
    """The nodes that are refused when they stand alone, with small constants and with the dtypes that shape inference
    finds for their other inputs.

    In a branch or loop it is the node inside that is named, where one is refused.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(proto)
    yield from _blamed(inferred, inferred.graph, _Known(), {}, refusal)


def _blamed(
    proto: onnx.ModelProto,
    graph: onnx.GraphProto,
    around: _Known,
    seen: dict[tuple[object, ...], str | None],
    refusal: Refusal,
) -> Iterator[Issue]:
    import onnx

    from edgerun.passes import Issue

    known = around.within(graph)
    for node in graph.node:
        reads, blamed = list(dict.fromkeys(_reads(node))), False
        for body in _bodies(node):
            for issue in _blamed(proto, body, replace(known, inside=True), seen, refusal):
                blamed = True
                yield issue
        unsure = any(map(known.unsure, reads))
        for name in node.output:  # behind an operator that nobody knows: the type of its first input
            if name and name not in known.types and (first := next((n for n in reads if n in known.types), None)):
                known.types[name] = onnx.TypeProto()
                known.types[name].tensor_type.elem_type = known.types[first].tensor_type.elem_type
                known.guessed.add(name)
        if blamed or any(name not in known.types for name in reads) or (unsure and _standard(node)):
            continue
        if (key := _like(node, reads, known)) not in seen:
            seen[key] = refusal(_alone(proto, node, reads, known).SerializeToString())
        if reason := seen[key]:
            yield Issue(node.name or node.output[0], node.op_type, reason)


def _alone(proto: onnx.ModelProto, node: onnx.NodeProto, reads: list[str], known: _Known) -> onnx.ModelProto:
    import onnx

    constants = [known.constants[name] for name in reads if name in known.constants]
    made = [n for n in constants if isinstance(n, onnx.NodeProto)]
    tensors = [t for t in constants if isinstance(t, onnx.TensorProto)]
    inputs = [onnx.ValueInfoProto(name=n, type=known.types[n]) for n in reads if n not in known.constants]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    alone = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    alone.graph.CopyFrom(onnx.helper.make_graph([*made, node], "alone", inputs, outputs, tensors))
    return alone


def _like(node: onnx.NodeProto, reads: list[str], known: _Known) -> tuple[object, ...]:
    """What is the same for nodes that are refused for the same reason."""
    dtypes = tuple(known.types[name].tensor_type.elem_type for name in reads)
    return (
        node.domain,
        node.op_type,
        dtypes,
        *(a.SerializeToString() for a in node.attribute),
        *(_content(known.constants[name]) for name in reads if name in known.constants),
    )


def _content(constant: onnx.TensorProto | onnx.NodeProto) -> bytes:
    import onnx

    if isinstance(constant, onnx.NodeProto):
        return b"".join(attribute.SerializeToString() for attribute in constant.attribute)
    nameless = onnx.TensorProto()
    nameless.CopyFrom(constant)
    nameless.name = ""
    return bytes(nameless.SerializeToString())


def _standard(node: onnx.NodeProto) -> bool:
    import onnx

    return bool(onnx.defs.has(node.op_type, domain=node.domain))


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else []) + list(a.graphs)]


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, its branches and loops included, without what those make themselves."""
    yield from filter(None, node.input)
    for body in _bodies(node):
        own = {v.name for v in body.input} | {t.name for t in body.initializer}
        own |= {name for inner in body.node for name in inner.output}
        inside = [name for inner in body.node for name in _reads(inner)] + [v.name for v in body.output]
        yield from (name for name in inside if name not in own)
