"""Made for: what the device that a model is made for means to it: rules, limits, and what may be written."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgerun import registry
from edgerun.devices import Device
from edgerun.errors import Unsupported
from edgerun.target import Limits, Quantization
from edgerun.verbs import devices

if TYPE_CHECKING:
    from edgerun.model import Model

log = logging.getLogger("edgerun")


def rules(device: Device | None, target: str) -> Quantization:
    """The target's rules on `device`; a clock that is not the device's may not judge."""
    found = registry.target(target).quantization(device)
    return replace(found, timed=found.timed and devices.elsewhere(device, target) is None)


def limits(device: Device | None, target: str) -> Limits:
    """The newest IR version and opset that `target` reads on `device`; where that is not known, here."""
    there = device.limits(target) if device is not None else None
    return there or registry.target(target).limits()


def check_output(device: Device | None, target: str, scheme: str, output: str | Path | None) -> None:
    """Raise Unsupported for an engine that only this machine's GPU runs; tell of a scheme that is not fast there."""
    if device is None:
        return
    bound = output is not None and Path(output).suffix != ".onnx" and "capability" in registry.target(target).device()
    if bound and (reason := devices.elsewhere(device, target)):
        raise Unsupported(f"an engine made here does not run on {device.name}", got=reason, do="write .onnx")
    if target == device.target and scheme not in (fast := device.value("schemes")):
        log.info("%s is not among the schemes that are fast on %s: %s", scheme, device.name, ", ".join(fast))


def check_limits(model: Model, device: Device | None, target: str) -> None:
    """Raise Unsupported when `device` does not read the model's IR version or opset."""
    if device is not None and (issues := limits(device, target).exceeded(model, "there")):
        raise Unsupported(
            f"{device.name} does not read the model", got=issues[0].reason,
            do=f"edgerun check --device {device.name} --fix FILE.onnx, or convert its source with --device",
        )  # fmt: skip
