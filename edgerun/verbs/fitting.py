"""Fitting: what a device asked for means to a model that is made for it, or looked at."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from edgerun import registry
from edgerun.devices import Device
from edgerun.errors import Unsupported
from edgerun.model import Model
from edgerun.passes import Issue, Limits, Quantization
from edgerun.verbs import devices

log = logging.getLogger("edgerun")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
# What releases read, by the first that reads so much: for a device that tells the version of a runtime and no opset.
# ONNX Runtime: what its wheels 1.20 to 1.32 take when they are asked; its documentation (Compatibility) says the same
# up to 1.20. Other targets tell it themselves (`reads`), with their sources.
RELEASES = {
    "onnxruntime": {
        (1, 20): Limits(10, 21), (1, 21): Limits(10, 22), (1, 23): Limits(11, 23), (1, 24): Limits(13, 25),
        (1, 25): Limits(13, 26), (1, 32): Limits(14, 28),
    },
}  # fmt: skip


def rules(device: Device | None, target: str) -> Quantization:
    """The target's rules on `device`; a clock that is not the device's may not judge."""
    found = registry.target(target).quantization(device)
    return replace(found, timed=found.timed and devices.elsewhere(device, target) is None)


def limits(device: Device | None, target: str) -> Limits:
    """The newest IR version and opset that `target` reads on `device`, by what that says or the version that it has;
    where that is not known, here."""
    if device is not None:
        there = device.limits(target) or _released(target, str(device.value(target, "")))
        if there is not None:
            return there
    return registry.target(target).limits()


def needed(model: Model, device: Device | None, target: str) -> str | None:
    """The first release of `target` that reads `model`, where not all do, and `device` does not tell which it has."""
    if device is None or device.limits(target) or device.value(target) or devices.elsewhere(device, target) is None:
        return None
    known = _releases(target)
    reading = [release for release, limits in known.items() if not limits.exceeded(model)]
    return ".".join(map(str, min(reading))) if reading and min(reading) > min(known) else None


def _released(target: str, version: str) -> Limits | None:
    number = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    known = [release for release in _releases(target) if release <= number]
    return _releases(target)[max(known)] if known else None


def _releases(target: str) -> Mapping[tuple[int, int], Limits]:
    return RELEASES.get(target) or getattr(registry.target(target, usable=False), "reads", {})


def fast(device: Device | None, target: str, rules: Quantization) -> list[str]:
    """The schemes with kernels of `target` that are fast on `device`, as far as it says; else all that there are."""
    told = device.value("schemes") if device is not None and target == device.target else rules.schemes
    return [scheme for scheme in rules.schemes if scheme in told]


def check_output(device: Device | None, target: str, scheme: str, output: str | Path | None) -> None:
    """Raise Unsupported for an engine that only this machine's GPU runs; tell of a scheme that is not fast there."""
    if device is None:
        return
    bound = output is not None and Path(output).suffix != ".onnx" and "capability" in registry.target(target).device()
    if bound and (reason := devices.elsewhere(device, target)):
        raise Unsupported(f"an engine made here does not run on {device.name}", got=reason, do="write .onnx")
    if target == device.target and scheme not in (fast := device.value("schemes")):
        told = f"{', '.join(fast)} ({device.facts['schemes'].source})"
        log.info("%s is not among the schemes that are fast on %s: %s", scheme, device.name, told)


def check_limits(model: Model, device: Device | None, target: str) -> None:
    """Raise Unsupported when `device` does not read the model's IR version or opset."""
    if device is not None and (issues := limits(device, target).exceeded(model, "there")):
        raise Unsupported(
            f"{device.name} does not read the model", got=issues[0].reason,
            do=f"edgerun check --device {device.name} --fix FILE.onnx, or convert its source with --device",
        )  # fmt: skip


def unfit(model: Model, rules: Quantization) -> list[Issue]:
    """The quantizers of `model` for whose type the device has no kernels, though its target reads them."""
    reason, found = rules.lacks.get("fp8"), list[Issue]()
    for node in ir.traversal.RecursiveGraphIterator(model.ir.graph):
        types = {value.dtype.name for value in (*node.inputs, *node.outputs) if value and value.dtype}
        if reason and node.op_type in QUANTIZERS and any(name.startswith("FLOAT8") for name in types):
            found.append(Issue(str(node.name or node.outputs[0].name), node.op_type, reason))
    return found
