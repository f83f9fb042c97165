"""TensorRT on NVIDIA GPUs: `tensorrt` (10.3 to 11.x, Jetson's among them) or `tensorrt_rtx`, one backend for both."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import files, onnx_file
from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import Engine, Options, Session
from edgerun.target import Feeds, Issue, Limits, NodeTime, Quantization
from edgerun.targets import _cuda as cuda
from edgerun.targets import _tensorrt_build as build
from edgerun.targets import _tensorrt_file as file
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.targets import _tensorrt_refit as refit
from edgerun.targets._tensorrt_session import Sessions, TensorrtSession

if TYPE_CHECKING:
    from edgerun.contents import Contents
    from edgerun.devices import Device
    from edgerun.model import Model
    from edgerun.passes import Trial

summary = "TensorRT on NVIDIA GPUs"
requires = ("tensorrt_rtx",)  # or tensorrt, which no package brings alone
extra = "tensorrt"
suffixes = (".engine", ".onnx")
takes = build.TAKES
keeps = {".engine": {*build.KEYS} - {build.GRAPH, build.JIT, refit.OPTION}}
hardware = {"capability": "NVIDIA GPU (a compute capability)"}  # what a device has to have, by the fact that tells it

# The parser takes any IR version and opset without a word, so the newest ones are those that NVIDIA documents
# (10.3: opset 20, 10.15: 24, 11.x: 25), with the IR version of the ONNX release that defined the opset.
READS = {(11, 0): Limits(13, 25), (10, 15): Limits(12, 24), (10, 3): Limits(9, 20)}
RTX_READS = Limits(12, 24)  # 1.7 has the parser of the time between
FLOAT8 = (8, 9)  # the first compute capability with 8-bit floats; for 8.0 and 8.6 tensorrt_rtx 1.7 builds none


def available() -> str | None:
    """None where engines can be built, or what to install."""
    return tensorrt.missing(extra)


def runnable() -> str | None:
    """None, or why no GPU answers, or none that the library runs on: engines are built here and run elsewhere."""
    return tensorrt.idle()


def device() -> Mapping[str, str]:
    """Runtime, version, architecture; of the GPU, where one answers, its name, compute capability and CUDA version."""
    trt = tensorrt.library()
    found = {"runtime": tensorrt.name_of(trt), "version": str(trt.__version__), "arch": platform.machine()}
    if cuda.missing():
        return {**found, "gpu": "", "capability": "", "cuda": ""}
    gpu = cuda.gpu()
    capability, version = ("{}.{}".format(*pair) for pair in (gpu.capability, gpu.cuda))
    return {**found, "gpu": gpu.name, "capability": capability, "cuda": version}


def limits() -> Limits:
    """What the installed version is documented to read."""
    trt = tensorrt.library()
    if tensorrt.name_of(trt) == "tensorrt_rtx":
        return RTX_READS
    return READS[max(release for release in READS if release <= max(tensorrt.version(trt), min(READS)))]


def quantization(device: Device | None = None) -> Quantization:
    """What TensorRT's explicit quantization fuses: int8 with zero point 0 on both sides of a product, float biases.

    NVIDIA's advice for Q/DQ: at the inputs of products and at the residual of a sum, not at outputs. Which kernels then
    run on int8 was read from what tensorrt_rtx builds for 8.9: Conv (depthwise too), Gemm and MatMul do, and MaxPool
    between them; ConvTranspose does not. Of a gate's mean the quantizer is a kernel by itself, so gates stay in float
    (a text detector: 124 kernels, not 144). On 8-bit floats the same products do; a GPU that is known to have none (of
    `device`, or the one that answers here) lacks `fp8`. No other difference between GPUs has been looked at.
    """
    lacks = dict[str, str]()
    if device is not None:
        there = device.value("capability", "")
    else:
        there = "" if cuda.missing() else "{}.{}".format(*cuda.gpu().capability)
    if there and file.numbers(there) < FLOAT8:
        lacks["fp8"] = f"the GPU has compute capability {there}, and fp8 needs {FLOAT8[0]}.{FLOAT8[1]}"
    return Quantization(
        schemes=tuple(name for name in ("w8a8", "fp8", "w4a16_b64", "w16a16") if name not in lacks),
        lacks=lacks,
        activation="int8",
        symmetric=True,
        float_bias=True,
        compute=frozenset({"Conv", "Gemm", "MatMul"}),
        through=frozenset({"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"}),
        join=frozenset({"Add"}),
        absorbed=frozenset({"Relu", "Clip"}),
        float_output=frozenset({"Conv", "Gemm", "MatMul"}),
        fused_sum=True,
        float_gates=True,
        half_rest=True,
        qdq_constants=True,
    )


def check(model: Model) -> list[Issue]:
    """Nodes that the parser refuses, each with its reason; nothing is built."""
    if found := limits().exceeded(model):
        return found
    from edgerun.targets import _tensorrt_parser as read

    proto, trt = model.to_proto(), tensorrt.library()
    if found := [*read.misread(proto), *read.unfed(model, proto)]:
        return found
    logger = tensorrt.Log(trt)
    network = tensorrt.builder(trt, logger).create_network(
        tensorrt.bit(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    parser = trt.OnnxParser(network, logger.sink)
    if parser.supports_model_v2(model.to_bytes()):
        return list(read.unranged(network, proto))
    return list(read.refused(parser, logger.errors, proto))


def tried(model: Model, options: Options, device: Device | None) -> Trial:
    """What the builder says of a model that `check` takes, for `device`; no engine is kept."""
    from edgerun.targets import _tensorrt_trial as trial

    return trial.tried(model, options, device)


def compile(model: Model, options: Options) -> Engine:
    """Build a plan for this GPU, or for what `options.extra` says; the header before it is that of an engine file.

    `takes` are its keys. `options.sizes` are the sizes of open dimensions.
    Raises Unsupported when the parser would read something else than the model says.
    """
    from edgerun.targets import _tensorrt_parser as read

    proto = model.to_proto()
    if found := [*read.misread(proto), *read.unfed(model, proto)]:
        raise Unsupported(f"TensorRT would misread {found[0].node} ({found[0].op})", got=found[0].reason)
    engine = Engine("tensorrt", model.to_bytes(), model.inputs, model.outputs, {}, model.digest())
    told = {"preprocessing": model.preprocessing, "postprocessing": model.postprocessing,
            "history": [asdict(step) for step in model.history]}  # fmt: skip
    try:
        return finish(engine, options, told)
    except Unsupported as error:
        raise read.named(error, proto) from error


def ranges(model: Model, options: Options, device: Device | None) -> Mapping[str, build.Range]:
    """The sizes of open dimensions that an engine takes which `device` finishes. Raises EdgerunError for options or
    sizes that are refused there."""
    from edgerun.targets import _tensorrt_recipe as recipe

    return recipe.ranges(model, options, device)


def finish(engine: Engine, options: Options, told: Mapping[str, Any]) -> Engine:
    """As `compile`, from the bytes of an `.onnx` file: what a device does that has no onnx."""
    trt = tensorrt.library()
    data = engine.payload if isinstance(engine.payload, bytes) else engine.payload.read_bytes()
    plan, key = build.build(trt, data, options), _key(trt, options)
    header = {
        "inputs": file.specs(engine.inputs),
        "outputs": file.specs(engine.outputs),
        "preprocessing": told["preprocessing"],
        "postprocessing": told.get("postprocessing"),
        "history": told["history"],
        "digest": engine.digest,
        "device": key,
    }
    if kind := build.settings(trt, options).weights:
        header |= {"weights": kind, refit.SOURCE: hashlib.sha256(data).hexdigest()}
    source = data if kind == refit.STRIPPED else None
    return replace(engine, payload=file.pack(header, plan.data), device=key, source=source)


def save(engine: Engine, path: Path) -> None:
    """Write the engine as one `.engine` file, atomically. It runs on its device alone."""
    if path.suffix != ".engine":
        raise EdgerunError("TensorRT writes engines", got=path.name, wanted="-o NAME.engine")
    if not isinstance(engine.payload, bytes):
        raise EdgerunError("the engine is a file already", got=engine.payload, do="copy that file")
    files.write_bytes(path, engine.payload)


def contents(path: Path) -> Contents:
    """What the header of an engine file tells; the plan behind it is not opened."""
    return file.contents(path)


def load(engine: Engine, options: Options) -> Session:
    """A session on the first GPU. An `.onnx` is built for it first.

    Raises Unsupported where no GPU answers that the library runs on, or the engine was compiled for another device,
    saying in what they differ.
    """
    return _opened(engine, options)


def profile(engine: Engine, feeds: Iterable[Feeds], options: Options) -> list[NodeTime]:
    """Typical time of every kernel over `feeds` (after one warm-up run), slowest first, from TensorRT's profiler."""
    from edgerun.targets import _tensorrt_kernels as kernels

    trt, runs = tensorrt.library(), list[dict[str, float]]()

    with _opened(engine, options) as session:
        for feed in feeds:
            if not runs:
                session.run(feed)
                session.watch(_profiler(trt, runs))
            runs.append({})
            session.run(feed)
        if not runs:
            raise EdgerunError("nothing to profile", got="no feeds", wanted="at least one")
        text = session.kernels(trt)
    typical = {name: float(np.median([run.get(name, 0.0) for run in runs])) for name in runs[0]}
    return kernels.timed(kernels.read(text), typical)


def _profiler(trt: Any, runs: list[dict[str, float]]) -> Any:
    """An IProfiler that adds every kernel's seconds to the last of `runs`."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, name: str, milliseconds: float) -> None:
            runs[-1][name] = runs[-1].get(name, 0.0) + milliseconds / 1000

    return Profiler()


def _opened(engine: Engine, options: Options) -> TensorrtSession:
    trt = tensorrt.library()
    asked = build.settings(trt, options)  # misuse first, wherever this is
    data = engine.payload if isinstance(engine.payload, bytes) else engine.payload.read_bytes()
    written = file.MAGIC.startswith(data[:7]) or isinstance(engine.payload, Path) and engine.payload.suffix == ".engine"
    header, plan = file.unpack(data) if written else ({}, b"")
    if reason := runnable():
        do = "run it where such a GPU is" if cuda.missing() is None else "run it where an NVIDIA GPU is"
        raise Unsupported("an engine for TensorRT does not run here", got=reason, do=do)
    if written:
        file.check_key(header["device"], device())
        model = refit.weights(header, asked.refit, engine.source)
        how = Sessions(asked.graph, file.dla(header), model, asked.jit, file.metadata(header))
        return TensorrtSession(trt, plan, *file.door(header), how)
    built = build.build(trt, data, options)
    model = refit.weights({"weights": asked.weights, refit.SOURCE: hashlib.sha256(data).hexdigest()}, asked.refit, data)
    how = Sessions(asked.graph, asked.dla, model, asked.jit, onnx_file.told(data).metadata)
    return TensorrtSession(trt, built.data, built.inputs, built.outputs, how)


def _key(trt: Any, options: Options) -> dict[str, str]:
    """Where a plan built with these options runs, and with which flags it was built."""
    asked, here = build.settings(trt, options), dict(device())
    if asked.capability == build.PORTABLE:
        here |= {"gpu": "", "capability": build.PORTABLE}
    elif asked.capability.startswith("SM"):
        number = asked.capability.removeprefix("SM")
        here |= {"gpu": "", "capability": f"{number[:-1]}.{number[-1]}"}
    return {**here, "flags": asked.flags}
