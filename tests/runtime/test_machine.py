"""Threads from the cgroup's quota, read from a made-up file tree."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from edgerun.errors import EdgerunError
from edgerun.runtime import Options, machine


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "visible", lambda: 4)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("limit", "threads"),
    [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 1), ("20000 100000", 1), ("900000 100000", 4), ("", 4)],
)
def test_quota_of_version_2(tmp_path: Path, limit: str, threads: int) -> None:
    _write(tmp_path / "proc/self/cgroup", "0::/box/inner\n")
    _write(tmp_path / "sys/fs/cgroup/box/inner/cpu.max", limit + "\n")
    assert machine.quota(tmp_path) == threads


@pytest.mark.usefixtures("four_cores")
def test_the_group_above_limits_too(tmp_path: Path) -> None:
    _write(tmp_path / "proc/self/cgroup", "0::/box/inner\n")
    _write(tmp_path / "sys/fs/cgroup/box/inner/cpu.max", "300000 100000\n")
    _write(tmp_path / "sys/fs/cgroup/box/cpu.max", "200000 100000\n")
    assert machine.quota(tmp_path) == 2


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(("quota", "threads"), [("300000", 3), ("-1", 4), ("50000", 1)])
def test_quota_of_version_1(tmp_path: Path, quota: str, threads: int) -> None:
    _write(tmp_path / "proc/self/cgroup", "5:memory:/box\n4:cpu,cpuacct:/box\n")
    _write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", quota + "\n")
    _write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000\n")
    assert machine.quota(tmp_path) == threads


@pytest.mark.usefixtures("four_cores")
def test_no_cgroup_at_all(tmp_path: Path) -> None:
    assert machine.quota(tmp_path) == 4


def test_asked_threads_win() -> None:
    assert machine.threads(3) == 3 and machine.threads(0) == machine.quota()
    with pytest.raises(EdgerunError, match="negative"):
        Options(threads=-1)


def test_fingerprint_is_text() -> None:
    told = machine.fingerprint("x", "1")
    assert told["runtime"] == "x" and told["arch"] and told["cpu"] and int(told["threads"]) >= 1
    assert set(told["isa"].split()) <= set(machine.ISA)


@pytest.mark.parametrize(
    ("group", "file", "limit", "memory"),
    [
        ("0::/box", "box/memory.max", "max", 8 << 30),
        ("0::/box", "box/memory.max", str(1 << 30), 1 << 30),
        ("0::/box/inner", "box/memory.max", str(1 << 30), 1 << 30),
        ("3:memory:/box", "memory/box/memory.limit_in_bytes", str(2 << 30), 2 << 30),
        ("3:memory:/box", "memory/box/memory.limit_in_bytes", "9223372036854771712", 8 << 30),
    ],
)
def test_memory_is_what_the_cgroup_allows(tmp_path: Path, group: str, file: str, limit: str, memory: int) -> None:
    _write(tmp_path / "proc/meminfo", f"MemTotal:       {8 << 20} kB\nMemFree:  5 kB\n")
    _write(tmp_path / "proc/self/cgroup", group + "\n")
    _write(tmp_path / "sys/fs/cgroup" / file, limit + "\n")
    assert machine.memory(tmp_path) == memory


def test_a_board_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "sys/firmware/devicetree/base/model", "Raspberry Pi 4 Model B Rev 1.4\0")
    assert machine.model(tmp_path) == "Raspberry Pi 4 Model B Rev 1.4"
    monkeypatch.setattr(machine, "cpu", lambda: "Intel(R) Core(TM) Ultra 7 155H")
    assert machine.model(tmp_path / "none") == "Intel Core Ultra 7 155H"


def _resident() -> int:
    """kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def _freed_below() -> bytearray:
    """50 MB of the heap freed, in blocks too small for mappings of their own; what is returned holds its end."""
    kept = [bytearray(100_000) for _ in range(500)]
    return kept[-1]


glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not Path("/proc/self/status").exists(), reason="glibc on Linux keeps it"
)


@glibc
def test_freed_memory_goes_back() -> None:
    machine.release()
    before, end = _resident(), _freed_below()
    machine.release()
    assert _resident() - before < 10_000, "of 50,000 kB"
    del end


@glibc
def test_freed_memory_goes_back_when_it_was_quiet() -> None:
    """Each call puts it off; one thread waits for all of them."""
    if (waiting := machine.release_when_quiet()) is not None:
        waiting.join()
    before, end = _resident(), _freed_below()
    first, second = machine.release_when_quiet(5.0), machine.release_when_quiet()
    assert first is second and first is not None and first.daemon
    assert _resident() - before > 40_000, "nothing before its time"
    third = machine.release_when_quiet(0.0)
    assert third is first, "the last call says when, be it sooner"
    assert third is not None
    third.join(30)
    assert _resident() - before < 10_000, "of 50,000 kB"
    del end


def test_nothing_waits_for_quiet_at_the_end() -> None:
    """Not the process, and not a forked one, which has a thread of its own in place of its parent's."""
    code = """
import os, threading
from edgerun.runtime import machine
machine.QUIET = 600.0
parent = machine.release_when_quiet()
child = os.fork()
if child == 0:
    left = machine.release_when_quiet()
    os._exit(0 if left is not parent and left.is_alive() and not parent.is_alive() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), parent.is_alive())
"""
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("0 True\n", "", 0)


def test_freed_blocks_are_kept_for_the_next_where_the_c_library_can_be_told() -> None:
    """In a process of its own: the bound is the whole process's."""
    code = (
        "from edgerun.runtime import machine; block = bytes(20 << 20); del block; before = machine.freed(); "
        "machine.reuse_freed(); block = bytes(30 << 20); hold = bytes(1000); del block; print(before, machine.freed())"
    )
    before, after = map(int, subprocess.run([sys.executable, "-c", code], capture_output=True).stdout.split())
    if before == after == 0:
        return  # another C library, which does not tell
    assert before < 5 << 20 and after - before > 29 << 20
