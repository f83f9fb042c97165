"""Load: a model file or an engine becomes a running session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgerun import guard, registry
from edgerun.errors import EdgerunError
from edgerun.runtime import Engine, Options, Session, machine

ENGINE = b"edgerun"  # what an engine in memory begins with, where it is no ONNX model


def load(
    source: str | Path | bytes | Engine,
    target: str | Sequence[str] | None = None,
    options: Options | None = None,
    *,
    isolated: bool = False,
    timeout: float | None = None,
) -> Session:
    """A session that runs `source` (a file, its bytes, or an Engine) on `target`.

    Without `target` an Engine runs where it was compiled for, and a file on the first registered target (by name)
    that writes such files: `.onnx` and `.ort` on onnxruntime, `.xml` on openvino; bytes count as `.onnx`. Several
    targets, or "auto" for all, mean the first whose engine agrees with the reference: the model is compiled, which
    takes more than a device install has. With `isolated` it lives in a process of its own: a crash there is an
    EdgerunError here, and so is a run of more than `timeout` seconds; the next run starts a new process
    (`runtime.isolated.IsolatedSession`), and each of `options.streams` has its own, with a model of its own.
    `options.max_rss` bounds what the process holds, with `isolated` each of the model's.
    Raises EdgerunError when the file is refused, Unsupported when the target is not available, and GateFailed where
    memory goes above its bound; never falls back.
    """
    options = options or Options()
    if isolated:
        from edgerun.runtime.isolated import IsolatedSession

        threads, streams = options.threads, options.streams
        if streams > 1:  # a process each, which have their share of the threads
            threads = machine.threads(threads, streams)
        given = {"source": source, "target": target, "options": replace(options, threads=threads, streams=1)}
        return IsolatedSession(f"{__name__}:{load.__name__}", given, timeout, streams)
    if timeout is not None:
        raise EdgerunError("only an isolated session can be ended", got=f"timeout={timeout}", do="isolated=True")
    if not isinstance(source, Engine) and (target == "auto" or not isinstance(target, str | None)):
        source, target = _chosen(source, target, replace(options, max_rss=0)), None
    if options.max_rss:
        from edgerun.runtime.memory import Bound

        bound = Bound(options.max_rss)
        return _opened(source, target, options).within(bound)
    return _opened(source, target, options)


def _opened(source: str | Path | bytes | Engine, target: str | Sequence[str] | None, options: Options) -> Session:
    if isinstance(source, Engine):
        if target not in (None, source.target):
            raise EdgerunError("the engine was compiled for another target", got=source.target, wanted=str(target))
        return registry.target(source.target).load(source, options)
    payload = source if isinstance(source, (bytes, Path)) else Path(source)
    suffix = "" if isinstance(payload, bytes) else payload.suffix
    assert isinstance(target, str | None)
    name = target or target_for(".onnx" if isinstance(payload, bytes) else suffix)
    found = registry.target(name)
    if isinstance(payload, Path):
        if suffix not in found.suffixes:
            raise EdgerunError(f"{name} does not read this file", got=payload.name, wanted=" or ".join(found.suffixes))
    return found.load(Engine(name, payload, elements=_guarded(payload, suffix)), options)


def _guarded(payload: bytes | Path, suffix: str) -> frozenset[int] | None:
    """The element types of an ONNX model that passes the static guard; None of what is none."""
    if isinstance(payload, Path) and suffix == ".onnx":
        return guard.check_onnx(payload)
    from edgerun import ort_file  # which an .onnx has no use for

    if isinstance(payload, bytes):
        if payload.startswith(ENGINE):
            return None
        return ort_file.check(payload) if ort_file.recognised(payload) else guard.check_bytes(payload)
    if suffix == ort_file.SUFFIX:
        return ort_file.check(payload)
    guard.check_file(payload)
    return None


def target_for(suffix: str) -> str:
    """The name of the first target that writes files of this suffix: edgerun's own, by name, before others'."""
    known = set[str]()
    for names in (registry.own, registry.names):  # the second costs more than opening a model, and is rarely asked
        for name in names("target"):
            written = registry.written(name)
            if suffix in written:
                return name
            known.update(written)
    wanted = ", ".join(sorted(known))
    raise EdgerunError("no target reads this kind of file", got=suffix or "a name without a suffix", wanted=wanted)


def _chosen(source: str | Path | bytes, target: str | Sequence[str], options: Options) -> Engine:
    from edgerun.model import Model
    from edgerun.verbs.compile import compile

    return compile(Model.from_bytes(source) if isinstance(source, bytes) else source, target, options)
