"""How optimized models are made, in ONNX Runtime's own format or as `.onnx`, and what they tell of themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import Engine, Options, machine
from edgerun.targets import _onnxruntime_settings as setting
from edgerun.targets._onnxruntime_ort import BOUND, HERE, KEY, SUFFIX

if TYPE_CHECKING:
    from edgerun.contents import Contents
    from edgerun.devices import Device
    from edgerun.model import Model
    from edgerun.runtime import TensorSpec

OPEN = "optimized"  # the format of an optimized graph as `.onnx`
INT8 = "session.qdqisint8allowed"  # whether the optimizer makes integer ops of int8 activations: on ARM
# TensorProto's types by number, in numpy's names.
_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "object", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16", 17: "float8_e4m3fn",
    18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4",
}  # fmt: skip


def wanted(options: Options) -> bool:
    """Whether an engine is asked for that is an optimized graph."""
    return options.extra.get(setting.FORMAT) in ("ort", OPEN)


def written(suffix: str, options: Options, device: Device | None) -> Options:
    """`options` for such a file, for `device` or this machine.

    Raises Unsupported where the level asked for would bind the file to this machine and the device is another.
    """
    extra = {**options.extra, **({setting.FORMAT: "ort"} if suffix == SUFFIX else {})}
    if device is not None and (unlike := device.unlike()):
        if extra[setting.FORMAT] == "ort" and extra.setdefault(setting.OPTIMIZATION, "extended") == BOUND:
            raise Unsupported(
                f"at level all the graph is laid out for the CPU of this machine, which is not {device.name}",
                got=unlike[0], do=f"leave {setting.OPTIMIZATION} out (extended), or compile it there",
            )  # fmt: skip
        extra.setdefault(INT8, str(int(machine.arch(device.arch) == "aarch64")))
    return replace(options, extra=extra)


def compiled(
    model: Model, options: Options, here: Mapping[str, str], open_: Callable[[Engine, Options, Any], Any], runtime: Any
) -> bytes:
    """The optimized graph as a file's bytes; history, contract and what it is bound to stand in its metadata.

    As an `.onnx`, which any ONNX Runtime opens and lays out for its own CPU, it is bound to none: raises Unsupported
    for level `all` there.
    """
    import json
    import tempfile

    kind = options.extra[setting.FORMAT]
    if model.is_large():
        do = f"leave {setting.FORMAT} out" if kind == OPEN else "compile to .onnx"
        raise EdgerunError("an optimized file ends at 2 GiB", do=f"{do}: weights go beside it")
    level = options.extra.get(setting.OPTIMIZATION, BOUND if kind == "ort" else "extended")
    if level == BOUND and kind == OPEN:
        raise Unsupported(
            "at level all the graph is laid out for the CPU of this machine, and an .onnx does not say for which",
            got=f"{setting.OPTIMIZATION}={level}", do=f"-o NAME{SUFFIX}, or leave it out: it is done where it opens",
        )  # fmt: skip
    about = {"level": level, "digest": model.digest(), "version": here["version"]}
    if level == BOUND:
        about |= {key: here[key] for key in HERE}
    proto = model.to_proto()
    proto.metadata_props.add(key=KEY, value=json.dumps(about, sort_keys=True))
    settings = setting.settings(runtime, replace(options, extra={**options.extra, setting.OPTIMIZATION: level}))
    settings.add_session_config_entry("session.save_model_format", "ORT" if kind == "ort" else "ONNX")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model" + (SUFFIX if kind == "ort" else ".onnx"))
        settings.optimized_model_filepath = str(path)
        open_(Engine("onnxruntime", proto.SerializeToString(deterministic=True)), options, settings)
        data = path.read_bytes()
    return data if kind == "ort" else _trimmed(data)


def _trimmed(data: bytes) -> bytes:
    """An optimized model without the import of every operator set that the runtime knows: an older one refuses those
    that it doesn't, though no node is of them."""
    import onnx
    import onnx_ir as ir

    proto = onnx.load_from_string(data)
    used = {"", *(node.domain for node in ir.from_proto(proto).graph.all_nodes())}
    kept = [opset for opset in proto.opset_import if opset.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    return bytes(proto.SerializeToString(deterministic=True))


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
