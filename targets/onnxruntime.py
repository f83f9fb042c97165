"""ONNX Runtime: the runtime that every device install has, on the CPU unless another provider is asked for."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import files, guard, registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import Engine, Options, Session, machine
from edgerun.targets import _onnxruntime_float8 as float8
from edgerun.targets import _onnxruntime_ort as ort
from edgerun.targets import _onnxruntime_providers as providers
from edgerun.targets import _onnxruntime_settings as setting
from edgerun.targets._onnxruntime_session import NUMBERS, OrtSession, first_line, too_little

if TYPE_CHECKING:
    from edgerun.contents import Contents
    from edgerun.devices import Device
    from edgerun.model import Model
    from edgerun.target import Feeds, Issue, Limits, NodeTime, Quantization

# What only a workstation asks for is imported where it is: a device opens a model, and waits for no more than that.
summary = "ONNX Runtime on the CPU"
requires = ("onnxruntime",)
extra = ""
suffixes = (".onnx", ".ort")
writes = (".ort",)
takes = setting.TAKES
keeps = {".onnx": (setting.FORMAT,), ".ort": (setting.FORMAT, setting.OPTIMIZATION, "optimization.*", "session.*qdq*")}
device_option = providers.PROVIDER  # the key in `takes` that says which hardware
LITTLE = 8 << 20  # bytes that a process may keep for the next time: giving them back costs more than it brings
MUCH = 32 << 20  # that go back soon: what is less comes again in milliseconds, which a small model's opening feels


def available() -> str | None:
    """None, or what to install."""
    return registry.missing(requires, extra)


def runnable() -> str | None:
    """None: what compiles here runs here."""
    return None


def device() -> Mapping[str, str]:
    """Runtime, version, architecture, CPU, instruction sets, threads."""
    return machine.fingerprint("onnxruntime", str(_runtime().__version__))


@functools.cache
def limits() -> Limits:
    """What the installed version reads, found by asking it: a 65-byte model, one version newer at a time."""
    from edgerun.target import Limits
    from edgerun.targets import _onnxruntime_probes as probes

    return Limits(
        ir_version=_newest(lambda v: probes.identity(ir_version=v, opset=13), first=7),
        opset=_newest(lambda v: probes.identity(ir_version=7, opset=v), first=13),
    )


def check(model: Model) -> list[Issue]:
    """Nodes that the CPU provider cannot run, each with the runtime's reason; nothing is folded or executed."""
    from edgerun.target import Issue
    from edgerun.targets import _alone as alone
    from edgerun.targets import _onnxruntime_context as context

    if made := list(context.issues(model.to_proto(), _runtime())):
        return made
    reason = _refusal(*model.parts())
    if reason is None:
        return []
    return limits().exceeded(model) or list(alone.blame(model.to_proto(), _refusal)) or [Issue("", "", reason)]


def compile(model: Model, options: Options) -> Engine:
    """The model's own bytes, which ONNX Runtime optimizes for the machine when it loads them; with FORMAT=ort the
    optimized graph in its own format (FORMAT=optimized: as `.onnx`), with FORMAT=context what a provider made of it.
    """
    from edgerun.targets import _onnxruntime_context as context
    from edgerun.targets import _onnxruntime_optimized as optimized

    here = {**device(), **providers.choice(options).device()}
    if optimized.wanted(options):
        data, weights, folder = optimized.compiled(model, options, here, _open, _runtime()), dict[str, Any](), None
    elif context.wanted(options):
        data, weights, folder = context.compiled(model, options, _open, _runtime()), {}, None
    else:
        data, weights, folder = model.parts()
    door = model.inputs, model.outputs
    return Engine("onnxruntime", data, *door, here, model.digest(), weights=weights, folder=folder)


def written(suffix: str, options: Options, device: Device | None) -> Options:
    """`options` with which `compile` makes such a file for `device`, or for this machine, and compares it here.

    Raises Unsupported where they would be right on this machine's CPU alone, or mean nothing on the device's.
    """
    from edgerun.targets._onnxruntime_elsewhere import written

    return written(suffix, options, device)


def save(engine: Engine, path: Path) -> None:
    """Write the engine as one `.onnx` or `.ort` file, atomically; weights over 1.8 GB go to a file beside it."""
    if not isinstance(engine.payload, bytes):
        raise EdgerunError("the engine is a file already", got=engine.payload, do="copy that file")
    suffix = suffixes[ort.is_one(engine.payload)]
    if path.suffix != suffix:
        raise EdgerunError(f"the engine is an {suffix} file", got=path.name, wanted=f"-o NAME{suffix}")
    if engine.folder is not None or engine.weights:
        from edgerun import pair

        pair.rewrite(path, engine.payload, engine.weights, engine.folder)
        return
    files.write_bytes(path, engine.payload)


def contents(path: Path) -> Contents:
    """What an `.ort` file holds: its metadata, the nodes that the optimizer left, and its door, for which it is opened.

    Raises Unsupported where it was laid out for another CPU, which cannot open it.
    """
    from edgerun.targets._onnxruntime_optimized import contents

    with load(Engine("onnxruntime", path), Options(1)) as session:
        return contents(path, session.inputs, session.outputs)


def load(engine: Engine, options: Options) -> Session:
    """A session on the CPU provider alone, or on the one of `options.extra`, whose nodes on the CPU are told.

    Raises EdgerunError when the model is refused, and Unsupported where the provider cannot run: it never falls back.
    """
    return load_by(engine, options, None)


def load_by(engine: Engine, options: Options, own: Any) -> Session:
    """`load` by a SessionOptions of the caller's, which is used itself: what it leaves open is set in it."""
    return _session(_open(engine, options, setting.settings(_runtime(), options, own)), options)


def profile(engine: Engine, feeds: Iterable[Feeds], options: Options) -> list[NodeTime]:
    """Typical time of every kernel over `feeds` (after one warm-up run), slowest first, from the runtime's profiler.

    Raises Unsupported on a GPU.
    """
    import tempfile

    from edgerun.targets import _onnxruntime_profile as trace
    from edgerun.targets._onnxruntime_overhead import TURN, Chains

    if providers.choice(options).provider.library:
        what = "ONNX Runtime's profiler times the launches of a GPU's kernels, not the kernels"
        raise Unsupported(what, do="profile on the CPU, or with NVIDIA's nsys")
    with tempfile.TemporaryDirectory() as folder:
        settings, written = trace.watched(_settings(options), folder), Path(folder, "optimized.onnx")
        settings.optimized_model_filepath = str(written)
        # Weights go to a file of their own, which nobody reads.
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "0")
        with _session(_open(engine, options, settings), replace(options, streams=1)) as session:
            open_as = {True: lambda: trace.watched(_settings(options), folder), False: lambda: _settings(options)}
            chains = Chains(lambda model, on: _open(Engine("onnxruntime", model), options, open_as[on]()))
            for index, feed in enumerate(feeds):
                if index == 0:
                    session.run(feed)
                session.run(feed)
                if index % TURN == TURN - 1:
                    chains.run(TURN)
            events, model = trace.events(session.native), None if ort.is_one(engine.payload) else engine.payload
        return trace.kernels(events, model, written, lambda: chains.overhead(trace.by_run))


def _session(session: Any, options: Options) -> OrtSession:
    chosen = providers.choice(options)
    graphs = None
    if chosen.graph:
        from edgerun.targets._onnxruntime_graph import Graphs

        graphs = Graphs(_runtime(), session, [output.name for output in session.get_outputs()])
    runtime = _runtime()
    how = setting.runs(runtime, options)
    try:
        return OrtSession(runtime, session, _errors(), options.streams, graphs, providers.left(session, chosen), how)
    except ValueError as error:
        raise _refused(error, options) from error


@functools.cache
def _runtime() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # type: ignore[import-untyped]

    return onnxruntime


@functools.cache
def _errors() -> tuple[type[Exception], ...]:
    # Every exception that ONNX Runtime raises by name, the one in which a provider's failure comes, and the one that a
    # name or type in a damaged file becomes.
    state = _runtime().capi.onnxruntime_pybind11_state
    own = (v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception))
    return (RuntimeError, ValueError, *own)


def _settings(options: Options) -> Any:
    return setting.settings(_runtime(), options)


def _open(engine: Engine, options: Options, settings: Any = None) -> Any:
    """The runtime's own session, on the provider of `options` and with their settings where no others are given."""
    runtime, ready = _runtime(), ort.is_one(engine.payload)
    settings, chosen = settings or _settings(options), providers.choice(options)
    providers.require(runtime, chosen)
    if setting.lean(options):
        machine.give_back_at_once()
        if isinstance(engine.payload, Path) and not ready and guard.beside(engine.payload):
            setting.unpacked(settings, options)
    else:
        machine.reuse_freed()
    if ready:
        ort.admit(engine.payload, device())
        ort.mapped(settings, options)
    faulty = float8.tamed(settings) if float8.present(engine) else []
    source = engine.payload if isinstance(engine.payload, bytes) else str(engine.payload)
    if engine.folder is not None:
        settings.add_session_config_entry(setting.FOLDER, str(engine.folder))
        if options.extra.get(setting.OPTIMIZATION) == "off" or options.extra.get(setting.MEMORY) == setting.SMALL:
            setting.unpacked(settings, options)
    if engine.weights:
        settings.add_external_initializers(list(engine.weights), list(map(_value, engine.weights.values())))
    try:
        listed = chosen.listed(settings.intra_op_num_threads)
        with setting.bounded(runtime, settings, options, engine.payload):
            session = runtime.InferenceSession(
                source, settings, providers=listed, enable_fallback=0, disabled_optimizers=faulty
            )
    except _errors() as error:
        raise _refused(error, options) from error
    session.disable_fallback()
    # Optimizing holds weights more than once: 158 MB of ResNet-50's 505 were free behind it.
    if (free := machine.freed()) > LITTLE:
        wait = 0.0 if setting.lean(options) else machine.QUIET if free > MUCH else machine.LONG
        machine.release_when_quiet(wait)
    if session.get_providers()[0] != chosen.provider.name:
        wanted = chosen.provider.name
        raise Unsupported("the session runs elsewhere", got=session.get_providers(), wanted=wanted)
    return session


def _refused(error: Exception, options: Options) -> EdgerunError:
    from edgerun.targets._onnxruntime_foreign import foreign

    if known := too_little(error, options.max_rss) or foreign(error):
        return known
    kind = Unsupported if type(error).__name__ == "NotImplemented" else EdgerunError
    return kind("ONNX Runtime refuses the model", got=first_line(error), do="edgerun check names the node")


def _value(array: np.ndarray) -> Any:
    """An OrtValue over `array`; numpy has no name of its own for bfloat16 and 8-bit floats."""
    made = _runtime().OrtValue
    if array.dtype.name in (float8.NAME, "bfloat16"):
        bits = array.view(np.uint16 if array.itemsize == 2 else np.uint8)
        return made.ortvalue_from_numpy_with_onnx_type(bits, NUMBERS[array.dtype.name])
    return made.ortvalue_from_numpy(array)


def _refusal(data: bytes, weights: Mapping[str, np.ndarray] | None = None, folder: Path | None = None) -> str | None:
    """Why a session with all optimizations off refuses these bytes; None when it takes them."""
    engine = Engine("onnxruntime", data, weights=weights or {}, folder=folder)
    try:
        load(engine, Options(1, {setting.OPTIMIZATION: "off"})).close()
    except EdgerunError as error:
        return str(error.got)
    return None


def _newest(model: Any, first: int) -> int:
    version = first
    while version < first + 100 and _refusal(model(version + 1)) is None:
        version += 1
    return version


def quantization(device: Device | None = None) -> Quantization:
    """What the MLAS kernels of the CPU provider take in integers, as Q/DQ around the op."""
    from edgerun.targets import _onnxruntime_rules as rules

    return rules.quantization(device)
