"""Comparing a net of codes with its source, cut at every value of codes.

One rounding that falls the other way moves all that is behind it, and no bound on the outputs follows from that. So
each value of codes in the written graph is computed from the source's own codes before it: there a difference of one
step is the most that two ways of rounding the same number make, and what all the pieces compute, the graph does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun import draws, input_ranges, parity
from edgerun.converters import _ort
from edgerun.converters._tflite_files import Net, Quant, shifted
from edgerun.converters._tflite_graph import RULES, Value
from edgerun.converters._tflite_source import Source
from edgerun.model import Model
from edgerun.passes import Feeds, Runner
from edgerun.pieces import Part
from edgerun.taps import Tap, Taps

if TYPE_CHECKING:
    import onnx

_ENDS = {"LOGISTIC": "Sigmoid", "TANH": "Tanh"}
_TRIES = 30  # draws in which both ways of an IF are looked for
WAYS = "random, from seed 0: floats N(0, 1), integers uniform, until every IF went both ways"
log = logging.getLogger("edgerun")
DATA = "random, seed 0: codes, and floats that become codes, uniform over their range"


def coded(net: Net) -> bool:
    """Does the net compute on codes?"""
    return any(tensor.quant is not None and tensor.data is None for tensor in net.tensors)


def feeds(net: Net, model: Model) -> list[Feeds]:
    """Three draws, batches of 1, 3 and 2 where the batch is open; codes, and what becomes codes, over their range."""
    below, found = input_ranges.ranges(model.ir), list[Feeds]()
    for number, batch in enumerate((1, 3, 2)):
        drawn = draws.feeds(model.inputs, draws.sizes(model.inputs, batch, 32), number, below)
        rng = np.random.default_rng(number)
        for spec, index in zip(model.inputs, net.inputs.values(), strict=True):
            own, shape = net.tensors[index].quant, drawn[spec.name].shape
            if (quant := own or _behind(net, index)) is not None:
                ends = np.iinfo(quant.zero.dtype)
                codes = rng.integers(ends.min, ends.max, shape, quant.zero.dtype, endpoint=True)
                drawn[spec.name] = codes if own else quant.real(codes)
        found.append(drawn)
    return found


def _behind(net: Net, index: int) -> Quant | None:
    """The codes that an input is rounded to at once."""
    rounded = (o.outputs[0] for o in net.operators if o.kind == "QUANTIZE" and o.inputs[0] == index)
    return next((net.tensors[output].quant for output in rounded), None)


def bare(net: Net, data: bytes, source: Source) -> tuple[Mapping[str, str], Runner] | None:
    """For `Conversion.bare`: which outputs a Sigmoid or a Tanh ends, and the source up to there; None without one."""
    makers = {index: operator for operator in net.operators for index in operator.outputs}
    ends = {name: makers[index] for name, index in net.outputs.items() if index in makers}
    ends = {name: operator for name, operator in ends.items() if operator.kind in _ENDS}
    if not ends:
        return None
    before = {name: ends[name].inputs[0] if name in ends else index for name, index in net.outputs.items()}
    up_to = Source(data, replace(net, outputs=before), source.names)
    return {name: _ENDS[operator.kind] for name, operator in ends.items()}, up_to.run


def both_ways(net: Net, model: Model, source: Source) -> list[Feeds]:
    """The usual draws and those of more seeds in which an IF takes a way that it did not take; none without an IF.

    Which way is never taken is told: that one is not compared.
    """
    tests = {operator.inputs[0]: net.tensors[operator.outputs[0]].name for operator in net.operators
             if operator.kind == "IF"}  # fmt: skip
    went: dict[int, set[bool]] = {index: set() for index in tests}

    def watched(fed: Feeds) -> dict[str, np.ndarray]:
        made = source.run(fed)
        for index, ways in went.items():
            ways.add(bool(source.tensor(index).reshape(-1)[0]))
        return made

    if not tests:
        return []
    found = [fed for fed, _ in parity.accepted(model, watched)]
    for seed in range(len(found), _TRIES):
        if all(len(ways) == 2 for ways in went.values()):
            break
        before = {index: set(ways) for index, ways in went.items()}
        sizes = [array.shape for array in found[seed % parity.DRAWS].values()]
        specs = [replace(spec, shape=shape) for spec, shape in zip(model.inputs, sizes, strict=True)]
        watched(fed := draws.feeds(specs, {}, seed, input_ranges.ranges(model.ir)))
        found += [fed] if went != before else []
    for index, ways in went.items():
        if len(ways) < 2:
            way = "then" if ways == {True} else "else"
            log.warning("IF %r takes its %s way on every input that was drawn: the other is not compared; give --data "
                        "with inputs for it", tests[index], way)  # fmt: skip
    return found


def taps(net: Net, values: Mapping[int, Value], source: Source) -> Taps:
    """What the interpreter computes at every tensor of a net of floats; `values` as in `parts`."""
    kinds = {index: operator.kind for operator in net.operators for index in operator.outputs}

    def recorded(feeds: Feeds) -> Mapping[str, Tap]:
        source.invoke(feeds)
        made = {index: value for index, value in values.items() if index in kinds}
        return {
            value.name: Tap(f"the result of {kinds[index]} {net.tensors[index].name!r}", _lying(tensor, value))
            for index, value in made.items()
            if (tensor := source.tensor(index)).dtype.kind == "f"
        }

    return recorded


def parts(
    net: Net, values: Mapping[int, Value], proto: onnx.ModelProto, source: Source, feeds: Sequence[Feeds]
) -> Iterator[Part]:
    """Every value of codes in `proto`, and every output, from the values of codes and inputs right before it.

    `values` says how the net's tensors are called in `proto` and how they lie there.
    """
    makers = {name: node for node in proto.graph.node for name in node.output}
    kinds = {index: operator.kind for operator in net.operators for index in operator.outputs}
    doors = set(net.inputs.values())
    known: dict[str, int] = {}
    for index, value in values.items():
        if value.codes or index in doors:  # a value that only lies otherwise has the name of another, which came first
            known.setdefault(value.codes or value.name, index)
    known = {name: index for name, index in known.items() if name in makers or index in doors}
    targets = {name: index for name, index in known.items() if index not in doors}
    outputs = {
        name: index for name, index in net.outputs.items() if name not in known and index in kinds and name in makers
    }
    for fed in feeds:
        source.invoke(fed)
        for name, index in (*targets.items(), *outputs.items()):
            piece, reads = _piece(proto, makers, name, known.keys() - {name})
            before = {known[read]: read for read in reads}
            given = {read: _lying(source.tensor(i), values[i]) for i, read in before.items()}
            wanted = source.tensor(index)
            if name in targets:
                wanted = _lying(wanted, values[index])
            run = _ort.runner(_model(proto, piece, given, name, wanted))
            yield Part(kinds[index], run, given, {name: wanted}, RULES[kinds[index]].steps)


def _lying(array: np.ndarray, value: Value) -> np.ndarray:
    """A tensor of the source as it lies in ONNX."""
    if array.dtype == np.int8 and value.quant is not None and value.quant.zero.dtype == np.uint8:
        array = shifted(array)
    return value.lying(array)


def _piece(
    proto: onnx.ModelProto, makers: Mapping[str, onnx.NodeProto], name: str, ends: set[str]
) -> tuple[list[onnx.NodeProto], list[str]]:
    """The nodes that make `name` from values in `ends`, in the graph's order, and those of `ends` that they read."""
    found, reads, asked = set[str](), dict[str, None](), [name]
    while asked:
        node = makers[asked.pop()]
        if node.output[0] in found:
            continue
        found.add(node.output[0])
        for read in node.input:
            if read in ends:
                reads[read] = None
            elif read in makers:
                asked.append(read)
    return [node for node in proto.graph.node if node.output[0] in found], list(reads)


def _model(
    proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], given: Feeds, name: str, wanted: np.ndarray
) -> bytes:
    from onnx import helper

    def door(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

    read = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    graph = helper.make_graph(nodes, "piece", [door(n, a) for n, a in given.items()], [door(name, wanted)], constants)
    made = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    return bytes(made.SerializeToString())
