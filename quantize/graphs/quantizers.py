"""Read a Q/DQ graph: where activations are rounded and where constants are stored as integers, on which grids."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize.graphs import loops, recurrent, rowwise
from edgerun.quantize.graphs.edit import constant
from edgerun.quantize.numerics.grid import BOUNDS, Grid

if TYPE_CHECKING:
    import onnx_ir as ir

STORED = (np.int8, np.int16)  # int16: of blocks, codes less their zero point (`products.unfold`)
HOLDERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
WIDENS = ("Cast", "DequantizeLinear")  # what makes floats of codes before a Mul by their scales


@dataclass(frozen=True)
class Pair:
    """One QuantizeLinear by name with the DequantizeLinears that read it; `value` is the float tensor it rounds."""

    quantize: str
    dequantize: tuple[str, ...]
    value: str


@dataclass(frozen=True)
class Activation:
    """Activations that share one scale: rounded on the same `grid`, switched together. `name` is the first's."""

    name: str
    layer: str
    op: str
    pairs: tuple[Pair, ...]
    grid: Grid
    readers: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Unique in its graph."""
        return self.name

    @property
    def low(self) -> float:
        """Where the grid begins, in the activation's unit; the least of several channels'."""
        low, _ = BOUNDS[self.grid.zero_point.dtype.name]
        return float(np.min(self.grid.scale * (low - self.grid.zero_point.astype(np.float64))))

    @property
    def high(self) -> float:
        """Where the grid ends."""
        _, high = BOUNDS[self.grid.zero_point.dtype.name]
        return float(np.max(self.grid.scale * (high - self.grid.zero_point.astype(np.float64))))


@dataclass(frozen=True)
class Constant:
    """A constant input of the node `layer` (input `index`) that stands in the file as integers.

    `name` is its DequantizeLinear's; `stored` the integers (float32 where a QuantizeLinear makes them at load). A bias
    that a layer with integer weights holds in float is listed too, without a grid: compressors move biases.
    `transposed`: a Gemm's weight with its output channels first.
    """

    name: str
    layer: str
    op: str
    index: int
    stored: np.ndarray = field(repr=False)
    grid: Grid | None = field(repr=False)
    transposed: bool = False

    @property
    def key(self) -> str:
        """Unique in its graph: one DequantizeLinear may feed several nodes."""
        return f"{self.layer}:{self.index}"

    @property
    def kind(self) -> str:
        """`weight` or `bias`."""
        if self.op in recurrent.OPS:
            return "weight"
        vector = self.op not in HOLDERS and self.stored.ndim <= 1
        return "bias" if self.stored.dtype == np.int32 or self.index > 1 or vector or self.grid is None else "weight"

    @property
    def values(self) -> np.ndarray:
        """What the node computes with, float32."""
        if self.grid is None:
            return self.stored
        if self.stored.dtype.kind == "f":
            return self.grid.dequantize(self.grid.quantize(self.stored))
        return self.grid.dequantize(self.stored)


@dataclass(frozen=True)
class Loop:
    """A recurrent layer on integers: it rounds its input and its state while it runs, and its `weights` W and R, which
    have their axes here as LSTM has them."""

    layer: str
    weights: tuple[Constant, Constant]
    op: str = loops.INTEGER
    kind: str = "recurrent"

    @property
    def key(self) -> str:
        """Unique in its graph: its input is input 0."""
        return f"{self.layer}:0"


@dataclass(frozen=True)
class Running:
    """An activation that is rounded on the grid of its own extremes, while it runs: of all (DynamicQuantizeLinear), or
    of each `block` of a row (`rowwise`; 0: of all).

    `name` is the float tensor, `dequantize` the nodes behind it, `readers` the layers that compute with it.
    """

    name: str
    layer: str
    op: str
    dequantize: tuple[str, ...]
    readers: tuple[str, ...]
    kind: str = "activation"
    block: int = 0

    @property
    def key(self) -> str:
        """Unique in its graph."""
        return self.name


Quantizer = Activation | Constant | Loop | Running


def find(graph: ir.Graph) -> list[Quantizer]:
    """Every quantizer of the main graph in its order. Pairs with a scale that is computed, or blocked, are left out."""
    groups: dict[tuple[str, str], list[tuple[Pair, ir.Node]]] = {}
    found: dict[str, Quantizer | None] = {}
    grids: dict[str, Grid] = {}
    for node in graph:
        if node.op_type == "QuantizeLinear" and node.domain == "" and constant(node.inputs[0]) is None:
            grid, readers = _grid(node), _dequantizers(node)
            if grid is None or not readers:
                continue
            value = str(node.inputs[0].name)  # type: ignore[union-attr]
            pair = Pair(str(node.name), tuple(str(n.name) for n in readers), value)
            key = (_identity(node.inputs[1]), _identity(node.inputs[2] if len(node.inputs) > 2 else None))
            groups.setdefault(key, []).append((pair, node))
            found.setdefault("/".join(key), None)
            grids["/".join(key)] = grid
        elif node.op_type == "DequantizeLinear" and node.domain == "":
            found |= {f"constant/{made.key}": made for made in _constants(node)}
        elif node.op_type == "DynamicQuantizeLinear" and (dequantizers := _float_readers(node)):
            found[f"running/{node.name}"] = _running(node.inputs[0], dequantizers)
        elif block := rowwise.block_of(node):
            found[f"running/{node.name}"] = _running(rowwise.source(node), [node], block)
        elif (loop := _loop(node)) is not None:
            found[f"loop/{loop.key}"] = loop
        else:
            held = (*_expanded(node), *filter(None, [_float_bias(node)]))
            found |= {f"constant/{made.key}": made for made in held}
    for key, members in groups.items():
        found["/".join(key)] = _activation(members, grids["/".join(key)])
    return [quantizer for quantizer in found.values() if quantizer is not None]


def _activation(members: list[tuple[Pair, ir.Node]], grid: Grid) -> Activation:
    first, node = members[0]
    producer = node.inputs[0].producer()  # type: ignore[union-attr]
    readers: dict[str, None] = {}
    for _, quantize in members:
        for dequantize in _dequantizers(quantize):
            readers.update({str(use.node.name): None for use in dequantize.outputs[0].uses()})
    layer, op = (str(producer.name), producer.op_type) if producer is not None else (first.value, "input")
    return Activation(first.value, layer, op, tuple(pair for pair, _ in members), grid, tuple(readers))


def _float_readers(node: ir.Node) -> list[ir.Node]:
    return [use.node for use in node.outputs[0].uses() if use.node.op_type == "DequantizeLinear"]


def _running(value: ir.Value | None, dequantizers: list[ir.Node], block: int = 0) -> Running:
    assert value is not None
    producer = value.producer()
    layer, op = (str(producer.name), producer.op_type) if producer is not None else (str(value.name), "input")
    readers = dict.fromkeys(str(use.node.name) for one in dequantizers for use in one.outputs[0].uses())
    names = tuple(str(one.name) for one in dequantizers)
    return Running(str(value.name), layer, op, names, tuple(readers), block=block)


def _identity(value: ir.Value | None) -> str:
    return "" if value is None else str(value.name)


def _dequantizers(node: ir.Node) -> list[ir.Node]:
    """The readers of a QuantizeLinear; none unless all are DequantizeLinear (others compute on the integers)."""
    readers = [use.node for use in node.outputs[0].uses()]
    return readers if all(r.op_type == "DequantizeLinear" for r in readers) else []


def _constants(node: ir.Node) -> list[Constant]:
    """The constant behind a DequantizeLinear, once for each node that reads it."""
    source, grid = node.inputs[0], _grid(node)
    stored = constant(source)
    before = source.producer() if source is not None else None
    if stored is None and before is not None and before.op_type == "QuantizeLinear":
        stored = constant(before.inputs[0])
    if stored is None or grid is None:
        return []
    scaled = {"Mul"} if np.array_equal(grid.scale, 1) else {}  # that Mul's (`_expanded`)
    readers = [use for use in node.outputs[0].uses() if use.node.graph is node.graph and use.node.op_type not in scaled]
    return [
        Constant(str(node.name), str(r.node.name), r.node.op_type, r.idx, stored, grid, transposed(r.node))
        for r in readers
    ]


def transposed(node: ir.Node) -> bool:
    """Whether a node is a Gemm whose weight has its output channels first."""
    return node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))


def _expanded(node: ir.Node) -> list[Constant]:
    """The int8 weights of a layer that stand behind Cast, or DequantizeLinear, and Mul (`compressed.expand`)."""
    found = []
    for index in (1, 2) if node.op_type in recurrent.OPS else (1,) if node.op_type in HOLDERS else ():
        product = node.inputs[index].producer() if node.inputs[index] is not None else None  # type: ignore[union-attr]
        cast = product.inputs[0].producer() if _op(product) == "Mul" else None  # type: ignore[union-attr]
        stored = constant(cast.inputs[0]) if _op(cast) in WIDENS else None  # type: ignore[union-attr]
        scale = constant(product.inputs[1]) if product is not None and stored is not None else None
        if stored is not None and scale is not None and stored.dtype in STORED and scale.ndim == stored.ndim:
            grid = _spread(scale, np.zeros(scale.shape, stored.dtype))
            made = str(product.name), str(node.name), node.op_type, index, stored, grid, transposed(node)  # type: ignore[union-attr]
            found.append(Constant(*made))
    return found


def _loop(node: ir.Node) -> Loop | None:
    if (found := loops.stored(node)) is None:
        return None
    name = str(node.name)
    weights = [Constant(name, name, loops.FLOAT, index, codes, _spread(scale, zero))
               for index, (codes, scale, zero) in enumerate(found, loops.W)]  # fmt: skip
    return Loop(name, (weights[0], weights[1]))


def _spread(scale: np.ndarray, zero: np.ndarray) -> Grid:
    """The grid whose scales have the axes of what they belong to."""
    axes = [axis for axis, size in enumerate(scale.shape) if size > 1]
    if len(axes) > 1:
        return Grid(scale, zero)
    return Grid(scale.reshape(-1), zero.reshape(-1), axes[0]) if axes else Grid(scale.reshape(()), zero.reshape(()))


def _float_bias(node: ir.Node) -> Constant | None:
    """The float bias of a layer whose weight is dequantized: input 2, or the constant of the Add behind a MatMul."""
    holder, index = node, 2
    if node.op_type == "Add":
        before = [None if v is None else v.producer() for v in node.inputs[:2]]
        products = [(i, p) for i, p in enumerate(before) if p is not None and p.op_type == "MatMul"]
        if len(products) != 1:
            return None
        ((place, holder),) = products
        index = 1 - place
    elif node.op_type not in HOLDERS:
        return None
    weight = holder.inputs[1]
    bias = constant(node.inputs[index]) if len(node.inputs) > index else None
    integers = weight is not None and (_op(weight.producer()) == "DequantizeLinear" or bool(_expanded(holder)))
    if bias is None or bias.dtype != np.float32 or not integers:
        return None
    return Constant(str(node.inputs[index].name), str(node.name), node.op_type, index, bias, None)  # type: ignore[union-attr]


def _op(node: ir.Node | None) -> str:
    return "" if node is None else node.op_type


def _grid(node: ir.Node) -> Grid | None:
    scale = constant(node.inputs[1])
    point = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if scale is None or scale.dtype != np.float32 or node.attributes.get_int("block_size", 0) > 0:
        return None
    if point is None:
        stored = constant(node.inputs[0])
        dtype = stored.dtype if node.op_type == "DequantizeLinear" and stored is not None else np.dtype(np.uint8)
        point = np.zeros(scale.shape, dtype)
    if point.dtype.name not in (*BOUNDS, "int32"):
        return None
    if scale.size == 1:
        return Grid(scale.reshape(()), point.reshape(()))
    return Grid(scale, np.broadcast_to(point, scale.shape), node.attributes.get_int("axis", 1))
