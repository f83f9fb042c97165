"""What every target must do that compiles here and cannot run here: say why, and give nothing out as proven."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

import edgerun
from edgerun import registry
from edgerun.errors import Unsupported
from edgerun.model import Model
from edgerun.runtime import Options

ONE = Options(threads=1)
TARGETS = [(name, registry.target(name, usable=False)) for name in registry.names("target")]
IDLE = [name for name, target in TARGETS if target.available() is None and target.runnable()]


@pytest.fixture
def model() -> Model:
    """x [batch, 6] -> y = x @ w."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "dense")],
        "dense",
        [helper.make_tensor_value_info("x", 1, ["batch", 6])],
        [helper.make_tensor_value_info("y", 1, ["batch", 4])],
        [numpy_helper.from_array(np.ones((6, 4), np.float32), "w")],
    )
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize("name", IDLE)
def test_it_compiles_and_nothing_else(name: str, model: Model) -> None:
    target = registry.target(name)
    engine = target.compile(model, ONE)
    assert engine.check is None and engine.digest == model.digest()
    for refused in (
        lambda: target.load(engine, ONE),
        lambda: target.profile(engine, [], ONE),
        lambda: edgerun.compile(model, name, ONE),
    ):
        with pytest.raises(Unsupported) as error:
            refused()
        assert error.value.got == target.runnable() and error.value.do
