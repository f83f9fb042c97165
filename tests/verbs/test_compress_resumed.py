"""A compress that is killed goes on where it was: fewer runs, the same bytes; and never from what is not its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import numpy_helper

TEXT = """<ir_version: 8, opset_import: ["": 17]> net (float[n,8] x) => (float[n,8] y) {
    a = Gemm(x, w, b) r = Relu(a) c = Gemm(r, w, b) s = Relu(c) y = Gemm(s, w, b) }"""

# The imports are paid once; every trial is a fork that writes a checkpoint whenever it may, and is killed in its n-th
# run of a session.
TRIALS = """
import json, os, signal, sys
import edgerun.cli, edgerun.cli.compress, onnx, onnx_ir, onnx_ir.passes.common, onnxscript.optimizer, onnxruntime
import edgerun.verbs.compress, edgerun.verbs.compile, edgerun.quantize.static_int8, edgerun.targets.onnxruntime
from edgerun import checkpoint
from edgerun.runtime import Session

for patience, arguments, fatal in json.loads(sys.argv[1]):
    (out, told), (err, notes) = os.pipe(), os.pipe()
    process = os.fork()
    if not process:
        os.dup2(notes, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.close(out), os.close(err)
        runs, run = [0], Session.run
        def counted(self, feeds):
            runs[0] += 1
            if runs[0] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return run(self, feeds)
        Session.run = counted
        if patience is not None:
            checkpoint.PATIENCE, checkpoint.LEAST, checkpoint.SHARE = patience, 0.0, 1e9
        code = 0
        sys.argv = ["edgerun", *arguments]
        try:
            edgerun.cli.main()
        except SystemExit as end:
            code = end.code or 0
        os.write(told, str(runs[0]).encode())
        os._exit(code)
    os.close(told), os.close(notes)
    with open(out) as first, open(err) as second:
        texts = first.read(), second.read()
    status = os.waitpid(process, 0)[1]
    print(json.dumps([os.waitstatus_to_exitcode(status), int(texts[0] or 0), texts[1]]), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a trial ended, how often it ran a session, and what it said."""

    code: int
    runs: int
    err: str


@dataclass(frozen=True)
class Place:
    """A model, its data, and a cache."""

    folder: Path

    def run(self, *trials: tuple[int | None, dict[str, Any]]) -> list[Ended]:
        """One trial after the other: the run to die in, and what differs from the usual command."""
        told = [(options.pop("patience", 0.0), self.arguments(**options), fatal) for fatal, options in trials]
        environment = {**os.environ, "EDGERUN_CACHE": str(self.folder / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", TRIALS, json.dumps(told)], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return [Ended(*json.loads(line)) for line in done.stdout.splitlines()]

    def arguments(
        self, output: str = "small.onnx", data: str = "c.npz", preset: str = "best", more: tuple[str, ...] = ()
    ) -> list[str]:
        model, result = str(self.folder / "m.onnx"), str(self.folder / output)
        return ["compress", model, "-o", result, "--force", "--calibration", str(self.folder / data),
                "--preset", preset, *more]  # fmt: skip

    @property
    def entries(self) -> list[Path]:
        return [path for path in (self.folder / "cache").rglob("*") if path.is_file()]

    def bytes(self, output: str = "small.onnx") -> bytes:
        return (self.folder / output).read_bytes()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """The data has 200 samples in batches of 8; with "best" all are run, and every range is searched."""
    generator = np.random.default_rng(0)
    proto = onnx.parser.parse_model(TEXT)
    arrays = {"w": generator.standard_normal((8, 8)), "b": generator.standard_normal(8)}
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items())
    onnx.save(proto, tmp_path / "m.onnx")
    samples = generator.standard_t(3, (200, 8)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=samples)
    samples[0, 3] += 1  # which comes first
    np.savez(tmp_path / "other.npz", x=samples)
    return Place(tmp_path)


def test_killed_anywhere_it_goes_on_to_the_same_bytes(place: Place) -> None:
    """SIGKILL in the float run's beginning and end, and in the search; then to the end."""
    (whole,) = place.run((None, {"patience": None, "output": "whole.onnx"}))
    assert whole.code == 0 and "resum" not in whole.err and not place.entries, "a short run writes nothing"
    deaths = (9, 22, whole.runs // 2, whole.runs - 60)
    trials: list[tuple[int | None, dict[str, Any]]] = []
    for fatal in deaths:
        trials += [(fatal, {}), (None, {"output": f"{fatal}.onnx"})]
    ended = iter(place.run(*trials))
    for fatal, killed, resumed in zip(deaths, ended, ended, strict=True):
        assert (killed.code, resumed.code) == (-9, 0), resumed.err
        assert place.bytes(f"{fatal}.onnx") == place.bytes("whole.onnx")
        assert "resuming: " in resumed.err and "of 200 samples are known" in resumed.err
        # What is under way when it dies is lost: a batch or two, or two judgements of ranges (32 batches each); and
        # what the biases of candidates were found by, which go on to more samples (8 batches each, of four at most).
        assert whole.runs - fatal <= resumed.runs <= whole.runs - fatal + 2 * 32 + 4 * 8
    assert not place.entries, "all ended well"


def test_killed_again_and_again(place: Place) -> None:
    """Every attempt dies a little later in its life than the one before; at last one reaches the end."""
    place.run((None, {"patience": None, "output": "whole.onnx"}))
    attempts = place.run(*[(fatal, {}) for fatal in range(40, 200, 20)])
    assert [attempt.code for attempt in attempts].count(0) >= 1, [attempt.err for attempt in attempts]
    assert attempts[0].code == attempts[1].code == -9
    assert place.bytes() == place.bytes("whole.onnx")


def test_a_killed_search_for_a_bound_on_the_drop(place: Place) -> None:
    """Labels are the float model's own answers, so that quantizing costs points, and layers stay in float."""
    x = np.random.default_rng(1).standard_t(3, (1500, 8)).astype(np.float32)
    session: Any = onnxruntime.InferenceSession(place.folder / "m.onnx", providers=["CPUExecutionProvider"])
    np.savez(place.folder / "l.npz", x=x, labels=session.run(None, {"x": x})[0].argmax(1))
    more = {"preset": "fast", "more": ("--max-drop", "4", "--labelled", str(place.folder / "l.npz"))}
    (whole,) = place.run((None, {"patience": None, "output": "whole.onnx", **more}))
    assert whole.code == 0, whole.err
    for fatal in (whole.runs // 3, whole.runs - 30):
        killed, resumed = place.run((fatal, dict(more)), (None, dict(more)))
        assert (killed.code, resumed.code) == (-9, 0), resumed.err
        assert place.bytes() == place.bytes("whole.onnx")
        assert "results on labelled data are known" in resumed.err and resumed.runs < whole.runs - fatal // 2


def test_other_data_and_other_wishes_are_not_mixed(place: Place) -> None:
    """A sample that differs, or another preset: the run is as long as ever, and so are its bytes."""
    for other in ({"data": "other.npz"}, {"preset": "default"}):
        fresh, _, resumed = place.run((None, {"output": "whole.onnx", **other}), (18, {}), (None, dict(other)))
        assert resumed.runs == fresh.runs and "are known" not in resumed.err
        assert place.bytes() == place.bytes("whole.onnx")
        if "data" in other:
            assert "the checkpoint is of other data" in resumed.err


def test_a_damaged_checkpoint_is_told_and_not_believed(place: Place) -> None:
    """Half an entry, a flipped bit, and bytes of another program."""
    whole, _ = place.run((None, {"patience": None, "output": "whole.onnx"}), (18, {}))
    for damage in (lambda b: b[: len(b) // 2], lambda b: b[:-9] + bytes([b[-9] ^ 4]) + b[-8:], lambda b: b"foreign"):
        (entry,) = (path for path in place.entries if not path.name.startswith("."))
        entry.write_bytes(damage(entry.read_bytes()))
        resumed, _ = place.run((None, {}), (18, {}))
        assert resumed.code == 0 and resumed.runs == whole.runs
        assert "a checkpoint is not used: a cache entry is damaged" in resumed.err and "resuming" not in resumed.err
        assert place.bytes() == place.bytes("whole.onnx")


def test_a_cache_that_cannot_be_written_costs_nothing_else(place: Place) -> None:
    (place.folder / "cache").touch()
    (ended,) = place.run((None, {}))
    assert ended.code == 0 and ended.err.count("no checkpoints: ") == 1


TRUTHS = 24  # runs at most in which the float model's answers are found
LOOPS = """<ir_version: 8, opset_import: ["": 17]> net (float[n,5,8] x) => (float[n,16] y) {
    t = Transpose<perm=[1,0,2]>(x) h, last, c = LSTM<hidden_size=16>(t, wl, rl, bl) s = Squeeze(last, zero)
    a = Gemm(s, w, b) d = Gemm(a, w2, b) e = Gemm(d, w3, b) f = Gemm(e, w4, b) y = Gemm(f, w5, b) }"""


@pytest.fixture
def loops(tmp_path: Path) -> Place:
    """An LSTM and five products, of which the last undoes what the one before it did, so that both need more bits."""
    generator = np.random.default_rng(0)
    proto = onnx.parser.parse_model(LOOPS)
    sizes = {"wl": (1, 64, 8), "rl": (1, 64, 16), "bl": (1, 128), "b": (16,)}
    sizes |= {name: (16, 16) for name in ("w", "w2", "w3", "w4", "w5")}
    arrays = {name: generator.standard_normal(size) for name, size in sizes.items()}
    left, _, right = np.linalg.svd(arrays["w4"])
    spread = np.geomspace(1, 30, 16)
    arrays["w4"], arrays["w5"] = (left * spread) @ right, right.T @ (left / spread).T
    tensors = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in tensors.items())
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    for index, node in enumerate(proto.graph.node):
        node.name = f"node{index}"
    onnx.save(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=generator.standard_normal((200, 5, 8)).astype(np.float32))
    return Place(tmp_path)


@pytest.mark.parametrize("scheme", ["w4a16_b32", "w4a8", "w8a16"])
def test_other_schemes_go_on_too(loops: Place, scheme: str) -> None:
    """SIGKILL in the float run of the second moments, and in the trials of layers; what was run is not run again."""
    more = {"preset": "default", "more": ("--scheme", scheme)}
    (whole,) = loops.run((None, {"patience": None, "output": "whole.onnx", **more}))
    assert whole.code == 0 and not loops.entries, whole.err
    for fatal in (20, whole.runs // 2, whole.runs - 20):
        killed, resumed = loops.run((fatal, dict(more)), (None, dict(more)))
        assert (killed.code, resumed.code) == (-9, 0), resumed.err
        assert loops.bytes() == loops.bytes("whole.onnx")
        assert "resuming: " in resumed.err and " known" in resumed.err
        # The float model's answers are found anew (TRUTHS), and what was under way is lost: a trial of 13 batches.
        assert resumed.runs <= whole.runs - fatal + TRUTHS + 13, (whole.runs, fatal, resumed.runs, resumed.err)
        assert not loops.entries


def test_fp8_goes_on_too(place: Place) -> None:
    """For TensorRT, where that is installed. SIGKILL in the float run, and in a model without a step."""
    proto = onnx.load(place.folder / "m.onnx")
    proto.ir_version, proto.opset_import[0].version = 9, 19
    onnx.save(proto, place.folder / "m.onnx")
    more = {"more": ("--scheme", "fp8", "--target", "tensorrt")}
    (whole,) = place.run((None, {"patience": None, "output": "whole.onnx", **more}))
    if "unavailable" in whole.err or "needs" in whole.err:
        pytest.skip(whole.err)
    assert whole.code == 0, whole.err
    for fatal in (18, whole.runs - 8):
        killed, resumed = place.run((fatal, dict(more)), (None, dict(more)))
        assert (killed.code, resumed.code) == (-9, 0), resumed.err
        assert place.bytes() == place.bytes("whole.onnx")
        assert "of 200 samples are known" in resumed.err and resumed.runs < whole.runs - fatal // 2
