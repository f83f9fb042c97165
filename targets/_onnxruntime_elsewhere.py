"""ONNX Runtime's options for a device: those about its CPU alone are judged by what is known of it, not tried here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgerun.errors import Unsupported
from edgerun.runtime import Options, machine
from edgerun.targets import _onnxruntime_arm as arm
from edgerun.targets import _onnxruntime_optimized as optimized
from edgerun.targets._onnxruntime_ort import SUFFIX

if TYPE_CHECKING:
    from edgerun.devices import Device


def written(suffix: str, options: Options, device: Device | None) -> Options:
    """`options` with which a file of this kind is made for `device` and compared here.

    Raises Unsupported for those that mean nothing there, or would bind the file to this machine.
    """
    if device is not None and device.unlike():
        options = _without_kernels(options, device)
    return optimized.written(suffix, options, device) if suffix == SUFFIX or optimized.wanted(options) else options


def _without_kernels(options: Options, device: Device) -> Options:
    """`options` without the keys about ARM's kernels that this CPU has none of: no file keeps them."""
    kept = dict(options.extra)
    for key in arm.KEYS.keys() & options.extra:
        if reason := arm.missing(key, machine.arch(device.arch), device.isa, device.name):
            what = f"{key}={options.extra[key]} is about {arm.KEYS[key].what}"
            raise Unsupported(what, got=reason, do="leave it out")
        if arm.missing(key, machine.arch(), machine.flags(), ""):
            del kept[key]
    return replace(options, extra=kept)
