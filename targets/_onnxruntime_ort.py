"""Optimized models in ONNX Runtime's own format: what may run where, and how they are made.

At level `all` the optimizer lays tensors out for the vector registers of the CPU that it runs on, and picks kernels by
its instruction sets; up to `extended` a graph computes the same everywhere. An optimized graph is not optimized again
when it is opened, which is what saves the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import Engine, Options, machine
from edgerun.targets import _onnxruntime_settings as setting

if TYPE_CHECKING:
    from edgerun.contents import Contents
    from edgerun.devices import Device
    from edgerun.model import Model
    from edgerun.runtime import TensorSpec

SUFFIX = ".ort"
KEY = "edgerun.engine"  # of metadata_props: what it was compiled from, by what, for which CPU
BOUND = "all"  # the level that binds a graph to a CPU
HERE = ("version", "arch", "isa")  # of a fingerprint: to what
MAPPED = {"session.use_memory_mapped_ort_model": "1", "session.use_ort_model_bytes_for_initializers": "1"}
INT8 = "session.qdqisint8allowed"  # whether the optimizer makes integer ops of int8 activations: on ARM
# TensorProto's types by number, in numpy's names: a device has no onnx.
_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "object", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16", 17: "float8_e4m3fn",
    18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4",
}  # fmt: skip


def wanted(options: Options) -> bool:
    """Whether an engine is asked for that is such a file."""
    return options.extra.get(setting.FORMAT) == "ort"


def written(options: Options, device: Device | None) -> Options:
    """`options` for such a file, for `device` or this machine.

    Raises Unsupported where the level asked for would bind the file to this machine and the device is another.
    """
    extra = {**options.extra, setting.FORMAT: "ort"}
    if device is not None and (unlike := device.unlike()):
        if extra.setdefault(setting.OPTIMIZATION, "extended") == "all":
            raise Unsupported(
                f"at level all the graph is laid out for the CPU of this machine, which is not {device.name}",
                got=unlike[0], do=f"leave {setting.OPTIMIZATION} out (extended), or compile it there",
            )  # fmt: skip
        extra.setdefault(INT8, str(int(machine.arch(device.arch) == "aarch64")))
    return replace(options, extra=extra)


def compiled(
    model: Model, options: Options, here: Mapping[str, str], open_: Callable[[Engine, Options, Any], Any], runtime: Any
) -> bytes:
    """The optimized graph as a file's bytes; history, contract and what it is bound to stand in its metadata."""
    import json
    import tempfile

    if model.is_large():
        raise EdgerunError("an .ort file ends at 2 GiB", do="compile to .onnx: weights go beside it")
    level = options.extra.get(setting.OPTIMIZATION, BOUND)
    about = {"level": level, "digest": model.digest(), "version": here["version"]}
    if level == BOUND:
        about |= {key: here[key] for key in HERE}
    proto = model.to_proto()
    proto.metadata_props.add(key=KEY, value=json.dumps(about, sort_keys=True))
    settings = setting.settings(runtime, options)
    settings.add_session_config_entry("session.save_model_format", "ORT")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model" + SUFFIX)
        settings.optimized_model_filepath = str(path)
        open_(Engine("onnxruntime", proto.SerializeToString(deterministic=True)), options, settings)
        return path.read_bytes()


def is_one(payload: bytes | Path) -> bool:
    """Whether an engine's payload is such a file."""
    if isinstance(payload, Path):
        return payload.suffix == SUFFIX
    from edgerun import ort_file

    return ort_file.recognised(payload)


def mapped(settings: Any, options: Options) -> None:
    """Let session `settings` map a file instead of copying it, unless `options` say otherwise."""
    for key, value in MAPPED.items():
        if key not in options.extra:
            setting.leave(settings, key, value)


def admit(payload: bytes | Path, here: Mapping[str, str]) -> None:
    """Raise Unsupported where the file was compiled for another CPU or version than is here."""
    import json

    from edgerun import ort_file

    do = f"compile it here, or anywhere with --option {setting.OPTIMIZATION}=extended"
    text = ort_file.metadata(payload).get(KEY)
    if text is None:
        if ort_file.blocked(payload):
            raise Unsupported("the file is laid out for one kind of CPU and doesn't say for which", do=do)
        return
    try:
        about = json.loads(text)
        differing = [key for key in HERE if about["level"] == BOUND and about[key] != here[key]]
    except (ValueError, KeyError, TypeError) as error:
        what = "what the file says of itself is damaged"
        raise EdgerunError(what, got=f"{KEY}: {error}", do="compile it again") from error
    if differing:
        told = "; ".join(f"{key} {about[key]}, here {here[key]}" for key in differing)
        raise Unsupported("the file was optimized for another CPU or version", got=told, do=do)


def contents(path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Contents:
    """What such a file with this door tells of itself."""
    import json

    from edgerun import ort_file
    from edgerun.contents import Contents, Weights, steps

    props = ort_file.metadata(path)
    before, after, about = (
        json.loads(props[key]) if key in props else None
        for key in ("edgerun.preprocessing", "edgerun.postprocessing", KEY)
    )
    ops, stored = ort_file.parts(path)
    named = {_TYPES.get(kind, f"type {kind}"): Weights(*counts) for kind, counts in stored.items()}
    return Contents(
        str(path), "onnxruntime", "ONNX Runtime's own (.ort)", path.stat().st_size, (about or {}).get("digest", ""),
        inputs, outputs, before, after, steps(json.loads(props.get("edgerun.history", "[]"))), ops, named,
        {key: str(value) for key, value in (about or {}).items() if key != "digest"},
    )  # fmt: skip
