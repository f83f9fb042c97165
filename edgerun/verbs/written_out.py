"""Operators that a runtime lacks, written with other ones: ONNX defines many of its operators as functions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from edgerun import registry
from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.runtime import Engine
from edgerun.verbs import undecided, work

if TYPE_CHECKING:
    from edgerun.model import Model


log = logging.getLogger("edgerun")


ROUNDS = 4  # what an operator is written with may be refused in its turn


def or_written_out(model: Model, target: str, compile: Callable[[Model], Engine]) -> Engine:
    """`compile(model)`, or where that is refused, or wrong, of the same model with other operators.

    Raises the first refusal when that does not help. (A model that rounds may differ by its ties alone, which other
    operators would not cure.) One that no comparison can judge is refused before, or told with its operator.
    """
    undecided.refuse(model)
    try:
        return _first(model, target, compile)
    except EdgerunError as refusal:
        if (told := undecided.told(refusal, model)) is refusal:
            raise
        raise told from refusal


def _first(model: Model, target: str, compile: Callable[[Model], Engine]) -> Engine:
    form, first, told = model, None, set[str]()
    for _ in range(ROUNDS):
        try:
            engine = compile(form)
        except (GateFailed, Unsupported) as refusal:
            first = first or refusal
            if isinstance(refusal, GateFailed) and work.rounds(model):
                raise first from None
            lacking = set[str]()
            if isinstance(refusal, Unsupported):
                lacking = {issue.op for issue in registry.target(target).check(form) if issue.op}
            other = written_out(form, lacking)
            if other is None:
                raise first from None
            form, told = other, told | (lacking or {"all functions"})
        except EdgerunError as refusal:
            raise first or refusal from None
        else:
            if first is None:
                return engine
            log.info("%s: %s written with other operators", target, ", ".join(sorted(told)))
            return replace(engine, inputs=model.inputs, outputs=model.outputs, digest=model.digest())
    assert first is not None  # every round but one that returns has set it
    raise first


def written_out(model: Model, ops: Collection[str] = ()) -> Model | None:
    """The same model with these operators (all, when there are none) written with others, constants in it computed.

    None where there is no other form of them, and no branch to choose. History and contract stay.
    """
    from edgerun.converters import _lower
    from edgerun.model import Model

    try:
        made = _lower.expanded(model.to_proto(), ops)
    except EdgerunError:  # a type that is not known
        return None
    return None if made is None else Model.from_proto(made[0])
