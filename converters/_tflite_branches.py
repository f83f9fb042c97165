"""TFLite's IF: the graph of each way is another of the file's, which gets all that it reads as its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.converters import _tflite_sizes, _tflite_walk
from edgerun.converters._tflite_files import Net
from edgerun.converters._tflite_graph import Call, Graph, Value, rule
from edgerun.errors import Unsupported

if TYPE_CHECKING:
    import onnx


@rule("IF", to="If", limits="no codes")
def _if(graph: Graph, call: Call) -> list[Value]:
    condition, given = graph.plain(call.value(0)), [call.value(index) for index in range(1, len(call.inputs))]
    if any(value.quant for value in given) or any(tensor.quant for tensor in call.outputs):
        raise Unsupported("in codes is not supported")
    ways = [_way(graph, net, given, word) for net, word in zip(call.options, ("then", "else"), strict=True)]
    names = graph.several("If", [condition.name], len(call.outputs), then_branch=ways[0], else_branch=ways[1])
    return [call.made(name, index) for index, name in enumerate(names)]


def _way(graph: Graph, net: Net, given: Sequence[Value], word: str) -> onnx.GraphProto:
    """One way as a graph of its own, which reads the tensors around it by their names."""
    from onnx import helper

    net = _tflite_sizes.settled(net, [value.shape for value in given])
    values, refused, outputs = dict(zip(net.inputs.values(), given, strict=True)), list[str](), []
    with graph.inside() as nodes:
        _tflite_walk.walk(graph, net, values, refused)
        if refused:
            raise Unsupported(f"in its {word} graph: {'; '.join(refused)}")
        for index in net.outputs.values():
            value, tensor = graph.plain(_tflite_walk.read(graph, net, index, values)), net.tensors[index]
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
            outputs.append(helper.make_tensor_value_info(graph.node("Identity", [value.name]), kind, tensor.shape))
    return helper.make_graph(nodes, word, [], outputs)
