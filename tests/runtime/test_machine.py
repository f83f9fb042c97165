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


def test_freed_memory_goes_back_where_the_system_lets_it() -> None:
    status = Path("/proc/self/status")
    if platform.libc_ver()[0] != "glibc" or not status.exists():
        machine.release().join()
        return

    def resident() -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS:"))

    machine.release().join()
    before = resident()
    kept = [bytearray(100_000) for _ in range(500)]  # each too small for a mapping of its own
    del kept[:-1]  # the last one holds the heap's end in place
    machine.release().join()
    assert resident() - before < 10_000, "of 50,000 kB"


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
