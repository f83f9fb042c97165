"""Which nodes stay float, from another tool's lists of names and ops; and what the clock said of the result."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from typing import Any

from edgerun import registry
from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.model import Model
from edgerun.quantize import pass_for
from edgerun.verbs.clock import Speed


class Nodes:
    """The nodes of a model that `target` quantizes in a `scheme`, by the names that they have in it.

    `left` has name -> op after folding, `source` the op that the model itself has there: a MatMul that becomes a Gemm
    with the Add behind it goes by the Add's name, and `products` has that by the MatMul's own.
    """

    def __init__(self, model: Model, target: str, scheme: str = "w8a8") -> None:
        from edgerun.quantize import fold, weight_int8
        from edgerun.quantize.graphs.edit import sole_consumer

        rules = registry.target(target).quantization()
        graph = fold.apply(model.clone()).graph
        self.all, after = {str(n.name): n.op_type for n in model.ir.graph}, {str(n.name) for n in graph}
        if scheme == "w8a8":
            quantized = {str(n.name) for n in graph if n.op_type in rules.compute | rules.join}
        else:
            step: Any = registry.quantizer(pass_for(scheme))
            quantized = {*step.integers(model, rules, frozenset()), *(str(n.name) for n in weight_int8.others(graph))}
        self.left = {str(n.name): n.op_type for n in graph if n.name in quantized}
        readers = {str(n.name): sole_consumer(n.outputs[0]) for n in model.ir.graph if n.op_type == "MatMul"}
        self.products = {
            name: str(reader.name)
            for name, reader in readers.items()
            if name not in self.left and reader is not None and str(reader.name) in self.left
        }
        own = rules.compute | rules.dynamic
        self._gone = {n for n, op in self.all.items() if op in own and n not in after and n not in self.products}
        self.source = {name: self.all[name] for name in self.left if name in self.all}
        self.source |= dict.fromkeys(self.products.values(), "MatMul")

    def kept(self, excluded: Collection[str]) -> list[str]:
        """Of the nodes named in `excluded`, those that `keep_float` must name; the others are never quantized.

        Raises EdgerunError for a name that the model does not have, and for a node that folding takes away.
        """
        self.check(excluded)
        for name in excluded:
            if name in self._gone:
                what = f"node {name!r} cannot be excluded: folding constants takes it away"
                raise EdgerunError(what, do="leave it out")
        return sorted({self.products.get(name, name) for name in excluded} & set(self.left))

    def check(self, names: Collection[str]) -> None:
        """Raise EdgerunError for a name that the model does not have."""
        for name in names:
            if name not in self.all:
                raise unknown("node", name, self.all)


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
