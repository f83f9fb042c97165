"""The arithmetic of a preprocessing contract in the graph: the model takes a picture's bytes, NHWC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.quantize.graphs import affine
from edgerun.quantize.graphs.edit import constant, fresh_name, initializer, set_constant, sole_consumer

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.preprocess import Preprocessing

TO_NCHW = [0, 3, 1, 2]


def take_bytes(model: ir.Model, contract: Preprocessing) -> list[str]:
    """Put what follows the contract's geometry in front of the model's one input, in place; the ops that it took.

    A Conv that reads the picture takes the factors, and the order of channels, into its weights, and the offsets into
    its bias. Where it pads, its zeros stand for a mean that is seldom a whole byte: there the offsets stay, as an Add
    on bytes in front of the padding, and only the rest goes into the weights.
    """
    import onnx_ir as ir

    graph = model.graph
    index, old = next((i, v) for i, v in enumerate(graph.inputs) if v.name not in graph.initializers)
    dims, name, dtype = list(old.shape or ()), str(old.name), old.dtype
    assert dtype is not None
    if contract.layout == "NCHW":
        dims = [dims[i] for i in (0, 2, 3, 1)]
    front = _Front(graph, ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.UINT8)))
    old.name, entry, reader, axis = fresh_name(graph, f"{name}_numbers"), old, sole_consumer(old), 3
    work = ir.DataType.FLOAT
    if contract.dtype == "uint8":
        work = ir.DataType.UINT8
    else:
        front.add("Cast", kind=work, to=int(work))
    if contract.layout == "NHWC" and reader is not None and reader.op_type == "Transpose" and _perm(reader) == TO_NCHW:
        entry = reader.outputs[0]  # behind a model's own Transpose channels stand where a Conv takes factors
    if contract.layout == "NCHW" or entry is not old:
        front.add("Transpose", order=TO_NCHW, perm=TO_NCHW)
        reader, axis = sole_consumer(entry), 1
    rows = contract.affine
    if contract.colour == "BGR" and axis == 1 and _reordered(graph, reader, entry):
        rows = rows[0][::-1], rows[1][::-1]  # what is in front of the reversed weights is in RGB still
    elif contract.colour == "BGR":
        front.add("Gather", np.array([2, 1, 0]), axis=axis)
    gain, shift = (row.reshape(1, -1, *[1] * (3 - axis)).astype(np.float32) for row in rows)
    if (gain != 1).any():
        front.add("Mul", gain)
    if (shift != 0).any():
        front.add("Add", shift)
    if dtype != work:
        front.add("Cast", kind=dtype, to=int(dtype))
    entry.replace_all_uses_with(front.value, replace_graph_outputs=True)
    graph.inputs[index] = front.given
    if (turned := entry.producer()) is not None:
        graph.remove(turned, safe=True)
    affine.fold_on(graph, [node for node in front.made if node.op_type in ("Mul", "Add")])
    return [node.op_type for node in front.made if node.graph is graph]


@dataclass
class _Front:
    """Nodes one behind the other, before all others of `graph`; `given` is what goes in."""

    graph: ir.Graph
    given: ir.Value
    made: list[ir.Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.value, self._first = self.given, next(iter(self.graph))

    def add(
        self, op: str, number: np.ndarray | None = None, *, kind: ir.DataType | None = None,
        order: list[int] | None = None, **attributes: Any,
    ) -> None:  # fmt: skip
        """One more node on the newest value, and perhaps a constant; `kind` and `order` are what it does to the type
        and to the dimensions."""
        import onnx_ir as ir

        name = fresh_name(self.graph, f"{self.given.name}/{op}")
        inputs = [self.value] if number is None else [self.value, initializer(self.graph, f"{name}/by", number)]
        node = ir.node(op, inputs, attributes=attributes, name=name)
        dims, result = list(self.value.shape or ()), node.outputs[0]
        result.name = fresh_name(self.graph, f"{name}/out")
        result.shape = ir.Shape([dims[i] for i in order] if order else dims)
        result.type = self.value.type if kind is None else ir.TensorType(kind)
        self.graph.insert_before(self._first, node)
        self.made.append(node)
        self.value = result


def _perm(node: ir.Node) -> list[int]:
    return list(node.attributes.get_ints("perm", []))


def _reordered(graph: ir.Graph, reader: ir.Node | None, value: ir.Value) -> bool:
    """Whether the Conv that alone reads `value` took its channels in reverse."""
    if reader is None or reader.op_type != "Conv" or reader.domain or reader.inputs[0] is not value:
        return False
    weight = constant(reader.inputs[1])
    if weight is None or reader.attributes.get_int("group", 1) != 1:
        return False
    set_constant(graph, reader, 1, weight[:, ::-1])
    return True
