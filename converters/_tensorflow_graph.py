"""From a frozen TensorFlow graph to ONNX: one flat function, tf2onnx, and the door."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgerun.converters._ort import first_line
from edgerun.converters._tensorflow_sizes import refuse_larger
from edgerun.errors import EdgerunError, Unsupported
from edgerun.passes import Runner
from edgerun.runtime import TensorSpec

if TYPE_CHECKING:
    import onnx

_UNLIKELY = (7919, 7907, 7901, 7883, 7879, 7877, 7873, 7867)  # primes, as sizes to follow through the graph


@dataclass(frozen=True)
class Tensor:
    """One input or output: its name at the door, where it is in the graph (`node:0`), dtype and sizes.

    A free dimension is None, and so is `shape` where even the rank is free.
    """

    name: str
    at: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Source:
    """A signature with its variables as constants (a GraphDef), and the signature itself as a function."""

    graph: Any
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    run: Runner


def tensor(name: str, at: str, dtype: Any, shape: Any) -> Tensor:
    """A Tensor from TensorFlow's own dtype and shape. Raises Unsupported for text and other things without numbers."""
    import tensorflow as tf  # type: ignore[import-untyped]

    kind, dims = tf.as_dtype(dtype), tf.TensorShape(shape)
    if not at or not (kind.is_floating or kind.is_integer or kind.is_bool) or kind.name == "bfloat16":
        raise Unsupported(
            f"{name!r} is no tensor of numbers", got=kind.name if at else "a composite tensor",
            do="export a signature that takes and gives numbers; keep text outside the model",
        )  # fmt: skip
    return Tensor(name, at, kind.name, None if dims.rank is None else tuple(dims.as_list()))


def trace(graph: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor], specs: Sequence[TensorSpec],
          dims: Mapping[str, int] | None = None) -> Any:  # fmt: skip
    """A GraphDef as a TensorFlow function of inputs as in `specs`; `dims` are sizes for dimensions that stay free."""
    import tensorflow as tf

    sizes = dims or {}
    signature = [
        tf.TensorSpec([d if isinstance(d, int) else sizes.get(d) for d in spec.shape], spec.dtype, name=f"input_{i}")
        for i, spec in enumerate(specs)
    ]
    present = {node.name for node in graph.node}

    def body(*arguments: Any) -> Any:
        pairs = zip(inputs, arguments, strict=True)
        feeds = {entry.at: argument for entry, argument in pairs if entry.at.partition(":")[0] in present}
        found = tf.import_graph_def(graph, input_map=feeds, return_elements=[entry.at for entry in outputs], name="")
        return [tf.identity(value) for value in found]

    return tf.compat.v1.wrap_function(body, signature)


def flat(source: Source, specs: Sequence[TensorSpec]) -> Source:
    """The source as one graph without calls inside, of inputs as in `specs`.

    Raises EdgerunError where these don't fit or a tensor is larger than memory, Unsupported over 2 GiB,
    where a GraphDef ends.
    """
    from tensorflow.python.framework import convert_to_constants  # type: ignore[import-untyped]

    try:
        function = convert_to_constants.convert_variables_to_constants_v2(
            trace(_inlinable(source.graph), source.inputs, source.outputs, specs),
            lower_control_flow=False,
            aggressive_inlining=True,
        )
    except Exception as error:  # ValueError for sizes that do not fit, or over 2 GiB
        if "2GB" in str(error) or "too long" in str(error):
            raise Unsupported("the model is over 2 GB", do="export it in parts") from error
        raise EdgerunError(
            "TensorFlow cannot trace the signature for these inputs", got=first_line(error),
            wanted=", ".join(map(str, specs)), do="give --input with sizes that fit",
        ) from error  # fmt: skip
    refuse_larger(function.graph)
    inputs = [replace(entry, at=value.name) for entry, value in zip(source.inputs, function.inputs, strict=True)]
    outputs = [replace(entry, at=value.name) for entry, value in zip(source.outputs, function.outputs, strict=True)]
    return Source(function.graph.as_graph_def(), inputs, outputs, source.run)


def loops(graph: Any) -> bool:
    """Has the GraphDef a loop, functions included?"""
    nodes = (*graph.node, *(node for function in graph.library.function for node in function.node_def))
    return any(node.op in {"While", "StatelessWhile", "LoopCond"} for node in nodes)


def to_onnx(source: Source, specs: Sequence[TensorSpec], opset: int) -> onnx.ModelProto:
    """A flat source through tf2onnx, its door as in `specs`; a free dimension of an output has the name of an input's
    where TensorFlow's shape inference says that they are equal.

    Raises Unsupported naming every operator that tf2onnx leaves.
    """
    proto = _converted(_simpler(source.graph), source.inputs, source.outputs, specs, opset)
    _write_door(proto, specs, source.outputs, _shapes(source.graph, source.inputs, source.outputs, specs))
    return proto


def _inlinable(graph: Any) -> Any:
    """Without what keeps a call from being inlined, or fixes shapes and places of its own."""
    graph = type(graph).FromString(graph.SerializeToString())
    for function in graph.library.function:
        function.attr.pop("_XlaMustCompile", None)
    for node in (*graph.node, *(node for function in graph.library.function for node in function.node_def)):
        node.device = ""
        for name in ("_XlaMustCompile", "_output_shapes", "_class"):
            node.attr.pop(name, None)
    return graph


def _simpler(graph: Any) -> Any:
    """A copy that writes what tf2onnx lacks with what it has.

    erfc x = 1 - erf x, log1p x = log(1 + x), expm1 x = exp x - 1.
    """
    import tensorflow as tf

    graph = type(graph).FromString(graph.SerializeToString())
    for node in list(graph.node):
        if node.op not in {"Erfc", "Log1p", "Expm1"}:
            continue
        one = graph.node.add(name=f"{node.name}/one", op="Const")
        one.attr["dtype"].type = node.attr["T"].type
        one.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1, node.attr["T"].type))
        inner = graph.node.add(name=f"{node.name}/inner", op={"Erfc": "Erf", "Log1p": "AddV2", "Expm1": "Exp"}[node.op])
        inner.attr["T"].type = node.attr["T"].type
        inner.input.extend([node.input[0], one.name] if node.op == "Log1p" else [node.input[0]])
        node.input[0] = one.name if node.op == "Erfc" else inner.name
        node.input.extend({"Erfc": [inner.name], "Log1p": [], "Expm1": [one.name]}[node.op])
        node.op = "Log" if node.op == "Log1p" else "Sub"
    return graph


def _converted(graph: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor], specs: Sequence[TensorSpec],
               opset: int) -> onnx.ModelProto:  # fmt: skip
    import tensorflow as tf
    from tf2onnx import optimizer, tf_loader, tfonnx, utils  # type: ignore[import-untyped]

    utils.INTERNAL_NAME = 0  # it counts through the process, and names shall not depend on what was converted before
    feeds, results = [entry.at for entry in inputs], [entry.at for entry in outputs]
    names = dict(zip(feeds, (spec.name for spec in specs), strict=True)) | {entry.at: entry.name for entry in outputs}
    complaints = _Complaints()
    logger = logging.getLogger("tf2onnx")
    logger.addHandler(complaints)
    logger.propagate, told = False, logger.propagate
    try:
        with tf.Graph().as_default():
            graph = tf_loader.tf_optimize(feeds, results, graph)
        with tf.Graph().as_default() as loaded:
            tf.import_graph_def(graph, name="")
            found = tfonnx.process_tf_graph(loaded, continue_on_error=True, opset=opset, input_names=feeds,
                                            output_names=results, tensors_to_rename=names)  # fmt: skip
            proto: onnx.ModelProto = optimizer.optimize_graph(found).make_model("model")
    except MemoryError:
        raise
    except Exception as error:  # whatever tf2onnx trips over: ValueError, KeyError, AttributeError, its own
        raise Unsupported("tf2onnx cannot convert the signature", got=complaints.text() or first_line(error),
                          wanted=f"operators it knows; here are {_listed(graph)}",
                          do="export a signature without the named operator") from error  # fmt: skip
    finally:
        logger.removeHandler(complaints)
        logger.propagate = told
    if left := _left(proto.graph):
        raise Unsupported("tf2onnx leaves operators without an ONNX form", got=", ".join(sorted(left)),
                          wanted=complaints.text() or None, do="export a signature without them")  # fmt: skip
    return proto


class _Complaints(logging.Handler):
    """What tf2onnx logs as errors: it goes on after them, and its exception is often another."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage().strip().splitlines()[0][:200])

    def text(self) -> str:
        return "; ".join(dict.fromkeys(self.lines[:3]))


def _listed(graph: Any) -> str:
    plain = {"Const", "Identity", "NoOp", "Placeholder"}
    return ", ".join(sorted({node.op for node in graph.node} - plain)[:40])


def _left(graph: onnx.GraphProto) -> set[str]:
    """The operators of a graph, branches included, that ONNX does not define."""
    from onnx import defs

    left = set[str]()
    for node in graph.node:
        if not defs.has(node.op_type, node.domain):
            left.add(node.op_type)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                left |= _left(inner)
    return left


def _shapes(graph: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor],
            specs: Sequence[TensorSpec]) -> list[list[int | str | None] | None]:  # fmt: skip
    """Every output's sizes: a number, the name of the input dimension that it equals, or None.

    Equal is what TensorFlow infers to be the same number when every free dimension is an unlikely one of its own.
    """
    free = trace(graph, inputs, outputs, specs).outputs
    names = sorted({d for spec in specs for d in spec.shape if isinstance(d, str)})
    sizes = dict(zip(names, _UNLIKELY, strict=False))
    try:
        fixed = trace(graph, inputs, outputs, specs, sizes).outputs
    except Exception:  # ValueError: sizes that the network cannot take
        fixed = free
    called = {size: name for name, size in sizes.items()}
    found: list[list[int | str | None] | None] = []
    for plain, sized in zip(free, fixed, strict=True):
        if plain.shape.rank is None:
            found.append(None)
            continue
        more = sized.shape.as_list() if sized.shape.rank is not None else [None] * plain.shape.rank
        found.append([a if a is not None else called.get(b) for a, b in zip(plain.shape.as_list(), more, strict=True)])
    return found


def _write_door(proto: onnx.ModelProto, specs: Sequence[TensorSpec], outputs: Sequence[Tensor],
                shapes: Sequence[Sequence[int | str | None] | None]) -> None:  # fmt: skip
    import numpy as np
    from onnx import helper

    def value(name: str, dtype: str, shape: Any) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    del proto.graph.input[:], proto.graph.output[:], proto.graph.value_info[:]  # tf2onnx's own names of sizes go too
    proto.graph.input.extend(value(spec.name, spec.dtype, spec.shape) for spec in specs)
    proto.graph.output.extend(value(o.name, o.dtype, shape) for o, shape in zip(outputs, shapes, strict=True))
