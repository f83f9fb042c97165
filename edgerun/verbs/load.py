"""Load: a model file or an engine becomes a running session."""

from __future__ import annotations

from pathlib import Path

from edgerun import guard, registry
from edgerun.errors import EdgerunError
from edgerun.runtime import Engine, Options, Session


def load(source: str | Path | bytes | Engine, target: str | None = None, options: Options | None = None) -> Session:
    """A session that runs `source` (a file, ONNX bytes, or an Engine) on `target`.

    Without `target` an Engine runs where it was compiled for, and a file on the first registered target (by name)
    that prefers its suffix: `.onnx` on onnxruntime, `.xml` on openvino; bytes count as `.onnx`.
    Raises EdgerunError when the file is refused and Unsupported when the target is not available; never falls back.
    """
    if isinstance(source, Engine):
        if target not in (None, source.target):
            raise EdgerunError("the engine was compiled for another target", got=source.target, wanted=target)
        return registry.target(source.target).load(source, options or Options())
    payload = source if isinstance(source, bytes) else Path(source)
    name = target or target_for(".onnx" if isinstance(payload, bytes) else payload.suffix)
    found = registry.target(name)
    if isinstance(payload, Path):
        if payload.suffix not in found.suffixes:
            raise EdgerunError(f"{name} does not read this file", got=payload.name, wanted=" or ".join(found.suffixes))
        (guard.check_onnx if payload.suffix == ".onnx" else guard.check_file)(payload)
    return found.load(Engine(name, payload), options or Options())


def target_for(suffix: str) -> str:
    """The name of the first registered target that prefers files of this suffix."""
    preferred = {name: registry.target(name, usable=False).suffixes[0] for name in registry.names("target")}
    for name, own in preferred.items():
        if own == suffix:
            return name
    wanted = ", ".join(sorted(set(preferred.values())))
    raise EdgerunError("no target reads this kind of file", got=suffix or "a name without a suffix", wanted=wanted)
