"""OpenVINO: a run that fails leaves no trace in the runs after it. numpy is the oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import edgerun
from edgerun.errors import EdgerunError
from edgerun.runtime import Options, Session
from edgerun.targets import openvino as target

pytestmark = pytest.mark.skipif(target.available() is not None, reason=str(target.available()))
WEIGHT = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
Feeds = Mapping[str, np.ndarray]


@pytest.fixture
def model(build: Callable[..., Any]) -> bytes:
    """y = relu(x @ WEIGHT) + relu(m @ WEIGHT): x [batch, 4] and m [rows, 4], which ONNX would let be of other sizes."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["m", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Add", ["b", "d"], ["y"]),
    ]
    inputs = {"x": ["batch", 4], "m": ["rows", 4]}
    return bytes(build(nodes, inputs, {"y": ["out", 4]}, {"w": WEIGHT}).to_bytes())


def feeds(batch: int, rows: int) -> Feeds:
    rng = np.random.default_rng(batch)
    return {"x": rng.normal(size=(batch, 4)).astype(np.float32), "m": rng.normal(size=(rows, 4)).astype(np.float32)}


def right(outputs: Feeds, given: Feeds) -> bool:
    want = np.maximum(given["x"] @ WEIGHT, 0) + np.maximum(given["m"] @ WEIGHT, 0)
    return outputs["y"].shape == want.shape and np.allclose(outputs["y"], want, rtol=1e-5, atol=1e-6)


def _run(session: Session, given: Feeds) -> Feeds:
    return session.run(given)


def _into(session: Session, given: Feeds) -> Feeds:
    return session.run(given, {"y": np.empty((max(map(len, given.values())), 4), np.float32)})


def _later(session: Session, given: Feeds) -> Feeds:
    return session.run_async(given).result()


def _streamed(session: Session, given: Feeds) -> Feeds:
    return next(iter(session.stream([given])))


WAYS = [_run, _into, _later, _streamed]


@pytest.mark.parametrize("bad", [(3, 2), (3, 0), (2, 3)], ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_feeds_run_after_a_run_that_failed(model: bytes, threads: int, way: Any, bad: tuple[int, int]) -> None:
    """Before, they failed as the bad ones had, until feeds of another shape came; and with one thread the bad ones gave
    what the good ones had given."""
    good = feeds(3, 3)
    with edgerun.load(model, "openvino", Options(threads)) as session:
        for _ in range(2):
            assert right(way(session, good), good)
            with pytest.raises(EdgerunError, match="could not run these feeds"):
                way(session, feeds(*bad))
            for other in WAYS:
                assert right(other(session, good), good), other
        assert right(way(session, feeds(3, 1)), feeds(3, 1)) and right(way(session, feeds(5, 5)), feeds(5, 5))


def test_an_array_that_is_bound_stays_so(model: bytes) -> None:
    good, out = feeds(3, 3), {"y": np.empty((3, 4), np.float32)}
    with edgerun.load(model, "openvino", Options(threads=1)) as session:
        assert right(session.run(good, out), good)
        with pytest.raises(EdgerunError, match="could not run"):
            session.run(feeds(3, 2))
        out["y"][:] = 0
        assert right(session.run(good, out), good) and right(out, good)


def test_in_a_process_of_its_own(model: bytes) -> None:
    good = feeds(3, 3)
    with edgerun.load(model, "openvino", Options(threads=1), isolated=True) as session:
        assert right(session.run(good), good)
        with pytest.raises(EdgerunError, match="could not run"):
            session.run(feeds(3, 2))
        assert right(session.run(good), good)


def _tried(session: Session, given: Feeds) -> bool | None:
    """Whether it gave what numpy does; None where it was refused."""
    try:
        return right(session.run(given), given)
    except EdgerunError:
        return None


@pytest.mark.parametrize("streams", [1, 2])
def test_runs_beside_one_that_fails_are_right(model: bytes, streams: int) -> None:
    """Four threads, every eighth run bad: all the others give what numpy does. Before, a good one was refused for the
    bad one beside it in about one of ten of these sessions."""
    given = [feeds(3, 2) if n % 8 == 7 else feeds(1 + n % 3, 1 + n % 3) for n in range(96)]
    for _ in range(4):
        with edgerun.load(model, "openvino", Options(2, streams=streams)) as session, ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda each: _tried(session, each), given))
        assert found == [None if n % 8 == 7 else True for n in range(96)]


@pytest.mark.parametrize("threads", [1, 2])
def test_runs_that_wait_for_one_that_fails_are_right(model: bytes, threads: int) -> None:
    """Before, they ran on what the failed one had left, which ended the process."""
    good = feeds(3, 3)
    with edgerun.load(model, "openvino", Options(threads)) as session:
        bound = {"y": np.empty((3, 4), np.float32)}
        for _ in range(60):
            assert right(session.run(good), good)
            bad = session.run_async(feeds(5, 2))
            bound["y"][:] = 0
            assert right(session.run(good), good) and right(session.run(good, bound), good)
            with pytest.raises(EdgerunError, match="could not run"):
                bad.result()


def test_values_that_say_a_shape_are_tried_alone_too() -> None:
    """Reshape by a fed shape, beside threads that feed one that does not fit."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "test",
        [value("x", TensorProto.FLOAT, [2, 6]), value("shape", TensorProto.INT64, [2])],
        [value("y", TensorProto.FLOAT, ["rows", "columns"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    wanted = [(3, 4), (5, 3), (12, 1), (4, 3)] * 24

    def tried(shape: tuple[int, int]) -> object:
        try:
            return session.run({"x": x, "shape": np.array(shape, np.int64)})["y"].tolist()
        except EdgerunError:
            return None

    with edgerun.load(model, "openvino", Options(2, streams=2)) as session, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(tried, wanted))
    assert found == [x.reshape(s).tolist() if s[0] * s[1] == 12 else None for s in wanted]


def test_a_stream_that_is_left_with_a_bad_run_in_it(model: bytes) -> None:
    good = feeds(3, 3)
    with edgerun.load(model, "openvino", Options(threads=1)) as session:
        results = session.stream([good, feeds(3, 2), good], in_flight=2)
        assert right(next(results), good)
        results.close()  # type: ignore[attr-defined]
        assert right(session.run(good), good)


def test_closing_after_a_run_that_failed(model: bytes) -> None:
    session = edgerun.load(model, "openvino", Options(threads=1))
    with pytest.raises(EdgerunError, match="could not run"):
        session.run(feeds(3, 2))
    session.close()
    with pytest.raises(EdgerunError, match="closed"):
        session.run(feeds(3, 3))


def test_where_the_model_cannot_be_compiled_again_it_says_so(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> None:
        raise EdgerunError("no memory")

    with edgerun.load(model, "openvino", Options(threads=1)) as session:
        monkeypatch.setattr(target, "_compiled", refuse)
        with pytest.raises(EdgerunError, match="could not run"):
            session.run(feeds(3, 2))
        for _ in range(2):
            with pytest.raises(EdgerunError, match="after a run that failed"):
                session.run(feeds(3, 3))
