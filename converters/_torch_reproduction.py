"""The smallest part of a PyTorch model that no route exports alone, and a program that shows it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgerun import draws
from edgerun.converters._torch_call import Call
from edgerun.converters._torch_ladder import EXPORT, TRACE, Attempt, Ladder, NotExported, unlogged
from edgerun.errors import Unsupported
from edgerun.passes import Feeds
from edgerun.runtime import TensorSpec

log = logging.getLogger("edgerun")
TRIALS = 40  # parts that are tried; each takes seconds


@dataclass(frozen=True)
class Part:
    """A module that fails alone: its path ("" for the whole), how it is called, and what its own export says.

    `dims` names the dynamic dimensions of its tensors, in the order of the tree's leaves.
    """

    path: str
    kind: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    dims: tuple[dict[int, str], ...]
    tried: tuple[Attempt, ...]


def explained(refused: NotExported, call: Call, example: Feeds, opset: int, factory: str | None) -> Unsupported:
    """The refusal with the smallest part that fails named in it, and a program that shows it."""
    log.info("looking for the smallest part that fails alone")
    part = smallest(call, example, opset, list(refused.tried))
    place = f"{part.path} ({part.kind})" if part.path else f"{part.kind} itself, none of its parts"
    got = f"{refused.got}\n    smallest part that fails alone: {place}"
    if part.path:
        got += "".join(f"\n      {attempt.route}: {attempt.reason}" for attempt in part.tried)
    error = Unsupported(refused.what, got=got, wanted=refused.wanted, do=refused.do)
    error.reproduction = program(part, call, example, factory)
    return error


def smallest(call: Call, example: Feeds, opset: int, tried: list[Attempt]) -> Part:
    """Walk down the tree of modules, each called as the model calls it, while one below fails alone."""
    recorded = [_recorded(call, feeds) for feeds in (example, _larger(call, example))]
    part = _part(call, "", recorded, tried)
    left = TRIALS
    below: str | None = ""
    while below is not None:
        below = None
        for path in _children(call.module, part.path, recorded[0]):
            left -= 1
            if left < 0:
                return part
            found = _part(call, path, recorded, [])
            if reasons := _failures(call, found, opset):
                part, below = _part(call, path, recorded, reasons), path
                break
    return part


def _recorded(call: Call, feeds: Feeds) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """How every module is called, the first time, when the model runs on `feeds`."""
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(path: str) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.setdefault(path, (args, kwargs))

        return hook

    hooks = [p.register_forward_pre_hook(note(path), with_kwargs=True) for path, p in call.module.named_modules()]
    try:
        call.run(feeds)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _larger(call: Call, example: Feeds) -> Feeds:
    """Other sizes that the model takes, or the example again: what differs between the two is dynamic."""
    sizes = {
        d: n for s in call.specs for d, n in zip(s.shape, example[s.name].shape, strict=True) if isinstance(d, str)
    }
    for step in (1, 2, 16):
        feeds = draws.feeds(call.specs, {d: n + (1 if n < 4 else step) for d, n in sizes.items()}, seed=1)
        try:
            call.run(feeds)
            return feeds
        except Exception:  # the source's own complaint about a shape
            continue
    return example


def _part(call: Call, path: str, recorded: list[Any], tried: list[Attempt]) -> Part:
    import torch
    from torch.utils import _pytree as tree

    args, kwargs = recorded[0].get(path, ((), {}))
    again = tree.tree_leaves(recorded[1].get(path, (args, kwargs)))
    names: dict[tuple[int, int], str] = {}
    dims: list[dict[int, str]] = []
    for one, two in zip(tree.tree_leaves((args, kwargs)), again, strict=False):
        if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
            pairs = enumerate(zip(one.shape, two.shape, strict=False))
            dims.append({a: names.setdefault(p, f"d{len(names)}") for a, p in pairs if p[0] != p[1]})
    kind = type(call.module.get_submodule(path)).__name__
    return Part(path, kind, args, kwargs, tuple(dims), tuple(tried))


def _children(module: Any, path: str, recorded: Mapping[str, Any]) -> list[str]:
    """The nearest modules below `path` that are called; lists of modules are not, their members are."""
    inside = [p for p in recorded if p and p != path and (not path or p.startswith(f"{path}."))]
    return [p for p in inside if not any(p != other and p.startswith(f"{other}.") for other in inside)]


def _failures(call: Call, part: Part, opset: int) -> list[Attempt]:
    """Why no route exports the part alone; nothing where one does, or where it cannot be called alone."""
    import torch
    from torch.utils import _pytree as tree

    leaves, shape = tree.tree_flatten((part.args, dict(part.kwargs)))
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    if not where:
        return []

    class Alone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = call.module.get_submodule(part.path)

        def forward(self, *tensors: Any) -> Any:
            filled = list(leaves)
            for index, tensor in zip(where, tensors, strict=True):
                filled[index] = tensor
            args, kwargs = tree.tree_unflatten(filled, shape)
            return self.part(*args, **kwargs)

    specs = [
        TensorSpec(f"x{i}", str(leaves[at].dtype).removeprefix("torch."),
                   tuple(dims[axis] if axis in dims else int(n) for axis, n in enumerate(leaves[at].shape)))
        for i, (at, dims) in enumerate(zip(where, part.dims, strict=True))
    ]  # fmt: skip
    alone = Call(Alone().eval(), specs, positional=True)
    feeds = {spec.name: leaves[at].detach().numpy() for spec, at in zip(specs, where, strict=True)}
    try:
        if not alone.run(feeds):
            return []
    except Exception:  # a module that depends on what ran before it
        return []
    ladder = Ladder(alone, feeds, opset)
    with unlogged():
        return [] if ladder.climb([EXPORT, TRACE]) is not None else ladder.tried


def program(part: Part, call: Call, example: Feeds, factory: str | None) -> str:
    """A Python file that raises what the exporter raises: on the part alone, where its call can be written down."""
    import torch

    name, _, attribute = (factory or "").partition(":")
    reasons = "\n".join(f"{attempt.route}: {attempt.reason}" for attempt in part.tried)
    place = f"model.get_submodule({part.path!r})" if part.path else "model"
    called = _by_name(call.module.get_submodule(part.path), part)
    lines = [
        f'"""PyTorch {torch.__version__} does not export {part.path or "this model"} ({part.kind}) to ONNX.',
        "",
        reasons.replace("\\", "\\\\").replace('"""', "'''"),
        '"""',
        "",
        "import torch",
        *(["", f"from {name} import {attribute}"] if factory else []),
        "",
        "",
        "def reproduce(model: torch.nn.Module) -> None:",
        '    """Raises what the exporter raises, for the model in which the part stands."""',
        f"    part = {place}.eval()",
    ]
    if called is not None:
        inputs, dynamic = called
        lines += [f"    inputs = {inputs}", f"    dynamic = {dynamic}"]
        lines += ["    torch.onnx.export(part, kwargs=inputs, dynamic_shapes=dynamic, dynamo=True)"]
    else:
        arguments = ", ".join(_written(tensor) for tensor in call.tensors(example))
        lines += [
            "    calls = []",
            "    part.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)",
            f"    model({arguments})",
            "    args, kwargs = calls[0]",
            "    torch.onnx.export(part, args, kwargs=kwargs, dynamo=True)",
        ]
    lines += ["", "", 'if __name__ == "__main__":', f"    reproduce({attribute}())"] if factory else []
    return "\n".join(lines) + "\n"


def _by_name(module: Any, part: Part) -> tuple[str, str] | None:
    """The part's inputs by its parameters' names, and their dynamic dimensions, as Python; None if not writable."""
    import torch
    from torch.utils import _pytree as tree

    try:
        bound = inspect.signature(module.forward).bind(*part.args, **part.kwargs)
    except (TypeError, ValueError):
        return None
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY) for p in bound.signature.parameters.values()):
        return None
    dims = iter(part.dims)
    shapes = tree.tree_map(lambda leaf: next(dims) if isinstance(leaf, torch.Tensor) else None, bound.arguments)
    pairs = []
    for name, value in bound.arguments.items():
        if isinstance(value, torch.Tensor):
            pairs.append(f"{name!r}: {_written(value)}")
        elif value is None or isinstance(value, (bool, int, float, str)):
            pairs.append(f"{name!r}: {value!r}")
        else:
            return None
    return "{" + ", ".join(pairs) + "}", repr(dict(shapes))


def _written(tensor: Any) -> str:
    """A random tensor of this one's shape and dtype, as Python."""
    shape, dtype = tuple(tensor.shape), str(tensor.dtype)
    if tensor.is_floating_point():
        return f"torch.randn({shape}, dtype={dtype})"
    high = max(1, int(tensor.max()) + 1) if tensor.numel() else 1
    return f"torch.randint(0, {high}, {shape}).to({dtype})"
