"""Targets: what can run here, what it can do, and the devices that are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from edgerun import registry
from edgerun.errors import EdgerunError, Unsupported


@dataclass(frozen=True)
class TargetFacts:
    """One registered target. `reason` says why it is of no use here; then nothing about its installation is known.

    `only_compiles` says why what it compiles cannot run here.
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


@dataclass(frozen=True)
class Fact:
    """A value of a device, and who says so."""

    value: Any
    source: str


@dataclass(frozen=True)
class Device:
    """A board or machine: `facts` by name (arch, cpu, cores, isa, memory_gib, target, …)."""

    name: str
    summary: str
    facts: Mapping[str, Fact]


def targets() -> list[TargetFacts]:
    """Every registered target, usable here or not."""
    found = []
    for name in registry.names("target"):
        target = registry.target(name, usable=False)
        reason = target.available()
        if reason:
            found.append(TargetFacts(name, target.summary, reason, target.suffixes))
            continue
        limits, schemes = target.limits(), target.quantization().schemes
        door = (schemes, limits.ir_version, limits.opset, dict(target.device()), target.runnable())
        found.append(TargetFacts(name, target.summary, None, target.suffixes, *door))
    return found


def devices() -> list[Device]:
    """The devices in `targets/devices/*.toml`, by name. Raises Unsupported below Python 3.11, which reads no TOML."""
    try:
        import tomllib
    except ImportError as error:
        raise Unsupported("the list of devices is TOML", got="Python 3.10", wanted="Python 3.11 or newer") from error
    folder = resources.files("edgerun.targets") / "devices"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return [_device(f.name.removesuffix(".toml"), tomllib.loads(f.read_text(encoding="utf-8"))) for f in files]


def _device(name: str, table: dict[str, Any]) -> Device:
    summary, facts = table.pop("summary", ""), {}
    for key, fact in table.items():
        if set(fact) != {"value", "source"}:
            raise EdgerunError(f"device {name!r}: {key} is not a fact", got=fact, wanted="a value and its source")
        facts[key] = Fact(fact["value"], fact["source"])
    return Device(name, summary, facts)
