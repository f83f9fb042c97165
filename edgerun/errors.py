"""The errors a user meets: one message that says what, got, wanted, and what to do; and its exit code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

LONGEST = 4000  # characters of what a message repeats
_OUT_OF_MEMORY = (
    "bad_alloc",
    "can't allocate memory",
    "Cannot allocate memory",
    "Unable to allocate",
    "failed to map segment",
)


class EdgerunError(Exception):
    """A refusal that the user can act on; the CLI prints it without a traceback and exits with `exit_code`."""

    exit_code = 2

    def __init__(self, what: str, *, got: object = None, wanted: str | None = None, do: str | None = None) -> None:
        what, got = _short(what), got if got is None else _short(str(got))
        self.what, self.got, self.wanted, self.do = what, got, wanted, do
        parts = [what]
        if got is not None:
            parts.append(f"got: {got}")
        if wanted is not None:
            parts.append(f"wanted: {wanted}")
        if do is not None:
            parts.append(f"do: {do}")
        super().__init__("\n  ".join(parts))


def _short(text: str) -> str:
    """`text`, or its ends: a file may hold a name of megabytes, which no terminal should get."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 100]} … {text[-90:]}"


class GateFailed(EdgerunError):
    """The work ran and the answer is no (parity, accuracy or speed gate).

    `measured` are JSON values: what the answer rests on, where a command prints it with --json.
    """

    exit_code = 1
    measured: Mapping[str, Any] = MappingProxyType({})


class Unsupported(EdgerunError):
    """Valid, but this machine, target or version cannot do it.

    `reproduction` is the text of a Python program that shows it in the framework itself, where there is one.
    """

    exit_code = 3
    reproduction = ""


def unknown(kind: str, name: str, known: Iterable[str]) -> EdgerunError:
    """The error for a name that is not registered, with the nearest one that is."""
    from difflib import get_close_matches  # costs a millisecond, which only an error is worth

    names = sorted(filter(None, known))
    folded = {known.casefold(): known for known in names}
    cutoff = 0.7 if len(name) == 3 else 0.6  # two of three letters are another name: GPU is no CPU
    near = [folded[found] for found in get_close_matches(name.casefold(), folded, 1, cutoff)]
    return EdgerunError(
        f"unknown {kind} {name!r}",
        wanted=f"one of {', '.join(names)}" if names else f"nothing: no {kind} here has a name",
        do=f"did you mean {near[0]!r}?" if near else None,
    )


def to_json(error: EdgerunError) -> dict[str, Any]:
    """An error as JSON values, to cross a process border."""
    kind = next(c.__name__ for c in (GateFailed, Unsupported, EdgerunError) if isinstance(error, c))
    got = None if error.got is None else str(error.got)
    return {"kind": kind, "what": error.what, "got": got, "wanted": error.wanted, "do": error.do}


def from_json(told: Mapping[str, Any]) -> EdgerunError:
    """The inverse of `to_json`."""
    kind = {c.__name__: c for c in (EdgerunError, GateFailed, Unsupported)}[told["kind"]]
    return kind(told["what"], got=told["got"], wanted=told["wanted"], do=told["do"])


def out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory for it, or for what it came from: frameworks say so in words of their own."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, MemoryError) or any(words in str(found) for words in _OUT_OF_MEMORY):
            return True
        found = found.__cause__ or found.__context__
    return False
