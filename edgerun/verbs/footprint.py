"""Footprint: the memory that a run of a model takes at least, by its weights and the values that live at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgerun.converters._repairs import weightless
from edgerun.devices import Device
from edgerun.errors import EdgerunError, GateFailed
from edgerun.runtime.spec import batch_dims, named

if TYPE_CHECKING:
    import onnx

    from edgerun.model import Model

# The same bytes under another name. A runtime reads quantized values as they are stored, so a dequantized one is none.
VIEWS = frozenset({"DequantizeLinear", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
# Each element of their results needs elements in its own place alone: kernels before them compute them on the way.
POINTWISE = frozenset({
    "Abs", "Add", "BatchNormalization", "Cast", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
    "LeakyRelu", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "QuantizeLinear", "Relu", "Sigmoid", "Softplus",
    "Sqrt", "Sub", "Tanh", "Where",
})  # fmt: skip
FUSED = VIEWS | POINTWISE | {"Softmax"}
# Their results cannot lie where their operands do, since each element needs many of those.
APART = frozenset({
    "AveragePool", "Conv", "ConvInteger", "ConvTranspose", "GRU", "Gemm", "GlobalAveragePool", "LSTM", "MatMul",
    "MatMulInteger", "MaxPool", "QLinearConv", "QLinearMatMul", "RNN", "Resize", "Upsample",
})  # fmt: skip
GIB = 2**30


@dataclass(frozen=True)
class Footprint:
    """Bytes that a run holds at least: the `weights` as they are stored, and the `values` that live at once where that
    is most, in the file's order, with each dimension of `taken` as large as it says there. `node` is where."""

    weights: int
    values: int
    node: str = ""
    taken: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Weights and values, in bytes."""
        return self.weights + self.values


@dataclass(frozen=True)
class Memory:
    """The footprint of a model beside the memory of a device, in GiB, by variant."""

    device: str
    gib: tuple[float, ...]
    least: Footprint

    @property
    def fits(self) -> bool:
        """Whether the largest variant has more than what a run takes at least."""
        return self.least.total <= max(self.gib) * GIB

    def told(self) -> str:
        """All of it in one line."""
        taken = ", ".join(f"{n if named(n) else 'an open axis'} = {count}" for n, count in self.least.taken.items())
        small = ", ".join(f"{gib:g}" for gib in self.gib if self.least.total > gib * GIB)
        return (
            f"memory: {_mb(self.least.weights)} of weights and at least {_mb(self.least.values)} of values at once"
            f"{taken and f' ({taken})'}, {_mb(self.least.total)} of {self.device}'s "
            f"{', '.join(f'{gib:g}' for gib in self.gib)} GiB{small and f': too much for {small} GiB'}"
        )

    def require(self) -> None:
        """Raise GateFailed where it does not fit."""
        if not self.fits:
            what = f"the model does not fit into the memory of {self.device}"
            raise GateFailed(what, got=self.told(), do="edgerun compress, or a smaller batch or input")


def memory(model: Model, device: Device | None, batch: int | None) -> Memory | None:
    """What a run of `model` takes at least of the memory of `device`; None where nobody knows that.

    Open dimensions that lead inputs are `batch`, others 1. Raises EdgerunError for a `batch` that would mean nothing.
    """
    gib = device.value("memory_gib") if device is not None else None
    if batch is not None and not gib:
        raise EdgerunError("a batch is for telling what memory a run takes of a device", do="give --device as well")
    if batch is not None and batch < 1:
        raise EdgerunError("a batch is at least 1", got=batch)
    if batch is not None and not batch_dims(model.inputs):
        doors = ", ".join(map(str, model.inputs))
        raise EdgerunError("the model's batch is not open", got=doors, do="leave the batch out")
    if device is None or not gib:
        return None
    return Memory(device.name, tuple(sorted(gib)), footprint(model, batch or 1))


def footprint(model: Model, batch: int = 1) -> Footprint:
    """The least that a run of `model` holds; values whose size nobody knows, and those in branches, are left out."""
    leading = batch_dims(model.inputs)
    dims = (dim for spec in model.inputs for dim in spec.shape if isinstance(dim, str))
    taken = {dim: batch if dim in leading else 1 for dim in dims}
    proto = model.to_proto()
    inferred = _inferred(weightless(proto), {spec.name for spec in model.inputs}, taken)
    values = _Values(inferred.graph, {tensor.name for tensor in proto.graph.initializer})
    most, node = max(values.moments(), default=(0, ""))
    return Footprint(model.weight_bytes(), most, node, taken)


def _inferred(proto: onnx.ModelProto, doors: set[str], taken: Mapping[str, int]) -> onnx.ModelProto:
    """The model with inputs as large as `taken` says, and the shapes that follow."""
    import onnx

    for value in proto.graph.input:
        if value.name in doors:
            for dim in value.type.tensor_type.shape.dim:
                if not dim.HasField("dim_value"):
                    dim.dim_value = taken.get(dim.dim_param, 1)
    for value in (*proto.graph.value_info, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()  # what stands there under a name is to be inferred
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:  # the checker's own classes, and bare RuntimeError: what the file says counts
        return proto


class _Values:
    """The values of a graph: how large they are, and when they live."""

    def __init__(self, graph: onnx.GraphProto, constants: Collection[str]) -> None:
        self._nodes = list(graph.node)
        self._bytes = {v.name: _bytes(v.type) for v in (*graph.input, *graph.value_info, *graph.output)}
        self._last = {value.name: len(self._nodes) for value in graph.output}
        self._readers, self._only = Counter(self._last.keys()), dict[str, Any]()  # of one reader: that node
        self._roots, self._constants = dict[str, str](), {*constants, ""}
        self._made = {name: node for node in self._nodes for name in node.output}
        for place, node in enumerate(self._nodes):
            read = [name for name in _reads(node) if name not in self._constants]
            if not read:
                self._constants.update(node.output)  # computed once, when the model is opened
            elif node.op_type in VIEWS and node.input[0] in read:
                self._roots[node.output[0]] = self._root(node.input[0])
            for name in read:
                self._last[name] = max(place, self._last.get(name, -1))
                self._readers[name] += 1
                self._only[name] = node
        for name, root in self._roots.items():
            self._last[root] = max(self._last.get(root, -1), self._last.get(name, -1))

    def moments(self) -> Iterator[tuple[int, str]]:
        """Bytes that live at once, at each node whose result lies apart from its operands, and the node's name."""
        live = self._last.keys() - self._made.keys()
        for place, node in enumerate(self._nodes):
            made = {self._root(name) for name in node.output if name not in self._constants}
            if node.op_type in APART:
                apart = {name for name in made if not self._joins(name, live)}
                yield sum(map(self._least, live | apart)), node.name or node.output[0]
            live = {name for name in live | made if self._last.get(name, -1) > place}

    def _root(self, name: str) -> str:
        return self._roots.get(name, name)

    def _least(self, name: str) -> int:
        """Bytes of a value, or of what it becomes before anyone else reads it."""
        return min(0 if self._attends(part) else self._bytes.get(part, 0) for part in (name, *self._behind(name)))

    def _joins(self, name: str, live: Set[str]) -> bool:
        """Whether it can be added to a value that is there already, in its place, as a residual is."""
        size = self._bytes.get(name, 0)
        for part in self._behind(name):
            others = {self._root(other) for other in self._made[part].input} & live
            if any(self._bytes.get(other, 0) >= size for other in others):
                return True
        return False

    def _behind(self, name: str) -> Iterator[str]:
        """What a value becomes, step by step, in the kernel that writes it."""
        while self._readers[name] == 1 and name in self._only and self._only[name].op_type in FUSED:
            yield (name := self._only[name].output[0])

    def _attends(self, name: str) -> bool:
        """Whether these are the weights of an attention, which kernels for it never hold as a whole."""
        soft = name in self._made and self._made[name].op_type == "Softmax"
        return soft and self._readers[name] == 1 and name in self._only and self._only[name].op_type == "MatMul"


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, with what its branches read of the graph around them."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for part in inner.node:
                yield from _reads(part)


def _bytes(kind: onnx.TypeProto) -> int:
    """Bytes of a tensor; 0 of what is none, or has no known shape. A dimension that nobody knows is 1."""
    import onnx_ir as ir

    tensor = kind.tensor_type
    if not tensor.HasField("shape") or ir.DataType(tensor.elem_type) in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        return 0
    sizes = (dim.dim_value if dim.HasField("dim_value") else 1 for dim in tensor.shape.dim)
    return math.ceil(math.prod(sizes) * ir.DataType(tensor.elem_type).bitwidth / 8)


def _mb(count: int) -> str:
    return f"{float(f'{count / 1e6:.3g}'):g} MB"
