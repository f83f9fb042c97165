"""How names are found: file name = registered name; third parties come in through entry points."""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import sys
from typing import TYPE_CHECKING, Any, cast

from edgerun import distribution
from edgerun.errors import Unsupported, unknown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

    from edgerun.passes import Converter, Pass, Target

KINDS = {"converter": "edgerun.converters", "pass": "edgerun.quantize", "target": "edgerun.targets"}
_GROUPS = {"converter": "edgerun.converters", "pass": "edgerun.passes", "target": "edgerun.targets"}


def names(kind: str) -> list[str]:
    """Registered names of a kind ("converter", "pass", "target"), sorted. Nothing is imported."""
    return sorted({*own(kind), *(entry.name for entry in _entries(kind))})


def own(kind: str) -> tuple[str, ...]:
    """Those that edgerun itself brings, sorted."""
    return _modules(tuple(importlib.import_module(KINDS[kind]).__path__))


@functools.cache
def _modules(folders: tuple[str, ...]) -> tuple[str, ...]:
    """What may be registered of a package in these folders: looked up once."""
    import pkgutil

    found = (m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_") and not m.ispkg)
    return tuple(sorted(found))


def _own(kind: str, name: str) -> Any:
    # The module of edgerun's own that `own` lists by that name, or None: it is found without listing all, which costs
    # more.
    if name.startswith("_") or not name.isidentifier():
        return None
    place = f"{KINDS[kind]}.{name}"
    if (found := sys.modules.get(place)) is None:
        package = importlib.import_module(KINDS[kind])
        spec = importlib.machinery.PathFinder.find_spec(place, package.__path__)
        if spec is None or spec.submodule_search_locations is not None:
            return None
        found = importlib.import_module(place)
    return None if hasattr(found, "__path__") else found


@functools.cache
def _entries(kind: str) -> EntryPoints:
    # What other packages register: looked up once, and not for what edgerun has itself, since it reads the metadata of
    # every installed package.
    from importlib.metadata import entry_points  # 15 ms, which a device's own target is not worth

    return entry_points(group=_GROUPS[kind])


def _load(kind: str, name: str) -> Any:
    if (found := _own(kind, name)) is not None:
        return found
    for entry in _entries(kind):
        if entry.name == name:
            return entry.load()
    raise unknown(kind, name, names(kind))


def converter(name: str) -> Converter:
    """The converter of that name, whether or not its framework is installed."""
    return cast("Converter", _load("converter", name))


def quantizer(name: str) -> Pass:
    """The pass of that name."""
    return cast("Pass", _load("pass", name))


def target(name: str, *, usable: bool = True) -> Target:
    """The target of that name; with `usable`, raise Unsupported when this machine cannot run it."""
    found = cast("Target", _load("target", name))
    if usable and (reason := found.available()):
        raise Unsupported(f"target {name!r} is unavailable here", got=reason)
    return found


def written(name: str) -> tuple[str, ...]:
    """The suffixes of the files that the target of that name writes, the preferred one first."""
    found = target(name, usable=False)
    return found.suffixes[:1] + tuple(getattr(found, "writes", ()))


def missing(requires: tuple[str, ...], extra: str) -> str | None:
    """None when every module in `requires` can be imported, else the line that says what to install."""
    absent = [m for m in requires if importlib.util.find_spec(m) is None]
    return f"needs {', '.join(absent)}: {distribution.install(extra)}" if absent else None
