"""Softmax that reads a mask, where what is masked takes time: raised to what still counts for nothing.

A masked value lies so far below the largest one of its row that its exponential is a denormal number (below 2^-126),
with which x86 cores compute at a multiple of the time. Raised to FAR below the largest, its share is e^-FAR = 3e-33
instead of nothing, whatever the values are; a row that is masked as a whole has the shares that it had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize import _observation
from edgerun.quantize.graphs.edit import fresh_name, initializer, reduction

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request

FOUND = "masked softmax"  # in the history: the share of masked values, by the node
LOOKED = 8  # samples that show what is masked
LEAST = 0.25  # of all values: what raising takes is won back by a sixth (ONNX Runtime 1.31, rows of 64)
FAR = 75.0  # e^-75 over a row of 10^5 values is a normal number
DENORMAL = -87.3  # whose exponential is none
MASKS = frozenset({"Add", "Sub", "Where"})
SINCE = 13  # before that opset Softmax means all axes from one on


def raised(model: ir.Model, request: Request) -> None:
    """Raise, in place, what every Softmax reads of whose values on the data LEAST are masked.

    Cost: a run of the float model on LOOKED samples, where a Softmax stands behind what may be a mask.
    """
    if not request.rules.denormals or request.calibration is None:
        return
    sites = [node for node in model.graph if _may_be_masked(node, model.graph)]
    shares = _shares(model, sites, request) if sites else []
    masked = [(node, share) for node, share in zip(sites, shares, strict=True) if share >= LEAST]
    for node, _ in masked:
        _raise(model.graph, node)
    if masked:
        request.found[FOUND] = {str(node.name): round(share, 3) for node, share in masked}


def _may_be_masked(node: ir.Node, graph: ir.Graph) -> bool:
    """Whether it is a Softmax over the last axis of float32 sums or choices."""
    import onnx_ir as ir

    if (node.op_type, node.domain) != ("Softmax", "") or graph.opset_imports.get("", 0) < SINCE:
        return False
    value = node.inputs[0]
    if value is None or value.dtype != ir.DataType.FLOAT or value.shape is None:
        return False
    source = value.producer()
    last = node.attributes.get_int("axis", -1) in (-1, len(value.shape) - 1)
    return last and source is not None and source.op_type in MASKS


def _shares(model: ir.Model, sites: list[ir.Node], request: Request) -> list[float]:
    """The share of masked values of what each of `sites` reads."""
    import onnx_ir as ir

    probed = model.clone()
    graph = probed.graph
    nodes = {str(node.name): node for node in graph}
    far = initializer(graph, fresh_name(graph, "edgerun/far"), np.array(DENORMAL, np.float32))
    graph.outputs.clear()
    for site in sites:
        value = nodes[str(site.name)].inputs[0]
        assert value is not None
        name = fresh_name(graph, f"{site.name}/masked")
        below = ir.node("Sub", [value, _largest(graph, value, name)], name=f"{name}/below")
        masked = ir.node("Less", [below.outputs[0], far], name=f"{name}/is")
        number = ir.node("Cast", [masked.outputs[0]], attributes={"to": ir.DataType.FLOAT.value}, name=f"{name}/number")
        mean = ir.node("ReduceMean", [number.outputs[0]], attributes={"keepdims": 0}, name=name)
        graph.extend([below, masked, number, mean])
        mean.outputs[0].type, mean.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        mean.outputs[0].name = name
        graph.outputs.append(mean.outputs[0])
    names = [str(value.name) for value in graph.outputs]
    with request.open(probed) as session:
        runs = [session.run(feeds) for feeds in _observation.batches(request, LOOKED, "")]
    return [float(np.mean([out[name] for out in runs])) for name in names]


def _raise(graph: ir.Graph, node: ir.Node) -> None:
    """What `node` reads is Max(x, largest of the row − FAR)."""
    import onnx_ir as ir

    value, name = node.inputs[0], str(node.name)
    assert value is not None
    known = graph.initializers.get("edgerun/masked")
    far = known if known is not None else initializer(graph, "edgerun/masked", np.array(FAR, np.float32))
    largest = _largest(graph, value, fresh_name(graph, f"{name}/row"))
    least = ir.node("Sub", [largest, far], name=fresh_name(graph, f"{name}/least"))
    lifted = ir.node("Max", [value, least.outputs[0]], name=fresh_name(graph, f"{name}/raised"))
    for made, shape in ((least, largest.shape), (lifted, value.shape)):
        made.outputs[0].name, made.outputs[0].type, made.outputs[0].shape = f"{made.name}/value", value.type, shape
    graph.insert_before(node, [least, lifted])
    node.replace_input_with(0, lifted.outputs[0])


def _largest(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    """The largest value of every row `[…, 1]`, right behind `value`."""
    import onnx_ir as ir

    assert value.shape is not None
    node = reduction(graph, "ReduceMax", value, [len(value.shape) - 1], f"{name}/largest")
    result = node.outputs[0]
    result.shape = ir.Shape([*value.shape[:-1], 1])
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, node)
    return result
