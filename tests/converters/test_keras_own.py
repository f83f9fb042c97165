"""Keras models that have Python of their own: layers, Lambdas, subclassed models, factories."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
pytest.importorskip("torch")

from bench.keras_cases import shaken  # noqa: E402
from edgerun.converters.keras import rule  # noqa: E402
from edgerun.errors import EdgerunError  # noqa: E402
from edgerun.model import Model  # noqa: E402
from edgerun.verbs.convert import Parity, convert  # noqa: E402
from tests.converters.conftest import ops  # noqa: E402

L = keras.layers


def _converted(shape: tuple[int, ...], *layers: Any) -> Model:
    found = convert(shaken(keras.Sequential([keras.Input(shape), *layers])))
    assert all(output.relative_error <= 1e-5 for output in Parity.of(found).outputs)
    return found


class Doubled(L.Layer):  # type: ignore[misc, name-defined]
    """A layer of one's own: its kernel times x, twice."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1],), name="kernel")

    def call(self, x: Any) -> Any:
        return self.kernel * x * 2.0


def test_a_layer_of_ones_own() -> None:
    found = _converted((4, 6), L.Dense(3), Doubled(), L.Lambda(lambda t: keras.ops.sin(t)))
    assert ops(found) == Counter(MatMul=1, Add=1, Mul=2, Sin=1)


def test_a_rule_of_ones_own() -> None:
    class Ruled(Doubled):
        pass

    @rule(Ruled)
    def _ruled(graph: Any, layer: Any, inputs: Any) -> Any:
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        return graph.like(inputs[0], "Mul", graph.const(2 * kernel, "twice"))

    found = _converted((6,), Ruled())
    assert ops(found) == Counter(Mul=1)


class Two(keras.Model):  # type: ignore[misc, name-defined]
    """A subclassed model of two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm, self.drop = L.Dense(3, activation="relu"), L.BatchNormalization(), L.Dropout(0.5)

    def call(self, a: Any, b: Any, training: bool = False) -> dict[str, Any]:
        y = self.drop(self.norm(self.dense(a)), training=training)
        return {"sum": y + b, "mean": keras.ops.mean(y, axis=-1)}


def test_a_subclassed_model() -> None:
    with pytest.raises(EdgerunError, match="does not tell its input"):
        convert(Two())
    model = Two()
    found = convert(model, inputs=["a:float32[batch,4]", "b:float32[batch,3]"])
    assert [spec.name for spec in found.outputs] == ["mean", "sum"]
    assert ops(found) == Counter(Gemm=1, Relu=1, BatchNormalization=1, Add=1, ReduceMean=1)
    with pytest.raises(EdgerunError, match="does not take these inputs"):
        convert(model, inputs=["a:float32[batch,4]"])


def test_a_subclassed_model_of_torch_operations() -> None:
    class Sums(keras.Model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.dense = L.Dense(3)

        def call(self, x: Any) -> Any:
            import torch

            return torch.cumsum(self.dense(x), 1)

    found = convert(Sums(), inputs=["x:float32[batch,4]"])
    assert Parity.of(found).passed and ops(found)["CumSum"] == 1


FACTORY = """
import keras
L = keras.layers

class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3)
    def call(self, x):
        return keras.ops.sin(self.dense(x))

def lambdas():
    x = keras.Input((4,), name="x")
    return keras.Model(x, L.Lambda(lambda t: t * 2.0, name="twice")(L.Dense(3, name="dense")(x)))

def wrong():
    return 3
"""


def test_a_factory_gives_the_model_of_a_files_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keras_nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    nets = importlib.import_module("keras_nets")
    shaken(nets.lambdas()).save("lambdas.keras")
    found = convert("lambdas.keras", factory="keras_nets:lambdas")
    assert Parity.of(found).passed and ops(found) == Counter(Gemm=1, Mul=1)
    net = nets.Net()
    net(keras.ops.ones((1, 4)))
    shaken(net).save_weights("net.weights.h5")
    found = convert("net.weights.h5", factory="keras_nets:Net", inputs=["x:float32[batch,4]"])
    kernel = keras.ops.convert_to_numpy(net.dense.kernel)
    constants = [value.const_value for value in found.ir.graph.initializers.values()]
    assert any(constant is not None and np.array_equal(constant.numpy(), kernel) for constant in constants)
    for factory, message in (
        ("keras_nets:wrong", "returned no keras.Model"), ("keras_nets:none", "failed"),
        ("keras_nets", "not understood"), ("keras_nets:lambdas", "do not fit"),
    ):  # fmt: skip
        with pytest.raises(EdgerunError, match=message):
            convert("net.weights.h5", factory=factory, inputs=["x:float32[batch,4]"])
