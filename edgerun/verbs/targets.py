"""Targets: what can run here, and what it can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgerun import registry


@dataclass(frozen=True)
class TargetFacts:
    """One registered target. `reason` says why it is of no use here; then nothing about its installation is known.

    `only_compiles` says why what it compiles cannot run here, `options` what its `--option` takes.
    """

    name: str
    summary: str
    reason: str | None
    suffixes: tuple[str, ...]
    schemes: tuple[str, ...] = ()
    ir_version: int | None = None
    opset: int | None = None
    device: Mapping[str, str] | None = None
    only_compiles: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)


def targets() -> list[TargetFacts]:
    """Every registered target, usable here or not."""
    found = []
    for name in registry.names("target"):
        target = registry.target(name, usable=False)
        reason = target.available()
        if reason:
            found.append(TargetFacts(name, target.summary, reason, target.suffixes, options=dict(target.takes)))
            continue
        limits, schemes = target.limits(), target.quantization().schemes
        door = (schemes, limits.ir_version, limits.opset, dict(target.device()), target.runnable(), dict(target.takes))
        found.append(TargetFacts(name, target.summary, None, target.suffixes, *door))
    return found
