"""Run work on untrusted files in a limited child process; what comes back is JSON and files, never a pickle.

The child has a memory cap (RLIMIT_AS), a processor-time cap, a cap on the size of a file it writes, and a wall clock
after which its whole process group is killed. A crash, a hang or a memory bomb becomes one EdgerunError here.

Only a loop in a model can run for ever, and whether it does nobody can see beforehand: one run of a model with loops
has a time of its own, shorter than that of the whole work (`ending`).
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from edgerun import _late, errors, files
from edgerun.errors import EdgerunError

log = logging.getLogger("edgerun")
R = TypeVar("R")
MAPS = 5  # of a file's size at once: the source's and ours once each; ONNX Runtime maps weights twice, of one model
# A thread that waits for another one sleeps: the defaults of OpenMP and OpenBLAS are to spin, which takes as much
# processor time as work, several times as much on a busy machine. Torch does not look for other makers' devices.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "4", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
_BOOT = "import sys; sys.path[:] = {path!r}; from edgerun.sandbox import child; child({folder!r})"


def physical_memory() -> int:
    """Bytes of memory this process may use: the machine's, or its cgroup's limit when that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def memory() -> int:
    """Bytes of memory that work in this process may take: those of a limited child's cap, else `physical_memory`."""
    if sys.platform != "win32":
        import resource

        cap, _ = resource.getrlimit(resource.RLIMIT_AS)
        if cap != resource.RLIM_INFINITY:
            return cap
    return physical_memory()


def seconds() -> float:
    """Seconds that all work in this process may take: those of a limited child, else inf."""
    return _wall_seconds


@dataclass(frozen=True)
class Limits:
    """Caps for one child: address space and file size in bytes (memory 0: `physical_memory`), times in seconds.

    `cpu_seconds` counts all threads together; `loop_seconds` are those of one run of a model with loops. `mapped` bytes
    of files may be mapped on top of `memory`, by all who read them: that takes addresses, and memory only while the
    system has some to spare.
    """

    memory: int = 0
    wall_seconds: float = 900.0
    cpu_seconds: int = 7200
    file_size: int = 64 << 30
    mapped: int = 0
    loop_seconds: float = 5.0


_loop_seconds = 0.0  # in a limited child: what `ending` allows
_wall_seconds = math.inf  # and what all of its work may take


def call(function: str, arguments: Mapping[str, Any], folder: Path, limits: Limits | None = None) -> Any:
    """`module:function(**arguments)` in a limited child; arguments and result are JSON values.

    `folder` is an existing private folder: it takes the request and the answer, and files that the function leaves
    there. What the child logs under "edgerun" is logged here too. Raises the EdgerunError that the function raised,
    an EdgerunError when the child crashed or went over a limit, and RuntimeError with the child's traceback for a bug.
    """
    limits = limits or Limits()
    request = {"function": function, "arguments": dict(arguments), "limits": asdict(limits)}
    (folder / "request.json").write_text(json.dumps(request))
    with open(folder / "stderr.txt", "wb") as noise:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT.format(path=sys.path, folder=str(folder))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=noise,
            start_new_session=True,
            env=_ENVIRONMENT | os.environ,
        )
    assert process.stdout is not None
    relay = threading.Thread(target=_relay, args=(process.stdout,), daemon=True)
    relay.start()
    try:
        status = process.wait(limits.wall_seconds)
    except subprocess.TimeoutExpired:
        raise EdgerunError(
            "the work on this file ran out of time",
            got=f"no answer in {limits.wall_seconds:g} s",
            do="--timeout allows more",
        ) from None
    finally:
        _kill(process)
    relay.join(timeout=5)
    return _answer(folder, status, limits)


def ending(run: Callable[[Any], R]) -> Callable[[Any], R]:
    """`run`, a run of a model that has loops: in a limited child a call that takes longer than `Limits.loop_seconds`
    ends the child, whatever holds the interpreter. Elsewhere it is `run` itself."""

    def watched(feeds: Any) -> R:
        signal.setitimer(signal.ITIMER_REAL, _loop_seconds)  # nobody handles its signal: the kernel ends the process
        try:
            return run(feeds)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    return watched if _loop_seconds and sys.platform != "win32" else run


def _relay(stream: IO[bytes]) -> None:
    with stream:
        for line in stream:
            log.info("%s", line.decode(errors="replace").rstrip())


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the child's whole group; after a normal end this only reaches what it left running."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # the group is already gone
    finally:
        process.wait()


def _answer(folder: Path, status: int, limits: Limits) -> Any:
    answer = folder / "answer.json"
    if sys.platform != "win32" and status == -signal.SIGALRM:
        raise EdgerunError(
            "a loop in the model does not end", got=f"no result of one run in {limits.loop_seconds:g} s",
            do="--loop-timeout allows more",
        )  # fmt: skip
    if status != 0 or not answer.is_file():
        reason = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        words = (folder / "stderr.txt").read_text(errors="replace").strip().splitlines()
        raise EdgerunError(
            "the process that read this file died", got=f"{reason}{': ' + words[-1] if words else ''}",
            do="the file is damaged or hostile, or the work needs more memory: see --memory-cap",
        )  # fmt: skip
    result = json.loads(answer.read_text())
    if "error" in result:
        raise errors.from_json(result["error"])
    if "bug" in result:
        raise RuntimeError(f"in the limited child:\n{result['bug']}")
    return result["value"]


def child(folder: str) -> None:
    """The child's side of `call`: set the limits, run the function, leave `answer.json`."""
    _late.load_late()
    _late.end_at_once()
    request = json.loads((Path(folder) / "request.json").read_text())
    progress = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print what they like; only our log reaches the parent
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    relay = logging.StreamHandler(progress)
    log.addHandler(relay)
    log.setLevel(logging.INFO)
    log.propagate = False
    tempfile.tempdir = folder  # which the parent removes, whatever becomes of this process
    files.lasting = False
    limits = Limits(**request["limits"])
    _limit(limits)
    globals().update(_loop_seconds=limits.loop_seconds, _wall_seconds=limits.wall_seconds)
    result: dict[str, Any]
    try:
        module, name = request["function"].split(":")
        result = {"value": getattr(importlib.import_module(module), name)(**request["arguments"])}
    except EdgerunError as error:
        result = {"error": errors.to_json(error)}
    except Exception as error:
        result = {"bug": traceback.format_exc()}
        if errors.out_of_memory(error):
            what = "the work on this file needs more memory than the limit"
            result = {"error": errors.to_json(EdgerunError(what, do="--memory-cap allows more"))}
    (Path(folder) / "answer.json").write_text(json.dumps(result))


def _limit(limits: Limits) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # conversions run on the CPU; a GPU driver maps more than any memory cap
    if sys.platform == "win32":  # no rlimits there: the wall clock alone holds
        return
    import resource

    cap = limits.memory or physical_memory()
    for what, value in (
        (resource.RLIMIT_AS, cap + MAPS * limits.mapped),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, limits.file_size),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))
    if sys.platform == "linux":
        import ctypes

        parent_death_signal = 1  # PR_SET_PDEATHSIG: no orphan survives a killed parent
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
