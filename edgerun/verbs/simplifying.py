"""A foreign graph in fewer nodes: constants computed, maps inside their layers, what repeats written once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import external, parity
from edgerun.converters import _merges, _normalize, _ort, _torch_graph, _transposes
from edgerun.errors import EdgerunError, out_of_memory
from edgerun.model import Model
from edgerun.parity import Parity
from edgerun.passes import Conversion
from edgerun.quantize import fold
from edgerun.runtime import TensorSpec
from edgerun.verbs import proving

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

log = logging.getLogger("edgerun")
BESIDE = 1 << 28  # bytes of weights beyond which they are written without a copy of them in memory
NOTHING = 1e-6  # that an output is away from 0 or 1 where it shows nothing
_SATURATING = ("Sigmoid", "Softmax", "HardSigmoid", "Tanh")
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


def proven(
    found: Conversion, path: Path, data: Any, contract: Mapping[str, Any] | None
) -> tuple[Conversion, dict[str, Parity] | None]:
    """What was found in fewer nodes, proven, in `path`; as it was, and None, where it is not.

    That is for the graphs of others, and those with an If, into which exporters do not look.
    """
    meant = found.foreign is not None or any(node.op_type == "If" for node in found.model.ir.graph.all_nodes())
    try:
        model = simplified(found.model) if meant else found.model
    except Exception as error:  # the passes raise whatever they meet in a graph that nobody tried
        if out_of_memory(error):
            raise
        log.info("the graph stays as it came: %s", _ort.first_line(error))
        return found, None
    if model is found.model:
        return found, None
    before, after = count(found.model), count(model)
    log.info("simplified: %d nodes of %d", after, before)
    told = {**found.told, "nodes": {"before": before, "after": after}}
    model.save(path, beside=BESIDE)
    try:
        return compared(replace(found, model=model, told=told, taps=()), path, data, contract)
    except EdgerunError as error:  # a runtime may refuse the graph, too
        reason = f"{error.what}: {error.got}"
    log.info("the simplified graph is not proven, so that the graph stays as it came: %s", reason)
    return found, None


def compared(
    found: Conversion, path: Path, data: Any, contract: Mapping[str, Any] | None
) -> tuple[Conversion, dict[str, Parity]]:
    """What was found, which is in `path`, with its proof. Raises what `proving.proven` raises.

    Where outputs cannot prove it, because they saturate, what stands before their last Sigmoid or Softmax may.
    """
    failed, proofs = None, dict[str, Parity]()
    try:
        proofs = proving.proven(found, path, data, contract)
        if found.bare is None or not _mute(found, proofs):
            return found, proofs
    except EdgerunError as error:
        failed = error
    if (parts := bared_both(found)) is not None:
        bare, ends = parts
        log.info("comparing what stands before %s", ", ".join(f"{op} of {name}" for name, op in ends.items()))
        bare.model.save(path.with_name("bared.onnx"))
        try:
            proofs = proving.proven(bare, path.with_name("bared.onnx"), data, contract)
            return replace(found, told={**found.told, "compared before": ends}), proofs
        except EdgerunError as error:
            failed = failed or error
    if failed is not None:
        raise failed
    return found, proofs


def _mute(found: Conversion, proofs: Mapping[str, Parity]) -> bool:
    """Whether outputs agree to the bit because they are all but 0, 1 or -1 there, whatever is computed before."""
    if found.bare is None or any(output.relative_error for output in next(iter(proofs.values())).outputs):
        return False
    drawn = list(found.feeds) or [feeds for feeds, _ in parity.accepted(found.model, found.run)]
    ran = [found.run(feeds) for feeds in drawn]
    near = [np.abs(np.abs(run[name][..., None]) - (0, 1)).min(-1) for run in ran for name in found.bare[0]]
    return all(bool((distance < NOTHING).all()) for distance in near)


def simplified(model: Model) -> Model:
    """`model` with constant subgraphs computed (none grows by more than 2²⁰ elements; `edgerun.rearranged` has weights
    that are only moved), BatchNormalization, Mul and Add per channel inside the layers next to them, hard-swish in one
    operator, Reshapes, Concats, Slices and Transposes joined, nothing computed twice.

    Values agree to float rounding. A quantized model stays as it is, and so do one with another domain's operators and
    one over 1.8 GB. Sizes are inferred from the inputs alone: what a file says of the values between is no proof.
    """
    if model.is_large() or not _plain(model.ir):
        return model
    import onnx
    import onnx_ir.passes.common as common

    graph = model.clone()
    _forget(graph)
    fold.constants(graph)
    fold.maps(graph)
    _torch_graph.settle(graph)
    common.RemoveUnusedNodesPass()(graph)
    common.CommonSubexpressionEliminationPass()(graph)
    _merges.merge(graph, _merges.known(onnx.ModelProto.FromString(external.split(graph)[0])))
    _transposes.meet(graph)
    graph = _normalize.inferred(_normalize.normalize(graph))
    _sink(graph)
    made = Model.of(graph)
    same = made.inputs == model.inputs and list(map(_told, made.outputs)) == list(map(_told, model.outputs))
    return made if same and count(made) <= count(model) else model


def bared(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model whose outputs are what stands before a last Sigmoid or Softmax, under their names; and these operators.

    Where all outputs come near 0 or 1, as a detector's do on noise, rounding is all that they show.
    """
    import onnx

    made, found = onnx.ModelProto.FromString(proto.SerializeToString()), dict[str, str]()
    outputs = {value.name for value in made.graph.output}
    for node in made.graph.node:
        if node.op_type in _SATURATING and node.domain in ("", "ai.onnx") and node.output[0] in outputs:
            told = sorted(f"{a.name}={onnx.helper.get_attribute_value(a)}" for a in node.attribute)
            found[node.output[0]] = " ".join([node.op_type, *told])
            node.op_type = "Identity"
            del node.attribute[:]
    return made, found


def bared_both(found: Conversion) -> tuple[Conversion, dict[str, str]] | None:
    """The model and its source `bared`, to be compared, and where; None where they do not end alike, or in neither."""
    if found.bare is not None:
        ends, run = found.bare
        right, same = bared(found.model.to_proto())
        made = replace(found, model=Model.from_proto(right), run=run, run64=None, taps=())
        return (made, same) if ends == same else None
    if found.foreign is None:
        return None
    source = external.read(found.foreign) if isinstance(found.foreign, Path) else found.foreign
    (left, ends), (right, same) = bared(source), bared(found.model.to_proto())
    older = _normalize.opset_of(source) != _normalize.opset_of(right)  # Softmax means another thing before 13
    if not ends or ends != same or (older and any(op.startswith("Softmax") for op in ends.values())):
        return None
    return replace(found, model=Model.from_proto(right), run=_ort.runner(left)), ends


def _told(output: TensorSpec) -> tuple[str, str, int]:
    """What inference may not change of an output: it may come to know more of its sizes."""
    return output.name, output.dtype, len(output.shape)


def count(model: Model) -> int:
    """How many nodes there are, those of branches and loops included."""
    return sum(1 for _ in model.ir.graph.all_nodes())


def _plain(model: ir.Model) -> bool:
    """Whether all operators are the standard's, and compute in float."""
    kinds = {(node.domain, node.op_type) for node in model.graph.all_nodes()}
    return not any(
        domain not in ("", "ai.onnx") or op in _QUANTIZED or op.startswith("QLinear") or op.endswith("Integer")
        for domain, op in kinds
    )


def _sink(model: ir.Model) -> None:
    """Give a weight that one branch alone reads to that branch: ONNX Runtime packs what it finds there beforehand.

    Weights that nothing reads any more, nor a branch that is gone, are dropped: the passes leave some.
    """
    graphs = {id(graph): graph for node in model.graph.all_nodes() if (graph := node.graph) is not None}
    for graph in graphs.values():
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                graph.initializers.pop(name)
    for name, value in list(model.graph.initializers.items()):
        readers = {id(use.node.graph): use.node.graph for use in value.uses()}
        (reader,) = readers.values() if len(readers) == 1 else (None,)
        if reader is not None and reader is not model.graph and not value.is_graph_output():
            model.graph.initializers.pop(name)
            reader.register_initializer(value)


def _forget(model: ir.Model) -> None:
    """Take away what the file says of the sizes of values between inputs and outputs."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
