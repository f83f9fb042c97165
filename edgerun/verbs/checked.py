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
from edgerun.verbs import source_files, undecided

KIND, VERSION = "checked", 2  # of the entries, and of what is compared
log = logging.getLogger("edgerun")


def opened(engine: Engine, options: Options, feeds: Sequence[Feeds], load: Callable[[], Session]) -> Session:
    """The session that `load` opens of an `.onnx` file, or of its bytes, once its target with these `options` has
    computed what the reference does, on `feeds` or drawn ones.

    What passed is kept in `edgerun.cache`, by the SHA-256 of file, weights beside it and feeds, target and its device,
    versions and options: it is not compared again. An engine that `compile` gave out has passed. Raises GateFailed
    where it computes something else, EdgerunError where nothing can be compared, or the file changed meanwhile as far
    as the system says, and Unsupported where it is no ONNX model, the target refuses it, or nothing is kept and a
    reference is missing here.
    """
    if not all(isinstance(feed, Mapping) for feed in feeds):
        raise EdgerunError("what a model is checked on is a list of feeds", wanted="checked=[{'x': array}, …]")
    if engine.check is not None:
        return load()
    if not _onnx(engine.payload):
        raise Unsupported(
            "only an .onnx model says what it computes, and can be compared with the reference",
            got=engine.payload.name if isinstance(engine.payload, Path) else f"an engine for {engine.target}",
            do="compile the .onnx that it was made of: what edgerun compile writes has been compared",
        )  # fmt: skip
    parts = source_files.parts(engine.payload) if isinstance(engine.payload, Path) else []
    before, name = _status(parts), _name(engine, options, feeds)
    if _kept(name) is None:
        found = _compared(engine, options, feeds)
        _refuse_changed(parts, before)
        log.info("compared with %s on %d feeds: relative error %.2g, SQNR %.1f dB",
                 found.reference, found.runs, found.relative_error, found.sqnr_db)  # fmt: skip
        try:
            cache.write(KIND, name, json.dumps(asdict(found)).encode())
        except EdgerunError as error:
            log.warning("it will be compared again the next time: %s", error)
    session = load()
    try:
        _refuse_changed(parts, before)
    except EdgerunError:
        session.close()
        raise
    return session


def _status(parts: Sequence[Path]) -> list[tuple[int, ...]]:
    found = [part.stat() for part in parts]
    return [(one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) for one in found]


def _refuse_changed(parts: Sequence[Path], before: Sequence[tuple[int, ...]]) -> None:
    if _status(parts) != before:
        raise EdgerunError("the model changed while it was compared", got=parts[0], do="load it again")


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
    if isinstance(value, np.ndarray | np.generic):
        value = np.asarray(value)
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

    payload, options = engine.payload, replace(options, max_rss=0)  # which only what is given out has to keep
    model = Model.from_bytes(payload) if isinstance(payload, bytes) else Model.load(payload)
    options.check(model.inputs)
    undecided.refuse(model)
    # What the target would compute otherwise without a word, as far as that is known, is refused as compile does.
    usual = built(model, engine.target, options).usual
    listener()("comparing with the reference", 0, 0)
    try:
        return self_check(model, replace(engine, usual=usual), options, feeds)
    except EdgerunError as error:
        if isinstance(found := undecided.told(error, model), Unsupported) and isinstance(error, Unsupported):
            raise found from (error if found is not error else None)
        do = 'give real inputs, edgerun.load(…, checked=[feeds, …]), or take another target: target="auto" finds one'
        got = undecided.told(error, model).got
        raise type(error)(error.what, got=got, wanted=error.wanted, do=do) from error
