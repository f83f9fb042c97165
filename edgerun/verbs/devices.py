"""Devices: which are known, what this machine is, and what a device asked for means to the other verbs."""

from __future__ import annotations

import functools
import logging
import platform
from collections.abc import Iterator
from pathlib import Path

from edgerun import devices, registry
from edgerun.devices import KEYS, Device, Fact
from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import machine

log = logging.getLogger("edgerun")
DEFAULT_TARGET = "onnxruntime"
_TOLD = ("gpu", "capability", "cuda")  # of a target's fingerprint


def chosen(device: Device | str | Path | None, target: str | None) -> tuple[Device | None, str]:
    """The device by its name or file, and the target: the one asked for, else the device's, else onnxruntime."""
    found = devices.find(device) if device is not None else None
    name = target or (DEFAULT_TARGET if found is None else found.target)
    if found is not None:
        refuse_without(found, name)
    return found, name


def refuse_without(device: Device, target: str) -> None:
    """Raise EdgerunError where `device` has not, as far as is known of it, the hardware that `target` runs on."""
    hardware = getattr(registry.target(target, usable=False), "hardware", {})
    if target != device.target and (missing := [what for key, what in hardware.items() if device.value(key) is None]):
        raise EdgerunError(
            f"{target} does not run on {device.name}", got=f"no {missing[0]} is known of it", wanted=device.target,
            do=f"--target {device.target}; or leave the device out; or give the file that edgerun probe writes there",
        )  # fmt: skip


def elsewhere(device: Device | None, target: str) -> str | None:
    """Why this machine is not `device`, as one line; None when it may be, or no device was asked for."""
    if device is None:
        return None
    found = registry.target(target, usable=False)
    here = {} if found.available() else found.device()
    return "; ".join(device.differences(here)) or None


def tell_elsewhere(device: Device) -> None:
    """Warn, once, that what is opened for `device` runs on another machine: this one."""
    if reason := elsewhere(device, device.target):
        what = "edgerun check tells what saturates or does not run there"
        _tell(f"note: it runs on this machine, which is not {device.name} ({reason}); {what}")


@functools.cache
def _tell(text: str) -> None:
    log.warning(text)


def here(device: Device | None, target: str) -> None:
    """Raise Unsupported unless this machine may be `device`."""
    if device is not None and (reason := elsewhere(device, target)):
        raise Unsupported(
            f"this machine is not {device.name}, and its times would say nothing about it",
            got=reason, do="run this there, or leave --device out",
        )  # fmt: skip


def probe(target: str | None = None) -> Device:
    """This machine as a device: every fact says where it was read.

    `target` is the one that models are made for; without it that of the known device which this machine is, if it is
    one, else onnxruntime.
    """
    known = _known_here()
    name, source = target, "asked for"
    if name is None and known is not None:
        name, source = known.target, f"that of {known.name}, which this machine calls itself"
    elif name is None:
        name, source = DEFAULT_TARGET, "edgerun's default: every install has it"
    chosen = registry.target(name)
    facts = {key: Fact(value, f"read from {where}") for key, value, where in _read()}
    facts |= {key: fact for name in registry.names("target") for key, fact in _runtime(name)}
    newest = chosen.limits()
    facts["target"] = Fact(name, source)
    facts["schemes"] = Fact(list(chosen.quantization().schemes), f"read from target {name}: what it has kernels for")
    facts["ir_version"] = Fact(newest.ir_version, f"read from target {name}: what its installed version takes")
    facts["opset"] = Fact(newest.opset, f"read from target {name}: what its installed version takes")
    ordered = {key: facts[key] for key in KEYS if key in facts}
    return Device("this-machine", known.summary if known else machine.model(), ordered)


def _known_here() -> Device | None:
    """The known device that this machine calls itself; None where devices cannot be read (3.10 without tomli)."""
    try:
        return next((d for d in devices.known() if d.value("model") and not d.differences({})), None)
    except Unsupported:
        return None


def _read() -> Iterator[tuple[str, str | int | list[str] | list[float], str]]:
    """Facts of the machine itself: key, value, where it was read."""
    yield "arch", platform.machine(), "uname"
    yield "model", machine.model(), "the device tree, or /proc/cpuinfo where there is none"
    yield "cpu", machine.cpu(), "/proc/cpuinfo"
    yield "cores", machine.quota(), "the affinity mask and the cgroup's CPU quota"
    yield "isa", list(machine.isa()), "/proc/cpuinfo"
    if found := machine.memory():
        yield "memory_gib", [round(found / 2**30, 1)], "/proc/meminfo and the cgroup's limit"
    try:
        yield "system", platform.freedesktop_os_release()["PRETTY_NAME"], "/etc/os-release"
    except (OSError, KeyError):
        pass  # a system without that file has no name to tell
    yield "python", platform.python_version(), "the interpreter that ran edgerun probe"


def _runtime(name: str) -> Iterator[tuple[str, Fact]]:
    """The version of a target's runtime, and the GPU that answers it."""
    target = registry.target(name, usable=False)
    if target.available() is None:
        told = target.device()
        if told["runtime"] in KEYS:
            yield told["runtime"], Fact(told["version"], f"read from the installed {told['runtime']}")
        for key in _TOLD:
            if told.get(key):
                yield key, Fact(told[key], "read from the GPU's driver")
