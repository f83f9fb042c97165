"""From ONNX to a TensorRT plan: a strongly typed network, optimization profiles, a config said in full."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.errors import EdgerunError, Unsupported, unknown
from edgerun.runtime import Options, TensorSpec
from edgerun.runtime.progress import listener
from edgerun.runtime.spec import batch_dims
from edgerun.targets import _cuda as cuda
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.targets import _tensorrt_refit as refit
from edgerun.targets import _tensorrt_timings as timings
from edgerun.targets._tensorrt_progress import monitor

log = logging.getLogger("edgerun")

# Our keys in Options.extra.
CAPABILITY, LEVEL, TF32, CACHE = "COMPUTE_CAPABILITY", "OPTIMIZATION_LEVEL", "TF32", "TIMING_CACHE"
DLA, GRAPH, WEIGHTS, JIT = "DLA", "CUDA_GRAPH", "WEIGHTS", "RUNTIME_CACHE"
KEYS = (CAPABILITY, LEVEL, TF32, CACHE, DLA, GRAPH, WEIGHTS, refit.OPTION, JIT)
PORTABLE, CURRENT = "portable", "current"
TAKES = {
    f"{CAPABILITY}={PORTABLE}|{CURRENT}|SM89": "which GPUs an engine is built for: a range, this one, or by number",
    f"{LEVEL}=0|1|2|3|4|5": "how long the builder looks for faster kernels",
    f"{TF32}=0|1": "products in TF32; 0 where nothing is said",
    f"{CACHE}=FILE": "timings of tensorrt's builds are kept there, and not in the cache folder",
    f"{DLA}=0|1": "the core of a Jetson's DLA that layers go to",
    f"{GRAPH}=0|1": "runs of the same shapes are replayed as CUDA graphs",
    f"{WEIGHTS}={'|'.join(refit.KINDS[1:])}": "engines without their weights, or that take others; a GPU builds them",
    f"{refit.OPTION}=MODEL.onnx": "where such an engine takes its weights from when it opens",
    f"{JIT}=FILE": "kernels that tensorrt_rtx compiles are kept there, and not in the cache folder",
}
Range = tuple[int, ...]  # least, usual, most; of several ranges one behind the other
BATCH: Range = (1, 1, 16)  # of an open batch without a size; another open dimension has to have one
# On a DLA the three are the same, and types are float16 or int8 (NVIDIA, "DLA Supported Layers and Restrictions").
ONE: Range = (1, 1, 1)
FLOAT16 = "compress it first: --scheme w16a16"
UNREAD, UNBUILT = "TensorRT cannot read the model", "TensorRT cannot build the model"


@dataclass(frozen=True)
class Settings:
    """What is asked for: `capability` is "portable", "current" or as "SM89", `level` 0 to 5, `cache` a file.

    `dla` is the number of the DLA core that layers go to, `graph` says that runs are replayed as CUDA graphs. `weights`
    is one of `refit.KINDS`, `refit` the model that they come from when a session opens, `jit` the file in which its
    kernels are kept.
    """

    capability: str
    level: int | None
    tf32: bool
    cache: Path | None
    dla: int | None = None
    graph: bool = False
    weights: str = ""
    refit: Path | None = None
    jit: Path | None = None

    @property
    def flags(self) -> str:
        """What makes two engines of one model different, as text."""
        dla = "" if self.dla is None else f" dla={self.dla}"
        weights = self.weights and f" weights={self.weights}"
        return f"tf32={int(self.tf32)} level={'default' if self.level is None else self.level}{dla}{weights}"


@dataclass(frozen=True)
class Plan:
    """A serialized engine, its door, and what the builder said of its kernels, one a line."""

    data: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kernels: str


def settings(trt: Any, options: Options) -> Settings:
    """Read `Options.extra`. Raises EdgerunError for a key or a value that there is none of."""
    found, name = read(options), tensorrt.name_of(trt)
    default = PORTABLE if name == "tensorrt_rtx" else CURRENT
    found = replace(found, capability=found.capability or default)
    check_library(found, name, capabilities(trt))
    return found


def read(options: Options) -> Settings:
    """What `Options.extra` says, as far as any library takes it; a capability of which nothing is said is ""."""
    extra = dict(options.extra)
    capability, level, tf32, cache, dla, graph, weights, model, jit = (extra.pop(key, "") for key in KEYS)
    if extra:
        raise unknown("option of TensorRT", next(iter(extra)), KEYS)
    if level and level not in "012345":
        raise EdgerunError(f"{LEVEL} is out of range", got=level, wanted="0 to 5")
    for key, value in ((TF32, tf32), (GRAPH, graph)):
        if value not in ("", "0", "1"):
            raise EdgerunError(f"{key} is a switch", got=value, wanted="0 or 1")
    if dla not in ("", "0", "1"):
        raise EdgerunError(f"{DLA} is the number of a DLA core", got=dla, wanted="0 or 1")
    if weights not in refit.KINDS:
        raise unknown("kind of weights", weights, refit.KINDS[1:])
    return Settings(
        capability, int(level) if level else None, tf32 == "1", Path(cache) if cache else None,
        int(dla) if dla else None, graph == "1", weights, Path(model) if model else None, Path(jit) if jit else None,
    )  # fmt: skip


def check_library(found: Settings, name: str, known: Sequence[str]) -> None:
    """Raise Unsupported for what library `name` cannot do; `known` are its capabilities."""
    rtx = name == "tensorrt_rtx"
    if found.capability not in known:
        raise Unsupported(f"{name} does not build for this", got=found.capability, wanted=", ".join(known))
    if found.cache and rtx:
        raise Unsupported("tensorrt_rtx keeps no timing cache", got=f"{CACHE}={found.cache}", do="leave it out")
    if found.jit and not rtx:
        raise Unsupported("tensorrt compiles its kernels while it builds", got=f"{JIT}={found.jit}", do="leave it out")
    if found.dla is not None and rtx:
        raise Unsupported("tensorrt_rtx builds for no DLA", got=f"{DLA}={found.dla}", do="leave it out")


def capabilities(trt: Any) -> tuple[str, ...]:
    """What COMPUTE_CAPABILITY may be: `tensorrt` builds for the GPU that is there, or for any from Ampere on."""
    listed = getattr(trt, "ComputeCapability", None)
    if tensorrt.name_of(trt) != "tensorrt_rtx" or listed is None:
        return (CURRENT, PORTABLE)
    return (PORTABLE, *(name for name in listed.__members__ if name.startswith("SM")))


def build(trt: Any, model: bytes, options: Options) -> Plan:
    """The plan of ONNX `model`. Raises EdgerunError with the library's reason; the same bytes for the same model."""
    asked, logger = settings(trt, options), tensorrt.Log(trt)
    builder = tensorrt.builder(trt, logger)
    network = builder.create_network(tensorrt.bit(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger.sink)
    if not parser.parse(model):
        raise Unsupported(UNREAD, got=_complaint(parser, logger))
    inputs = _door(trt, [network.get_input(i) for i in range(network.num_inputs)])
    outputs = _door(trt, [network.get_output(i) for i in range(network.num_outputs)])
    config = _config(trt, builder, asked)
    _add_profiles(builder, config, inputs, sizes(inputs, options.sizes, asked))
    if asked.dla is not None:
        _onto_dla(trt, builder, config, network, asked.dla)
    kept = timings.recall(trt, config, asked.cache)
    config.progress_monitor = watching = monitor(trt, listener())
    plan = builder.build_serialized_network(network, config)
    if plan is None and tensorrt.name_of(trt) == "tensorrt_rtx":
        _clear(trt)
    if watching.failed is not None:
        raise watching.failed
    if plan is None and asked.weights and (reason := cuda.missing()):
        what = f"an engine with {WEIGHTS}={asked.weights} is built where a GPU is"
        raise Unsupported(what, got=reason, do="build it on the device (edgerun warm), or leave it out")
    if plan is None:
        reason = tensorrt.reason(logger.errors) or "no reason given"
        raise Unsupported(UNBUILT, got=reason, do=FLOAT16 if "FP32 GEMM" in reason else None)
    timings.keep(trt, kept, asked.cache)
    kernels = "\n".join(text for text in logger.told if "LayerType: " in text)
    return Plan(bytes(plan), inputs, outputs, kernels)


def _clear(trt: Any) -> None:
    """Build next to nothing: the build after a refusal for Turing has no integer kernels (tensorrt_rtx 1.7.1)."""
    logger = tensorrt.Log(trt)
    builder = tensorrt.builder(trt, logger)
    network = builder.create_network(tensorrt.bit(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    network.mark_output(network.add_identity(network.add_input("x", trt.float32, (1,))).get_output(0))
    builder.build_serialized_network(network, builder.create_builder_config())


def _config(trt: Any, builder: Any, asked: Settings) -> Any:
    """Everything said that the library would otherwise choose by itself."""
    config = builder.create_builder_config()
    change = config.set_flag if asked.tf32 else config.clear_flag
    change(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the names of nodes, for `profile`
    if asked.weights == refit.STRIPPED:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    elif asked.weights == refit.REFITTABLE:
        config.set_flag(trt.BuilderFlag.REFIT)
    if asked.level is not None:
        config.builder_optimization_level = asked.level
    if asked.capability.startswith("SM"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, asked.capability), 0)
    elif asked.capability == PORTABLE and tensorrt.name_of(trt) == "tensorrt":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    return config


def sizes(inputs: Sequence[TensorSpec], given: Mapping[str, Range], asked: Settings) -> dict[str, Range]:
    """The least, usual and most of every open dimension. Raises EdgerunError for one without, or for no dimension."""
    open_dims = {dim for spec in inputs for dim in spec.shape if isinstance(dim, str)}
    if surplus := sorted(set(given) - open_dims):
        if not open_dims:
            raise EdgerunError("the model has no open dimension", got=f"a size of {surplus[0]!r}", do="leave it out")
        raise unknown("open dimension", surplus[0], open_dims)
    known = dict.fromkeys(batch_dims(inputs), BATCH if asked.dla is None else ONE) | dict(given)
    for name, size in known.items():
        if asked.dla is not None and (least := min(size)) != (most := max(size)):
            do = f"--size {name}={most},{most},{most}, or leave {DLA} out"
            raise Unsupported(f"a DLA takes one size of {name!r}", got=f"{least} to {most}", do=do)
    if wanting := sorted(open_dims - set(known)):
        raise EdgerunError(
            f"TensorRT compiles for a range of sizes, and {wanting[0]!r} has none",
            got=", ".join(map(str, inputs)),
            wanted=f"sizes of {', '.join(wanting)}",
            do=f"give --size {wanting[0]}=LEAST,USUAL,MOST, in Python Options(sizes={{{wanting[0]!r}: (least, usual, "
            "most)}), or convert the model with fixed sizes",
        )
    return known


def _add_profiles(builder: Any, config: Any, inputs: tuple[TensorSpec, ...], known: Mapping[str, Range]) -> None:
    # One of the first ranges of all dimensions, one of the second …; those of a dimension with fewer come in turn.
    for place in range(0, max(map(len, known.values()), default=0), 3):
        profile = builder.create_optimization_profile()
        for spec in inputs:
            if any(isinstance(dim, str) for dim in spec.shape):
                shapes = (
                    spec.with_dims({dim: size[(place + end) % len(size)] for dim, size in known.items()})
                    for end in range(3)
                )
                profile.set_shape(spec.name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise EdgerunError("TensorRT refuses these sizes", got=known)


def _onto_dla(trt: Any, builder: Any, config: Any, network: Any, core: int) -> None:
    """Give a DLA core the layers that it takes (at least one); the others, which stay on the GPU, are told."""
    if core >= (cores := int(builder.num_DLA_cores)):
        raise Unsupported(f"there is no DLA core {core} here", got=f"{cores} cores", do=f"leave {DLA} out")
    config.default_device_type, config.DLA_core = trt.DeviceType.DLA, core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    left = [layer.name for layer in layers if not config.can_run_on_DLA(layer)]
    if len(left) == len(layers):
        raise Unsupported("no layer of this model can run on a DLA", do=f"{FLOAT16}, or leave {DLA} out")
    if left:
        names = ", ".join(left[:5]) + (" …" if len(left) > 5 else "")
        log.warning("%d of %d layers run on the GPU, not on the DLA: %s", len(left), len(layers), names)


def _door(trt: Any, tensors: list[Any]) -> tuple[TensorSpec, ...]:
    """The specs of network tensors; an open dimension without a name gets that of its tensor and place."""
    found = []
    for tensor in tensors:
        try:
            dtype = np.dtype(trt.nptype(tensor.dtype)).name
        except TypeError as error:
            raise Unsupported(f"{tensor.name!r} has a dtype that numpy has not", got=str(tensor.dtype)) from error
        named = (tensor.get_dimension_name(i) or f"{tensor.name}_{i}" for i in range(len(tensor.shape)))
        shape = tuple(int(dim) if dim >= 0 else str(name) for dim, name in zip(tuple(tensor.shape), named, strict=True))
        found.append(TensorSpec(tensor.name, dtype, shape))
    return tuple(found)


def _complaint(parser: Any, logger: Any) -> str:
    if parser.num_errors:
        return tensorrt.shortened(str(parser.get_error(0).desc()))
    return tensorrt.reason(logger.errors) or "no reason given"
