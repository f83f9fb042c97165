"""Which nodes stay float, from another tool's lists of names and ops; and what the clock said of the result."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from typing import Any

from edgerun import registry
from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.model import Model
from edgerun.verbs.clock import Speed


def keep_float(model: Model, target: str, excluded: Collection[str]) -> list[str]:
    """Of the nodes named in `excluded`, those that `keep_float` must name; the others are never quantized.

    A MatMul that becomes a Gemm with the Add behind it is kept under the Add's name. Raises EdgerunError for a name
    that the model does not have, and for a node that folding takes away with its name.
    """
    from edgerun.quantize.graphs.edit import sole_consumer

    nodes = {str(node.name): node for node in model.ir.graph}
    rules, left = registry.target(target).quantization(), quantizable(model, target)
    found = []
    for name in excluded:
        if name not in nodes:
            raise unknown("node", name, nodes)
        if name in left:
            found.append(name)
            continue
        node = nodes[name]
        reader = sole_consumer(node.outputs[0]) if node.op_type == "MatMul" else None
        if reader is not None and str(reader.name) in left:
            found.append(str(reader.name))
        elif node.op_type in rules.compute:
            raise EdgerunError(f"node {name!r} cannot be excluded: folding constants takes it away", do="leave it out")
    return sorted(set(found))


def quantizable(model: Model, target: str) -> dict[str, str]:
    """Name -> op of the nodes that `target`'s rules quantize, after folding."""
    from edgerun.quantize import fold

    rules = registry.target(target).quantization()
    folded = fold.apply(model.clone())
    return {str(n.name): n.op_type for n in folded.graph if n.op_type in rules.compute | rules.join}


def member(value: Any, known: Iterable[Any], what: str) -> str:
    """The name of an enum member, of ours or of the tool's own enum. Raises EdgerunError for anything else."""
    names = [entry.name for entry in known]
    if getattr(value, "name", None) not in names:
        raise EdgerunError(f"unknown {what}", got=value, wanted=", ".join(names))
    return str(value.name)


def refuse(what: str, *, got: object, do: str) -> None:
    """Raise Unsupported: an option that cannot be honoured."""
    raise Unsupported(f"edgerun cannot honour {what}", got=got, do=do)


def heard(speed: Speed) -> None:
    """Warn of what a caller of another tool would not expect: nodes left in float, a model that is hardly faster."""
    if speed.kept:
        warnings.warn(f"stays float, since that is faster: {', '.join(speed.kept)}", stacklevel=2)
    if speed.answer in ("slower", "no difference"):
        warnings.warn(f"the quantized model is not surely faster: {speed}", stacklevel=2)
