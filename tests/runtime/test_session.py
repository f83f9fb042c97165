"""Session.run: what it takes, where it writes, and whose memory is whose."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import edgerun
from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import HotSwapSession, Options, Session, TensorSpec, arrays
from edgerun.runtime.dlpack import DeviceArray
from tests.runtime.conftest import WEIGHT, Doubling, expected, feeds, one


def test_outputs_are_written_into_given_arrays(session: Session) -> None:
    given, place = feeds(1), np.zeros((2, 4), np.float32)
    for value in (1, 2, 3):  # the same arrays again: the runtime keeps them bound
        given["x"][:] = value
        assert session.run(given, {"y": place})["y"] is place
        np.testing.assert_allclose(place, expected(given), rtol=1e-6)
    kept = place.copy()
    other = session.run(feeds(9))["y"]
    np.testing.assert_array_equal(place, kept)  # a run without `out` writes elsewhere
    np.testing.assert_allclose(other, expected(feeds(9)), rtol=1e-6)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (np.zeros((2, 4)), "output 'y' has the wrong dtype"),
        (np.zeros((2, 5), np.float32), "output 'y' has the wrong shape"),
        (np.zeros((3, 4), np.float32), "shape"),
        (np.zeros((4, 2), np.float32).T, "cannot be written there"),
        (np.broadcast_to(np.float32(0), (2, 4)), "cannot be written there"),
        (None, "cannot be written there"),
    ],
)
def test_places_that_do_not_fit(session: Session, place: np.ndarray, message: str) -> None:
    with pytest.raises(EdgerunError, match=message):
        session.run(feeds(1), {"y": place})
    np.testing.assert_allclose(session.run(feeds(1))["y"], expected(feeds(1)), rtol=1e-6)


def test_places_that_are_not_the_outputs_own(session: Session) -> None:
    memory = np.zeros(32, np.float32)
    given = {"x": memory[:6].reshape(2, 3), "c": np.ones(4, np.float32)}
    with pytest.raises(EdgerunError, match="shares memory"):
        session.run(given, {"y": memory[4:12].reshape(2, 4)})
    with pytest.raises(EdgerunError, match="unknown output 'z'"):
        session.run(given, {"z": np.zeros((2, 4), np.float32)})


def test_tensors_of_other_libraries_go_in_and_out(session: Session) -> None:
    x: Any = torch.full((2, 3), 2.0)
    place: Any = torch.zeros(2, 4)
    given: dict[str, Any] = {"x": x, "c": np.ones(4, np.float32)}
    assert session.run(given, {"y": place})["y"] is place
    np.testing.assert_allclose(np.asarray(place), expected(feeds(2)), rtol=1e-6)
    module: Any = torch
    back = module.from_dlpack(session.run(given)["y"])
    np.testing.assert_allclose(np.asarray(back), expected(feeds(2)), rtol=1e-6)


def test_a_view_copies_nothing() -> None:
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    view = arrays.taken(TensorSpec("x", "float32", (2, 3)), tensor, arrays.viewed)
    assert view.ctypes.data == tensor.data_ptr()
    array = np.ones((2, 3), np.float32)
    assert arrays.taken(TensorSpec("x", "float32", (2, 3)), array, arrays.viewed) is array


def test_what_cannot_be_viewed_is_one_clear_error(session: Session) -> None:
    for tensor in (torch.ones(2, 3, requires_grad=True), torch.ones(2, 3, dtype=torch.bfloat16)):
        with pytest.raises(EdgerunError, match="'x' cannot be read where it lies"):
            session.run({"x": tensor, "c": np.ones(4, np.float32)})


def test_memory_of_a_device_is_refused_with_where_it_belongs(session: Session) -> None:
    """A tensor that says CUDA of itself; these targets read the host's memory alone, also in another process."""
    array = np.ones((2, 4), np.float32)
    there = DeviceArray(array.ctypes.data, (2, 4), array.dtype, (2, 0), array)
    wanted = "(?s)'{}' lies in the memory of a device.*DeviceArray on CUDA device 0.*tensor.cpu.*target='tensorrt'"
    with pytest.raises(EdgerunError, match=wanted.format("x")):
        session.run({"x": there, "c": np.ones(4, np.float32)})
    with pytest.raises(EdgerunError, match=wanted.format("y")):
        session.run(feeds(1), {"y": there})
    with pytest.raises(EdgerunError, match="on ROCm device 3"):
        session.run({"x": DeviceArray(0, (2, 3), array.dtype, (10, 3), array), "c": np.ones(4, np.float32)})
    with pytest.raises(Unsupported, match="uses the host's memory alone"):
        session.empty("x", (2, 3), device=True)
    np.testing.assert_allclose(session.run(feeds(1))["y"], expected(feeds(1)), rtol=1e-6)


def test_read_only_and_strided_feeds(session: Session) -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]
    c = np.ones(4, np.float32)
    c.flags.writeable = False
    place = np.zeros((2, 4), np.float32)
    np.testing.assert_allclose(session.run({"x": x, "c": c}, {"y": place})["y"], x @ WEIGHT + 1, rtol=1e-6)
    x[:] = 1  # a copy that was made for the last run must not be taken for the array
    np.testing.assert_allclose(session.run({"x": x, "c": c}, {"y": place})["y"], x @ WEIGHT + 1, rtol=1e-6)


def test_many_threads_share_a_session(session: Session) -> None:
    def work(value: int) -> bool:
        return np.allclose(session.run(feeds(value))["y"], expected(feeds(value)))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(64)))


def test_futures_and_streams_give_the_right_results(session: Session) -> None:
    futures = [session.run_async(feeds(value)) for value in range(8)]
    for value, future in enumerate(futures):
        np.testing.assert_allclose(future.result()["y"], expected(feeds(value)), rtol=1e-6)
    for value, outputs in enumerate(session.stream(feeds(v) for v in range(8))):
        np.testing.assert_allclose(outputs["y"], expected(feeds(value)), rtol=1e-6)


def test_a_stream_can_be_left_and_other_runs_come_between(session: Session) -> None:
    results = session.stream(feeds(value) for value in range(50))
    for value in range(3):
        np.testing.assert_allclose(next(results)["y"], expected(feeds(value)), rtol=1e-6)
        np.testing.assert_allclose(session.run(feeds(100 + value))["y"], expected(feeds(100 + value)), rtol=1e-6)
    assert isinstance(results, Generator)
    results.close()
    np.testing.assert_allclose(session.run(feeds(7))["y"], expected(feeds(7)), rtol=1e-6)
    outputs = list(session.stream([feeds(1), feeds(2, batch=3), feeds(3)], in_flight=9))
    for given, found in zip([feeds(1), feeds(2, batch=3), feeds(3)], outputs, strict=True):
        np.testing.assert_allclose(found["y"], expected(given), rtol=1e-6)


def test_what_a_stream_gives_stays_though_arrays_are_filled_anew(session: Session) -> None:
    given, kept = feeds(0), []

    def source() -> Iterator[dict[str, np.ndarray]]:
        for value in range(6):
            given["x"][:] = value
            yield given

    for outputs in session.stream(source(), in_flight=1):
        kept.append(outputs["y"])
    for value, found in enumerate(kept):
        np.testing.assert_allclose(found, expected(feeds(value)), rtol=1e-6)


def test_a_feed_that_is_refused_ends_a_stream_at_its_place(session: Session) -> None:
    wrong = {**feeds(2), "x": np.zeros((2, 3))}
    results = session.stream([feeds(0), feeds(1), wrong, feeds(3)])
    for value in range(2):
        np.testing.assert_allclose(next(results)["y"], expected(feeds(value)), rtol=1e-6)
    with pytest.raises(EdgerunError, match="wrong dtype"):
        next(results)
    assert list(results) == []
    np.testing.assert_allclose(session.run(feeds(7))["y"], expected(feeds(7)), rtol=1e-6)


def test_a_session_that_is_closed_lets_a_stream_have_what_was_begun(session: Session) -> None:
    results, found = session.stream(feeds(value) for value in range(50)), []
    with pytest.raises(EdgerunError, match="closed"):
        for outputs in results:
            found.append(outputs["y"])
            session.close()
    assert 1 <= len(found) <= 2 * session.streams
    for value, result in enumerate(found):
        np.testing.assert_allclose(result, expected(feeds(value)), rtol=1e-6)


def test_streams_are_asked_of_the_target(dense: bytes, session: Session) -> None:
    name = type(session).__module__.rsplit(".", 1)[-1].removeprefix("_").removesuffix("_session")
    with edgerun.load(dense, name, Options(threads=2, streams=2)) as two:
        two.warm_up(sizes={"batch": 5})
        for value, outputs in enumerate(two.stream((feeds(v) for v in range(16)), in_flight=4)):
            np.testing.assert_allclose(outputs["y"], expected(feeds(value)), rtol=1e-6)
    with pytest.raises(EdgerunError, match="streams"):
        Options(streams=0)


def test_asking_waits_while_enough_is_in_flight() -> None:
    go = threading.Event()
    with Doubling(lambda value: go.wait(), streams=2) as session:
        futures = [session.run_async(one(value)) for value in range(4)]
        asked = threading.Event()

        def more() -> None:
            futures.append(session.run_async(one(4)))
            asked.set()

        asking = threading.Thread(target=more)
        asking.start()
        assert not asked.wait(0.2), "two a stream are in flight: the fifth waits"
        go.set()
        asking.join(20)
        assert [int(future.result()["y"][0]) for future in futures] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(("in_flight", "ahead"), [(None, 4), (1, 1), (7, 7)])
def test_a_stream_is_read_no_further_than_asked(in_flight: int | None, ahead: int) -> None:
    taken: list[int] = []

    def source() -> Any:
        for value in range(20):
            taken.append(value)
            yield one(value)

    with Doubling(streams=2) as session:
        results = []
        for outputs in session.stream(source(), in_flight):
            results.append(int(outputs["y"][0]))
            assert len(taken) - len(results) < ahead
        assert results == [2 * value for value in range(20)]
        with pytest.raises(EdgerunError, match="in flight"):
            next(session.stream([one(1)], 0))


def test_a_stream_ends_at_the_first_error() -> None:
    def refuse(value: int) -> None:
        if value == 3:
            raise EdgerunError("three is refused")

    with Doubling(refuse) as session:
        results = session.stream(one(value) for value in range(9))
        assert [int(next(results)["y"][0]) for _ in range(3)] == [0, 2, 4]
        with pytest.raises(EdgerunError, match="three"):
            next(results)
        assert int(session.run(one(7))["y"][0]) == 14


def test_closing_lets_runs_in_flight_end() -> None:
    go = threading.Event()
    session = Doubling(lambda value: go.wait())
    future = session.run_async(one(5))
    closing = threading.Thread(target=session.close)
    closing.start()
    assert session.freed == 0
    go.set()
    closing.join(20)
    assert int(future.result()["y"][0]) == 10
    session.close()
    assert [session.freed] == [1], "once"
    for ask in (session.run, session.run_async, lambda feed: next(session.stream([feed]))):
        with pytest.raises(EdgerunError, match="closed"):
            ask(one(1))


def test_warming_up_runs_zeros() -> None:
    with Doubling(streams=2) as session:
        session.warm_up(runs=3)
        assert session.ran == [0] * 6


def test_arrays_for_the_door(session: Session) -> None:
    """Of the right kind, writable, and taken by a run; what is no tensor of the model, or no shape of it, is not."""
    x, y = session.empty("x", (2, 3)), session.empty("y", [2, 4])
    x[:] = 1
    out = session.run({"x": x, "c": np.zeros(4, np.float32)}, {"y": y})
    np.testing.assert_allclose(y, x @ WEIGHT, rtol=1e-5)
    assert out["y"] is y and x.dtype == y.dtype == np.float32
    with pytest.raises(EdgerunError, match="unknown tensor 'z'"):
        session.empty("z", (1,))
    with pytest.raises(EdgerunError, match="wrong shape"):
        session.empty("x", (2, 4))


def test_a_swapped_session_gives_the_arrays_of_the_one_it_holds(session: Session) -> None:
    class Own(Session):
        def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {}

        def _close(self) -> None:
            pass

        def _empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            return np.full(shape, 7, dtype)

    with HotSwapSession(Own(session.inputs, session.outputs)) as held:
        assert held.empty("x", (1, 3)).tolist() == [[7, 7, 7]]


def test_a_callback_may_close_the_session(session: Session) -> None:
    """It runs on the session's own thread, which cannot wait for itself."""
    closed = threading.Event()
    future = session.run_async(feeds(2))

    def ended(_: object) -> None:
        session.close()
        closed.set()

    future.add_done_callback(ended)
    assert closed.wait(20) and future.result()["y"].shape == (2, 4)
    with pytest.raises(EdgerunError, match="closed"):
        session.run(feeds(2))
