"""Subclassed Keras models: their `call` with symbolic tensors, or on the torch backend torch.export."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

from edgerun import draws
from edgerun.converters._layout import Value
from edgerun.converters._ort import first_line
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.passes import Conversion
from edgerun.runtime import TensorSpec

log = logging.getLogger("edgerun")


def layered(model: Any) -> bool:
    """Has the model a graph of layers: functional, or sequential?"""
    kinds = {f"{c.__module__}.{c.__qualname__}" for c in type(model).__mro__}
    graphs = {"keras.src.models.functional.Functional", "keras.src.models.sequential.Sequential"}
    return bool(kinds & graphs)


def specs(model: Any, inputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The door of a subclassed model, which the user must tell: it has none of its own."""
    if not inputs:
        raise EdgerunError(
            "the model does not tell its input", got=f"{type(model).__name__}, a subclassed model",
            do="give its inputs in call order: --input 'image:float32[batch,32,32,3]'",
        )  # fmt: skip
    names = [spec.name or f"input_{index}" for index, spec in enumerate(inputs)]
    return [TensorSpec(name, spec.dtype, spec.shape) for name, spec in zip(names, inputs, strict=True)]


class Called:
    """A subclassed model with its door: it takes its inputs one by one, or as the list that its `call` wants."""

    def __init__(self, model: Any, door: Sequence[TensorSpec]) -> None:
        from keras import ops, tree  # type: ignore[import-untyped]

        self.source, self.name = model, model.name
        parameters = [p for p in inspect.signature(model.call).parameters.values() if p.kind != p.VAR_KEYWORD]
        known = [p for p in parameters if p.name not in ("training", "mask")]
        self._apart = len(door) == 1 or len(known) >= len(door) or any(p.kind == p.VAR_POSITIONAL for p in known)
        feeds = draws.feeds(door, draws.sizes(door, 2, 64), seed=0)
        try:  # which also builds what is built at the first call
            found = self(*[ops.convert_to_tensor(feeds[spec.name]) for spec in door])
        except Exception as error:  # whatever the caller's code raises
            raise EdgerunError(
                "the model does not take these inputs", got=f"{type(error).__name__}: {first_line(error)}",
                wanted=", ".join(map(str, door)),
            ) from error  # fmt: skip
        count = len(tree.flatten(found))
        keyed = isinstance(found, dict) and len(found) == count
        self.names = sorted(map(str, found)) if keyed else [f"output_{index}" for index in range(count)]
        self.weights = model.weights

    def __call__(self, *tensors: Any, training: bool = False) -> Any:
        """What the model makes of its inputs, given in the order of the door."""
        flat = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], list) else list(tensors)
        return self.source(*flat, training=False) if self._apart else self.source(flat, training=False)

    def write(self, walk: Any, values: Sequence[Value]) -> list[Value]:
        """The operations of its `call`."""
        arguments = list(values) if self._apart else [list(values)]
        known = {"training": False} if "training" in inspect.signature(self.source.call).parameters else {}
        found: list[Value] = walk.trace(self.source.call, *arguments, **known)
        return found


def exported(model: Any, door: Sequence[TensorSpec], opset: int, why: Unsupported) -> Conversion:
    """A subclassed model as the nn.Module that it is on the torch backend; else raises `why` its layers cannot go."""
    from keras import backend

    if not isinstance(model, Called) or backend.backend() != "torch":
        raise why
    from edgerun.converters import _torch_export, _torch_ladder
    from edgerun.converters._torch_call import Call

    log.info("not by the operations of keras.ops: by torch.export")
    try:
        model.source.eval()  # torch modules inside of it; Keras's own layers are told at each call
        call = Call(model.source, door)
        ladder = _torch_ladder.Ladder(call, call.example(), opset)
        found = ladder.climb([("torch.export", _torch_export.exported)]) or ladder.settle()
        reason = ladder.tried[0].reason
    except EdgerunError as error:
        raise Unsupported(why.what, got=f"{why.got or ''}; and torch.export: {error.what}", do=why.do) from error
    if found is None:
        raise Unsupported(why.what, got=f"{why.got or ''}; and torch.export: {reason}", do=why.do) from why
    return Conversion(Model.from_proto(found.proto), call.run)
