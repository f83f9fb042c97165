"""PyTorch in: a state_dict with its factory, a Hugging Face folder, TorchScript, a `torch.export` program, or an
nn.Module object."""

from __future__ import annotations

import copy
import itertools
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgerun.converters import (
    _factory,
    _normalize,
    _torch_double,
    _torch_files,
    _torch_folders,
    _torch_ladder,
    _torch_reproduction,
    _torch_taps,
)
from edgerun.converters._ort import first_line
from edgerun.converters._torch_call import Call, program_specs
from edgerun.converters._torch_export import Exported, from_program
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.passes import Conversion
from edgerun.runtime import TensorSpec

summary = "PyTorch: state_dict or .safetensors with --factory, Hugging Face folder, TorchScript, .pt2, nn.Module"
requires: tuple[str, ...] = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime")
extra = "torch"
newest_opset = _normalize.PREFERRED_OPSET
SUFFIXES = {".pt", ".pth", ".pt2", ".ts", ".torchscript", ".jit", ".safetensors"}
log = logging.getLogger("edgerun")


def recognises(source: Any) -> bool:
    """A path that ends as PyTorch's files do, a Hugging Face folder, an nn.Module or an exported program object."""
    if isinstance(source, (str, Path)):
        return Path(source).suffix.lower() in SUFFIXES or _torch_folders.is_folder(Path(source))
    kinds = {f"{c.__module__}.{c.__qualname__}" for c in type(source).__mro__}
    return bool(kinds & {"torch.nn.modules.module.Module", "torch.export.exported_program.ExportedProgram"})


def convert(source: Any, *, inputs: Sequence[TensorSpec], factory: str | None, opset: int) -> Conversion:
    """Export by the first route that holds (torch.export, TorchScript tracing, scripting, rewrites of the source);
    dimension names stay as the user wrote them.

    `factory` is called without arguments and returns the nn.Module that a state_dict fits. The model runs in eval mode.
    Raises EdgerunError for a pickled program, a state_dict that does not fit, or inputs the model refuses, and
    Unsupported with the reason of every route, and the smallest part that fails, where none holds.
    """
    warnings.filterwarnings("ignore")  # the exporters' notes to their own authors
    logging.getLogger("torch").setLevel(logging.ERROR)
    import torch

    module = _module(source, factory)
    if isinstance(module, torch.export.ExportedProgram):
        return _program(module, inputs, opset)
    if not inputs and isinstance(source, (str, Path)) and factory is None and Path(source).is_dir():
        inputs = _torch_folders.inputs(module)
    if not inputs:
        raise EdgerunError(
            "PyTorch files do not tell their inputs",
            do="give them in call order: --input 'image:float32[batch,3,224,224]'",
        )
    module.eval()
    call = Call(module, inputs)
    example = call.example()
    try:
        found, tried = _torch_ladder.export(call, example, opset)
    except _torch_ladder.NotExported as refused:
        if isinstance(module, torch.jit.ScriptModule):
            raise
        raise _torch_reproduction.explained(refused, call, example, opset, factory) from refused
    return _conversion(call, example, found, tried)


def _program(program: Any, inputs: Sequence[TensorSpec], opset: int) -> Conversion:
    specs = program_specs(program, inputs)
    call = Call(program.module(), specs, positional=True)
    example = call.example()
    ladder = _torch_ladder.Ladder(call, example, opset)
    found = ladder.climb([(".pt2", lambda call, _, opset: from_program(program, call, opset))]) or ladder.settle()
    if found is None:
        raise Unsupported("PyTorch cannot export this program to ONNX", got=ladder.tried[0].reason)
    return _conversion(call, example, found, ladder.tried)


def _conversion(
    call: Call,
    example: dict[str, Any],
    found: Exported,
    tried: Sequence[_torch_ladder.Attempt],
) -> Conversion:
    told: dict[str, Any] = {"routes": [{"route": attempt.route, "failed": attempt.reason or None} for attempt in tried]}
    if found.branches:
        told["branches"] = list(found.branches)
    taps = _torch_taps.of(call, found)
    call.room = found.room  # for as long as somebody may compare with the source
    return Conversion(Model.from_proto(found.proto), call.run, _double(call, example), taps=taps, told=told)


def _module(source: Any, factory: str | None) -> Any:
    if not isinstance(source, (str, Path)):
        if factory is not None:
            raise EdgerunError("a model object needs no factory", got=factory, do="leave factory out")
        return _copied(source) if not hasattr(source, "graph_signature") else source
    import torch

    path = Path(source)
    kind = _torch_files.kind(path)
    if kind in ("torchscript", "pt2"):
        if factory is not None:
            raise EdgerunError(f"a {kind} file needs no factory", got=factory, do="leave --factory out")
        return _torch_files.torchscript(path) if kind == "torchscript" else _torch_files.exported_program(path)
    if kind == "folder" and factory is None:
        return _torch_folders.model(path)
    tensors = _torch_files.state_dict(path) if kind == "pickle" else _torch_folders.tensors(path)
    if factory is None:
        raise EdgerunError(
            "a state_dict holds tensors, not the network", got=f"{len(tensors)} tensors in {path.name}",
            do="name what builds the network: --factory module:callable",
        )  # fmt: skip
    module = _factory.built(factory, torch.nn.Module, "nn.Module")
    try:
        # What is mapped stays so: no weight is copied into what the factory made.
        own = module.state_dict()
        same = all(name in own and own[name].dtype == tensor.dtype for name, tensor in tensors.items())
        module.load_state_dict(tensors, assign=same and path.stat().st_size > _torch_files.LARGE)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise EdgerunError(
            f"the state_dict does not fit what {factory} builds", got="; ".join(lines)[:500],
            do="name the factory of exactly this network",
        ) from error  # fmt: skip
    return module


def _copied(module: Any) -> Any:
    """A copy that may be set to other modes; large weights are shared with it."""
    shared = {}
    if _large(module):
        shared = {id(tensor): tensor for tensor in itertools.chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared)


def _large(module: Any) -> bool:
    """Whether it has over 1 GiB of weights, of which there shall not be two."""
    return bool(sum(tensor.nbytes for tensor in module.parameters()) > _torch_files.LARGE)


def _double(call: Call, example: dict[str, Any]) -> Callable[..., Any] | None:
    """The source in float64, or None where its code fixes another dtype."""
    try:
        if _large(call.module):
            twin = _torch_double.twin(call)
        else:
            twin = Call(copy.deepcopy(call.module).double(), call.specs, call.positional, double=True)
        results = twin.run(example)
    except Exception as error:  # whatever a hard-coded dtype raises, or a copy that is not allowed
        log.info("the source does not run in float64: %s", first_line(error))
        return None
    if any(value.dtype.kind == "f" and value.dtype.itemsize < 8 for value in results.values()):
        log.info("the source does not stay in float64: compared in its own precision")
        return None
    return twin.run
