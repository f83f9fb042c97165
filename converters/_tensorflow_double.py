"""The flat TensorFlow graph in float64: the judge of the converted model and of the source's own rounding."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgerun import draws
from edgerun.converters._ort import first_line
from edgerun.converters._tensorflow_graph import Tensor, trace
from edgerun.metrics import Difference
from edgerun.passes import Feeds, Runner
from edgerun.runtime import TensorSpec

log = logging.getLogger("edgerun")
_FLOAT, _DOUBLE = 1, 2  # DataType
_WIDER = {_FLOAT: _DOUBLE, 8: 18}  # and complex64 to complex128
_NEAR = 1e-3  # relative; a twin further from its source than rounding explains is no judge


def twin(graph: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor], specs: Sequence[TensorSpec],
         run: Runner) -> Runner | None:  # fmt: skip
    """The graph with every float32 made float64, or None where an operator fixes float32, or the result is not near
    what `run`, the source, gives."""
    import tensorflow as tf  # type: ignore[import-untyped]

    wide = [replace(spec, dtype=_wide(spec.dtype)) for spec in specs]
    names = {entry.name: _wide(entry.dtype) for entry in outputs}
    try:
        function = trace(_widened(graph), inputs, outputs, wide)

        def run64(feeds: Feeds) -> dict[str, np.ndarray]:
            results = function(*[tf.constant(feeds[spec.name].astype(spec.dtype)) for spec in wide])
            return {name: result.numpy() for name, result in zip(names, results, strict=True)}

        feeds = draws.feeds(specs, draws.sizes(specs, 2, 64), seed=0)
        source, exact = run(feeds), run64(feeds)
    except Exception as error:  # whatever an operator of one dtype raises
        log.info("the source does not run in float64: %s", first_line(error))
        return None
    floats = [name for name, array in source.items() if array.dtype.kind == "f"]
    if not all(exact[name].dtype == names[name] for name in floats) or not all(
        Difference.of(exact[name], source[name]).relative_error <= _NEAR for name in floats
    ):
        log.info("the source in float64 is not near the source: compared in its own precision")
        return None
    return run64


def _wide(dtype: str) -> str:
    return "float64" if dtype == "float32" else dtype


def _widened(graph: Any) -> Any:
    """A copy of the GraphDef in which every dtype is the wider one. Raises ValueError for a training BatchNorm."""
    import tensorflow as tf

    graph = type(graph).FromString(graph.SerializeToString())
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        for node in [node for node in nodes if node.op.startswith("FusedBatchNorm")]:
            _plain_batchnorm(node, nodes)
        for value in [value for node in nodes for value in node.attr.values()]:
            if value.HasField("type"):
                value.type = _WIDER.get(value.type, value.type)
            if value.HasField("func"):
                value.func.name = _twin_of(value.func.name)
            if value.HasField("list"):
                for function in value.list.func:
                    function.name = _twin_of(function.name)
                value.list.type[:] = [_WIDER.get(kind, kind) for kind in value.list.type]
            if value.HasField("tensor") and value.tensor.dtype in _WIDER:
                array = tf.make_ndarray(value.tensor)
                value.tensor.CopyFrom(tf.make_tensor_proto(array, _WIDER[value.tensor.dtype]))
    for function in graph.library.function:
        function.signature.name = _twin_of(function.signature.name)
        for argument in (*function.signature.input_arg, *function.signature.output_arg):
            argument.type = _WIDER.get(argument.type, argument.type)
    return graph


def _twin_of(function: str) -> str:
    """Another name: TensorFlow keeps one function of a name in the whole process."""
    return f"{function}_float64" if function else ""


def _plain_batchnorm(node: Any, nodes: Any) -> None:
    """(x - mean) · scale / sqrt(variance + epsilon) + offset, since the fused operator is float32 alone."""
    import tensorflow as tf

    if node.attr["is_training"].b or node.attr["data_format"].s not in (b"", b"NHWC", b"NDHWC"):
        raise ValueError("a batch normalization that trains, or has channels first")
    x, scale, offset, mean, variance, *control = node.input
    epsilon = nodes.add(name=f"{node.name}/epsilon", op="Const")
    epsilon.attr["dtype"].type = _FLOAT
    epsilon.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(node.attr["epsilon"].f, tf.float32))
    steps = {"sum": ("AddV2", variance, epsilon.name), "inverse": ("Rsqrt", f"{node.name}/sum"),
             "factor": ("Mul", f"{node.name}/inverse", scale), "centred": ("Sub", x, mean),
             "scaled": ("Mul", f"{node.name}/centred", f"{node.name}/factor")}  # fmt: skip
    for name, (op, *sources) in steps.items():
        nodes.add(name=f"{node.name}/{name}", op=op, input=sources).attr["T"].type = _FLOAT
    node.op = "AddV2"
    node.attr.clear()
    node.attr["T"].type = _FLOAT
    del node.input[:]
    node.input.extend([f"{node.name}/scaled", offset, *control])
