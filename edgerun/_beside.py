"""The files that a model names beside itself: those of its weights, and those of what a provider compiled ahead."""

from __future__ import annotations

from pathlib import Path

from edgerun import _wire
from edgerun.errors import EdgerunError

_LONGEST_NAME = 4096  # bytes of a path, on Linux
CONTEXT = b"EPContext"  # the op of a node that holds a provider's own binary, or names the file that does
_CACHE, _SOURCE, _EMBEDDED = "ep_cache_context", "onnx_model_filename", "embed_mode"
_NAMING = (_CACHE, _SOURCE)  # its attributes that name files; the first does unless `embed_mode` is 1, or absent


def place(model: object, folder: Path | None, location: str, owner: str) -> Path:
    """The file `location` that `owner`, a part of `model`, names: inside the model's folder, ordinary, not hard-linked.

    Raises EdgerunError for another, and for any where the model has no folder (None: it is in memory).
    """
    if folder is None:
        raise EdgerunError(f"{model}: {owner} points outside the model", got=location, do="load the file instead")
    if "\0" in location or len(location) > _LONGEST_NAME:
        raise EdgerunError(f"{model}: {owner} names a file that cannot be", got=repr(location[:80]))
    file = (folder / location).resolve()
    if not location or "*" in location or "_ORT_MEM_ADDR_" in location or not file.is_relative_to(folder):
        raise EdgerunError(f"{model}: {owner} points outside the model's folder", got=location or "no location")
    if not file.is_file():
        raise EdgerunError(f"{model}: the file of {owner} is missing", got=location, do="put it beside the model")
    if file.stat().st_nlink > 1:
        raise EdgerunError(f"{model}: the file of {owner} is a hard link to another", got=location, do="copy the file")
    return file


def outside(attribute: str, integer: int, length: int) -> bool:
    """Whether an attribute of an EPContext node, of that integer or a text so long, says that a file holds more."""
    return (attribute == _EMBEDDED and integer != 1) or (attribute == _SOURCE and length > 0)


def named(node: memoryview) -> list[str]:
    """The files that an EPContext node names. Where attributes stand twice, each counts: runtimes differ in which they
    take. Raises Malformed where a function's caller would say which file it is."""
    embedded, names = True, dict[str, list[str]]()
    for number, value in _wire.fields(node):
        if number != 5:
            continue
        name, integer, content, referred = "", 0, b"", False
        for part, told in _wire.fields(_wire.message(value)):
            if part == 1:
                name = _wire.text(told)
            elif part == 3:
                integer = _wire.signed(told)
            elif part == 4:
                content = bytes(_wire.message(told))
            elif part == 21:
                referred = True
        if name in (*_NAMING, _EMBEDDED) and referred:
            raise _wire.Malformed(f"a function's {CONTEXT.decode()} node leaves its {name} to the caller")
        if name == _EMBEDDED:
            embedded = embedded and integer == 1
        elif name in _NAMING:
            names.setdefault(name, []).append(content.decode(errors="surrogateescape"))
    if embedded:
        names.pop(_CACHE, None)
    return [text for texts in names.values() for text in texts if text]
