"""Isolated sessions: the same results, and crashes and hangs that the caller survives."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import edgerun
from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import Options, Session
from edgerun.runtime.isolated import IsolatedSession
from tests.runtime.conftest import expected, feeds, soon

ONE = Options(threads=1)


@pytest.fixture(scope="module")
def isolated(dense: bytes) -> Iterator[IsolatedSession]:
    """The dense model in a worker."""
    with _isolated(dense) as session:
        yield session


def _isolated(model: bytes, timeout: float | None = None) -> IsolatedSession:
    session = edgerun.load(model, options=ONE, isolated=True, timeout=timeout)
    assert isinstance(session, IsolatedSession)
    return session


def _model(node: onnx.NodeProto, inputs: Mapping[str, int], output: int, shape: list[int | str]) -> bytes:
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info(name, kind, shape) for name, kind in inputs.items()],
        [helper.make_tensor_value_info("y", output, shape)],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)
    return bytes(proto.SerializeToString())


def test_it_computes_what_a_session_here_computes(isolated: Session, dense: bytes) -> None:
    with edgerun.load(dense, options=ONE) as here:
        assert (isolated.inputs, isolated.outputs) == (here.inputs, here.outputs)
        for batch in (2, 2, 2, 7, 1, 500, 2):
            given = feeds(batch, batch)
            np.testing.assert_array_equal(isolated.run(given)["y"], here.run(given)["y"])


def test_inputs_with_a_value_in_the_model_may_be_fed() -> None:
    scale = helper.make_tensor("w", TensorProto.FLOAT, [1], [3])
    doors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xwy"]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", doors[:2], doors[2:], [scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    one, five = np.ones(1, np.float32), np.full(1, 5, np.float32)
    with _isolated(model) as session, edgerun.load(model, options=ONE) as here:
        assert session.defaults == here.defaults != ()
        for given, result in (({"x": one}, 3), ({"x": one, "w": five}, 5), ({"x": five}, 15)):
            assert session.run(given)["y"].tolist() == here.run(given)["y"].tolist() == [result]


def test_outputs_belong_to_the_caller(isolated: Session) -> None:
    first = isolated.run(feeds(1))["y"]
    for value in range(2, 5):
        isolated.run(feeds(value))
    np.testing.assert_allclose(first, expected(feeds(1)), rtol=1e-6)
    place = np.zeros((2, 4), np.float32)
    assert isolated.run(feeds(3), {"y": place})["y"] is place
    np.testing.assert_allclose(place, expected(feeds(3)), rtol=1e-6)
    strided = {"x": np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2], "c": np.ones(4, np.float32)}
    np.testing.assert_allclose(isolated.run(strided)["y"], expected(strided), rtol=1e-6)


def test_errors_cross_over(isolated: Session) -> None:
    with pytest.raises(EdgerunError, match="input 'x' has the wrong dtype"):
        isolated.run({"x": np.zeros((2, 3)), "c": np.ones(4, np.float32)})
    broken = _model(helper.make_node("Reshape", ["a", "b"], ["y"]), dict.fromkeys("ab", TensorProto.INT64), 7, ["n"])
    with _isolated(broken) as session:
        for _ in range(2):
            with pytest.raises(EdgerunError, match="could not run these feeds"):
                session.run({"a": np.arange(2), "b": np.array([2, 2])})
            assert session.run({"a": np.array([7]), "b": np.array([1])})["y"].tolist() == [7]
    with pytest.raises(EdgerunError, match="the file does not exist"):
        edgerun.load("/no/such/model.onnx", isolated=True)
    odd = _model(helper.make_node("Frobnicate", ["a"], ["y"]), {"a": TensorProto.FLOAT}, 1, ["n"])
    with pytest.raises(EdgerunError, match="Frobnicate"):
        _isolated(odd)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_killed_worker_is_an_error_and_comes_back(dense: bytes, number: signal.Signals) -> None:
    with _isolated(dense) as session:
        for _ in range(2):
            (before,) = session.pids
            os.kill(before, number)
            with pytest.raises(EdgerunError, match=f"killed by {number.name}"):
                for _ in range(1000):
                    session.run(feeds(1))
            np.testing.assert_allclose(session.run(feeds(2))["y"], expected(feeds(2)), rtol=1e-6)
            assert session.pids != (before,)


def test_a_feed_that_kills_the_runtime(dense: bytes) -> None:
    """ONNX Runtime divides -2^31 by -1 for int32 Mod, which the CPU answers with SIGFPE."""
    ints = dict.fromkeys("ab", TensorProto.INT32)
    with _isolated(_model(helper.make_node("Mod", ["a", "b"], ["y"]), ints, TensorProto.INT32, ["n"])) as session:
        good = {"a": np.array([7], np.int32), "b": np.array([4], np.int32)}
        bad = {"a": np.array([-(2**31)], np.int32), "b": np.array([-1], np.int32)}
        assert session.run(good)["y"].tolist() == [3]
        with pytest.raises(EdgerunError, match="killed by SIGFPE"):
            session.run(bad)
        assert session.run(good)["y"].tolist() == [3]


def test_a_hang_ends_at_the_limit() -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["v"], ["w"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", TensorProto.INT64, [])],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("w", TensorProto.INT64, [])],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["a", "", "b"], ["y"], body=body)
    model = _model(loop, dict.fromkeys("ab", TensorProto.INT64), TensorProto.INT64, [])
    with _isolated(model, timeout=5.0) as session:
        assert session.run({"a": np.int64(3), "b": np.int64(8)})["y"] == 8
        with pytest.raises(EdgerunError, match="no answer in 5 s"):
            session.run({"a": np.int64(2**60), "b": np.int64(8)})
        assert session.run({"a": np.int64(3), "b": np.int64(9)})["y"] == 9


def test_each_stream_has_a_worker_of_its_own(dense: bytes) -> None:
    """A worker starts with the first run that finds all others busy; a dead one ends its own run alone."""
    with edgerun.load(dense, options=Options(threads=2, streams=2), isolated=True) as session:
        assert isinstance(session, IsolatedSession) and session.streams == 2
        for value in (1, 2):
            session.run(feeds(value))
        (first,) = session.pids
        os.kill(first, signal.SIGSTOP)
        held = session.run_async(feeds(3))
        assert soon(lambda: session._idle.qsize() == 1)
        for value, got in zip(range(4, 40), session.stream(map(feeds, range(4, 40))), strict=True):
            np.testing.assert_allclose(got["y"], expected(feeds(value)), rtol=1e-6)
        assert not held.done() and set(session.pids) > {first}
        os.kill(first, signal.SIGKILL)
        with pytest.raises(EdgerunError, match="killed by SIGKILL"):
            held.result()
        assert session.pids and first not in session.pids
        session.warm_up()
        workers = session.pids
    assert session.pids == () and not any(os.path.exists(f"/proc/{pid}") for pid in workers)


def test_texts_empty_arrays_and_scalars_cross_over() -> None:
    texts = dict.fromkeys("ab", TensorProto.STRING)
    model = _model(helper.make_node("StringConcat", ["a", "b"], ["y"]), texts, TensorProto.STRING, ["n"])
    with _isolated(model) as session:
        for words in (["x", "ü"], ["longer than before", ""]):
            given = {name: np.array(words, object) for name in "ab"}
            assert session.run(given)["y"].tolist() == [2 * word for word in words]
    numbers = dict.fromkeys("ab", TensorProto.FLOAT)
    with _isolated(_model(helper.make_node("Add", ["a", "b"], ["y"]), numbers, TensorProto.FLOAT, ["n"])) as session:
        for size in (0, 3, 0):
            given = dict.fromkeys("ab", np.ones(size, np.float32))
            assert session.run(given)["y"].tolist() == [2.0] * size


def test_nothing_is_left_behind(dense: bytes) -> None:
    gc.collect()  # errors of other tests hold workers that were killed
    before = len(os.listdir("/proc/self/fd"))
    with _isolated(dense) as session:
        (worker,) = session.pids
        assert os.path.exists(f"/proc/{worker}")
    assert not os.path.exists(f"/proc/{worker}") and len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(EdgerunError, match="closed"):
        session.run(feeds(1))


def test_a_worker_ends_with_its_parent(dense: bytes) -> None:
    code = (
        "import edgerun, os, sys; s = edgerun.load(sys.stdin.buffer.read(), isolated=True); print(*s.pids); os._exit(1)"
    )
    told = subprocess.run([sys.executable, "-c", code], input=dense, capture_output=True).stdout
    assert soon(lambda: not _alive(int(told)))


def _alive(process: int) -> bool:
    try:
        state = open(f"/proc/{process}/stat").read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # nobody here reaps a grandchild


def test_limits_need_isolation(dense: bytes) -> None:
    with pytest.raises(EdgerunError, match="isolated=True"):
        edgerun.load(dense, timeout=1.0)
    with pytest.raises(EdgerunError, match="seconds, above 0"):
        edgerun.load(dense, isolated=True, timeout=0.0)


def test_where_memory_cannot_be_shared(dense: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(Unsupported, match="isolated"):
        edgerun.load(dense, isolated=True)
