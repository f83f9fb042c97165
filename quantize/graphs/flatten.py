"""Matrix products over more than two axes as rank-2 Gemms: [N, L, C] becomes rows [N·L, C] where only rows matter.

Exact: the same products and sums. The bias moves into the product, and what lies between products (LayerNorm, GELU,
residual sums) stays flat, so that one Reshape enters a region and the attention's own Reshapes leave it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs.edit import constant, fresh_name, initializer, sole_consumer

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Quantization

# Ops that treat every row alone, when their inputs are rows, scalars or one row for all.
ROWWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Gelu", "Relu", "Tanh", "Sigmoid", "Erf", "Sqrt", "Pow", "LeakyRelu", "HardSwish"}
    | {"LayerNormalization"}
)


def apply(graph: ir.Graph, rules: Quantization) -> int:
    """Flatten every product of an activation with a constant matrix, if the target wants it; return how many.

    Shapes must have been inferred. A node that is replaced leaves its name to the new one; run RemoveUnusedNodes after.
    """
    return every(graph) if rules.flat_rows else 0


def every(graph: ir.Graph) -> int:
    """Flatten them all, as `apply` does."""
    region = _Region(graph)
    for node in list(graph):
        if node.domain == "" and node not in region.replaced and not region.product(node):
            region.rowwise(node)
    region.leave()
    return region.products


class _Region:
    """The values that have flat twins, `[rows, C]`."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.flat: dict[ir.Value, ir.Value] = {}
        self.entered: dict[ir.Value, ir.Value] = {}  # source of a twin that a Reshape made, by twin
        self.replaced: set[ir.Node] = set()
        self.products = 0

    def product(self, node: ir.Node) -> bool:
        """MatMul(x, W), with the row that alone is added to it, as a Gemm of rank 2."""
        weight, source = constant(node.inputs[1]) if node.op_type == "MatMul" else None, node.inputs[0]
        if weight is None or weight.ndim != 2 or source is None or source.shape is None or len(source.shape) < 3:
            return False
        result, bias = node.outputs[0], None
        add = sole_consumer(result)
        if add is not None and add.op_type == "Add" and add.domain == "":
            row = add.inputs[1] if add.inputs[0] is result else add.inputs[0]
            array = constant(row)
            if array is not None and array.shape == (weight.shape[1],):
                bias, result = row, add.outputs[0]
                self.replaced.add(add)
        inputs = [self._enter(source), node.inputs[1]]
        op = "MatMul" if bias is None else "Gemm"
        last = node if bias is None else add
        assert last is not None
        self._twin(op, inputs if bias is None else [*inputs, bias], result, last, name=str(node.name))
        self.replaced.add(node)
        self.products += 1
        return True

    def rowwise(self, node: ir.Node) -> bool:
        """A node that reads flat values and treats every row alone, on the flat values."""
        result = node.outputs[0]
        if node.op_type not in ROWWISE or len(node.outputs) != 1 or result.shape is None or result.dtype is None:
            return False
        inputs = [value for value in node.inputs if value is not None]
        if not any(value in self.flat for value in inputs):
            return False
        if node.op_type == "LayerNormalization" and node.attributes.get_int("axis", -1) != -1:
            return False
        for value in inputs:
            array = constant(value)
            same = value in self.flat and value.shape == result.shape
            if not same and (array is None or array.ndim > 1):
                return False
        attributes = dict(node.attributes)
        self._twin(node.op_type, [_of(self.flat, v) for v in node.inputs], result, node, str(node.name), attributes)
        self.replaced.add(node)
        return True

    def leave(self) -> None:
        """Give what still reads a value with a twin the twin itself (a Reshape), or a Reshape of it."""
        for value, twin in self.flat.items():
            made_here = twin not in self.entered
            uses = [(node, index) for node, index in value.uses() if node not in self.replaced]
            uses = [(node, index) for node, index in uses if node is not twin.producer()]
            for node, index in list(uses):
                if node.op_type == "Reshape" and index == 0 and _names_its_sizes(node):
                    node.replace_input_with(0, twin)
                    uses.remove((node, index))
            if made_here and (uses or value.is_graph_output()):
                self._restore(value, twin, uses)

    def _enter(self, value: ir.Value) -> ir.Value:
        if value not in self.flat:
            assert value.shape is not None
            rows = initializer(self.graph, f"{value.name}/rows", np.array([-1, value.shape[-1]], np.int64))
            source, producer = value, value.producer()
            if producer is not None and producer.op_type == "Reshape" and producer.inputs[0] is not None:
                source = producer.inputs[0]  # a Reshape of a Reshape is the last one
            # As early as can be: Reshapes that stand before the product read the twin as well.
            where, after = (next(iter(self.graph)), False) if producer is None else (producer, True)
            twin = self._emit("Reshape", [source, rows], value, where, f"{value.name}/Reshape", after=after)
            self.flat[value], self.entered[twin] = twin, value
        return self.flat[value]

    def _twin(
        self,
        op: str,
        inputs: list[ir.Value | None],
        of: ir.Value,
        where: ir.Node,
        name: str,
        attributes: dict[str, ir.Attr] | None = None,
    ) -> None:
        where.name, node_name = fresh_name(self.graph, f"{name}/replaced"), name
        twin = self._emit(op, inputs, of, where, node_name, attributes=attributes)
        self.flat[of] = twin

    def _emit(
        self,
        op: str,
        inputs: list[ir.Value | None],
        of: ir.Value,
        where: ir.Node,
        name: str,
        *,
        attributes: dict[str, ir.Attr] | None = None,
        after: bool = True,
    ) -> ir.Value:
        import onnx_ir as ir

        node = ir.node(op, inputs, attributes=attributes or {}, name=name)
        result = node.outputs[0]
        assert of.shape is not None
        result.name, result.type = fresh_name(self.graph, f"{of.name}/flat"), of.type
        result.shape = ir.Shape([None, of.shape[-1]])
        (self.graph.insert_after if after else self.graph.insert_before)(where, node)
        return result

    def _restore(self, value: ir.Value, twin: ir.Value, uses: list[tuple[ir.Node, int]]) -> None:
        """`value` once more, in its own shape, computed from its twin; the leading sizes are those of an entry."""
        import onnx_ir as ir

        graph, name, producer = self.graph, str(value.name), twin.producer()
        assert value.shape is not None and producer is not None
        rank = len(value.shape)
        known = [d for d in value.shape if isinstance(d, int)]
        nodes: list[ir.Node] = []
        if rank - len(known) <= 1:
            target = initializer(graph, f"{name}/sizes", np.array(
                [d if isinstance(d, int) else -1 for d in value.shape], np.int64))  # fmt: skip
        else:
            begin, end = (initializer(graph, f"{name}/{k}", np.array([v], np.int64)) for k, v in
                          (("begin", 0), ("end", rank - 1)))  # fmt: skip
            last = initializer(graph, f"{name}/last", np.array([value.shape[-1]], np.int64))
            shape = ir.node("Shape", [self._entry(value)], name=fresh_name(graph, f"{name}/Shape"))
            lead = ir.node("Slice", [shape.outputs[0], begin, end], name=fresh_name(graph, f"{name}/Slice"))
            joined = ir.node("Concat", [lead.outputs[0], last], attributes={"axis": 0},
                             name=fresh_name(graph, f"{name}/Concat"))  # fmt: skip
            nodes, target = [shape, lead, joined], joined.outputs[0]
        back = ir.node("Reshape", [twin, target], name=fresh_name(graph, f"{name}/Reshape"))
        result = back.outputs[0]
        result.type, result.shape = value.type, value.shape
        for made in (*nodes, back):
            made.outputs[0].name = fresh_name(graph, f"{made.name}/result")
        graph.insert_after(producer, [*nodes, back])
        for node, index in uses:
            node.replace_input_with(index, result)
        if value.is_graph_output():
            graph.outputs[list(graph.outputs).index(value)] = result
            value.name, result.name = fresh_name(graph, f"{name}/replaced"), name

    def _entry(self, value: ir.Value) -> ir.Value:
        """An entered value with the same leading sizes, from which `value` was computed."""
        twin = self.flat[value]
        while twin not in self.entered:
            node = twin.producer()
            assert node is not None
            twin = next(v for v in node.inputs if v is not None and (v in self.entered or _computed(v)))
        return self.entered[twin]


def _of(flat: dict[ir.Value, ir.Value], value: ir.Value | None) -> ir.Value | None:
    return flat.get(value, value) if value is not None else None


def _computed(value: ir.Value) -> bool:
    return constant(value) is None and value.producer() is not None


def _names_its_sizes(node: ir.Node) -> bool:
    """Whether a Reshape says every size itself: none is copied from its input (0) by place."""
    parts = list(_parts(node.inputs[1]))
    return all(array is None or not (array == 0).any() for array in parts)


def _parts(value: ir.Value | None) -> Iterator[np.ndarray | None]:
    """The constants that a shape is put together from; None for a computed size."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Concat":
        for part in producer.inputs:
            yield from _parts(part)
    else:
        yield constant(value)
