"""The errors a user meets: one message that says what, got, wanted, and what to do; and its exit code."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class EdgerunError(Exception):
    """A refusal that the user can act on; the CLI prints it without a traceback and exits with `exit_code`."""

    exit_code = 2

    def __init__(self, what: str, *, got: object = None, wanted: str | None = None, do: str | None = None) -> None:
        self.what, self.got, self.wanted, self.do = what, got, wanted, do
        parts = [what]
        if got is not None:
            parts.append(f"got: {got}")
        if wanted is not None:
            parts.append(f"wanted: {wanted}")
        if do is not None:
            parts.append(f"do: {do}")
        super().__init__("\n  ".join(parts))


class GateFailed(EdgerunError):
    """The work ran and the answer is no (parity, accuracy or speed gate)."""

    exit_code = 1


class Unsupported(EdgerunError):
    """Valid, but this machine, target or version cannot do it."""

    exit_code = 3


def unknown(kind: str, name: str, known: Iterable[str]) -> EdgerunError:
    """The error for a name that is not registered, with the nearest one that is."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    return EdgerunError(
        f"unknown {kind} {name!r}",
        wanted=f"one of {', '.join(names)}",
        do=f"did you mean {near[0]!r}?" if near else None,
    )
