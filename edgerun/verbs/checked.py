"""Checked: a file that is opened directly is compared with the reference once, and what passed is known by content."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import __version__, cache, ort_file, registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.passes import Feeds
from edgerun.runtime import Engine, Options, SelfCheck, Session, machine
from edgerun.runtime.progress import listener
from edgerun.verbs import source_files

KIND, VERSION = "checked", 1  # of the entries, and of what is compared
log = logging.getLogger("edgerun")


def compared(engine: Engine, options: Options, feeds: Sequence[Feeds] = ()) -> SelfCheck:
    """How the engine of an `.onnx` file, or of its bytes, that the target opens with `options` compares with the
    reference, on `feeds` or drawn ones.

    What passed is kept in `edgerun.cache`, by the SHA-256 of file, weights beside it and feeds, target and its device,
    versions and options: it is not compared again. Raises GateFailed when it computes something else, EdgerunError
    where nothing can be compared, and Unsupported where the file is no ONNX model, the target refuses it, or nothing
    is kept and the reference is missing here. An engine that `compile` gave out has passed.
    """
    if not all(isinstance(feed, Mapping) for feed in feeds):
        raise EdgerunError("what a model is checked on is a list of feeds", wanted="checked=[{'x': array}, …]")
    if engine.check is not None:
        return engine.check
    payload = engine.payload
    if not _onnx(payload):
        raise Unsupported(
            "only an .onnx model says what it computes, and can be compared with the reference",
            got=payload.name if isinstance(payload, Path) else f"an engine for {engine.target}",
            do="compile the .onnx that it was made of: what edgerun compile writes has been compared",
        )  # fmt: skip
    before, name = _status(payload), _name(engine, options, feeds)
    if (kept := _kept(name)) is not None:
        return kept
    found = _compared(engine, options, feeds)
    if _status(payload) != before:
        raise _changed(payload)
    log.info("compared with %s on %d feeds: relative error %.2g, SQNR %.1f dB",
             found.reference, found.runs, found.relative_error, found.sqnr_db)  # fmt: skip
    try:
        cache.write(KIND, name, json.dumps(asdict(found)).encode())
    except EdgerunError as error:
        log.warning("it will be compared again the next time: %s", error)
    return found


def opened(engine: Engine, options: Options, feeds: Sequence[Feeds], load: Callable[[], Session]) -> Session:
    """The session that `load` opens of an engine that has been `compared`. Raises EdgerunError where the file was
    another one by then, as far as the system says: what is given out is what was compared."""
    before = _status(engine.payload)
    compared(engine, options, feeds)
    session = load()
    if _status(engine.payload) != before:
        session.close()
        raise _changed(engine.payload)
    return session


def _status(payload: bytes | Path) -> list[tuple[int, ...]]:
    if isinstance(payload, bytes) or not _onnx(payload):
        return []
    found = [part.stat() for part in source_files.parts(payload)]
    return [(one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) for one in found]


def _changed(payload: bytes | Path) -> EdgerunError:
    return EdgerunError("the model changed while it was compared", got=payload, do="load it again")


def _onnx(payload: bytes | Path) -> bool:
    if isinstance(payload, Path):
        return payload.suffix == ".onnx"
    return not payload.startswith(b"edgerun") and not ort_file.recognised(payload)


def _name(engine: Engine, options: Options, feeds: Sequence[Feeds]) -> str:
    """The entry's name, from all that the verdict depends on."""
    payload = engine.payload
    digest = hashlib.sha256(payload).hexdigest() if isinstance(payload, bytes) else source_files.digest(payload)
    told = {
        "version": [VERSION, __version__], "model": digest, "feeds": [_digest(feed) for feed in feeds],
        "target": engine.target, "device": dict(registry.target(engine.target).device()), "isa": machine.isa(),
        "threads": options.threads, "streams": options.streams, "extra": dict(options.extra),
        "sizes": dict(options.sizes), "usual": dict(options.usual),
    }  # fmt: skip
    return cache.key(json.dumps(told, sort_keys=True))


def _digest(feed: Feeds) -> str:
    hashed = hashlib.sha256()
    for name, value in sorted(feed.items()):
        hashed.update(f"{name}\0".encode())
        for part in _parts(value):
            hashed.update(part)
    return hashed.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    """All that a feed is, a sequence's arrays and texts too."""
    if isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}\0".encode()
        yield json.dumps(value.tolist()).encode() if value.dtype.kind == "O" else value.tobytes()
        return
    yield f"{type(value).__name__} {len(value or ())}\0".encode()
    for item in value or ():
        yield from _parts(item)


def _kept(name: str) -> SelfCheck | None:
    """What passed once; an entry that is damaged, or of another form, counts as absent."""
    try:
        told = json.loads(cache.read(KIND, name) or b"null")
        return None if told is None else SelfCheck(**{**told, "shapes": tuple(told["shapes"])})
    except (EdgerunError, ValueError, TypeError, KeyError):
        return None


def _compared(engine: Engine, options: Options, feeds: Sequence[Feeds]) -> SelfCheck:
    from edgerun.model import Model
    from edgerun.verbs.compile import built, self_check
    from edgerun.verbs.load import check_names

    payload, options = engine.payload, replace(options, max_rss=0)  # which only what is given out has to keep
    model = Model.from_bytes(payload) if isinstance(payload, bytes) else Model.load(payload)
    check_names(options, model.inputs)
    # What the target would compute otherwise without a word, as far as that is known, is refused as compile does.
    usual = built(model, engine.target, options).usual
    listener()("comparing with the reference", 0, 0)
    try:
        return self_check(model, replace(engine, usual=usual), options, feeds)
    except Unsupported:
        raise
    except EdgerunError as error:
        do = 'give real inputs, edgerun.load(…, checked=[feeds, …]), or take another target: target="auto" finds one'
        raise type(error)(error.what, got=error.got, wanted=error.wanted, do=do) from error
