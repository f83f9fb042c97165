"""A build of which nothing is kept: the builder refuses some of what the parser takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgerun.errors import EdgerunError, Unsupported
from edgerun.passes import Issue, Trial
from edgerun.runtime import Options
from edgerun.targets import _cuda as cuda
from edgerun.targets import _tensorrt_build as build
from edgerun.targets import _tensorrt_kernels as kernels
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.targets import _tensorrt_parser as parser

if TYPE_CHECKING:
    from edgerun.devices import Device
    from edgerun.model import Model


def tried(model: Model, options: Options, device: Device | None) -> Trial:
    """Build as `compile` would where `device` is: for its compute capability, where `options` name none.

    Raises EdgerunError for options that there are none of, or under which nothing is built here.
    """
    trt = tensorrt.library()
    asked = build.settings(trt, options)
    if device is not None:
        if reason := _elsewhere(trt, device):
            return Trial(reason=reason)
        asked = replace(asked, capability=_capability(trt, options, device) or asked.capability)
        options = replace(options, extra={**options.extra, build.CAPABILITY: asked.capability})
    try:
        build.sizes(model.inputs, options.sizes, asked)
    except EdgerunError as error:
        return Trial(reason=error.what + (f" ({error.do})" if error.do else ""))
    built = f"{_whom(asked.capability)} ({tensorrt.name_of(trt)} {trt.__version__})"
    try:
        plan = build.build(trt, model.to_bytes(), options)
    except Unsupported as error:
        if error.what not in (build.UNREAD, build.UNBUILT):
            raise
        found = parser.blamed(str(error.got), model.to_proto()) or [Issue("", "", str(error.got))]
        issues = (replace(issue, reason=f"building for {built}: {issue.reason}") for issue in found)
        return Trial(built=built, issues=tuple(issues))
    return Trial(built=built, kernels=tuple(kernels.timed(kernels.read(plan.kernels), {})))


def _elsewhere(trt: Any, device: Device) -> str | None:
    """None, or why what is built here says nothing of `device`: its library is the other one, or its GPU."""
    name, there = tensorrt.name_of(trt), device.value("capability")
    if not device.value(name) and (has := [n for n in tensorrt.OLDEST if device.value(n)]):
        return f"{device.name} has {has[0]} {device.value(has[0])}, and {name} is what builds here"
    if name == "tensorrt":
        here = "{}.{}".format(*cuda.gpu().capability)
        return f"tensorrt builds for the GPU that is here, of compute capability {here}" if here != there else None
    if there and _named(there) not in build.capabilities(trt):
        return f"{name} builds nothing for compute capability {there}"
    return None


def _capability(trt: Any, options: Options, device: Device) -> str | None:
    """The device's, for a library that builds for any. Raises Unsupported where `options` name another one."""
    there, said = device.value("capability"), options.extra.get(build.CAPABILITY, "")
    if not there or tensorrt.name_of(trt) == "tensorrt":
        return None
    if said.startswith("SM") and said != _named(there):
        what = f"an engine for {said} does not run on compute capability {there}"
        raise Unsupported(what, got=f"{build.CAPABILITY}={said}", do="leave it out")
    return said or _named(there)


def _whom(capability: str) -> str:
    number = capability.removeprefix("SM")
    named = {build.PORTABLE: "any of its GPUs", build.CURRENT: "the GPU here"}
    return named.get(capability, f"compute capability {number[:-1]}.{number[-1]}")


def _named(capability: str) -> str:
    return f"SM{capability.replace('.', '')}"
