"""Calling a PyTorch model by named arrays: the door that all routes to ONNX share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgerun import draws, sandbox
from edgerun.converters._ort import first_line
from edgerun.errors import EdgerunError
from edgerun.passes import Feeds
from edgerun.runtime import TensorSpec


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
        self.room: Any = None  # a folder that is to live as long as this call
        if _loops(module):
            self.invoke = sandbox.ending(self.invoke)  # type: ignore[method-assign, assignment]

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
                refusal = _said(error)
        raise EdgerunError(
            "the model does not run on these inputs", got=refusal, wanted=", ".join(map(str, self.specs)),
            do="check names, order, dtypes and shapes in --input",
        )  # fmt: skip


def _loops(module: Any) -> bool:
    """Has a program that came in a file a loop? A module is its owner's own Python."""
    if isinstance(getattr(module, "code", None), str) and hasattr(module, "_c"):
        return "prim::Loop" in str(module.inlined_graph)
    return "while_loop" in str(getattr(module, "graph", ""))


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


def _said(error: Exception) -> str:
    """An error's first line; TorchScript puts the source's own words last, behind its traceback."""
    text = str(error)
    if "TorchScript interpreter" in text:
        text = text.strip().splitlines()[-1].removeprefix("builtins.")
    return first_line(RuntimeError(text))


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
