"""A command in a process of its own: how long it took and how much memory it held."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from edgerun.errors import EdgerunError

_INTERVAL = 0.05  # seconds between two looks at the tree
# A process counts what its parent held when it was split off, so a small one stands between us and the command.
_BETWEEN = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    file.write(f"{used.ru_maxrss} {used.ru_utime + used.ru_stime}")
sys.exit(code if code >= 0 else 128 - code)
"""


@dataclass(frozen=True)
class Measured:
    """Wall seconds from start to end, peak memory of the whole tree in megabytes (1e6 bytes), and what it printed.

    `anonymous_mb` is the part of a peak that no file backs: the rest the system can take back when it needs the room.
    `cpu_seconds` are those of the whole tree, which other work on the machine moves less than the wall's.
    """

    seconds: float
    peak_mb: float
    stdout: str
    anonymous_mb: float = 0.0
    cpu_seconds: float = 0.0


def measured(command: Sequence[str], cwd: Path, environment: Mapping[str, str] | None = None) -> Measured:
    """Run `command` to its end. Raises EdgerunError with the end of its stderr when it fails.

    The peak is the larger of two: the kernel's exact resident set of the largest single process, and the largest sum
    over the process and its children (proportional set sizes: shared pages count once) seen every 50 ms. Python may
    write bytecode, as it does where a package is installed: the peers' is.
    """
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with (
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
        tempfile.NamedTemporaryFile("r") as peak,
    ):
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-ISc", _BETWEEN, peak.name, *command],
            cwd=cwd, env={**own, **(environment or {})}, stdout=out, stderr=err,
        )  # fmt: skip
        watch = _Watch(process.pid)
        process.wait()
        seconds = time.perf_counter() - begun
        seen = watch.stop()
        out.seek(0)
        err.seek(0)
        if process.returncode:
            tail = err.read()[-2000:]
            raise EdgerunError(f"{command[1:3]} ended with {process.returncode}", got=tail)
        resident, cpu = peak.read().split()
        most = max(int(resident) * 1024, seen) / 1e6
        return Measured(seconds, most, out.read(), watch.anonymous / 1e6, float(cpu))


def _bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0  # it ended between two looks: a zombie holds nothing


def _anonymous(process: psutil.Process) -> int:
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


class _Watch(threading.Thread):
    """Looks at the tree below a process until it is stopped or gone; keeps the largest sum of two or more processes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._done, self._peak = pid, threading.Event(), 0
        self.anonymous = 0  # the largest sum, in bytes
        self.start()

    def stop(self) -> int:
        self._done.set()
        self.join()
        return self._peak

    def run(self) -> None:
        try:
            root = psutil.Process(self._pid)
            while not self._done.wait(_INTERVAL):
                tree = root.children(recursive=True)
                self.anonymous = max(self.anonymous, sum(map(_anonymous, tree)))
                if len(tree) > 1:
                    self._peak = max(self._peak, sum(map(_bytes, tree)))
        except psutil.NoSuchProcess:
            return  # the root ended between two looks
