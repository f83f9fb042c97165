"""What a PyTorch source computes inside, by the names of the values that stand for it in the converted graph."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgerun.converters._torch_call import Call
from edgerun.converters._torch_export import Exported
from edgerun.passes import Feeds
from edgerun.taps import Tap, Taps

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in \w+\n\s*([^\n]+)')


def of(call: Call, found: Exported) -> list[Taps]:
    """Operation by operation, where there is a torch.export program, and then module by module in the source itself."""
    taps: list[Taps] = [lambda feeds: _operations(call, found, feeds)] if found.program is not None else []
    return [*taps, lambda feeds: _modules(call, found, feeds)]


def _operations(call: Call, found: Exported, feeds: Feeds) -> Mapping[str, Tap]:
    """Every operation of the exported program, run one by one by torch; named as the graph's values are."""
    import torch

    recorded: dict[str, Tap] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: Any) -> Any:
            result = super().run_node(n)
            if n.op == "call_function" and isinstance(result, torch.Tensor):
                recorded[found.renamed.get(n.name, n.name)] = Tap(_told(n), result.detach().numpy().copy())
            return result

    program = found.program
    given = iter(call.tensors(feeds))
    state = {**dict(program.state_dict), **program.constants, **dict(program.named_buffers())}
    inputs = [
        next(given) if spec.kind.name == "USER_INPUT" else state[spec.target]
        for spec in program.graph_signature.input_specs
    ]
    with torch.no_grad():
        Recorder(program.graph_module).run(*inputs)
    return recorded


def _told(node: Any) -> str:
    """`body.0 (Inner), nets.py:12: y = torch.relu(x)`: the module and the line of the source."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path, kind = stack[-1][:2] if stack else ("", "")
    kind = getattr(kind, "__name__", str(kind)).rpartition(".")[2]
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    line = f", {Path(frames[-1][0]).name}:{frames[-1][1]}: {frames[-1][2].strip()}" if frames else ""
    operation = str(node.target).removesuffix(".default")
    return f"{operation} in {path or 'the model'} ({kind}){line}"


def _modules(call: Call, found: Exported, feeds: Feeds) -> Mapping[str, Tap]:
    """The result of every module that is called once and returns one tensor, at the last value of its rank in it."""
    import torch

    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*found.proto.graph.value_info, *found.proto.graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    calls: dict[str, list[Any]] = {}
    hooks = [
        part.register_forward_hook(lambda _, args, result, path=path: calls.setdefault(path, []).append(result))
        for path, part in call.module.named_modules()
        if path and not isinstance(part, torch.jit.ScriptModule)
    ]
    try:
        call.run(feeds)
    finally:
        for hook in hooks:
            hook.remove()
    recorded: dict[str, Tap] = {}
    for path, results in calls.items():
        result = results[0]
        if len(results) != 1 or not isinstance(result, torch.Tensor):
            continue
        names = [name for name in found.modules.get(path, ()) if ranks.get(name) == result.ndim]
        if names:
            kind = type(call.module.get_submodule(path)).__name__
            recorded[names[-1]] = Tap(f"the result of {path} ({kind})", result.detach().numpy().copy())
    return recorded
