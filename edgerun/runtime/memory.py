"""How much memory this process holds, and a bound on it that is measured."""

from __future__ import annotations

import sys
from pathlib import Path

from edgerun.errors import GateFailed, Unsupported

own = False  # whether the process is a model's alone
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def held() -> int:
    """The resident set of this process, in bytes. Raises Unsupported where the system has no /proc."""
    return _status("VmRSS")


def peak() -> int:
    """The largest resident set of this process so far, in bytes. Raises Unsupported where the system has no /proc.

    Not getrusage's: there a process that was started by a large one inherits that one's peak.
    """
    return _status("VmHWM")


class Bound:
    """At most `most` bytes of resident memory for this process from now on: all of it, Python's own included.

    An earlier peak does not count, where the kernel lets it be forgotten. Raises GateFailed where the process holds
    more already.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        if (now := held()) > most:
            do = "allow more" if own else "allow more; isolated=True gives the model a process of its own"
            raise GateFailed(
                "this process holds more memory than it may before a model is open", got=text(now),
                wanted=f"at most {text(most)}", do=do,
            )  # fmt: skip
        self.began = text(now)
        self.begin()

    def begin(self) -> None:
        """What comes now is judged without what was before."""
        if self._exceeded():
            _forget()

    def require(self, when: str, do: str) -> None:
        """Raise GateFailed where the process was above since `begin`; `do` says what would help."""
        if not self._exceeded():
            return
        raise GateFailed(
            f"the process held more memory than it may {when}",
            got=f"{text(peak())} at its fullest, {text(held())} now, {self.began} before the model was opened",
            wanted=f"at most {text(self.most)}", do=do,
        )  # fmt: skip

    def _exceeded(self) -> bool:
        """One microsecond in place of thirty, where it is not: getrusage's peak is never below the real one."""
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > self.most and peak() > self.most


def text(count: int) -> str:
    """Bytes in MB of a million."""
    return f"{count / 1e6:.1f} MB"


def _forget() -> None:
    try:
        CLEAR.write_text("5")  # the kernel's word for "peak := what is held now"
    except OSError:
        pass  # a kernel that does not let it: then a peak stays one


def _status(key: str) -> int:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError as error:
        raise Unsupported("this system does not tell what memory a process holds", got=sys.platform) from error
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024
