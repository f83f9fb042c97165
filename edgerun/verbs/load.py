"""Load: a model file or an engine becomes a running session."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from edgerun import distribution, files, guard, registry
from edgerun.errors import EdgerunError, unknown
from edgerun.runtime import Engine, Options, Session, machine

if TYPE_CHECKING:
    from edgerun.devices import Device
    from edgerun.target import Feeds

DeviceLike: TypeAlias = "Device | str | Path"
log = logging.getLogger("edgerun")
WHOLE = "a Model: edgerun.compile(…) it first; an onnx.ModelProto: its SerializeToString()"
WARM = {".recipe": "edgerun warm NAME.recipe on its device, and give what that writes"}
ENGINE = b"edgerun"  # what an engine in memory begins with, where it is no ONNX model


def load(
    source: str | Path | bytes | Engine,
    target: str | Sequence[str] | None = None,
    options: Options | None = None,
    *,
    device: DeviceLike | None = None,
    isolated: bool = False,
    timeout: float | None = None,
    checked: bool | Sequence[Feeds] = False,
) -> Session:
    """A session that runs `source` (a file, its bytes, or an Engine) on `target`.

    Without `target` an Engine runs where it was compiled for, and a file on the first registered target (by name)
    that writes such files: `.onnx` and `.ort` on onnxruntime, `.xml` on openvino; bytes count as `.onnx`. Several
    targets, or "auto" for all, mean the first whose engine agrees with the reference: the model is compiled, which
    takes more than a device install has. `device` is a board that is known (`edgerun devices`, or a file that
    `edgerun probe` wrote), whose target is taken unless one is named (that this machine is another is told once, on
    stderr), or the hardware in its target's own word, "GPU" of openvino: short for what `options.extra` says.
    With `isolated` the model lives in a process of its own: a crash there is an EdgerunError here, and so is a run of
    more than `timeout` seconds; the next run starts a new process (`runtime.isolated.IsolatedSession`), and each of
    `options.streams` has its own, with a model of its own.
    A file is opened as it is. With `checked` it is an `.onnx` that was compared with the reference, as `compile` does,
    before it is given out, on drawn feeds or on those given: the first time here; then it is known by its content, for
    this target, machine and options (`edgerun.verbs.checked`).
    `options.max_rss` bounds what the process holds, with `isolated` each of the model's.
    Raises EdgerunError when the file is refused, Unsupported when the target is not available, and GateFailed where
    memory goes above its bound or a `checked` model computes something else; never falls back.
    """
    if not isinstance(options, Options | None):
        raise EdgerunError("options are no Options", got=type(options).__name__, wanted="edgerun.Options(threads=…)")
    options = options or Options()
    if device is not None:
        target, options = placed(device, source, target, options)
    if isolated:
        from edgerun.runtime.isolated import IsolatedSession

        threads, streams = options.threads, options.streams
        share = machine.threads(threads, streams)
        if streams > 1:  # a process each, which have their share of the threads
            threads = share
        given = {"source": source, "target": target, "options": replace(options, threads=threads, streams=1),
                 "checked": checked}  # fmt: skip
        near = streams == share == 1  # several at once shall spread over the cores
        return IsolatedSession(f"{__name__}:{load.__name__}", given, timeout, streams, near)
    if timeout is not None:
        raise EdgerunError("only an isolated session can be ended", got=f"timeout={timeout}", do="isolated=True")
    feeds = tuple(checked) if not isinstance(checked, bool) else ()
    if not isinstance(source, Engine) and (target == "auto" or not isinstance(target, str | None)):
        source, target = _chosen(source, target, replace(options, max_rss=0), feeds), None
    engine = engine_of(source, target)
    if checked is False:
        return _bounded(engine, options)
    if distribution.lacks("verbs.checked"):
        raise distribution.absent("comparing a model with the reference")
    from edgerun.verbs import checked as proof

    return proof.opened(engine, options, feeds, partial(_bounded, engine, options))


def placed(
    device: DeviceLike, source: str | Path | bytes | Engine, target: str | Sequence[str] | None, options: Options
) -> tuple[str | Sequence[str] | None, Options]:
    """Target and options that `device` means: a board's target, else the option by which the target chooses."""
    from difflib import get_close_matches

    from edgerun import devices
    from edgerun.verbs.devices import tell_elsewhere

    if devices.is_board(device):
        board = devices.find(device)
        tell_elsewhere(board)
        return target or board.target, options
    name = source.target if isinstance(source, Engine) else target
    if name is None:
        assert not isinstance(source, Engine)
        name = target_for(".onnx" if isinstance(source, bytes) else _path(source).suffix)
    if isinstance(device, str) and get_close_matches(device, devices.names(), 1):
        raise unknown("device", device, devices.names())
    if not isinstance(name, str) or name == "auto":
        raise EdgerunError("hardware is named in the words of one target", got=f"device={device!r}, target={target!r}",
                           wanted="one target")  # fmt: skip
    key = getattr(registry.target(name), "device_option", "")
    if not key:
        raise EdgerunError(f"{name} has no choice of hardware", got=f"device={device!r}",
                           wanted=f"a board: {', '.join(devices.names())}", do="leave device out")  # fmt: skip
    if (said := options.extra.get(key, str(device))) != str(device):
        raise EdgerunError("two devices are asked for", got=f"device={device!r} and {key}={said}", wanted="one of them")
    return name, replace(options, extra={**options.extra, key: str(device)})


def _bounded(engine: Engine, options: Options) -> Session:
    if not options.max_rss:
        return _opened(engine, options)
    from edgerun.runtime.memory import Bound

    bound = Bound(options.max_rss)
    return _opened(engine, options).within(bound)


def _opened(engine: Engine, options: Options) -> Session:
    session = registry.target(engine.target).load(engine, options)
    try:
        options.check(session.inputs)
    except EdgerunError:
        session.close()
        raise
    if session.streams < options.streams:
        _warn(engine.target, options.streams)
    return session


@cache
def _warn(target: str, streams: int) -> None:
    log.warning("%s knows no streams: runs take turns, where %d were to be under way at once", target, streams)


def engine_of(source: str | Path | bytes | Engine, target: str | Sequence[str] | None) -> Engine:
    """`source` as what its target opens, once the static guard has seen it."""
    if isinstance(source, Engine):
        if target not in (None, source.target):
            raise EdgerunError("the engine was compiled for another target", got=source.target, wanted=str(target))
        return source
    payload = source if isinstance(source, bytes) else _path(source)
    suffix = "" if isinstance(payload, bytes) else payload.suffix
    assert isinstance(target, str | None)
    name = target or target_for(".onnx" if isinstance(payload, bytes) else suffix)
    if isinstance(payload, Path) and suffix not in (known := registry.target(name).suffixes):
        wanted, what = " or ".join(known), f"{name} does not read this file"
        raise EdgerunError(what, got=payload.name, wanted=wanted, do=WARM.get(suffix))
    return Engine(name, payload, elements=_guarded(payload, suffix))


def _path(source: object) -> Path:
    return files.path_of(source, "a path, bytes or an Engine", WHOLE)


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
    wanted, got = ", ".join(sorted(known)), suffix or "a name without a suffix"
    raise EdgerunError("no target reads this kind of file", got=got, wanted=wanted, do=WARM.get(suffix))


def _chosen(
    source: str | Path | bytes, target: str | Sequence[str], options: Options, feeds: Sequence[Feeds]
) -> Engine:
    if distribution.lacks("verbs.compile"):
        raise distribution.absent("choosing a target by what it computes")
    from edgerun.model import Model
    from edgerun.verbs.compile import compile

    return compile(Model.from_bytes(source) if isinstance(source, bytes) else source, target, options, feeds=feeds)
