"""Operators that a runtime lacks, written with other ones: ONNX defines many of its operators as functions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgerun import registry
from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.runtime import Engine
from edgerun.verbs import work

if TYPE_CHECKING:
    from edgerun.model import Model


log = logging.getLogger("edgerun")


def or_written_out(model: Model, target: str, compile: Callable[[Model], Engine]) -> Engine:
    """`compile(model)`, or where that is refused, or wrong, of the same model with other operators.

    Raises the first refusal when that does not help. (A model that rounds may differ by its ties alone, which other
    operators would not cure.)
    """
    try:
        return compile(model)
    except (GateFailed, Unsupported) as refusal:
        if isinstance(refusal, GateFailed) and work.rounds(model):
            raise
        lacking = set[str]()
        if isinstance(refusal, Unsupported):
            lacking = {issue.op for issue in registry.target(target).check(model) if issue.op}
        other = written_out(model, lacking)
        if other is None:
            raise
        try:
            engine = compile(other)
        except EdgerunError:
            raise refusal from None
        log.info("%s: %s written with other operators", target, ", ".join(sorted(lacking)) or "all functions")
        return replace(engine, inputs=model.inputs, outputs=model.outputs, digest=model.digest())


def written_out(model: Model, ops: Collection[str] = ()) -> Model | None:
    """The same model with these operators (all, when there are none) written as their functions' bodies.

    None where ONNX defines none of them as a function, or not for these types. History and contract stay.
    """
    from onnx import defs, inliner

    from edgerun.model import Model

    proto, found = model.to_proto(), set[tuple[str, str]]()
    for node in model.ir.graph.all_nodes():
        domain, op = node.domain if node.domain != "ai.onnx" else "", node.op_type
        version = model.ir.opset_imports.get(domain, 0)
        if (not ops or op in ops) and defs.has(op, version, domain):
            schema: Any = defs.get_schema(op, version, domain)
            if schema.has_function or schema.has_context_dependent_function:
                found.add((domain, op))
    if not found:
        return None
    try:
        result = inliner.inline_selected_functions(proto, sorted(found), inline_schema_functions=True)
    except RuntimeError:  # of the inliner: a type that it does not know
        return None
    return Model.from_proto(result)
