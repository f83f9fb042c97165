"""What this machine gives a runtime: cores paid for, cores seen, CPU model, instruction sets."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from edgerun.errors import EdgerunError

# Where the speed of INT8 and of bfloat16 comes from, in the kernel's spelling.
ISA = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve")
MOST = 256  # threads, or streams: what a large server has
QUIET = 1.0  # seconds without a new opening, after which freed memory goes back,
LONG = 30.0  # or as many where it is little: opening a small model anew would take a third longer
_MOST_REUSED = (32 << 20) - (64 << 10)  # bytes; with its header within glibc's DEFAULT_MMAP_THRESHOLD_MAX
_ROOT = Path("/")


def visible() -> int:
    """Cores that this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota(root: Path = _ROOT) -> int:
    """Threads worth starting: the visible cores, or fewer where a cgroup pays for fewer (whole cores, at least 1).

    Reads `cpu.max` (v2) or `cpu.cfs_quota_us` (v1) of this process's group and of every group above it, under `root`.
    """
    cores = min(_quotas(root), default=float(visible()))
    return max(1, min(visible(), int(cores)))


def bounded(count: int, what: str) -> int:
    """`count` threads or streams. Raises EdgerunError for more than MOST, or four a core where that is more: each is
    started, and tens of thousands leave no room for any other process."""
    most = max(MOST, 4 * (os.cpu_count() or 1))
    if count > most:
        raise EdgerunError(f"so many {what} are none that a machine runs at once", got=count, wanted=f"at most {most}")
    return count


def threads(asked: int, streams: int = 1) -> int:
    """Threads for each of `streams` runs at once: a share of `asked`, or of the quota when that is 0; at least 1."""
    return max(1, (asked or quota()) // streams)


def cpu() -> str:
    """The CPU's name as the kernel tells it, or the architecture."""
    facts = _cpuinfo()
    return facts.get("model name") or facts.get("Model") or facts.get("CPU part") or platform.machine()


def isa() -> tuple[str, ...]:
    """The instruction sets of `ISA` that this CPU has, in that order."""
    found = flags()
    return tuple(name for name in ISA if name in found)


def flags() -> frozenset[str]:
    """All that the kernel says this CPU can do."""
    facts = _cpuinfo()
    return frozenset((facts.get("flags") or facts.get("Features") or "").split())


def arch(name: str = "") -> str:
    """This machine's architecture, or the one of that name, as `uname -m` tells it on Linux."""
    name = (name or platform.machine()).lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def model(root: Path = _ROOT) -> str:
    """What the machine calls itself: the board of its device tree, else its CPU's name, without trade marks."""
    board = (_read(root / "sys/firmware/devicetree/base/model") or "").strip("\0\n ")
    return board or " ".join(cpu().replace("(R)", " ").replace("(TM)", " ").split())


def memory(root: Path = _ROOT) -> int:
    """Bytes that this process may hold: the machine's, or fewer where a cgroup allows fewer."""
    total = _cpuinfo(root / "proc/meminfo").get("MemTotal", "0 kB").split()[0]
    return min([int(total) * 1024, *_memory_limits(root)])


def fingerprint(runtime: str, version: str) -> dict[str, str]:
    """Where an engine is valid: the runtime and its version, architecture, CPU, instruction sets, threads."""
    return {
        "runtime": runtime,
        "version": version,
        "arch": platform.machine(),
        "cpu": cpu(),
        "isa": " ".join(isa()),
        "threads": str(quota()),
    }


def give_back_at_once() -> None:
    """From now on, in the whole process, blocks of a mebibyte and more go back to the system when they are freed.

    The C library (glibc) would raise that bound to 32 MiB with the first such block, and keep what lies below it.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):  # another system, or another C library
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


@functools.cache
def reuse_freed() -> None:
    """Let freed blocks of up to 32 MiB be handed out again, where the C library (glibc) would give each back at once.

    It comes to that by itself when a block of that size is freed, which is what happens here, and no page of it is
    touched; whoever has told it another bound keeps that. Opening a model frees many large blocks, and new pages for
    each were a fifth of the CPU time. Once in a process: the next such block would come out of what is kept.
    """
    with contextlib.suppress(MemoryError):  # a process that may not have as much keeps its bound
        bytes(_MOST_REUSED)


def freed() -> int:
    """Bytes that were freed and that the C library (glibc) keeps; 0 where it does not tell."""
    told = _heaps()
    return int(told().fordblks) if told else 0


def release() -> None:
    """Give memory that was freed back to the system now, where the C library would keep it for later (glibc)."""
    if trim := _trim():
        trim(0)


def release_when_quiet(seconds: float | None = None) -> threading.Thread | None:
    """`release` when this was not called for so many seconds (None: QUIET); the thread that waits for it (None: there
    can be none), since no caller need: 160 MB take 20 ms.

    Models that are opened one after the other find the memory of the last one: pages that went back in between would
    come again one by one, which took longer than opening MobileNetV2. Nobody waits for it, nor does the process's end.
    """
    return _quiet.call(release, QUIET if seconds is None else seconds)


class _Quiet:
    """One call, when no other was asked for in time; of one process, a forked one begins anew."""

    def __init__(self) -> None:
        self._changed, self._due, self._until = threading.Condition(), 0.0, 0.0
        self._thread: threading.Thread | None = None

    def call(self, then: Callable[[], None], seconds: float) -> threading.Thread | None:
        with self._changed:
            self._due = time.monotonic() + seconds
            if self._thread is None:
                thread = threading.Thread(target=self._wait, args=(then,), name="edgerun-quiet", daemon=True)
                with contextlib.suppress(RuntimeError):  # no more threads for this process: it keeps its memory
                    thread.start()
                    self._thread = thread
            elif self._due < self._until:
                self._changed.notify()
            return self._thread

    def _wait(self, then: Callable[[], None]) -> None:
        with self._changed:
            while (left := self._due - time.monotonic()) > 0:
                self._until = self._due
                self._changed.wait(left)
            self._thread = None
        then()


_quiet = _Quiet()


def _begin_anew() -> None:
    """A forked process has none of its parent's threads, and perhaps a lock that one of them held."""
    global _quiet
    _quiet = _Quiet()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


@functools.cache
def _heaps() -> Callable[[], Any] | None:
    """mallinfo2(3), which glibc has since 2.33."""
    fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    kind = type("Mallinfo2", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in fields]})
    try:
        found = ctypes.CDLL(None).mallinfo2
    except (OSError, TypeError, AttributeError):  # another system, or another C library
        return None
    found.restype = kind
    return cast("Callable[[], Any]", found)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        return cast("Callable[[int], int]", ctypes.CDLL(None).malloc_trim)
    except (OSError, TypeError, AttributeError):  # another system, or another C library
        return None


def _cpuinfo(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The first value of every key: cores of one machine differ in speed, not in what we read."""
    facts: dict[str, str] = {}
    for line in (_read(path) or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            facts.setdefault(key.strip(), value.strip())
    return facts


def _quotas(root: Path) -> Iterator[float]:
    """Cores granted by each limiting cgroup, from the process's own up to the top."""
    for folder in _groups(root, "cpu"):
        yield from _ratio(*(_read(folder / "cpu.max") or "").split())
        yield from _ratio(_read(folder / "cpu.cfs_quota_us") or "", _read(folder / "cpu.cfs_period_us") or "")


def _memory_limits(root: Path) -> Iterator[int]:
    """Bytes allowed by each limiting cgroup ("max", or an absurd number in v1, when there is no limit)."""
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (text := (_read(folder / name) or "").strip()).isdigit():
                yield int(text)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup (v2, or v1 of this controller) and of every group above it."""
    mount = root / "sys/fs/cgroup"
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, group = line.split(":", 2)
        relative = Path(group.lstrip("/"))
        for part in (relative, *relative.parents):
            if controllers == "":
                yield mount / part
            elif controller in controllers.split(","):
                yield from (mount / controllers / part, mount / controller / part)


def _ratio(quota_us: str = "", period_us: str = "") -> Iterator[float]:
    """Cores from a quota and a period in µs; nothing when there is no limit ("max", "-1" or an absent file)."""
    if quota_us.strip().isdigit() and period_us.strip().isdigit() and int(period_us) > 0:
        yield int(quota_us) / int(period_us)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None  # absent on this kernel: it sets no limit and tells no fact
