"""What a recipe for TensorRT may ask of the device that builds it, whichever library is here."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace

import onnx

from edgerun.devices import Device
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.targets import _tensorrt_build as build
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.targets import _tensorrt_refit as refit

RTX_BUILDS = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")  # what tensorrt_rtx 1.7.1 builds for, by number
DLA_TYPES = {"FLOAT16", "INT8"}


def ranges(model: Model, options: Options, device: Device | None) -> dict[str, build.Range]:
    """The sizes of open dimensions that an engine takes which `device` builds (None: some other machine).

    Raises EdgerunError for options or sizes that are refused there, and for a DLA that is not there or takes no layer.
    """
    found, refusal = build.read(options), Unsupported("")
    if found.refit and not found.weights:
        raise EdgerunError("the engine takes no other weights", got=f"{refit.OPTION}={found.refit}",
                           do=f"{build.WEIGHTS}={refit.REFITTABLE} too, or leave it out")  # fmt: skip
    for name in [n for n in tensorrt.OLDEST if device is not None and device.value(n)] or list(tensorrt.OLDEST):
        try:
            build.check_library(replace(found, capability=found.capability or build.PORTABLE), name, _known(name))
            break
        except Unsupported as error:
            refusal = error
    else:
        raise refusal
    there = device.value("capability") if device is not None else None
    if there and found.capability.startswith("SM") and found.capability[2:] != there.replace(".", ""):
        raise Unsupported(f"an engine for {found.capability} does not run on compute capability {there}",
                          got=f"{build.CAPABILITY}={found.capability}", do="leave it out")  # fmt: skip
    if found.dla is not None:
        _check_dla(model, found.dla, device)
    return build.sizes(model.inputs, options.sizes, found)


def _check_dla(model: Model, core: int, device: Device | None) -> None:
    """Raise Unsupported where `device` is known to have no such core, or no type in the model that a DLA takes."""
    if device is not None and core >= (cores := device.value("dla", core + 1)):
        do = f"{build.DLA}=0" if cores else f"leave {build.DLA} out"
        raise Unsupported(f"{device.name} has no DLA core {core}", got=f"{cores} cores", do=do)
    if (types := _types(model)).isdisjoint(DLA_TYPES):
        wanted = " or ".join(sorted(DLA_TYPES))
        raise Unsupported("no layer of this model can run on a DLA", got=", ".join(sorted(types)), wanted=wanted,
                          do=build.FLOAT16)  # fmt: skip


def _types(model: Model) -> set[str]:
    """The types that inputs, constants and casts have."""
    graph = model.to_proto().graph
    found = {tensor.data_type for tensor in graph.initializer}
    found |= {value.type.tensor_type.elem_type for value in graph.input}
    given = [attribute for node in graph.node for attribute in node.attribute]
    found |= {a.t.data_type for a in given if a.name == "value"} | {a.i for a in given if a.name == "to"}
    return {str(onnx.TensorProto.DataType.Name(number)) for number in found}


def _known(name: str) -> tuple[str, ...]:
    """What COMPUTE_CAPABILITY may be for library `name`, installed or not."""
    if name != "tensorrt_rtx":
        return (build.CURRENT, build.PORTABLE)
    if importlib.util.find_spec(name) is None:
        return (build.PORTABLE, *RTX_BUILDS)
    return build.capabilities(importlib.import_module(name))
