"""Auto: the first of several targets whose engine is right, in every element where there is such."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgerun import registry
from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.runtime import Engine

AUTO = "auto"


def candidates() -> list[str]:
    """The targets that run here and are as fast as their device allows (the reference is not), by name; before the
    others those that need hardware of their own, as a GPU, which is here then."""
    found = []
    for name in registry.names("target"):
        target = registry.target(name, usable=False)
        if not target.available() and not target.runnable() and target.quantization().timed:
            found.append((not hasattr(target, "hardware"), name))
    return [name for _, name in sorted(found)]


def first(names: Sequence[str], compile: Callable[[str], Engine], *, near: bool = True) -> Engine:
    """The first engine that `compile` gives out: one that computes what the model says. With `near` one of which no
    element is far from the reference goes before: the bound that all keep is of the largest alone.

    Raises GateFailed with the reason of every target when all of them compute something else, and Unsupported when
    there is another reason among them.
    """
    reasons, kind = [], GateFailed if names else Unsupported
    right: Engine | None = None
    for name in names:
        try:
            engine = compile(name)
        except EdgerunError as error:
            reasons.append(f"{name}: {error.what}" + ("" if error.got is None else f": {error.got}"))
            kind = kind if isinstance(error, GateFailed) else Unsupported
            continue
        if not near or engine.check is None or not engine.check.outside:
            return engine
        right = right or engine
    if right is not None:
        return right
    raise kind(
        "none of the targets runs this model as it says",
        got="; ".join(reasons) or "no target at all",
        do="edgerun targets lists what can run here",
    )
