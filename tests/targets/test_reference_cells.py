"""Recurrent layers with attributes that ONNX's own evaluator ignores: numpy's formulas here and ONNX Runtime agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxruntime")

import edgerun

ONE = edgerun.Options(threads=1)
STEPS, BATCH, SIZE, HIDDEN = 6, 2, 3, 4
Act = Callable[[np.ndarray], np.ndarray]


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _hard(x: np.ndarray, alpha: float = 0.2, beta: float = 0.5) -> np.ndarray:
    return np.maximum(0, np.minimum(1, alpha * x + beta))


def _drawn(op: str, directions: int = 1, peepholes: bool = False) -> dict[str, np.ndarray]:
    rows, random = {"LSTM": 4, "GRU": 3}[op] * HIDDEN, np.random.default_rng(5)
    shapes = {"x": (STEPS, BATCH, SIZE), "w": (directions, rows, SIZE), "r": (directions, rows, HIDDEN),
              "b": (directions, 2 * rows)}  # fmt: skip
    if peepholes:
        shapes["p"] = (directions, 3 * HIDDEN)
    return {name: random.uniform(-1.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}


def _saved(path: Path, op: str, drawn: dict[str, np.ndarray], **told: Any) -> Path:
    inputs = ["x", "w", "r", "b", "", "", "", "p"][: 8 if "p" in drawn else 4]
    node = helper.make_node(op, inputs, ["y", "h"], op.lower(), hidden_size=HIDDEN, **told)
    directions = len(drawn["w"])
    graph = helper.make_graph(
        [node], "cells",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, drawn["x"].shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (STEPS, directions, BATCH, HIDDEN)),
         helper.make_tensor_value_info("h", TensorProto.FLOAT, (directions, BATCH, HIDDEN))],
        [numpy_helper.from_array(array, name) for name, array in drawn.items() if name != "x"],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _lstm(
    drawn: dict[str, np.ndarray], acts: list[Act], d: int = 0, clip: float = 1e9, coupled: bool = False
) -> np.ndarray:
    """One direction in float64, gate by gate as ONNX's text has them: `[steps, batch, hidden]`, from step 0 on."""
    (f, g, h), given = acts, []
    w, r, b = (drawn[n][d].astype(np.float64) for n in "wrb")
    p = drawn["p"][d].astype(np.float64) if "p" in drawn else np.zeros(3 * HIDDEN)
    part = [slice(k * HIDDEN, (k + 1) * HIDDEN) for k in range(8)]  # i, o, f, c; of the bias the recurrent ones behind
    cell = out = np.zeros((BATCH, HIDDEN))
    for x in drawn["x"].astype(np.float64)[:: -1 if d else 1]:
        i, o, forget, c = (x @ w[part[k]].T + out @ r[part[k]].T + b[part[k]] + b[part[k + 4]] for k in range(4))
        i = f(np.clip(i + p[part[0]] * cell, -clip, clip))
        forget = 1 - i if coupled else f(np.clip(forget + p[part[2]] * cell, -clip, clip))
        cell = forget * cell + i * g(np.clip(c, -clip, clip))
        out = f(np.clip(o + p[part[1]] * cell, -clip, clip)) * h(cell)
        given.append(out)
    return np.stack(given[:: -1 if d else 1])


def _gru(drawn: dict[str, np.ndarray], acts: list[Act], linear: bool, clip: float = 1e9) -> np.ndarray:
    (f, g), given, out = acts, [], np.zeros((BATCH, HIDDEN))
    w, r, (wb, rb) = (
        *(np.split(drawn[n][0].astype(np.float64), 3) for n in "wr"),
        np.split(drawn["b"][0].reshape(6, HIDDEN), 2),
    )
    for x in drawn["x"].astype(np.float64):
        z, reset = (f(np.clip(x @ w[k].T + out @ r[k].T + wb[k] + rb[k], -clip, clip)) for k in (0, 1))
        again = reset * (out @ r[2].T + rb[2]) if linear else (reset * out) @ r[2].T + rb[2]
        out = (1 - z) * g(np.clip(x @ w[2].T + again + wb[2], -clip, clip)) + z * out
        given.append(out)
    return np.stack(given)


def _agree(path: Path, drawn: dict[str, np.ndarray], wanted: np.ndarray) -> None:
    """`wanted`: y by numpy. ONNX Runtime's engine passes its comparison with the evaluator too."""
    for target in ("reference", "onnxruntime"):
        with edgerun.load(edgerun.compile(path, target, ONE), options=ONE) as session:
            np.testing.assert_allclose(session.run({"x": drawn["x"]})["y"], wanted, atol=3e-6)


@pytest.mark.parametrize(
    ("told", "acts", "more"),
    [
        ({"activations": ["HardSigmoid", "Tanh", "Tanh"]}, [_hard, np.tanh, np.tanh], {}),
        (
            {"activations": ["HardSigmoid", "Tanh", "ScaledTanh"], "activation_alpha": [0.3, 2.0],
             "activation_beta": [0.4, 0.5]},
            [lambda x: _hard(x, 0.3, 0.4), np.tanh, lambda x: 2 * np.tanh(0.5 * x)], {},
        ),
        (
            {"activations": ["Sigmoid", "LeakyRelu", "Softsign"], "activation_alpha": [0.2]},
            [_sigmoid, lambda x: np.maximum(x, 0.2 * x), lambda x: x / (1 + abs(x))], {},
        ),
        ({"activations": ["Sigmoid", "Elu", "Relu"]},
         [_sigmoid, lambda x: np.where(x < 0, np.exp(x) - 1, x), lambda x: np.maximum(x, 0)], {}),
        ({"clip": 0.4}, [_sigmoid, np.tanh, np.tanh], {"clip": 0.4}),
        ({"input_forget": 1}, [_sigmoid, np.tanh, np.tanh], {"coupled": True}),
        ({"input_forget": 1, "clip": 0.6, "activations": ["HardSigmoid", "Softplus", "Tanh"]},
         [_hard, lambda x: np.log(1 + np.exp(x)), np.tanh], {"coupled": True, "clip": 0.6}),
    ],
    ids=["hard", "alphas", "leaky", "elu", "clip", "coupled", "all"],
)  # fmt: skip
def test_an_lstm(told: dict[str, Any], acts: list[Act], more: dict[str, Any], tmp_path: Path) -> None:
    drawn = _drawn("LSTM")
    _agree(_saved(tmp_path / "lstm.onnx", "LSTM", drawn, **told), drawn, _lstm(drawn, acts, **more)[:, None])


def test_each_direction_has_its_own(tmp_path: Path) -> None:
    drawn, names = _drawn("LSTM", directions=2), ["HardSigmoid", "Tanh", "Tanh", "Sigmoid", "Softsign", "Relu"]
    path = _saved(tmp_path / "lstm.onnx", "LSTM", drawn, direction="bidirectional", activations=names)
    back: list[Act] = [_sigmoid, lambda x: x / (1 + abs(x)), lambda x: np.maximum(x, 0)]
    _agree(path, drawn, np.stack([_lstm(drawn, [_hard, np.tanh, np.tanh]), _lstm(drawn, back, 1)], 1))


def test_coupled_gates_with_peepholes(tmp_path: Path) -> None:
    drawn = _drawn("LSTM", peepholes=True)
    path = _saved(tmp_path / "lstm.onnx", "LSTM", drawn, input_forget=1)
    _agree(path, drawn, _lstm(drawn, [_sigmoid, np.tanh, np.tanh], coupled=True)[:, None])


@pytest.mark.parametrize("linear", [0, 1])
def test_a_gru(linear: int, tmp_path: Path) -> None:
    drawn = _drawn("GRU")
    told = {"activations": ["HardSigmoid", "Softsign"], "clip": 0.7, "linear_before_reset": linear}
    wanted = _gru(drawn, [_hard, lambda x: x / (1 + abs(x))], bool(linear), 0.7)
    _agree(_saved(tmp_path / "gru.onnx", "GRU", drawn, **told), drawn, wanted[:, None])
