"""Compile into a file: an engine that was compared here, or a recipe, which a device finishes (`edgerun warm`)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import devices, files, registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.passes import Feeds, Finishing
from edgerun.preprocess import Preprocessing
from edgerun.runtime import Engine, Options, SelfCheck, TensorSpec, machine
from edgerun.runtime.progress import listener
from edgerun.verbs import compile as verb
from edgerun.verbs import truths, work
from edgerun.verbs.devices import elsewhere, refuse_without
from edgerun.verbs.feeds import feeds_for
from edgerun.verbs.fitting import check_limits, rules, unfit
from edgerun.verbs.load import target_for
from edgerun.verbs.recipe import SUFFIX, Recipe
from edgerun.verbs.saturating import remedy, saturating, told

log = logging.getLogger("edgerun")
Keeps = Mapping[str, Collection[str]] | Collection[str]
SAMPLES = 4  # of data, that are compared


@dataclass(frozen=True)
class Compiled:
    """What was written: for which target; the comparison that it passed, or, of a recipe, the device that it is for
    and what was tried of it here; and the options that the file does not keep, so that who runs it gives them again:
    `again` those that it was compared with, `untried` those about the device's CPU alone.
    `notes` say that what compared it is not the device that it is for, and what that does not show."""

    target: str
    check: SelfCheck | None = None
    for_device: str = ""
    tried: str | None = None
    again: tuple[str, ...] = ()
    untried: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def compiled(
    model: str | Path,
    output: str | Path,
    *,
    target: str | None = None,
    device: devices.Device | str | Path | None = None,
    options: Options | None = None,
    data: Any = None,
    preprocessing: Preprocessing | str | Path | None = None,
    original: str | Path | None = None,
    force: bool = False,
) -> Compiled:
    """Write `model` as an engine that was compared here, or (`.recipe`) as what a device compiles and compares itself.

    `data` are feeds to compare on, of which the first samples are taken; `device` (a known one, or a file that
    `edgerun probe` wrote) is who shall finish a recipe, or run the file, and has to read the model.
    Raises as `edgerun.compile` does.
    """
    from edgerun.model import Model

    output, options = Path(output), options or Options()
    where = devices.find(device) if device is not None else None
    if output.suffix == SUFFIX and target is None and device is None:
        raise EdgerunError("a recipe is for another machine, and nothing says which", do="give --device, or --target")
    name = target or (where.target if where is not None else target_for(output.suffix))
    if where is not None:
        refuse_without(where, name)
    files.refuse_same(output, model, original)
    files.refuse_overwrite(output, force)
    listener()("reading", 0, 0)
    loaded = Model.load(model)
    feeds: list[Feeds] = []
    if data is not None:
        feeds = list(
            feeds_for(
                loaded.inputs, model, data, preprocessing=preprocessing, batch=1, limit=SAMPLES, outputs=loaded.outputs
            )
        )
    if output.suffix != SUFFIX:
        engine = verb.compile(
            loaded, name, options, feeds=feeds, original=original, output=output, device=where, force=force
        )
        if options.usual and not engine.usual:
            log.info("%s has nothing to make ready for known shapes of this model", engine.target)
        here = verb.asked_here(engine.target, output, options, where).extra
        had = {key: value for key, value in options.extra.items() if key in here}
        again = tuple(_again(had, getattr(registry.target(engine.target), "keeps", None), output.suffix))
        untried = tuple(f"{key}={value}" for key, value in options.extra.items() if key not in here)
        notes, whom = tuple(_notes(loaded, engine.target, where)), where.name if where is not None else ""
        return Compiled(engine.target, engine.check, whom, again=again, untried=untried, notes=notes)
    made, tried = _made(loaded, name, where, options, feeds, original)
    files.refuse_overwrite(output, force)
    made.save(output)
    return Compiled(name, None, where.name if where else "another machine", tried)


def _again(extra: Mapping[str, str], keeps: Keeps | None, suffix: str) -> Iterator[str]:
    """The options that a file of this kind does not hold; `keeps` are patterns of what a target's files do, by suffix,
    or of all alike; None where it doesn't tell."""
    of = keeps.get(suffix, ()) if isinstance(keeps, Mapping) else keeps or ()
    for key, value in extra.items():
        if keeps is not None and not any(fnmatchcase(key, pattern) for pattern in of):
            yield f"{key}={value}"


def _notes(model: Any, target: str, device: devices.Device | None) -> Iterator[str]:
    """What the comparison on this machine does not show of `device`."""
    if reason := elsewhere(device, target):
        yield f"compared on this machine ({machine.model()}), and {reason}"
        if device is not None and (cut := saturating(model, rules(device, target))):
            yield f"{told(cut, device.name)}, which the comparison here does not show: {remedy(device.name, target)}"


def _made(
    model: Any, name: str, device: devices.Device | None, options: Options, feeds: Sequence[Feeds],
    original: str | Path | None,
) -> tuple[Recipe, str]:  # fmt: skip
    """The recipe, and what could be tried of it here. Raises EdgerunError for what the device would have to refuse:
    the IR version or opset, a node, an option, a size, or a feed of another size."""
    found = registry.target(name, usable=False)
    if not isinstance(found, Finishing):
        others = "".join(f", or -o NAME{suffix}" for suffix in getattr(found, "writes", ())[:1])
        do = f"-o NAME{found.suffixes[0]}{others}"
        raise Unsupported(f"{name} has nothing to finish on a device: its files run as they are", do=do)
    reason = found.available()
    if device is not None and (reason is None or device.limits(name)):  # else nobody knows what is read there
        check_limits(model, device, name)
    ranges = found.ranges(model, options, device)
    if device is not None and (issues := unfit(model, found.quantization(device))):
        raise verb.unsupported(f"{name} on {device.name}", issues)
    if reason:
        tried = f"not tried here: {reason}"
    elif issues := found.check(model):
        raise verb.unsupported(name, issues)
    else:
        here = found.device()
        tried = f"{here['runtime']} {here['version']} takes every node; it was not compiled"
    listener()("computing what the device compares with", 0, 0)
    _check_sizes(feeds, model.inputs, ranges)
    label, pairs = verb.reference(model, name, replace(options, sizes=ranges), feeds)
    inputs, rounds = [feed for feed, _ in pairs], work.rounds(model)
    _check_sizes(inputs, model.inputs, ranges)
    exact = truths.exact(original, inputs) if original is not None and rounds else ()
    about = {"history": [asdict(step) for step in model.history], "preprocessing": model.preprocessing,
            "postprocessing": model.postprocessing}  # fmt: skip
    engine = Engine(name, model.to_bytes(), model.inputs, model.outputs, {}, model.digest())
    outputs = [result for _, result in pairs]
    whom, expects = ("", {}) if device is None else (device.name, _expected(device))
    return Recipe(engine, options, whom, expects, rounds, label, inputs, outputs, exact, about), tried


def _check_sizes(feeds: Sequence[Feeds], inputs: Sequence[TensorSpec], ranges: Mapping[str, tuple[int, ...]]) -> None:
    """Raise EdgerunError for a feed that an engine for these sizes would refuse."""
    for feed in feeds:
        pairs = [pair for spec in inputs for pair in zip(spec.shape, np.shape(feed[spec.name]), strict=False)]
        sizes = {str(dim): size for dim, size in pairs if dim in ranges}
        taken = truths.choices(ranges)
        if not any(all(one[dim][0] <= size <= one[dim][2] for dim, size in sizes.items()) for one in taken):
            got = ", ".join(f"{dim}={size}" for dim, size in sizes.items())
            wanted = " or ".join(", ".join(f"{dim} {one[dim][0]} to {one[dim][2]}" for dim in sizes) for one in taken)
            what = "a feed to compare on has another size than the engine takes"
            raise EdgerunError(what, got=got, wanted=wanted, do="give a --size that it is within, or other --data")


def _expected(device: devices.Device) -> dict[str, str]:
    """What a fingerprint made on the device has to say: its architecture, and the compute capability of its GPU."""
    capability = device.value("capability") or ""
    return {"arch": device.arch} | ({"capability": capability} if capability else {})
