"""A bound on memory: what is measured, what is refused, and that a refusal is no verdict on what follows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun import registry
from edgerun.cli import edgerun as command
from edgerun.errors import EdgerunError, GateFailed
from edgerun.runtime import Options, memory

MB = 10**6
BOUND = 250 * MB  # of a process that holds some 100 MB with a runtime open
pytestmark = pytest.mark.skipif(not memory.STATUS.exists(), reason="needs /proc")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x [batch, 1] -> the mean of a million products a row: 4 MB inside for each of them, 4 bytes outside."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["wide"], "widen"),
        helper.make_node("ReduceMean", ["wide"], ["y"], "mean", axes=[1], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes, "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(np.ones((1, MB), np.float32), "w")],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("wide") / "wide.onnx"
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(proto.SerializeToString())
    return path


def rows(count: int) -> dict[str, np.ndarray]:
    return {"x": np.ones((count, 1), np.float32)}


def python(code: str, *arguments: str) -> str:
    """What the code prints, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_run_above_the_bound_fails(wide: Path, target: str) -> None:
    if reason := registry.target(target, usable=False).available():
        pytest.skip(reason)
    with edgerun.load(wide, target, Options(1, max_rss=BOUND), isolated=True) as session:
        np.testing.assert_allclose(session.run(rows(2))["y"], 1, rtol=1e-5)
        with pytest.raises(GateFailed, match="more memory than it may") as error:
            session.run(rows(100))
        assert "MB" in str(error.value.got) and error.value.do


def test_a_refusal_is_no_verdict_on_what_follows(wide: Path) -> None:
    """ONNX Runtime gives back what a run took, whether it ended well or not."""
    with edgerun.load(wide, "onnxruntime", Options(1, max_rss=BOUND), isolated=True) as session:
        for _ in range(3):
            with pytest.raises(GateFailed):
                session.run(rows(100))
            np.testing.assert_allclose(session.run(rows(2))["y"], 1, rtol=1e-5)


def test_the_arena_ends_where_the_bound_does(wide: Path) -> None:
    """400 MB are asked for at once and none of them is given, so that the process stays below the bound."""
    code = """
import sys, numpy as np, edgerun
from edgerun.errors import GateFailed
from edgerun.runtime import Options, memory
with edgerun.load(sys.argv[1], "onnxruntime", Options(1, max_rss=int(sys.argv[2]))) as session:
    try:
        session.run({"x": np.ones((100, 1), np.float32)})
    except GateFailed as error:
        print(error.what, memory.peak() <= int(sys.argv[2]))
"""
    told = python(code, str(wide), str(BOUND))
    assert told == "the model needs more memory than it may have: a run was stopped True"


def test_sessions_have_arenas_of_their_own(wide: Path) -> None:
    """The bound of one is not that of another, nor of sessions without one; results stay the same bits."""
    here = memory.held()
    bounds = here + 150 * MB, here + 2000 * MB, 0
    sessions = [edgerun.load(wide, "onnxruntime", Options(1, max_rss=most)) for most in bounds]
    with sessions[0], sessions[1], sessions[2]:
        with pytest.raises(GateFailed):
            sessions[0].run(rows(100))
        out = {"y": np.zeros((3, 1), np.float32)}
        assert sessions[0].run(rows(3), out)["y"] is out["y"]
        np.testing.assert_array_equal(out["y"], sessions[2].run(rows(3))["y"])
        found = [session.run(rows(100))["y"] for session in sessions[1:]]
        np.testing.assert_array_equal(found[0], found[1])


def test_an_earlier_peak_does_not_count() -> None:
    code = """
from edgerun.runtime import memory
big = bytearray(b"1") * 300_000_000
assert memory.peak() >= 300_000_000
del big
bound = memory.Bound(200_000_000)
bound.require("now", "nothing")
big = bytearray(b"1") * 300_000_000
try:
    bound.require("now", "less")
except memory.GateFailed as error:
    print(error.do)
del big
bound.begin()
bound.require("now", "nothing")
"""
    assert python(code) == "less"


def test_a_process_that_holds_too_much_is_told_before_anything_opens(wide: Path) -> None:
    with pytest.raises(GateFailed, match="before a model is open") as error:
        edgerun.load(wide, options=Options(max_rss=MB))
    assert "isolated=True" in str(error.value.do)
    with pytest.raises(GateFailed, match="before a model is open") as error:
        edgerun.load(wide, options=Options(max_rss=MB), isolated=True)
    assert error.value.do == "allow more", "it has a process of its own already"
    with pytest.raises(EdgerunError, match="bound on memory"):
        Options(max_rss=-1)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_opening_above_the_bound_says_what_it_took(tmp_path: Path, target: str) -> None:
    """108 MB of weights within 100 MB: the limit is named, and nobody is told to feed less where nothing was fed."""
    if reason := registry.target(target, usable=False).available():
        pytest.skip(reason)
    nodes = [helper.make_node("MatMul", [f"h{i}" if i else "x", f"w{i}"], [f"h{i + 1}"]) for i in range(3)]
    weights = [numpy_helper.from_array(np.full((3000, 3000), i, np.float32), f"w{i}") for i in range(3)]
    door = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3000]) for name in ("x", "h3"))
    graph = helper.make_graph(nodes, "deep", [next(door)], [next(door)], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "deep.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(GateFailed, match="when it opened the model") as error:
        edgerun.load(tmp_path / "deep.onnx", target, Options(1, max_rss=100 * MB), isolated=True)
    peak, now, before = (float(part.split(" MB")[0]) for part in str(error.value.got).split(", "))
    assert before < 100 < 108 < peak and before < now <= peak and error.value.wanted == "at most 100.0 MB"
    assert "a larger bound" in str(error.value.do) and "feeds" not in str(error.value.do)


def test_the_command_writes_nothing_above_the_bound(wide: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=rows(100)["x"])
    arguments = ["run", str(wide), "--feeds", str(tmp_path / "x.npz"), "-o", str(tmp_path / "y.npz"), "--max-rss"]
    for bound, code in (("250MB", 1), ("1.5GiB", 0)):
        done = subprocess.run([sys.executable, "-m", "edgerun", *arguments, bound], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert ("more memory than it may" in done.stderr) == bool(code)
        assert (tmp_path / "y.npz").exists() == (not code)


@pytest.mark.parametrize("text", ["much", "3x", "-1MB", "1.MB", ""])
def test_what_is_no_size(text: str, wide: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        command, ["run", str(wide), "--feeds", "x.npz", "-o", str(tmp_path / "y.npz"), "--max-rss", text]
    )
    assert done.exit_code == 2 and "is no size, as 200MB or 1.5GiB" in done.output
