"""Which nodes a runtime refuses: each is given to it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from edgerun.passes import Issue

Types = dict[str, "onnx.TypeProto"]
Refusal = Callable[[bytes], str | None]


def blame(proto: onnx.ModelProto, refusal: Refusal) -> Iterator[Issue]:
    """The nodes that are refused when they stand alone, with the dtypes that shape inference finds for their inputs.

    In a branch or loop it is the node inside that is named, where one is refused.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(proto)
    yield from _blamed(inferred, inferred.graph, {}, set(), {}, refusal)


def _blamed(
    proto: onnx.ModelProto, graph: onnx.GraphProto, around: Types, guessed: set[str],
    seen: dict[tuple[object, ...], str | None], refusal: Refusal,
) -> Iterator[Issue]:  # fmt: skip
    import onnx

    from edgerun.passes import Issue

    types = around | {v.name: v.type for v in (*graph.input, *graph.value_info, *graph.output)}
    for tensor in graph.initializer:
        types.setdefault(tensor.name, onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims))
    for node in graph.node:
        reads, blamed = list(dict.fromkeys(_reads(node))), False
        for body in _bodies(node):
            for issue in _blamed(proto, body, types, guessed, seen, refusal):
                blamed = True
                yield issue
        unsure = [name for name in reads if name not in types or name in guessed]
        for name in node.output:  # behind an operator that nobody knows: the type of its first input
            if name and name not in types and (kind := next((types[n] for n in reads if n in types), None)):
                types[name] = onnx.TypeProto()
                types[name].tensor_type.elem_type = kind.tensor_type.elem_type
                guessed.add(name)
        if blamed or any(name not in types for name in reads) or (unsure and _standard(node)):
            continue
        dtypes = tuple(types[name].tensor_type.elem_type for name in reads)
        key = (node.domain, node.op_type, dtypes, tuple(a.SerializeToString() for a in node.attribute))
        if key not in seen:
            inputs = [onnx.ValueInfoProto(name=name, type=types[name]) for name in reads]
            outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
            alone = onnx.ModelProto(
                ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions
            )
            alone.graph.CopyFrom(onnx.helper.make_graph([node], "alone", inputs, outputs))
            seen[key] = refusal(alone.SerializeToString())
        if reason := seen[key]:
            yield Issue(node.name or node.output[0], node.op_type, reason)


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
