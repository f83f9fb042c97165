"""What a runtime takes by node and by call, from two chains."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from edgerun import registry
from edgerun.errors import Unsupported
from edgerun.runtime import Options
from edgerun.verbs.dispatch import LONG, SHORT, chain, chains, dispatch


def test_a_chain_is_a_model_of_so_many_nodes() -> None:
    model = onnx.load_model_from_string(chain(40))
    onnx.checker.check_model(model, full_check=True)
    assert len(model.graph.node) == 40
    (got,) = ReferenceEvaluator(model).run(None, {"x": np.array([[1, 0.5]], np.float32)})
    np.testing.assert_array_equal(got, [[1, 40.5]])


def test_slope_and_intercept() -> None:
    """Of 9 µs a call and .6 µs a node, with every other round three times as slow."""
    slow = np.array([1.0, 3.0, 1.0, 3.0, 1.0])[:, None]
    timed = {name: np.full((5, 4), 9e-6 + nodes * 0.6e-6) * slow for name, nodes in (("short", SHORT), ("long", LONG))}
    found = dispatch(timed)
    assert found is not None and found.node == pytest.approx(0.6e-6) and found.call == pytest.approx(9e-6)
    assert dispatch({"0": np.ones((2, 2))}) is None


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_every_node_runs(target: str) -> None:
    """None is fused or dropped: the profile of the target tells as many kernels as the chain has nodes."""
    if reason := registry.target(target, usable=False).available():
        pytest.skip(reason)
    from edgerun.runtime import Engine

    feed = {"x": np.ones((1, 2), np.float32)}
    kernels = registry.target(target).profile(Engine(target, chain(LONG)), [feed] * 3, Options(1))
    assert sum(kernel.op == "CumSum" for kernel in kernels) == LONG
    with chains(target, Options(1)) as runs:
        assert sorted(runs) == ["long", "short"]


def test_a_target_that_takes_none_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> object:
        raise Unsupported("no such kernel")

    monkeypatch.setattr(registry.target("onnxruntime"), "load", refuse)
    with chains("onnxruntime", Options(1)) as runs:
        assert runs == {}
