"""The LSTM, GRU and RNN of ONNX's evaluator with what it ignores of them (onnx 1.23): the lengths of sequences; of the
first two activations, clip and input_forget."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

LENGTHS = 4  # which input they are
BY_ROW = (5, 6)  # the initial states
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
    """All, as `new_ops` of the evaluator."""
    return [_cell("LSTM", ("Sigmoid", "Tanh", "Tanh")), _cell("GRU", ("Sigmoid", "Tanh")), _rnn()]


def _rnn() -> Any:
    base: Any = importlib.import_module("onnx.reference.ops.op_rnn").RNN_14

    def _run(self: Any, *inputs: Any, **told: Any) -> Any:
        return _ended(functools.partial(base._run, self, **told), inputs, told.get("layout") or 0)

    return type("RNN", (base,), {"op_domain": "", "_run": _run})


def _cell(op: str, usual: tuple[str, ...]) -> Any:
    base: Any = getattr(importlib.import_module(f"onnx.reference.ops.op_{op.lower()}"), op)

    def _run(self: Any, *inputs: Any, **told: Any) -> Any:
        def run(*own: Any) -> Any:
            self._directions, self._coupled = _activations(usual, told), told.get("input_forget", 0)
            return base._run(self, *own, **told)

        return _ended(run, inputs, told.get("layout") or 0)

    def _run_forward(self: Any, *arrays: np.ndarray) -> Any:  # once for each direction, in order
        self.f, self.g, self.h = (*next(self._directions), None)[:3]
        return (_coupled if self._coupled else base._run_forward)(self, *arrays)

    return type(op, (base,), {"op_domain": "", "_run": _run, "_run_forward": _run_forward})


def _ended(run: Callable[..., Any], inputs: Sequence[Any], layout: int) -> Any:
    """What `run` gives of a layer's inputs, each sequence by itself where they have lengths: behind its end, and of one
    of length 0, all is zero, as both runtimes have it.

    `layout` 0: x is `[steps, batch, …]`, y `[steps, directions, batch, …]` and states are `[directions, batch, …]`;
    1: the batch is in front of them all.
    """
    x, lengths = inputs[0], inputs[LENGTHS] if len(inputs) > LENGTHS else None
    if lengths is None or not len(lengths):
        return run(*inputs)
    rows = []
    for row, length in enumerate(lengths):
        own = [a.take([row], 1 - layout) if at in BY_ROW and a is not None else a for at, a in enumerate(inputs)]
        own[0], own[LENGTHS], rest = (
            x.take([row], 1 - layout).take(range(max(length, 1)), layout),
            None,
            x.shape[layout] - max(length, 1),
        )
        y, *states = (array * array.dtype.type(length > 0) for array in run(*own))
        rows.append((np.pad(y, [(0, rest if axis == layout else 0) for axis in range(4)]), *states))
    axes = (2 * (1 - layout), 1 - layout, 1 - layout)
    return tuple(np.concatenate(parts, axis) for parts, axis in zip(zip(*rows, strict=True), axes, strict=False))


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
