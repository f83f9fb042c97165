"""The walk over a TFLite net: every operator by its rule, what computes on codes between Q/DQ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgerun.converters import _tflite_spectra
from edgerun.converters._tflite_files import Net, Operator, Tensor
from edgerun.converters._tflite_graph import RULES, Call, Graph, Value
from edgerun.errors import EdgerunError, Unsupported


def walk(graph: Graph, net: Net, values: dict[int, Value], refused: list[str]) -> None:
    """Write every operator; `values` has the net's inputs and gets all that is made, codes without a real name.

    An operator that cannot be written adds its line to `refused` and the walk goes on, so that one run names them all.
    """
    unknown = set[int]()
    for operator in net.operators:
        outputs = [net.tensors[index] for index in operator.outputs]
        if not outputs:
            raise EdgerunError(f"the file is damaged: {operator.kind} makes nothing", do="export it again")
        graph.scope = outputs[0].name.partition(";")[0].rpartition(":")[0] or outputs[0].name or operator.kind
        try:
            made = _written(graph, net, operator, outputs, values)
        except Unsupported as error:
            if not any(index in unknown for index in operator.inputs):  # else it may well follow from what was refused
                refused.append(f"{operator.kind} ({outputs[0].name[:60]}): {error.what}")
            unknown |= set(operator.outputs)
            made = [Value(f"refused_{i}", t.shape, "float32" if t.quant else t.dtype) for i, t in enumerate(outputs)]
        values.update(zip(operator.outputs, made, strict=True))


def _written(
    graph: Graph, net: Net, operator: Operator, outputs: Sequence[Tensor], values: dict[int, Value]
) -> list[Value]:
    if operator.kind not in RULES:
        raise Unsupported("not supported")
    inputs = [
        None if index < 0 or net.tensors[index].variable else read(graph, net, index, values)
        for index in operator.inputs
    ]
    try:
        emit = RULES[operator.kind].emit
        parts = _tflite_spectra.read(net, operator.outputs[0]) if operator.kind == "RFFT2D" else frozenset[str]()
        call = Call(operator.kind, operator.options, inputs, outputs, parts)
        complexes = any(value is not None and value.imaginary is not None for value in inputs)
        found = _tflite_spectra.on_parts(emit, graph, call) if complexes else emit(graph, call)
    except EdgerunError:
        raise
    except Exception as error:  # whatever a rule meets in sizes, options and constants that do not belong together
        raise EdgerunError(f"the file is damaged: {operator.kind} does not fit its tensors",
                           got=f"{outputs[0].name[:60]}: {error}", do="export it again") from error  # fmt: skip
    results = [found] if isinstance(found, Value) else list(found)
    if len(results) != len(outputs):
        raise EdgerunError(f"the file is damaged: {operator.kind} does not fit its tensors",
                           got=f"{len(outputs)} outputs", wanted=str(len(results)), do="export it again")  # fmt: skip
    return [
        replace(value, codes="")
        if tensor.quant is None and value.data is None
        else value
        if tensor.quant is None
        else graph.coded(value, tensor.quant.unsigned)
        for value, tensor in zip(results, outputs, strict=True)
    ]


def read(graph: Graph, net: Net, index: int, values: dict[int, Value]) -> Value:
    """A tensor as a rule reads it: real numbers, or a constant."""
    if index in values:
        value = values[index]
        return graph.number(value) if value.codes else value
    tensor = net.tensors[index]
    if tensor.data is None:
        raise Unsupported(f"it reads {tensor.name!r}, which nothing makes: a state that lives from run to run")
    dtype = "float32" if tensor.quant else tensor.dtype
    return Value("", tensor.shape, dtype, data=tensor.data, quant=tensor.quant)
