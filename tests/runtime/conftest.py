"""A small model, a session of it on every target that runs here, and a session of plain Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerun
from edgerun import registry
from edgerun.runtime import Options, Session, TensorSpec

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)
RUNNERS = [
    name
    for name in registry.names("target")
    if not registry.target(name, usable=False).available() and not registry.target(name).runnable()
]


@pytest.fixture(scope="session")
def dense() -> bytes:
    """y = x @ WEIGHT + c: x [batch, 3], c [4], y [batch, 4], all float32."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], "dense"), helper.make_node("Add", ["m", "c"], ["y"], "add")]
    graph = helper.make_graph(
        nodes, "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]),
         helper.make_tensor_value_info("c", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


@pytest.fixture(params=RUNNERS)
def session(request: pytest.FixtureRequest, dense: bytes) -> Iterator[Session]:
    """The model on every target."""
    with edgerun.load(dense, request.param, Options(threads=1)) as opened:
        yield opened


def feeds(value: float, batch: int = 2) -> dict[str, np.ndarray]:
    """x full of `value`, c of ones."""
    return {"x": np.full((batch, 3), value, np.float32), "c": np.ones(4, np.float32)}


def expected(given: Mapping[str, np.ndarray]) -> np.ndarray:
    """What numpy computes."""
    found: np.ndarray = given["x"] @ WEIGHT + given["c"]
    return found


class Doubling(Session):
    """y = 2·x for x int64 [1]; `before` is called at the start of every run, and what ran is kept."""

    def __init__(self, before: Callable[[int], object] = lambda value: None, streams: int = 1) -> None:
        spec = TensorSpec("x", "int64", (1,))
        super().__init__((spec,), (TensorSpec("y", "int64", (1,)),), streams)
        self.before, self.ran, self.freed = before, list[int](), 0

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        value = int(feeds["x"][0])
        self.before(value)
        self.ran.append(value)
        return {"y": 2 * feeds["x"]}

    def _close(self) -> None:
        self.freed += 1


def one(value: int) -> dict[str, np.ndarray]:
    """Feeds of a Doubling."""
    return {"x": np.array([value])}


def soon(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether `condition` becomes true."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()
