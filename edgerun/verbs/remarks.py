"""Remarks: what a check on this machine does not show of the device that it is about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgerun.model import Model
from edgerun.verbs import fitting
from edgerun.verbs.asked import Asked
from edgerun.verbs.footprint import Memory


def remarks(model: Model, asked: Asked, untried: Sequence[str], unbuilt: str, held: Memory | None) -> Iterator[str]:
    """All of them, one line each; `untried` are options for the device's CPU, `unbuilt` says why no engine was built
    where one could be, `held` is what a run takes there."""
    yield from _looked(asked, untried, unbuilt)
    device, target = asked.device, asked.name
    if device is not None and (release := fitting.needed(model, device, target)):
        read = f"opset {model.ir.opset_imports.get('', 0)} with IR version {model.ir.ir_version} is read by {target}"
        yield f"{read} from {release} on; which {device.name} has is not known: edgerun probe tells it there"
    if held is not None and held.fits:
        yield held.told()


def _looked(asked: Asked, untried: Sequence[str], unbuilt: str) -> Iterator[str]:
    """That the nodes were looked at by less than what runs them: another version of the runtime, without the options
    for the device's CPU, or no device."""
    device, target, told = asked.device, asked.name, asked.target.device()
    if untried:
        yield f"looked at without {' '.join(untried)}, which this machine has no kernels for"
    if device is not None:
        there = next((f"{k} {device.value(k)}" for k in (told["runtime"], target) if device.value(k)), None)
        if there is not None and there != f"{told['runtime']} {told['version']}":
            yield f"looked at with {told['runtime']} {told['version']}; {device.name} has {there}"
    if unbuilt:
        yield f"no engine was built to try them: {unbuilt}"
    if (reason := asked.target.runnable()) and not asked.built:
        yield f"{target} was asked which nodes it takes; whether it has kernels for them shows where it runs: {reason}"
