"""Peak memory of processes, from the kernel."""

from __future__ import annotations

import sys
from contextlib import suppress

from edgerun.errors import Unsupported
from edgerun.runtime import memory


def peak_rss() -> int:
    """The largest resident set of this process so far, in bytes. Raises Unsupported where the system cannot tell."""
    with suppress(Unsupported):
        return memory.peak()
    return _rusage("RUSAGE_SELF")


def children_peak_rss() -> int:
    """The largest resident set of any child that ended, in bytes; 0 when none did.

    The kernel counts what a child held between fork and exec, so this is at least what a fork of this process held
    then: start measured children from a small process, or let them report their own `peak_rss`.
    """
    return _rusage("RUSAGE_CHILDREN")


def _rusage(who: str) -> int:
    try:
        import resource
    except ImportError as error:
        raise Unsupported("this system does not tell a process's peak memory", got=sys.platform) from error
    peak = int(resource.getrusage(getattr(resource, who)).ru_maxrss)
    return peak if sys.platform == "darwin" else peak * 1024
