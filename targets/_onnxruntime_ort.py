"""Optimized models in ONNX Runtime's own format (`_onnxruntime_optimized` makes them): what may run where."""

# At level `all` the optimizer lays tensors out for the vector registers of the CPU that it runs on, and picks kernels
# by its instruction sets; up to `extended` a graph computes the same everywhere. An optimized graph is not optimized
# again when it is opened, which is what saves the time.

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import Options
from edgerun.targets import _onnxruntime_settings as setting

SUFFIX = ".ort"
KEY = "edgerun.engine"  # of metadata_props: what it was compiled from, by what, for which CPU
BOUND = "all"  # the level that binds a graph to a CPU
HERE = ("version", "arch", "isa")  # of a fingerprint: to what
MAPPED = {"session.use_memory_mapped_ort_model": "1", "session.use_ort_model_bytes_for_initializers": "1"}


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
