"""Calling a PyTorch model by named arrays, and the routes by which it becomes ONNX."""

from __future__ import annotations

import inspect
import logging
import re
import tempfile
from ast import literal_eval
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import draws
from edgerun.converters import _normalize
from edgerun.converters._ort import first_line
from edgerun.errors import EdgerunError, Unsupported
from edgerun.passes import Feeds
from edgerun.runtime import TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

log = logging.getLogger("edgerun")
_OLD_EXPORTER = 17  # the newest opset in which the TorchScript exporter is complete


class Call:
    """A module that is called with feeds by name and returns its tensors by name.

    Inputs go by keyword when every name is a parameter of `forward`, else in order. Outputs are named by their dict
    keys, `output_0 …` in a sequence, `output` when there is one.
    """

    def __init__(
        self, module: Any, specs: Sequence[TensorSpec], positional: bool = False, double: bool = False
    ) -> None:
        self.module, self.positional, self.double = module, positional, double
        parameters = _parameters(module)
        names = [spec.name or (parameters[i] if i < len(parameters) else f"input_{i}") for i, spec in enumerate(specs)]
        if len(set(names)) != len(names):
            raise EdgerunError("two inputs have the same name", got=", ".join(names))
        self.by_name = not positional and set(names) <= set(parameters)
        named = [TensorSpec(name, s.dtype, s.shape) for name, s in zip(names, specs, strict=True)]
        self.specs = tuple(sorted(named, key=lambda s: parameters.index(s.name)) if self.by_name else named)
        self.outputs: list[str] = []

    def tensors(self, feeds: Feeds) -> list[Any]:
        """One tensor per spec, in order; floating ones in float64 when `double`."""
        import torch

        arrays = [torch.from_numpy(np.ascontiguousarray(feeds[spec.name])) for spec in self.specs]
        return [a.double() if self.double and a.is_floating_point() else a for a in arrays]

    def invoke(self, tensors: Sequence[Any]) -> list[Any]:
        """The model's tensors, flat; sets `outputs` to their names."""
        import torch
        from torch.utils import _pytree as tree

        if self.by_name:
            result = self.module(**{spec.name: t for spec, t in zip(self.specs, tensors, strict=True)})
        else:
            result = self.module(*tensors)
        leaves = [
            (path, leaf) for path, leaf in tree.tree_flatten_with_path(result)[0] if isinstance(leaf, torch.Tensor)
        ]
        self.outputs = _output_names([path for path, _ in leaves], {spec.name for spec in self.specs})
        return [leaf for _, leaf in leaves]

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Outputs by name, as arrays."""
        import torch

        with torch.no_grad():
            leaves = self.invoke(self.tensors(feeds))
        return {name: leaf.detach().numpy() for name, leaf in zip(self.outputs, leaves, strict=True)}

    def example(self) -> dict[str, np.ndarray]:
        """The first random feeds that the model takes (batch 2). Raises EdgerunError when it takes none."""
        refusal = "it returns no tensor"
        for other in draws.SIZES:
            feeds = draws.feeds(self.specs, draws.sizes(self.specs, 2, other), seed=0)
            try:
                if self.run(feeds):
                    return feeds
            except Exception as error:  # the model's own code may raise anything
                refusal = first_line(error)
        raise EdgerunError(
            "the model does not run on these inputs", got=refusal, wanted=", ".join(map(str, self.specs)),
            do="check names, order, dtypes and shapes in --input",
        )  # fmt: skip


def ladder(routes: Sequence[tuple[str, Callable[[], onnx.ModelProto]]]) -> onnx.ModelProto:
    """The first route's model that works; says which did, and why those before it did not."""
    failures: list[str] = []
    for name, route in routes:
        try:
            proto = route()
        except Exception as error:  # exporters raise dozens of classes
            failures.append(f"{name}: {_reason(error)}")
            log.info("%s cannot export this model: %s", name, _reason(error))
            continue
        log.info("exported by %s", name)
        return proto
    raise Unsupported("PyTorch cannot export this model to ONNX", got="\n    ".join(failures))


def exported(call: Call, example: Feeds, opset: int) -> onnx.ModelProto:
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
    program = torch.onnx.export(
        call.module, dynamo=True, opset_version=max(opset, 18), output_names=call.outputs, verbose=False, **how
    )
    assert program is not None
    return _finish(program.model, call.specs, call.outputs, opset)


def program(exported: Any, specs: Sequence[TensorSpec], outputs: Sequence[str], opset: int) -> onnx.ModelProto:
    """From a program that torch.export made."""
    import torch

    found = torch.onnx.export(exported, dynamo=True, opset_version=max(opset, 18), verbose=False)
    assert found is not None
    return _finish(found.model, specs, outputs, opset)


def traced(call: Call, example: Feeds, opset: int) -> onnx.ModelProto:
    """Through TorchScript tracing (`dynamo=False`), for models that torch.export cannot follow."""
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source = call.module

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            return tuple(call.invoke(tensors))

    return _old_exporter(Flat(), call, example, opset)


def scripted(call: Call, example: Feeds, opset: int) -> onnx.ModelProto:
    """From TorchScript, whose control flow stays."""
    return _old_exporter(_without_dict(call.module), call, example, opset)


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


def _old_exporter(module: Any, call: Call, example: Feeds, opset: int) -> onnx.ModelProto:
    import onnx
    import onnx_ir as ir
    import torch

    axes = {s.name: {i: d for i, d in enumerate(s.shape) if isinstance(d, str)} for s in call.specs}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exported.onnx"
        torch.onnx.export(
            module, tuple(call.tensors(example)), path, dynamo=False, opset_version=min(opset, _OLD_EXPORTER),
            input_names=[s.name for s in call.specs], output_names=call.outputs, dynamic_axes=axes, verbose=False,
        )  # fmt: skip
        proto = onnx.load(path)
    return _finish(ir.from_proto(_normalize.to_opset(proto, opset)), call.specs, call.outputs, opset)


def _finish(model: ir.Model, specs: Sequence[TensorSpec], outputs: Sequence[str], opset: int) -> onnx.ModelProto:
    """Names at the door as the user wrote them, nodes by module path, one opset, a clean graph."""
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    common.OutputFixPass()(model)
    _name_by_module(model)
    _rename_inputs(model, specs)
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = name
    proto = _normalize.to_opset(ir.to_proto(model), opset)
    graph = _normalize.normalize(ir.from_proto(proto))
    graph.ir_version = _normalize.ir_version(opset)
    return _normalize.infer_shapes(ir.to_proto(graph))


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


def _name_by_module(model: ir.Model) -> None:
    """`features.0/Conv`: where the node stands in the nn.Module tree, and its operator."""
    for node in model.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        path = [scope for scope in literal_eval(scopes)[:-1] if scope] if scopes else []
        if path:
            node.name = f"{path[-1]}/{node.op_type}"


def program_specs(program: Any, wanted: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The door of an exported program; `wanted` may rename inputs and symbolic dimensions, nothing else."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    names = list(program.graph_signature.user_inputs)
    have = [
        TensorSpec(name, str(values[name].dtype).removeprefix("torch."), tuple(_dim(d) for d in values[name].shape))
        for name in names
    ]
    if not wanted:
        return have
    fits = len(wanted) == len(have) and all(
        w.dtype == h.dtype
        and len(w.shape) == len(h.shape)
        and all(x == y or (isinstance(x, str) and isinstance(y, str)) for x, y in zip(w.shape, h.shape, strict=True))
        for w, h in zip(wanted, have, strict=True)
    )
    if not fits:
        raise EdgerunError(
            "the program was exported for other inputs", got=", ".join(map(str, wanted)),
            wanted=", ".join(map(str, have)), do="leave --input out, or export again with these shapes",
        )  # fmt: skip
    return [TensorSpec(w.name or h.name, w.dtype, w.shape) for w, h in zip(wanted, have, strict=True)]


def _dim(dim: Any) -> int | str:
    return dim if isinstance(dim, int) else re.sub(r"\W+", "_", str(dim))


def _parameters(module: Any) -> list[str]:
    schema = getattr(module, "code", None)
    if isinstance(schema, str) and hasattr(module, "_c"):  # TorchScript knows its parameters by its schema
        return [argument.name for argument in module._c._get_method("forward").schema.arguments[1:]]
    parameters = inspect.signature(module.forward).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _output_names(paths: Sequence[Sequence[Any]], taken: set[str]) -> list[str]:
    names: list[str] = []
    for path in paths:
        keys = [getattr(key, "key", getattr(key, "idx", getattr(key, "name", ""))) for key in path]
        words = "_".join(str(key) for key in keys)
        name = words if words and not words[0].isdigit() else f"output_{words}" if words else "output"
        names.append(f"{name}_out" if name in taken else name)
    return names


def _reason(error: BaseException) -> str:
    """The innermost cause's first line, without terminal colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    return re.sub(r"\x1b\[[0-9;]*m", "", first_line(error))
