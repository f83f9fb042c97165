"""Which layers only float spares, as compressing again with them in float would have it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from edgerun.quantize import static_int8
from edgerun.quantize.diagnosis.verdict import Finding, pays, surely, traded
from edgerun.quantize.graphs import between, placement, repairs
from edgerun.quantize.graphs.edit import drop_unused
from edgerun.quantize.graphs.quantizers import Activation, Constant, Loop, Quantizer, Running
from edgerun.quantize.graphs.work import keepable

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Quantization
    from edgerun.quantize.diagnosis.fixes import Case
    from edgerun.quantize.diagnosis.trials import Measured

FLOAT_DB = 1.0  # that float must bring a layer, and surely some, to be worth its time
MOST = 1 / 3  # of the layers with integers may be told to stay in float: with more, little is left of the model's speed
NOTHING = "it leaves nothing quantized: that is the float model"
MANY = "it leaves more than a third of the layers in float"
NEVER = "there is no layer that compress could keep in float for it"
LESS = "the whole layer in float does not"
WRITES = "written by "  # before the name of what writes a tensor, a node or the input itself
PAIR = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Static:
    """How the float model would be compressed again into static INT8: by these rules, with what is in float already."""

    rules: Quantization
    kept: frozenset[str] = frozenset()


def spared(
    case: Case, rows: Sequence[Finding], before: Measured, model: ir.Model, static: Static | None
) -> tuple[tuple[str, ...], Measured | None, str]:
    """The layers that only float spares, by their names in the float `model`, and the quantized one with them in float;
    where there are none, why those that float would surely help are no advice ("": there are none of these either).

    Left out is all that compressing again, with them in float, quantizes no more. Where the scheme is another (None),
    that is what the layers hold and what they alone read.
    """
    again = _Again(case, model, static)
    most = min(max(1, MOST * len(again.layers)), len(again.layers) - 1)  # of a float model there is no use
    kept, why = frozenset[str](), ""
    for row in sorted(rows, key=lambda row: -row.gain[0] if row.gain else 0.0):
        if traded(row) and row.gain is not None and row.gain[0] > FLOAT_DB and surely(row.gain):
            more = again.without(row.key, row.layer, kept)
            if more is None:
                why = why or NEVER
            elif len(again.layers & more) <= most:
                kept = more
            else:
                why = why or (NOTHING if again.layers <= more else MANY)
    if not kept:
        return (), None, why
    spared = case.model.clone()
    repairs.leave_float(spared.graph, case.counterpart, [q for q in case.quantizers if again.gone(q, kept)])
    drop_unused(spared)
    measured = case.apart.measure(spared)
    names = tuple(str(node.name) for node in model.graph if node.name in kept)
    return (names, measured, "") if pays(before, measured) else ((), None, LESS)


class _Again:
    """The float model compressed again with some of its nodes in float. All names are the float model's.

    `layers` are those with integer weights in the model that is looked at.
    """

    def __init__(self, case: Case, model: ir.Model, static: Static | None) -> None:
        self._case, self._model, self._static = case, model, static
        self._rules = None if static is None else static.rules
        self._nodes = {str(node.name): node for node in case.model.graph}
        self._placed: dict[frozenset[str], set[str]] = {}
        held = [q for q in case.quantizers if isinstance(q, Constant | Loop) and q.kind != "bias"]
        self.layers = {self._name(q.layer) for q in held}

    def without(self, key: str, layer: str, kept: frozenset[str]) -> frozenset[str] | None:
        """`kept`, and what must stay in float beside it so that this quantizer is gone; None where that cannot be.

        Of an activation its readers do, and what writes it where that rounds its result whoever reads it.
        """
        quantizer = next((q for q in self._case.quantizers if q.key == key), None)
        if not isinstance(quantizer, Activation | Running):
            more = kept | {self._name(layer)}
            return more if more <= self._takes else None
        more = kept | (self._readers(quantizer) & self._takes)
        if isinstance(quantizer, Activation) and not self.gone(quantizer, more):
            more |= set(self._writers(quantizer)) & self._takes
        return more if self.gone(quantizer, more) and more > kept else None

    def gone(self, quantizer: Quantizer, kept: frozenset[str]) -> bool:
        """Whether the quantizer is none with `kept` in float: by the rules, where these would have it at all."""
        names = {self._name(quantizer.layer)}
        if isinstance(quantizer, Activation):
            names = {WRITES + self._name(_writer(value, self._rules)) for value in self._values(quantizer)}
        if names <= self._rounded(frozenset()):
            return not names & self._rounded(kept)
        if isinstance(quantizer, Activation | Running):
            readers = self._readers(quantizer)
            return bool(readers) and readers <= kept
        return names <= kept

    @cached_property
    def _folded(self) -> ir.Graph:
        assert self._rules is not None
        return static_int8.folded(self._model.clone(), self._rules).graph

    @cached_property
    def _takes(self) -> set[str]:
        """What `compress --keep-float` takes."""
        if self._rules is None:
            return {str(node.name) for node in self._model.graph}
        return keepable(self._folded, self._rules)

    def _rounded(self, kept: frozenset[str]) -> set[str]:
        """The layers with integer weights, and what writes each tensor that is rounded, by the rules."""
        if kept not in self._placed and self._static is not None:
            plan = placement.plan(self._folded, self._static.rules, kept | self._static.kept)
            writers = {WRITES + _writer(value, self._rules) for value in plan.points}
            self._placed[kept] = {str(node.name) for node in plan.weights} | writers
        return self._placed.get(kept, set())

    def _name(self, node: str) -> str:
        return self._case.counterpart.named.get(node, node)

    def _values(self, quantizer: Activation) -> Iterator[ir.Value]:
        for pair in quantizer.pairs:
            value = self._nodes[pair.quantize].inputs[0]
            assert value is not None
            yield value

    def _writers(self, quantizer: Activation) -> Iterator[str]:
        """What computes the activation, looking back over what only moves it."""
        for value in self._values(quantizer):
            node = self._nodes.get(_writer(value, self._rules))
            while node is not None and self._passes(node) and node.inputs[0] is not None:
                node = self._nodes.get(_writer(node.inputs[0], self._rules))
            if node is not None:
                yield self._name(str(node.name))

    def _readers(self, quantizer: Activation | Running) -> set[str]:
        """The layers that read it: of what only moves data, those behind it."""
        found, left = set[str](), list(quantizer.readers)
        while left:
            node = self._nodes[left.pop()]
            if self._passes(node):
                left += [str(use.node.name) for value in node.outputs for use in value.uses()]
            else:
                found.add(self._name(str(node.name)))
        return found

    def _passes(self, node: ir.Node) -> bool:
        return node.op_type in PAIR or (self._rules is not None and between.moves(node, self._rules))


def _writer(value: ir.Value, rules: Quantization | None) -> str:
    """The node that computes a value, before the clipping that a quantizer does; or the input that it is."""
    node = value.producer()
    while node is not None and rules is not None and between.absorbable(node, rules) and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return str(value.name if node is None else node.name)
