"""Inspect: what a model or a compiled file is made of, what was quantized in it, and what was done to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun import distribution, guard, registry
from edgerun.contents import Contents, Telling, Weights
from edgerun.errors import Unsupported
from edgerun.runtime import Options
from edgerun.verbs import recipe

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.model import Step
    from edgerun.runtime import TensorSpec

ZIPMAP = "ai.onnx.ml.ZipMap"
COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class QdqSummary:
    """`quantize` and `dequantize` count nodes; `per_channel` counts DequantizeLinear with a vector of scales.

    `compute` gives, by op, how many nodes have a dequantized weight or second operand, out of how many.
    """

    quantize: int
    dequantize: int
    per_channel: int
    compute: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Inspection:
    """`file_bytes` counts the file and its external data; `ops` includes subgraphs and functions, by falling count;
    `digest` is "" where outputs hold dictionaries."""

    path: str
    file_bytes: int
    digest: str
    producer: str
    ir_version: int
    opsets: Mapping[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ops: Mapping[str, int]
    weights: Mapping[str, Weights]
    qdq: QdqSummary
    preprocessing: Mapping[str, Any] | None
    postprocessing: Mapping[str, Any] | None
    history: tuple[Step, ...]

    @property
    def parameters(self) -> int:
        """Elements of all initializers."""
        return sum(weights.elements for weights in self.weights.values())


def inspect(path: str | Path) -> Inspection | Contents:
    """Look into an ONNX file, or into a recipe or one of the kinds that targets write (`Contents`); nothing is run.

    Raises Unsupported for ONNX where onnx is not installed, and for a target's file where that target is not; and
    EdgerunError for what is neither.
    """
    path = Path(path)
    for name in registry.names("target"):
        if path.suffix != ".onnx" and path.suffix in registry.written(name):
            found = registry.target(name)
            if isinstance(found, Telling):
                guard.check_file(path)
                return found.contents(path)
    try:
        import onnx_ir as ir

        from edgerun.verbs import dictionaries
    except ImportError as error:
        raise Unsupported("inspect reads ONNX", got=str(error), do=distribution.install("compress")) from error
    if path.suffix == recipe.SUFFIX:
        return _recipe(path)
    read = dictionaries.read(path)
    model, nodes = read.model, list(_nodes(read.model.ir))
    opsets = {domain or "ai.onnx": version for domain, version in read.opsets.items()}
    values = list(_initializers(model.ir))
    return Inspection(
        str(path),
        # Model.load brings weights into memory; where they lie is in the file. Beside dictionaries none lies elsewhere.
        path.stat().st_size + (0 if read.maps else _external_bytes(path, list(_initializers(ir.load(path))), ir)),
        "" if read.maps else model.digest(),
        " ".join(filter(None, (model.ir.producer_name, model.ir.producer_version))),
        model.ir.ir_version,
        opsets,
        model.inputs,
        read.outputs,
        _ops(nodes, read.maps),
        _weights(values),
        _qdq(nodes),
        model.preprocessing,
        model.postprocessing,
        model.history,
    )


def _recipe(path: Path) -> Contents:
    """What a recipe holds: the ops and weights are those of its model, which its device compiles."""
    from edgerun.model import Model

    told = recipe.read(path)
    assert isinstance(told.engine.payload, bytes)
    model, usual = Model.from_bytes(told.engine.payload), asdict(Options())
    return Contents(
        str(path), told.engine.target, f"a recipe, with what {told.reference} computes for {len(told.feeds)} feeds",
        path.stat().st_size, told.engine.digest, told.engine.inputs, told.engine.outputs, model.preprocessing,
        model.postprocessing, model.history, _ops(list(_nodes(model.ir))), _weights(list(_initializers(model.ir))),
        {"device": told.device, **told.expects},
        {key: value for key, value in asdict(told.options).items() if value != usual[key]},
    )  # fmt: skip


def _ops(nodes: list[ir.Node], zipped: Collection[str] = ()) -> dict[str, int]:
    """How many there are of each; what makes the outputs `zipped` is a ZipMap."""
    kinds = (ZIPMAP if node.outputs[0].name in zipped else _kind(node) for node in nodes)
    return dict(Counter(kinds).most_common())


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _initializers(model: ir.Model) -> Iterator[Any]:
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _external_bytes(path: Path, tensors: list[Any], ir: Any) -> int:
    files = {tensor.location for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    return sum((path.parent / file).stat().st_size for file in files)


def _weights(tensors: list[Any]) -> dict[str, Weights]:
    found: dict[str, Weights] = {}
    for tensor in tensors:
        name = tensor.dtype.numpy().name
        known = found.get(name, Weights(0, 0, 0))
        found[name] = known + Weights(1, tensor.size, tensor.nbytes)
    return dict(sorted(found.items(), key=lambda item: -item[1].bytes))


def _qdq(nodes: list[ir.Node]) -> QdqSummary:
    kinds = Counter(node.op_type for node in nodes)
    dequantizers = [node for node in nodes if node.op_type == "DequantizeLinear"]
    compute: dict[str, tuple[int, int]] = {}
    for node in nodes:
        if node.op_type in COMPUTE:
            quantized, total = compute.get(node.op_type, (0, 0))
            compute[node.op_type] = (quantized + _takes_dequantized(node), total + 1)
    return QdqSummary(kinds["QuantizeLinear"], kinds["DequantizeLinear"], sum(map(_per_channel, dequantizers)), compute)


def _takes_dequantized(node: ir.Node) -> bool:
    """Whether the weight, the second input, comes from a DequantizeLinear (perhaps through a Transpose)."""
    producer = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _per_channel(node: ir.Node) -> bool:
    scale = node.inputs[1]
    return scale is not None and scale.shape is not None and len(scale.shape) > 0 and scale.shape != (1,)


def _kind(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
