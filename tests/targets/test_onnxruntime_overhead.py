"""What the profiler adds to a kernel is told apart from what a node costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest

from edgerun.runtime import Engine, Options
from edgerun.targets import _onnxruntime_overhead as overhead
from edgerun.targets import onnxruntime as target


def test_the_chain_is_a_model_of_so_many_nodes_and_inputs() -> None:
    model = onnx.load_model_from_string(overhead.chain(140, 9))
    onnx.checker.check_model(model, full_check=True)
    assert len(model.graph.node) == 140 and {len(node.input) for node in model.graph.node} == {9}
    session: Any = onnxruntime.InferenceSession(overhead.chain(3, 2))
    np.testing.assert_array_equal(session.run(None, {"x": np.array([1.5], np.float32)})[0], [6.0])


def test_what_is_told_too_much_grows_with_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nodes that take 1 µs and .2 µs an input, in runs of 30 µs more, and are told as 2.5 µs and .5 µs longer."""

    def opened(model: bytes, profiled: bool) -> tuple[int, int]:
        nodes = onnx.load_model_from_string(model).graph.node
        return len(nodes), len(nodes[0].input)

    def seconds(session: tuple[int, int]) -> float:
        nodes, inputs = session
        return 30e-6 + nodes * (1e-6 + 0.2e-6 * inputs)

    def told(session: tuple[int, int]) -> np.ndarray:
        nodes, inputs = session
        return np.full((overhead.WARM + overhead.RUNS, nodes), 3.5e-6 + 0.7e-6 * inputs)

    monkeypatch.setattr(overhead, "_seconds", seconds)
    chains = overhead.Chains(opened)
    chains.run(overhead.TURN)
    found = chains.overhead(told)
    assert found.kernel == pytest.approx(2.5e-6) and found.an_input == pytest.approx(0.5e-6)
    assert found.without(10e-6, 3) == pytest.approx(6e-6)
    assert found.without(3e-6, 3) == 0.0, "never less than nothing"


def test_nodes_that_do_next_to_nothing_are_not_told_as_microseconds_each() -> None:
    """64 Sums of one number: with what the profiler adds they are told as more than half as long again as a run takes,
    without it as less than half as long again (the median of five, on a machine that may be busy)."""
    model, feed = overhead.chain(64, 4), {"x": np.ones(1, np.float32)}
    shares = []
    for _ in range(5):
        session: Any = onnxruntime.InferenceSession(model)
        taken = np.median([overhead._seconds(session) for _ in range(60)])
        told = target.profile(Engine("onnxruntime", model), [feed] * 30, Options(1))
        assert len(told) == 64
        shares.append(sum(kernel.seconds for kernel in told) / taken)
    assert np.median(shares) < 1.5
