"""What ONNX Runtime takes in an ONNX file and onnx.checker refuses, written as the standard has it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, MutableSequence, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgerun.converters import _normalize, _ort
from edgerun.errors import EdgerunError
from edgerun.runtime import TensorSpec
from edgerun.runtime.spec import named

if TYPE_CHECKING:
    import onnx


def names(graph: onnx.GraphProto) -> bool:
    """Take the name from every node that repeats one, which ONNX Runtime refuses; was there any?"""
    seen: set[str] = set()
    repeated = False
    for node in graph.node:
        if node.name in seen:
            node.name, repeated = "", True
        elif node.name:
            seen.add(node.name)
    return repeated


def dims(graph: onnx.GraphProto) -> bool:
    """Leave out dimensions that stand for no size (-1, or called ?), so that they are open; were there any?"""
    repaired = False
    for part in (graph, *_inner(graph.node)):
        for value in (*part.input, *part.value_info, *part.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value < 0 or (dim.dim_param and not named(dim.dim_param)):
                    dim.Clear()
                    repaired = True
    return repaired


def order(nodes: MutableSequence[onnx.NodeProto]) -> None:
    """Put every node behind those whose values it reads, in its branches and loops, too.

    Of the nodes that may come next the first in the file does, so that a graph in order stays as it is. Where nodes
    wait for each other the graph stays, too: the checker says so. ONNX Runtime takes no branch or loop out of order.
    """
    makers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    needs = [{makers[name] for name in _reads(node) if name in makers} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for place, before in enumerate(needs):
        for maker in before:
            readers[maker].append(place)
    waiting, found = [len(before) for before in needs], list[int]()
    ready = [place for place, count in enumerate(waiting) if not count]
    while ready:
        found.append(place := heapq.heappop(ready))
        for reader in readers[place]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(found) == len(nodes) and found != sorted(found):
        ordered = [nodes[place] for place in found]
        del nodes[:]
        nodes.extend(ordered)


def ranks(graph: onnx.GraphProto, wanted: Sequence[TensorSpec]) -> None:
    """Give every input without a shape as many open dimensions as it is `wanted` to have. Raises EdgerunError where
    nobody says how many."""
    weights = {tensor.name for tensor in graph.initializer}
    values = [value for value in graph.input if value.name not in weights]
    for value in values:
        tensor, name = value.type.tensor_type, value.name
        if dtype(tensor) is None or tensor.HasField("shape"):
            continue
        spec = next((s for s in wanted if s.name == name or (not s.name and len(values) == 1)), None)
        if spec is None:
            known = f"{name}:{dtype(tensor)}"
            raise EdgerunError(
                f"the model does not say how many dimensions its input {name!r} has", got=f"{known}, without a shape",
                wanted="a number or a name for each dimension", do=f"give --input '{known}[…]', as in [n,3,224,224]",
            )  # fmt: skip
        tensor.shape.SetInParent()
        tensor.shape.dim.extend([type(tensor.shape).Dimension() for _ in spec.shape])


def dtype(tensor: onnx.TypeProto.Tensor) -> str | None:
    """Its elements' type as numpy calls it; None where the file names none, or one that nobody knows."""
    from onnx import helper

    known = tensor.elem_type in helper.get_all_tensor_dtypes()
    return helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if known else None


def outputs(proto: onnx.ModelProto, source: Path | onnx.ModelProto) -> None:
    """Give the outputs without a shape the one that inference finds, onnx's or else that of ONNX Runtime, which takes
    `source`. Raises EdgerunError where neither finds one."""
    from onnx import helper

    if not any(map(_is_bare, proto.graph.output)):
        return
    try:
        graph = _normalize.infer_shapes(weightless(proto)).graph
    except Exception as error:  # inference raises classes of its own and bare RuntimeError
        raise EdgerunError(
            "no shapes can be inferred", got=_ort.first_line(error), do="export the model again"
        ) from error
    found = {value.name: value.type for value in graph.output if not _is_bare(value)}
    bare = [value for value in proto.graph.output if _is_bare(value)]
    other = {} if found.keys() >= {value.name for value in bare} else _ort.shapes(source)
    for value in bare:
        if value.name in found:
            value.type.CopyFrom(found[value.name])
        elif value.name in other and value.type.tensor_type.elem_type:
            dtype = value.type.tensor_type.elem_type
            value.type.CopyFrom(helper.make_tensor_type_proto(dtype, other[value.name]))
        else:
            raise EdgerunError(
                f"output {value.name!r} has no shape, and none can be inferred",
                do="export the model with the shapes of its outputs; --input with fixed sizes may help inference",
            )


def weightless(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inputs in place of the weights that no shape depends on, which are not copied: for the checker
    and for inference, of which neither takes a message over 2 GB, nor one whose weights lie elsewhere."""
    import onnx

    from edgerun import external

    graph = proto.graph
    small = [tensor for tensor in graph.initializer if external.size(tensor) < external.LEAST]
    large = [tensor for tensor in graph.initializer if external.size(tensor) >= external.LEAST]
    have = {value.name for value in graph.input}
    stand_ins = [
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in large if tensor.name not in have
    ]  # fmt: skip
    light = onnx.GraphProto(
        name=graph.name, node=graph.node, input=[*graph.input, *stand_ins], output=graph.output,
        value_info=graph.value_info, initializer=small, sparse_initializer=graph.sparse_initializer,
    )  # fmt: skip
    return onnx.ModelProto(
        ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions, graph=light
    )


def _is_bare(value: onnx.ValueInfoProto) -> bool:
    """Has it neither a shape nor another type than a tensor's?"""
    kind = value.type.WhichOneof("value")
    return kind is None or (kind == "tensor_type" and not value.type.tensor_type.HasField("shape"))


def _inner(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """The graphs of branches and loops, and those in them."""
    for node in nodes:
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield graph
                yield from _inner(graph.node)


def _reads(node: onnx.NodeProto) -> set[str]:
    """The values that it reads, its branches and loops included."""
    inner = list(_inner([node]))
    inside = {name for graph in inner for other in graph.node for name in other.input}
    return {*node.input, *inside, *(value.name for graph in inner for value in graph.output)}
