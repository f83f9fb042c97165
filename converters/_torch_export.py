"""The routes by which a PyTorch model becomes ONNX, one function each: torch.export, tracing, scripting."""

from __future__ import annotations

import contextlib
import inspect
import re
import tempfile
import warnings
from ast import literal_eval
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.converters import _merges, _normalize, _torch_graph
from edgerun.converters._torch_call import Call
from edgerun.converters._torch_reasons import users
from edgerun.passes import Feeds
from edgerun.runtime import TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

OLD_EXPORTER = 17  # the newest opset in which the TorchScript exporter is complete
SOURCE = "edgerun_source"  # what a traced module is called within the one that flattens its results
_BRANCH = re.compile(r"to a Python (boolean|integer|float|index|number)")


@dataclass
class Exported:
    """What a route made, and what its values stand for.

    `program` is the torch.export program that the graph was written from, whose node names are the graph's value names
    but for those in `renamed`. `modules` has, by a module's path, the values that nodes within it write, in order.
    `branches` are the lines of the source where tracing turned a tensor into a number: the graph has one side of each.
    `room` holds the weights of a large model, which `proto` names by their absolute path, for as long as it lives.
    """

    proto: onnx.ModelProto
    program: Any = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, Sequence[str]] = field(default_factory=dict)
    branches: tuple[str, ...] = ()
    room: tempfile.TemporaryDirectory[str] | None = None


Route = Callable[[Call, Feeds, int], Exported]


def exported(call: Call, example: Feeds, opset: int) -> Exported:
    """Through torch.export (`dynamo=True`)."""
    import torch

    tensors = call.tensors(example)
    dims = [{axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in call.specs]
    names = [spec.name for spec in call.specs]
    if call.by_name:
        how: dict[str, Any] = {
            "kwargs": dict(zip(names, tensors, strict=True)),
            "dynamic_shapes": dict(zip(names, dims, strict=True)),
        }
    else:
        shapes = tuple(dims)
        variadic = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(call.module.forward).parameters.values())
        how = {"args": tuple(tensors), "dynamic_shapes": (shapes,) if variadic else shapes}
    found = torch.onnx.export(
        call.module, dynamo=True, opset_version=max(opset, 18), output_names=call.outputs, verbose=False, **how
    )
    assert found is not None
    return _finish(found.model, call.specs, call.outputs, opset, found.exported_program)


def from_program(program: Any, call: Call, opset: int) -> Exported:
    """From a program that torch.export made; `call` is its module's."""
    import torch

    found = torch.onnx.export(program, dynamo=True, opset_version=max(opset, 18), verbose=False)
    assert found is not None
    return _finish(found.model, call.specs, call.outputs, opset, found.exported_program)


def traced(call: Call, example: Feeds, opset: int) -> Exported:
    """Through TorchScript tracing (`dynamo=False`), for models that torch.export cannot follow."""
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, SOURCE, call.module)

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            return tuple(call.invoke(tensors))

    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")  # TracerWarning says which tensors became numbers
        found = _old_exporter(Flat().eval(), call, example, opset)
    places = {(w.filename, w.lineno) for w in noted if _BRANCH.search(str(w.message))}
    places = {place for place in places if users(place[0])} or places
    found.branches = tuple(sorted(f"{Path(file).name}:{line}" for file, line in places))
    return found


def scripted(call: Call, example: Feeds, opset: int) -> Exported:
    """From TorchScript, whose control flow stays; a plain module is compiled to it (`torch.jit.script`)."""
    import torch

    module = call.module
    if not isinstance(module, torch.jit.ScriptModule):
        module = torch.jit.script(module)
    return _old_exporter(_without_dict(module), call, example, opset)


def _without_dict(module: Any) -> Any:
    """The module, its result a tuple where it is a dict of tensors: ONNX has no dict to build."""
    import torch

    if next(module.graph.outputs()).type().kind() != "DictType":
        return module
    frozen = torch.jit.freeze(module)
    graph = frozen.graph
    result = next(graph.outputs()).node()
    if result.kind() != "prim::DictConstruct":
        return module
    values = list(result.inputs())[1::2]
    together = graph.create("prim::TupleConstruct", values, 1)
    together.insertBefore(graph.return_node())
    together.output().setType(torch._C.TupleType([value.type() for value in values]))
    graph.eraseOutput(0)
    graph.registerOutput(together.output())
    torch._C._jit_pass_dce(graph)
    return frozen


def _old_exporter(module: Any, call: Call, example: Feeds, opset: int) -> Exported:
    import onnx_ir as ir
    import torch

    from edgerun import external

    axes = {s.name: {i: d for i, d in enumerate(s.shape) if isinstance(d, str)} for s in call.specs}
    room = tempfile.TemporaryDirectory()
    with contextlib.ExitStack() as stack:
        stack.callback(room.cleanup)
        path = Path(room.name) / "exported.onnx"
        try:
            torch.onnx.export(
                module, tuple(call.tensors(example)), str(path), dynamo=False, opset_version=min(opset, OLD_EXPORTER),
                input_names=[s.name for s in call.specs], output_names=call.outputs, dynamic_axes=axes, verbose=False,
            )  # fmt: skip
        finally:
            call.module.eval()  # a failed export leaves it in training mode
        proto = external.read(path)
        found = _finish(ir.from_proto(_normalize.to_opset(proto, opset)), call.specs, call.outputs, opset)
        if external.beside(found.proto):
            found.room = room
            stack.pop_all()
    return found


def _finish(
    model: ir.Model, specs: Sequence[TensorSpec], outputs: Sequence[str], opset: int, source: Any = None
) -> Exported:
    """Names at the door as the user wrote them, nodes by module path, one opset, a clean graph."""
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    from edgerun import pair, rearranged

    common.OutputFixPass()(model)
    modules = _name_by_module(model)
    _rename_inputs(model, specs)
    rearranged.weights(model)
    _torch_graph.simplify(model)
    room = pair.spilled(model)
    renamed: dict[str, str] = {}
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        renamed[value.name or ""] = name
        value.name = name
    proto = _normalize.to_opset(ir.to_proto(model), opset)
    graph = _normalize.normalize(ir.from_proto(proto))
    graph.ir_version = _normalize.ir_version(opset)
    written = {path: [renamed.get(name, name) for name in names] for path, names in modules.items()}
    made = _merges.merged(_normalize.infer_shapes(ir.to_proto(graph)))
    return Exported(_normalize.infer_shapes(made), source, renamed, written, room=room)


def _rename_inputs(model: ir.Model, specs: Sequence[TensorSpec]) -> None:
    """Input and dimension names as the user wrote them; other values' dimensions follow, arithmetic on them too."""
    import onnx_ir as ir

    by_name = {value.name: value for value in model.graph.inputs}
    written: dict[str, str] = {}
    for position, spec in enumerate(specs):
        value = by_name.get(spec.name) or model.graph.inputs[position]
        for old, new in zip(value.shape or (), spec.shape, strict=False):
            if isinstance(new, str) and not isinstance(old, int) and old.value:
                written[str(old.value)] = new
        value.name, value.shape = spec.name, ir.Shape(spec.shape)
    values = [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else _renamed(d.value, written) for d in value.shape])


def _renamed(dim: str | None, written: Mapping[str, str]) -> str | None:
    return None if dim is None else re.sub(r"[A-Za-z_]\w*", lambda word: written.get(word[0], word[0]), dim)


def _name_by_module(model: ir.Model) -> dict[str, list[str]]:
    """`features.0/Conv`: where the node stands in the nn.Module tree, and its operator. Returns modules' values."""
    modules: dict[str, list[str]] = {}
    for node in model.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        paths = [s for s in literal_eval(scopes)[:-1] if s[:1].strip("_")] if scopes else _paths(node.name or "")
        if paths:
            node.name = f"{paths[-1]}/{node.op_type}"
        for path in paths:
            modules.setdefault(path, []).extend(value.name or "" for value in node.outputs)
    return modules


def _paths(name: str) -> list[str]:
    """The module paths in a name that the TorchScript exporter gave: `/body/body.0/a/Gemm` is in `body.0.a`.

    A child of a Sequential repeats its parent's name: `body`, `body.0`.
    """
    found: list[str] = []
    for part in name.split("/")[1:-1]:
        last = found[-1] if found else ""
        tail = last if part.startswith(f"{last}.") else last.rpartition(".")[2]
        if tail and part.startswith(f"{tail}."):
            found.append(last + part[len(tail) :])
        else:
            found.append(f"{last}.{part}" if last else part)
    inner = [path.removeprefix(SOURCE).removeprefix(".") for path in found]
    return [path for path in inner if path]
