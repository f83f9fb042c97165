"""Warm: the device finishes a recipe. It compiles the model, and compares the engine with a reference's outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgerun import files, registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import Engine, SelfCheck
from edgerun.target import Finishing
from edgerun.verbs.judging import advice, judged
from edgerun.verbs.recipe import Recipe, read


@dataclass(frozen=True)
class Warmed:
    """The engine's file, for which target; whether it was compiled just now; the comparison that it passed."""

    target: str
    output: Path
    compiled: bool
    check: SelfCheck


def warm(recipe: str | Path, output: str | Path | None = None, *, force: bool = False) -> Warmed:
    """Compile a recipe here, compare, and write the engine (default: beside the recipe, with the target's suffix).

    An engine that is there already stays, if it still runs here and agrees, unless `force` is set. Raises Unsupported
    where the target cannot run here or this is another device, and GateFailed when the engine computes something else.
    """
    path = Path(recipe)
    told = read(path)
    found = registry.target(told.engine.target)
    if reason := found.runnable():
        raise Unsupported(f"{path.name} cannot be finished here", got=reason, do=f"finish it on {_whom(told)}")
    if not isinstance(found, Finishing):
        raise EdgerunError("the recipe's target finishes no recipes", got=told.engine.target)
    here = found.device()
    if wrong := {key: here.get(key) or "none" for key, value in told.expects.items() if here.get(key) != value}:
        raise Unsupported(
            f"the recipe is for {_whom(told)}", got=", ".join(f"{key} {value}" for key, value in wrong.items()),
            wanted=", ".join(f"{key} {told.expects[key]}" for key in wrong), do="write a recipe for this device",
        )  # fmt: skip
    written = Path(output) if output is not None else path.with_suffix(found.suffixes[0])
    files.check_name(written)
    if written.exists() and not force:
        try:
            there = replace(told.engine, payload=written, source=_bytes(told.engine.payload))
            return Warmed(told.engine.target, written, False, _judged(found, there, told))
        except EdgerunError:
            pass  # of another version or device, or damaged: it is made anew
    engine = found.finish(told.engine, told.options, told.told)
    check = _judged(found, engine, told)
    found.save(engine, written)
    return Warmed(told.engine.target, written, True, check)


def _judged(found: Finishing, engine: Engine, told: Recipe) -> SelfCheck:
    """Open the engine, run the recipe's feeds and compare."""
    exact = (lambda feeds: told.exact) if told.exact else None
    pairs = list(zip(told.feeds, told.outputs, strict=True))
    with found.load(engine, told.options) as session:
        return judged(session, engine.target, told.reference, pairs, told.rounds, exact, advice(told.options))


def _bytes(payload: bytes | Path) -> bytes:
    return payload if isinstance(payload, bytes) else payload.read_bytes()


def _whom(told: Recipe) -> str:
    return told.device or "the device that it is for"
