"""TFLite in: `.tflite` files in float, float16 and INT8, whose codes stay the file's own; channels first inside."""

from __future__ import annotations

import importlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.converters import _door, _merges, _normalize
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.passes import Conversion
from edgerun.runtime import TensorSpec

if TYPE_CHECKING:
    import onnx

    from edgerun.converters._tflite_files import Net
    from edgerun.converters._tflite_graph import Value
    from edgerun.converters._tflite_source import Source

summary = "TFLite: .tflite files in float32, float16 and INT8"
requires: tuple[str, ...] = ("ai_edge_litert", "onnx", "onnx_ir", "onnxruntime")
extra = "tflite"
newest_opset = _normalize.PREFERRED_OPSET
log = logging.getLogger("edgerun")
RULE_MODULES = ("_tflite_elementwise", "_tflite_windows", "_tflite_shapes", "_tflite_parts", "_tflite_sums",
                "_tflite_sequences", "_tflite_boxes", "_tflite_spectra", "_tflite_branches")  # fmt: skip
_STATEFUL = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE", "HASHTABLE")


def recognises(source: Any) -> bool:
    """A path that ends in .tflite."""
    return isinstance(source, (str, Path)) and Path(source).suffix.lower() == ".tflite"


def convert(source: Any, *, inputs: Sequence[TensorSpec], factory: str | None, opset: int) -> Conversion:
    """The file's signature as ONNX; the door keeps its layout (NHWC), its names and its dtypes.

    `inputs` may rename inputs and fix or name their free dimensions. Raises EdgerunError for a damaged file, and
    Unsupported naming every operator without an ONNX form here, states that live from run to run among them.
    """
    return _converted(source, "", inputs, factory, opset)


def convert_signature(
    source: Any, *, signature: str, inputs: Sequence[TensorSpec], factory: str | None, opset: int
) -> Conversion:
    """The same for the signature of a file that is called so. Raises EdgerunError where there is none."""
    return _converted(source, signature, inputs, factory, opset)


def _converted(
    source: Any, signature: str, inputs: Sequence[TensorSpec], factory: str | None, opset: int
) -> Conversion:
    if factory is not None:
        raise EdgerunError("a TFLite model needs no factory", got=factory, do="leave --factory out")
    from edgerun.converters import _tflite_files, _tflite_hybrid, _tflite_parity, _tflite_sizes
    from edgerun.converters._tflite_source import Source

    rules()
    path = Path(source)
    net = _tflite_files.load(path, signature)
    have = [_door.spec(name, net.tensors[i].dtype, net.tensors[i].shape) for name, i in net.inputs.items()]
    specs = _door.matched(have, inputs)
    names = _unlike({spec.name for spec in specs}, list(net.outputs))
    net = replace(net, outputs=dict(zip(names, net.outputs.values(), strict=True)))
    net = _tflite_sizes.settled(net, [spec.shape for spec in specs])
    proto, values = write(net, specs, min(opset, newest_opset))
    data = path.read_bytes()
    model = _told(Model.from_proto(proto), data, net)
    ran = Source(data, net, [spec.name for spec in specs])
    if not _tflite_parity.coded(net):
        if _tflite_hybrid.weights(net):
            return _hybrid(model, ran, data, net)
        ways = _tflite_parity.both_ways(net, model, ran)
        return Conversion(model, ran.run, feeds=ways, data=_tflite_parity.WAYS if ways else "",
                          taps=[_tflite_parity.taps(net, values, ran)],
                          bare=_tflite_parity.bare(net, data, ran))  # fmt: skip
    feeds = _tflite_parity.feeds(net, model)
    parts = _tflite_parity.parts(net, values, proto, ran, feeds)
    return Conversion(model, ran.run, feeds=feeds, data=_tflite_parity.DATA, parts=parts)


def _told(model: Model, data: bytes, net: Net) -> Model:
    """The model with the contract and the classes that the file's metadata tells."""
    from edgerun.converters import _tflite_metadata

    contract, classes = _tflite_metadata.read(data, net, model.inputs)
    if classes is not None:
        model.ir.metadata_props["classes"] = json.dumps(classes)
    return model if contract is None else model.retold(contract.to_json(), model.history)


def _hybrid(model: Model, ran: Source, data: bytes, net: Net) -> Conversion:
    """Dynamic range quantization, judged by TFLite's float kernels (`_tflite_hybrid`)."""
    from edgerun.converters import _tflite_hybrid
    from edgerun.converters._tflite_source import Source

    exact = Source(_tflite_hybrid.twin(data, net), net, [spec.name for spec in model.inputs])
    told = _tflite_hybrid.difference(model, ran, exact)
    log.info("weights in codes beside values in float: computed in float; TFLite rounds those values to 8 bits as they "
             "come, its outputs differ by %.2g (rms)", told["hybrid_kernels_differ"])  # fmt: skip
    return Conversion(model, exact.run, told={"dynamic_range": told},
                      data="random, seed 0: against TFLite's float kernels on the file's weights")  # fmt: skip


def rules() -> Mapping[str, Any]:
    """Every operator that can be written, by its name in the schema."""
    for module in RULE_MODULES:
        importlib.import_module(f"edgerun.converters.{module}")
    from edgerun.converters._tflite_graph import RULES

    return RULES


def write(net: Net, specs: Sequence[TensorSpec], opset: int) -> tuple[onnx.ModelProto, dict[int, Value]]:
    """The net as ONNX with the inputs `specs`, and how each of its tensors is called there and lies.

    Raises Unsupported with everything in it that has no form here.
    """
    from onnx import helper

    from edgerun.converters import _tflite_graph, _tflite_walk

    _refuse(_unknown(net))
    graph = _tflite_graph.Graph(opset)
    values = {index: _entering(graph, net, index, spec) for spec, index in zip(specs, net.inputs.values(), strict=True)}
    refused: list[str] = []
    _tflite_walk.walk(graph, net, values, refused)
    _refuse(refused)
    doors = {spec.name for spec in specs}
    outputs, lead = [], specs[0].shape[0] if specs and specs[0].shape else "batch"
    for name, index in net.outputs.items():
        graph.scope = name
        value = graph.plain(_tflite_walk.read(graph, net, index, values))
        if quant := net.tensors[index].quant:
            value = graph.coded(value, quant)  # int8 at the door
        last = value.codes or value.name
        graph.nodes.append(helper.make_node("Identity", [last], [name]))
        if index in values and value.codes and values[index].codes == last and last not in doors:
            # the Identity goes, and its name stays: for all that is this value, or only lies otherwise
            values |= {i: replace(v, codes=name) for i, v in values.items() if v.codes == last}
        dims = [lead if axis == 0 and size is None else size for axis, size in enumerate(net.tensors[index].shape)]
        outputs.append(helper.make_tensor_value_info(name, _kind(net.tensors[index].dtype), dims))
    entries = [helper.make_tensor_value_info(spec.name, _kind(spec.dtype), spec.shape) for spec in specs]
    body = helper.make_graph(graph.nodes, "tflite", entries, outputs, list(graph.initializers.values()))
    proto = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)])
    if scales := _scales(net, specs):
        proto.metadata_props.add(key="quantization", value=json.dumps(scales, sort_keys=True))
    return _clean(proto, opset), values


def _entering(graph: Any, net: Net, index: int, spec: TensorSpec) -> Any:
    from edgerun.converters._tflite_graph import Value

    tensor, shape = net.tensors[index], tuple(d if isinstance(d, int) else None for d in spec.shape)
    if tensor.quant is None:
        return Value(spec.name, shape, spec.dtype)
    graph.scope = spec.name
    door = graph.number(Value("", shape, "float32", quant=tensor.quant, codes=spec.name))
    return graph.coded(door, tensor.quant.unsigned)


def _unknown(net: Net) -> list[str]:
    """A line for every kind of operator, and every state, that has no form here."""
    from edgerun.converters import _tflite_files, _tflite_sequences

    counts = Counter(operator.kind for operator in net.operators if operator.kind not in rules())
    lines = []
    for kind, count in sorted(counts.items()):
        stateful = kind.startswith(_STATEFUL)
        why = "a state that lives from run to run" if stateful else "a custom operator" if ":" in kind else ""
        lines.append(f"{kind} ({count}){': ' + why if why else ''}")
    for name, index in {**net.inputs, **net.outputs}.items():
        if (dtype := net.tensors[index].dtype) not in _tflite_files.DTYPES.values():
            lines.append(f"{name}: of type {dtype} at the door")
    if wide := [t.name for t in net.tensors if t.quant is not None and t.data is None and t.dtype == "int16"]:
        lines.append(f"{wide[0]} and {len(wide) - 1} more: codes of 16 bits")
    fused = {net.tensors[i].name for o in net.operators if o.kind == _tflite_sequences.KIND for i in o.inputs[18:20]}
    lines += [f"{t.name}: a variable tensor, a state that lives from run to run" for t in net.tensors
              if t.variable and t.name not in fused]  # fmt: skip
    return lines


def _refuse(lines: Sequence[str]) -> None:
    if lines:
        raise Unsupported("the model has operators that cannot be converted", got="\n    " + "\n    ".join(lines),
                          do="replace them by what docs/tflite.md lists, or export without them")  # fmt: skip


def _scales(net: Net, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """What the codes at the door stand for: real = scale·(code - zero_point)."""
    doors = {**dict(zip((spec.name for spec in specs), net.inputs.values(), strict=True)), **net.outputs}
    found = {}
    for name, index in doors.items():
        if quant := net.tensors[index].quant:
            found[name] = {"scale": float(quant.scale[0]), "zero_point": int(quant.zero[0])}
    return found


def _kind(dtype: str) -> int:
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _unlike(taken: set[str], names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        while name in taken:
            name += "_out"
        found.append(name)
        taken = taken | {name}
    return found


def _clean(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    proto.ir_version = _normalize.ir_version(opset)
    graph = _normalize.normalize(ir.from_proto(proto))
    common.CommonSubexpressionEliminationPass()(graph)
    clean = ir.to_proto(graph)
    if not any(node.op_type == "DequantizeLinear" for node in clean.graph.node):  # codes are compared value by value
        clean = _merges.merged(clean)
    return _normalize.infer_shapes(clean)
