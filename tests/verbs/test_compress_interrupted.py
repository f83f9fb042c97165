"""A compress that is killed leaves the old file or the new one; one that is interrupted leaves nothing else either."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from tests.verbs.conftest import as_a_shell_starts, interrupted

TEXT = """<ir_version: 8, opset_import: ["": 17]> net (float[n,8] x) => (float[n,8] y) {
    a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, w, b) }"""

# The imports are paid once; every trial is a fork. A trial compresses, and dies at the n-th event in its folder
# (open, rename, chmod …, as Python audits them), or when its parent says so after some milliseconds.
TRIALS = """
import json, os, signal, sys, time
import edgerun.cli, edgerun.cli.compress, onnx, onnx_ir, onnx_ir.passes.common, onnxscript.optimizer, onnxruntime
import edgerun.verbs.compress, edgerun.verbs.compile, edgerun.quantize.static_int8, edgerun.targets.onnxruntime

folder, arguments, trials = json.loads(sys.argv[1])

def child(kind, event):
    sys.argv = ["edgerun", *arguments]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(folder + "/told", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    left = [event]
    def audit(name, args):
        if left[0] is not None and args and str(args[0]).startswith(folder + "/out"):
            left[0] -= 1
            if left[0] == -1:
                os.kill(os.getpid(), kind)
    if event is not None:
        sys.addaudithook(audit)
    edgerun.cli.main()

for kind, event, delay in trials:
    process = os.fork()
    if not process:
        try:
            child(kind, event)
        except SystemExit as end:
            os._exit(end.code or 0)
        except BaseException:
            os._exit(99)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(process, kind)
    status = os.waitpid(process, 0)[1]
    state = {name: open(os.path.join(folder, "out", name), "rb").read().hex()
             for name in os.listdir(os.path.join(folder, "out"))}
    for name in state:
        if name != "small.onnx":
            os.unlink(os.path.join(folder, "out", name))
    with open(os.path.join(folder, "out", "small.onnx"), "wb") as file:
        file.write(b"old")
    told = open(folder + "/told").read() if os.path.exists(folder + "/told") else ""
    print(json.dumps([os.waitstatus_to_exitcode(status), state, told]), flush=True)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A model, its data, and `out/small.onnx` with old bytes in it."""
    generator = np.random.default_rng(0)
    proto = onnx.parser.parse_model(TEXT)
    arrays = {"w": generator.standard_normal((8, 8)), "b": generator.standard_normal(8)}
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items())
    onnx.save(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=generator.standard_normal((32, 8)).astype(np.float32))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "small.onnx").write_bytes(b"old")
    return tmp_path


def run(place: Path, trials: list[tuple[int, int | None, float | None]]) -> list[tuple[int, dict[str, bytes], str]]:
    """Exit code, the content of `out` and stderr after each trial (signal, event, delay in seconds)."""
    arguments = ["compress", str(place / "m.onnx"), "-o", str(place / "out" / "small.onnx"), "--force"]
    arguments += ["--calibration", str(place / "c.npz"), "--ranges", "minmax"]
    told = json.dumps([str(place), arguments, trials])
    done = subprocess.run([sys.executable, "-c", TRIALS, told], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[Any] = [json.loads(line) for line in done.stdout.splitlines()]
    return [(code, {name: bytes.fromhex(each) for name, each in state.items()}, told) for code, state, told in found]


def test_killed_at_every_step_of_the_writing(place: Path) -> None:
    """SIGKILL at each of the first dozen events in the output's folder, and at drawn times: old bytes or new ones."""
    whole = run(place, [(signal.SIGKILL, 10_000, None)])[0]
    new = whole[1]["small.onnx"]
    assert whole[:2] == (0, {"small.onnx": new}) and len(new) > 500
    generator = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    steps: list[tuple[int, int | None, float | None]] = [(signal.SIGKILL, event, None) for event in range(12)]
    times: list[tuple[int, int | None, float | None]] = [
        (signal.SIGKILL, None, float(t)) for t in generator.uniform(0, 0.5, 4)
    ]
    results = run(place, steps + times)
    codes = [code for code, *_ in results]
    assert set(codes) <= {0, -signal.SIGKILL}
    assert codes[:6] == [-signal.SIGKILL] * 6, "the output is checked, opened, written, synced and renamed"
    kept = [state["small.onnx"] for _, state, _ in results]
    assert set(kept) == {b"old", new}, "half a file"
    assert kept[0] == b"old"


def test_interrupted_at_any_time(place: Path) -> None:
    """SIGINT at drawn times and at each step of the writing: exit 130, the old bytes, and no temporary file; or it came
    too late, and what is said then is what is there."""
    new = run(place, [(signal.SIGKILL, 10_000, None)])[0][1]["small.onnx"]
    generator = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    times: list[tuple[int, int | None, float | None]] = [
        (signal.SIGINT, None, float(t)) for t in generator.uniform(0.005, 0.4, 6)
    ]
    steps: list[tuple[int, int | None, float | None]] = [(signal.SIGINT, event, None) for event in range(15)]
    for code, state, told in run(place, times + steps):
        if code == 130 and "nothing was written" in told:
            assert state == {"small.onnx": b"old"}
        else:
            assert state == {"small.onnx": new} and (code == 0 or "small.onnx had been written" in told), (code, told)


SLOW = """
import numpy, pathlib, time
def feeds():
    while True:
        time.sleep(0.01)
        yield {"x": numpy.ones((1, 8), numpy.float32)}
        pathlib.Path("started").touch()  # behind the first sample: the import of numpy.random swallows an interrupt
def executing():
    exec("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    yield {}
"""


def test_interrupted_from_the_keyboard(place: Path) -> None:
    """The whole process, as a shell sees it, while it reads its data: 130 and one line."""
    (place / "slow.py").write_text(SLOW)
    command = [sys.executable, "-m", "edgerun", "compress", "m.onnx", "-o", "out/small.onnx", "--force"]
    process = subprocess.Popen(
        [*command, "--calibration", "slow:feeds"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=place, preexec_fn=as_a_shell_starts,
    )  # fmt: skip
    while not (place / "started").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    out, err = interrupted(process)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert err.strip().splitlines()[-1] == "interrupted: nothing was written", "behind lines of progress, if it is slow"
    assert [path.read_bytes() for path in (place / "out").iterdir()] == [b"old"]


def test_interrupted_while_text_is_executed(place: Path) -> None:
    """As a dataclass does when it is made. Python would remember that, and die of the signal with everything said."""
    (place / "slow.py").write_text(SLOW)
    done = subprocess.run(
        [sys.executable, "-m", "edgerun", "compress", "m.onnx", "-o", "out/other.onnx", "--calibration",
         "slow:executing"], capture_output=True, text=True, cwd=place, preexec_fn=as_a_shell_starts,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "interrupted: nothing was written")
