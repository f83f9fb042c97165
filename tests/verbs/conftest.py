"""A linear classifier y = x·w as ONNX, its data, and the command line."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgerun.cli import main

W = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((300, 8)).astype(np.float32)


def save_linear(path: Path, w: np.ndarray = W, *, batch: str | int = "n", names: tuple[str, str] = ("x", "y")) -> Path:
    """x float32 [batch, inputs] -> y [batch, classes]."""
    x, y = names
    graph = helper.make_graph(
        [helper.make_node("MatMul", [x, "w"], [y])],
        "linear",
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [batch, w.shape[0]])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, [batch, w.shape[1]])],
        [numpy_helper.from_array(w, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@dataclass(frozen=True)
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run `edgerun ARGUMENTS…` in this process, through its main door."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr("sys.argv", ["edgerun", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    return run


@dataclass(frozen=True)
class Place:
    """`a.onnx` and `b.onnx` (weights `w` and `w_b`, 5 % off); `d.npz`: 300 samples `x`, `labels` 90 % right by a."""

    folder: Path
    a: Path
    b: Path
    data: Path
    w: np.ndarray
    w_b: np.ndarray
    x: np.ndarray
    labels: np.ndarray
    save: Callable[..., Path] = save_linear


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Two models and their data in a folder."""
    w_b = W + 0.05 * np.random.default_rng(2).standard_normal(W.shape).astype(np.float32)
    labels = (X @ W).argmax(axis=1)
    labels[:30] = (labels[:30] + 1) % 4
    np.savez(tmp_path / "d.npz", x=X, labels=labels)
    a, b = save_linear(tmp_path / "a.onnx"), save_linear(tmp_path / "b.onnx", w_b)
    return Place(tmp_path, a, b, tmp_path / "d.npz", W, w_b, X, labels)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over 500 kB counts as large: one layer has 410 kB."""
    from edgerun import external
    from edgerun.verbs import compare as comparing

    monkeypatch.setattr(external, "ABOVE", 500_000)
    monkeypatch.setattr(comparing, "LARGE", 500_000)


def as_a_shell_starts() -> None:
    """For a process that is to be interrupted: who runs the tests in the background ignores Ctrl-C, and so would it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Ctrl-C, and what the process said in all."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=120)
    finally:
        process.kill()
