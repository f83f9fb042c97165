"""compress --max-drop on labelled data that calibration has seen, in part or as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun.runtime import Options
from tests.verbs.test_max_drop import command, labelled, model, network, samples

__all__ = ["model"]  # a fixture


@pytest.mark.parametrize("batch", ["n", "8"])
def test_samples_that_calibration_sees_are_left_out(
    tmp_path: Path, model: Path, cli: Any, monkeypatch: pytest.MonkeyPatch, batch: str
) -> None:
    """Of 1,064 with all 64 calibration samples, a fixed batch or none: 64 are left out, the others decide as they do
    alone, counted by numpy."""
    monkeypatch.chdir(tmp_path)
    network(tmp_path / "float.onnx", batch=batch)
    labelled(tmp_path / "all.npz", network(tmp_path / "open.onnx"), 1000)
    with np.load("all.npz") as kept:
        x, labels = kept["x"], kept["labels"]
    mixed = np.random.default_rng(0).permutation(1064)
    np.savez(
        "dev.npz", x=np.concatenate([x, samples(1, 64)])[mixed], labels=np.append(labels, np.zeros(64, int))[mixed]
    )
    ran = cli(*command(tmp_path), "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)["max drop"]
    assert found["left out, in the calibration data"] == 64 and found["samples"] == 1000
    wrong = {}
    for name in ("float.onnx", "small.onnx"):
        with edgerun.load(tmp_path / name, "onnxruntime", Options(1)) as session:
            scores = np.concatenate([session.run({"x": x[i : i + 8]})["y"] for i in range(0, 1000, 8)])
        wrong[name] = (scores.argmax(axis=1) != labels).mean()
    assert found["drop (points)"] == pytest.approx(100 * (wrong["small.onnx"] - wrong["float.onnx"]), abs=1e-3)
    ran = cli(*command(tmp_path), "--force")
    assert ran.code == 0 and "64 labelled samples were left out: calibration sees them" in ran.err


@pytest.mark.parametrize(
    ("rows", "code", "message"),
    [
        (slice(10, 40), 2, "the same 30 samples"),  # a part of the calibration data
        (slice(10, 94), 1, "30 samples (54 that calibration sees left out)"),  # half of it, and 30 others
    ],
)
def test_a_labelled_set_that_is_mostly_seen(
    tmp_path: Path, model: Path, cli: Any, rows: slice, code: int, message: str
) -> None:
    x = np.concatenate([samples(1, 64), samples(9, 200)])[rows]
    np.savez(tmp_path / "dev.npz", x=x, labels=np.zeros(len(x), np.int64))
    ran = cli(*command(tmp_path))
    assert ran.code == code and message in ran.err and not (tmp_path / "small.onnx").exists()
