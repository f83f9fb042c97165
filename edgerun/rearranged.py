"""Weights that a graph only cuts, turns and joins: done once and for all, whatever their size.

PyTorch's LSTM holds its gates in another order than ONNX's, so that exporters write eight Slices, two Concats and two
Unsqueezes a layer, and runtimes find no constant weights there. What folds other constants must not make a model
larger, and asks node by node: a Slice of a weight is more bytes, until all of its Slices stand for the weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

MOST = 1 << 29  # bytes of weights that are moved in one model: they are in memory twice until the old ones go
_MOVERS = ("Slice", "Concat", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Split")


def weights(model: ir.Model) -> int:
    """Do what moves constants, in place, where all that reads a constant does no more than that; return how many nodes.

    Values stay what they are to the bit. What is made of some constants together never has more bytes than these,
    which go. Weights in a file stay there, and what is mapped costs no memory: a large model's are.
    """
    done, left = 0, MOST
    for graph in (model.graph, *model.graph.subgraphs()):
        pending = list(graph.initializers.values())
        given = set(pending)
        while pending:
            movers = _movers(pending.pop())
            sources = {source: _bytes(source) for node in movers for source in _data(node)}
            copied = sum(size for source, size in sources.items() if source in given)  # what was made here goes at once
            if not movers or copied > left:
                continue
            arrays = [array for node in movers for array in _moved(node, model.opset_imports.get("", 1))]
            if sum(array.nbytes for array in arrays) > sum(sources.values()):
                continue
            outputs = [value for node in movers for value in node.outputs]
            pending += [_instead(value, array) for value, array in zip(outputs, arrays, strict=True)]
            graph.remove(movers, safe=True)
            for source in sources:
                graph.initializers.pop(str(source.name))
            given -= sources.keys()
            done, left = done + len(movers), left - copied
    return done


def _movers(value: ir.Value) -> list[ir.Node]:
    """All that reads `value`, where that is movers of constants whose other readers are among them; else none."""
    readers = list(dict.fromkeys(node for node, _ in value.uses()))
    sources = {source for node in readers for source in _data(node)}
    fit = all(_moves(node, value) for node in readers) and value in sources
    return readers if fit and all(user in readers for source in sources for user, _ in source.uses()) else []


def _moves(node: ir.Node, value: ir.Value) -> bool:
    import onnx_ir as ir

    known = all(v is None or (v.const_value is not None and v.is_initializer()) for v in node.inputs)
    if not known or node.op_type not in _MOVERS or node.domain not in ("", "ai.onnx") or node.graph is not value.graph:
        return False
    if any(v.is_graph_output() for v in (*node.outputs, *_data(node))) or any(v.is_graph_input() for v in _data(node)):
        return False
    tensors = [v.const_value for v in _data(node)]
    return not any(isinstance(t, ir.ExternalTensor) or t is None or t.dtype.numpy().kind not in "fiub" for t in tensors)


def _data(node: ir.Node) -> list[ir.Value]:
    """The inputs that are moved; the others say where to."""
    given = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return [value for value in given if value is not None]


def _bytes(value: ir.Value) -> int:
    return value.const_value.nbytes if value.const_value is not None else 0


def _moved(node: ir.Node, opset: int) -> list[np.ndarray]:
    """What the node writes; parts of an array share its memory where they lie in one piece."""
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    given = {str(value.name): value.const_value.numpy() for value in node.inputs if value is not None}  # type: ignore[union-attr]
    found: Any = ReferenceEvaluator(ir.to_proto(node), opsets={"": opset}).run(None, given)
    return [np.asarray(array, order="C") for array in found]


def _instead(value: ir.Value, array: np.ndarray) -> ir.Value:
    """An initializer of this content that is read in place of `value`, under its name."""
    import onnx_ir as ir

    graph, name = value.graph, str(value.name)
    assert isinstance(graph, ir.Graph)
    tensor = ir.tensor(array, name=name)
    made = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    value.replace_all_uses_with(made)
    value.name = None
    graph.register_initializer(made)
    return made
