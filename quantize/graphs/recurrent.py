"""What the weights of recurrent layers read: W the layer's input, R its own state one step before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import constant, fresh_name

if TYPE_CHECKING:
    import onnx_ir as ir

OPS = ("LSTM", "GRU", "RNN")
W, R, INITIAL = 1, 2, 5  # inputs
HEAD = 0.05  # of the weights of the recurrent layers


@dataclass(frozen=True)
class Layer:
    """A recurrent node: its name, and the names of its input, its output over time and its first state.

    `first` is the array where that is a constant, and None where it is left out. `batched`: axes as layout 1 has them.
    """

    node: str
    x: str
    y: str
    first: str | np.ndarray | None
    backwards: tuple[bool, ...]
    batched: bool

    def inputs(self, seen: Mapping[str, np.ndarray]) -> np.ndarray:
        """What W reads, `[m, I]`, of a run's values."""
        x = seen[self.x]
        return x.reshape(-1, x.shape[-1])

    def states(self, seen: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """What R reads, `[m, H]` for each direction: the states ahead of every step."""
        states = seen[self.y]  # [T, D, B, H], or [B, T, D, H]
        states = states.transpose(1, 2, 0, 3) if self.batched else states
        first = seen[self.first] if isinstance(self.first, str) else self.first
        if first is None:
            first = np.zeros(states.shape[1:], states.dtype)
        elif self.batched:
            first = first.transpose(1, 0, 2)
        found = []
        for direction, backwards in enumerate(self.backwards):
            own = states[1:, direction] if backwards else states[:-1, direction]
            found.append(np.concatenate([first[direction][None], own]).reshape(-1, states.shape[-1]))
        return found


def watched(model: ir.Model, names: Iterable[str]) -> tuple[ir.Model, list[Layer]]:
    """A clone of `model` that also gives what the weights of the recurrent nodes `names` read, and where that is."""
    import onnx_ir as ir

    result, wanted = model.clone(), set(names)
    graph, layers = result.graph, []
    for node in graph:
        if str(node.name) not in wanted:
            continue
        x, y = node.inputs[0], node.outputs[0]
        first = node.inputs[INITIAL] if len(node.inputs) > INITIAL else None
        assert x is not None
        if not y.name:
            y.name = fresh_name(graph, f"{node.name}/states")
        if y.type is None or y.shape is None:
            y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None] * 4)
        for value in (x, y, first):
            if value is not None and value.producer() is not None and not value.is_graph_output():
                graph.outputs.append(value)
        direction = node.attributes.get_string("direction", "forward")
        backwards = (False, True) if direction == "bidirectional" else (direction == "reverse",)
        known = constant(first)
        held = known if known is not None else None if first is None else str(first.name)
        batched = node.attributes.get_int("layout", 0) == 1
        layers.append(Layer(str(node.name), str(x.name), str(y.name), held, backwards, batched))
    return result, layers


def reading(node: ir.Node, hidden: int) -> slice:
    """The rows of R `[gates · H]` that read the state itself; those of a GRU's candidate may read it behind a gate."""
    behind = node.op_type == "GRU" and not node.attributes.get_int("linear_before_reset", 0)
    return slice(0, 2 * hidden) if behind else slice(None)


def heads(graph: ir.Graph) -> Iterator[ir.Node]:
    """Products behind recurrent layers with a twentieth of their weights at most: no more of the work than that.

    A state that is read once is one vector of a few people's voices: a range of it is seldom known.
    """
    behind: set[ir.Value] = set()
    loops = 0
    for node in graph:
        if node.op_type in OPS and node.domain == "":
            weights = [constant(value) for value in node.inputs[W : R + 1]]
            loops += sum(weight.size for weight in weights if weight is not None)
            behind.update(node.outputs)
        elif behind.intersection(value for value in node.inputs if value is not None):
            behind.update(node.outputs)
            weight = constant(node.inputs[1]) if node.op_type in ("Gemm", "MatMul") else None
            if weight is not None and weight.size <= HEAD * loops:
                yield node
