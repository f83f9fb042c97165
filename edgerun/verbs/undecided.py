"""Which operators a refusal is about: those that no comparison can judge, since they draw random numbers or ONNX says
two things of them, those that fail in a run, and those that are newer than a runtime."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.limits import Issue

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.model import Model

DRAWING = frozenset({"Bernoulli", "Multinomial"})
# What is multiplied by zero, or by a scale that a feed says, can be compared all the same.
NOISE = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"})
DRAWS = "draws its own random numbers"
TRAINS = f"{DRAWS} in training mode"
# ONNX's text has x·(length_original - 1)/(length_resized - 1), and length_resized is the whole number of samples that
# come out: both runtimes and PyTorch divide so. Its evaluator, and so its cases, take size·scale as it is.
LENGTHS = (
    "with align_corners, and scales that end between two samples, ONNX's text divides by another length than its "
    "evaluator and its cases do: give sizes in place of scales"
)


def refuse(model: Model) -> None:
    """Raise Unsupported for nodes whose results are other ones in every run and on every runtime, whatever is fed."""
    if found := [f"{named(node)}: {reason}" for node, reason in _drawing(model)]:
        do = "a trained model is exported in inference mode (PyTorch: model.eval())" if TRAINS in found[0] else None
        raise Unsupported("no engine of this model can be compared with the reference", got="; ".join(found), do=do)


def told(refusal: EdgerunError, model: Model) -> EdgerunError:
    """What a refused `model` is told: of one that was compared in vain the node that no comparison can judge, and of a
    run that failed the node that the runtime speaks of; else the refusal as it is."""
    got = str(refusal.got)
    if isinstance(refusal, GateFailed):
        found = [f"{named(node)}: {reason}" for node, reason in _undecided(model)]
        if not found:
            return refusal
        return Unsupported(refusal.what, got=f"{'; '.join(found)}; {got}", wanted=refusal.wanted, do=refusal.do)
    nodes = list(model.ir.graph.all_nodes())
    if not isinstance(refusal, Unsupported) or any(f"({node.op_type})" in got for node in nodes):
        return refusal
    words = set(re.findall(r"\w+", got))
    node = next((node for node in nodes if node.op_type in words), None)
    return refusal if node is None else Unsupported(refusal.what, got=f"{named(node)}: {got}", do=refusal.do)


def newer(model: Model, opset: int) -> list[Issue]:
    """The nodes whose operators, as they are used, came after `opset`."""
    from edgerun.converters import _lower

    nodes = _lower.too_new(model.to_proto(), opset)
    return [Issue(n.name or next(filter(None, n.output), ""), n.op_type, f"newer than opset {opset}") for n in nodes]


def named(node: ir.Node) -> str:
    """`name (op)`, where it has no name by what it computes."""
    return f"{node.name or next((v.name for v in node.outputs if v.name), '')} ({node.op_type})"


def _drawing(model: Model) -> Iterator[tuple[ir.Node, str]]:
    for node in model.ir.graph.all_nodes():
        if node.op_type in DRAWING:
            yield node, DRAWS
        elif node.op_type == "Dropout" and _trains(node) is True:
            yield node, TRAINS


def _undecided(model: Model) -> Iterator[tuple[ir.Node, str]]:
    for node in model.ir.graph.all_nodes():
        if node.op_type in NOISE:
            yield node, DRAWS
        elif node.op_type == "Dropout" and _trains(node) is None:
            yield node, TRAINS
        elif node.op_type == "Resize" and _ends_between(node):
            yield node, LENGTHS


def _trains(node: ir.Node) -> bool | None:
    """Whether a Dropout drops anything; None where feeds say that."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    training, ratio = _constant(node.inputs[2]), _constant(node.inputs[1])
    if training is not None and not training.any() or ratio is not None and not ratio.any():
        return False
    return True if training is not None and (ratio is not None or node.inputs[1] is None) else None


def _ends_between(node: ir.Node) -> bool:
    """Whether a Resize with align_corners may have scales of which a size is no whole number."""
    if node.attributes.get_string("coordinate_transformation_mode", "") != "align_corners":
        return False
    source, scales = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    if scales is None or node.attributes.get_string("mode", "nearest") == "nearest":
        return False
    known, shape = _constant(scales), source.shape if source is not None else None
    if known is None:
        return True
    if not known.size:  # sizes follow
        return False
    if shape is None or not all(isinstance(size, int) for size in shape):
        return bool((known % 1).any())
    axes = node.attributes.get_ints("axes", range(len(shape)))
    lengths = np.array([shape[axis] for axis in axes], np.float64) * known
    return bool((np.abs(lengths - np.rint(lengths)) > 1e-3).any())


def _constant(value: ir.Value | None) -> np.ndarray | None:
    import onnx_ir as ir

    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()
