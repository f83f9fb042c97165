"""The limited child: results and errors come back; crashes, hangs and memory bombs become one EdgerunError."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgerun import files, sandbox
from edgerun.errors import EdgerunError, GateFailed, Unsupported
from edgerun.sandbox import Limits, call


def _job(folder: Path, body: str, limits: Limits | None = None, **arguments: Any) -> Any:
    """Run `body` as a function in a child; the module is written where the child's sys.path finds it."""
    (folder / "job.py").write_text(f"def run(**given):\n    {body}\n")
    sys.path.insert(0, str(folder))
    try:
        return call("job:run", arguments, folder, limits)
    finally:
        sys.path.remove(str(folder))


def test_value_comes_back(tmp_path: Path) -> None:
    assert _job(tmp_path, "return {'sum': given['a'] + given['b']}", a=2, b=3) == {"sum": 5}


def test_log_comes_back_and_print_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="edgerun"):
        _job(tmp_path, "import logging; print('noise'); logging.getLogger('edgerun').info('half way')")
    assert "half way" in caplog.text
    assert capfd.readouterr() == ("", "")


def test_what_a_child_leaves_is_synced_by_its_parent_alone(tmp_path: Path) -> None:
    body = "from edgerun import files; files.write_bytes('left', b'all'); return files.lasting"
    assert _job(tmp_path, f"import os; os.chdir({str(tmp_path)!r}); {body}") is False
    assert (tmp_path / "left").read_bytes() == b"all" and files.lasting


@pytest.mark.parametrize("kind", [EdgerunError, GateFailed, Unsupported])
def test_our_errors_come_back_whole(tmp_path: Path, kind: type[EdgerunError]) -> None:
    body = f"from edgerun import errors; raise errors.{kind.__name__}('what', got=[1], wanted='2', do='this')"
    with pytest.raises(EdgerunError) as caught:
        _job(tmp_path, body)
    assert type(caught.value) is kind
    assert str(caught.value) == "what\n  got: [1]\n  wanted: 2\n  do: this"


def test_a_bug_shows_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        _job(tmp_path, "return 1 / 0")


def test_crash(tmp_path: Path) -> None:
    with pytest.raises(EdgerunError, match="SIGSEGV"):
        _job(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(EdgerunError, match="exit status 7"):
        _job(tmp_path, "import os; os._exit(7)")


def test_hang_is_ended_with_what_it_started(tmp_path: Path) -> None:
    body = (
        "import subprocess, sys, time; p = subprocess.Popen(['sleep', '600']);"
        " open(given['pid'], 'w').write(str(p.pid)); time.sleep(600)"
    )
    with pytest.raises(EdgerunError, match="ran out of time"):
        _job(tmp_path, body, Limits(wall_seconds=3), pid=str(tmp_path / "pid"))
    assert _gone(int((tmp_path / "pid").read_text()))


def _gone(pid: int, seconds: float = 5) -> bool:
    """Has the process ended (or is only a zombie left) within `seconds`?"""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_memory_bomb(tmp_path: Path) -> None:
    with pytest.raises(EdgerunError, match="more memory than the limit"):
        _job(tmp_path, "return len(bytes(4 << 30))", Limits(memory=1 << 30))


def test_processor_time_and_file_size(tmp_path: Path) -> None:
    with pytest.raises(EdgerunError, match="SIGKILL|SIGXCPU"):
        _job(tmp_path, "while True: pass", Limits(cpu_seconds=1, wall_seconds=60))
    with pytest.raises((EdgerunError, RuntimeError), match="SIGXFSZ|File too large"):
        _job(
            tmp_path,
            "open(given['out'], 'wb').write(bytes(2 << 20))",
            Limits(file_size=1 << 20),
            out=str(tmp_path / "o"),
        )


def test_limits_hold_in_the_child_only(tmp_path: Path) -> None:
    body = "import resource; return resource.getrlimit(resource.RLIMIT_AS)[0]"
    assert _job(tmp_path, body, Limits(memory=3 << 30)) == 3 << 30
    assert _job(tmp_path, body) == sandbox.physical_memory()
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != 3 << 30


def test_a_killed_parent_leaves_no_orphan(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "def run(pid):\n    import os, time\n    open(pid, 'w').write(str(os.getpid()))\n    time.sleep(600)\n"
    )
    code = (
        f"import sys, pathlib; sys.path.insert(0, {str(tmp_path)!r}); from edgerun.sandbox import call;"
        f"call('job:run', {{'pid': {str(tmp_path / 'pid')!r}}}, pathlib.Path({str(tmp_path)!r}))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert parent.poll() is None
        time.sleep(0.05)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert _gone(int((tmp_path / "pid").read_text()))


def test_no_pickle_is_ever_read() -> None:
    source = Path(sandbox.__file__).read_text()
    assert "import pickle" not in source and "multiprocessing" not in source
