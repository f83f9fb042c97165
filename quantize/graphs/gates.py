"""Gates: a few numbers, one per channel, that scale a whole tensor (squeeze-and-excitation, Hu et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from edgerun.quantize.graphs.edit import constant

if TYPE_CHECKING:
    import onnx_ir as ir


def nodes(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that write one position and end in a Mul of one position with many."""
    found: dict[ir.Node, None] = {}
    for node in graph:
        if node.op_type != "Mul" or node.domain != "" or _one_position(node.outputs[0]):
            continue
        ahead = [value for value in node.inputs if _one_position(value)]
        while ahead:
            before = ahead.pop().producer()  # type: ignore[union-attr]
            if before is not None and before not in found:
                found[before] = None
                ahead += [value for value in before.inputs if _one_position(value)]
    return list(found)


def pooled(found: Iterable[ir.Node]) -> Iterator[ir.Value]:
    """What the gates' nodes read of many positions; in front of the Mul by factors that a quantizer takes."""
    for node in found:
        for value in node.inputs:
            if value is None or value.producer() is None or _one_position(value):
                continue
            before = value.producer()
            assert before is not None
            factors = before.op_type == "Mul" and len(before.inputs) == 2 and constant(before.inputs[1]) is not None
            source = before.inputs[0] if factors else value
            if source is not None:
                yield source


def _one_position(value: ir.Value | None) -> bool:
    """Whether a computed value has but channels beside its batch axis: `[N, C]`, `[N, C, 1, 1]`, `[N, 1, 1, C]`."""
    if value is None or value.producer() is None or value.shape is None or len(value.shape) < 2:
        return False
    return sum(dim != 1 for dim in list(value.shape)[1:]) <= 1
