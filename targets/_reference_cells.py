"""The LSTM and GRU of ONNX's evaluator with what it ignores of them (onnx 1.23): activations, clip, input_forget."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

Act = Callable[[np.ndarray], np.ndarray]
# By name: the function, and its alpha and beta where none are given.
ACTIVATIONS: Mapping[str, tuple[Callable[..., np.ndarray], tuple[float, ...]]] = {
    "relu": (lambda x: np.maximum(x, 0), ()),
    "tanh": (np.tanh, ()),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), ()),
    "softsign": (lambda x: x / (1 + np.abs(x)), ()),
    "softplus": (lambda x: np.logaddexp(x, np.zeros_like(x)), ()),
    "leakyrelu": (lambda x, a: np.where(x < 0, a * x, x), (0.01,)),
    "thresholdedrelu": (lambda x, a: np.where(x < a, np.zeros_like(x), x), (1.0,)),
    "elu": (lambda x, a: np.where(x < 0, a * np.expm1(x), x), (1.0,)),
    "affine": (lambda x, a, b: a * x + b, (1.0, 0.0)),
    "scaledtanh": (lambda x, a, b: a * np.tanh(b * x), (1.0, 1.0)),
    "hardsigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), (0.2, 0.5)),
}


@functools.cache
def cells() -> list[Any]:
    """Both, as `new_ops` of the evaluator."""
    return [_cell("LSTM", ("Sigmoid", "Tanh", "Tanh")), _cell("GRU", ("Sigmoid", "Tanh"))]


def _cell(op: str, usual: tuple[str, ...]) -> Any:
    base: Any = getattr(importlib.import_module(f"onnx.reference.ops.op_{op.lower()}"), op)

    def _run(self: Any, *inputs: Any, **told: Any) -> Any:
        self._directions, self._coupled = _activations(usual, told), told.get("input_forget", 0)
        return base._run(self, *inputs, **told)

    def _run_forward(self: Any, *arrays: np.ndarray) -> Any:  # once for each direction, in order
        self.f, self.g, self.h = (*next(self._directions), None)[:3]
        return (_coupled if self._coupled else base._run_forward)(self, *arrays)

    return type(op, (base,), {"op_domain": "", "_run": _run, "_run_forward": _run_forward})


def _activations(usual: tuple[str, ...], told: Mapping[str, Any]) -> Iterator[list[Act]]:
    """Those of each direction. Alphas and betas go, in order, to the functions that have them; what goes into a gate is
    clipped, and not what an LSTM's cell gives to its last one: so does ONNX Runtime."""
    bound, (alphas, betas) = (
        told.get("clip") or np.inf,
        (list(told[f"activation_{n}"] or ()) for n in ("alpha", "beta")),
    )
    found: list[Act] = []
    for index, name in enumerate(told["activations"] or usual * 2):
        function, own = ACTIVATIONS[name.lower()]
        own = tuple(float(given.pop(0)) if given else value for value, given in zip(own, (alphas, betas), strict=False))
        limit = np.inf if index % len(usual) == 2 else float(bound)
        found.append(functools.partial(_applied, function, own, limit))
    return (found[at : at + len(usual)] for at in range(0, len(found), len(usual)))


def _applied(function: Callable[..., np.ndarray], own: tuple[float, ...], limit: float, x: np.ndarray) -> np.ndarray:
    return function(np.clip(x, -limit, limit), *own)


def _coupled(cell: Any, x: Any, w: Any, r: Any, b: Any, p: Any, h: Any, c: Any) -> tuple[np.ndarray, ...]:
    """A direction of an LSTM that forgets as much as it takes in: arguments and results as the evaluator's own."""
    given, (p_i, p_o, _) = [], np.split(p, 3)
    for step in x:
        i, o, _, g = np.split(step @ w.T + h @ r.T + np.add(*np.split(b, 2)), 4, -1)
        i = cell.f(i + p_i * c)
        c = (1 - i) * c + i * cell.g(g)
        h = cell.f(o + p_o * c) * cell.h(c)
        given.append(h)
    return np.stack(given), h, c
