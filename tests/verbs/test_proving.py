"""Comparisons with the source: what passes, what fails, what proves nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgerun import parity
from edgerun.errors import EdgerunError, GateFailed
from edgerun.model import Model
from edgerun.passes import Conversion, Feeds, Runner
from edgerun.verbs import proving
from tests.verbs.conftest import save_linear

WEIGHT = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def _model(tmp_path: Path) -> Model:
    return Model.load(save_linear(tmp_path / "m.onnx", WEIGHT))


def test_gate_against_float64(tmp_path: Path) -> None:
    """Allowed: 4 times the source's own rounding error, or 1e-5."""

    def exact(feeds: Feeds) -> dict[str, np.ndarray]:
        return {"y": feeds["x"].astype(np.float64) @ WEIGHT.astype(np.float64)}

    def off(by: float) -> Runner:
        return lambda feeds: {"y": (exact(feeds)["y"] * (1 + by)).astype(np.float32)}

    model = _model(tmp_path)
    assert parity.check(model, off(5e-6), off(0), exact).passed
    failed = parity.check(model, off(2e-5), off(0), exact)
    assert not failed.passed and failed.outputs[0].relative_error == pytest.approx(2e-5, rel=0.05)
    assert failed.outputs[0].sqnr_db == pytest.approx(-20 * np.log10(2e-5), abs=0.5)
    assert parity.check(model, off(3e-4), off(1e-4), exact).passed
    assert not parity.check(model, off(5e-4), off(1e-4), exact).passed


def test_gate_without_float64(tmp_path: Path) -> None:
    def off(by: float) -> Runner:
        return lambda feeds: {"y": feeds["x"] @ WEIGHT * np.float32(1 + by)}

    model = _model(tmp_path)
    assert parity.check(model, off(5e-5), off(0), None).passed
    assert not parity.check(model, off(5e-4), off(0), None).passed
    assert not parity.check(model, lambda f: {"y": np.full((len(f["x"]), 4), np.nan, np.float32)}, off(0), None).passed


def test_a_converted_model_that_fails_or_changes_shape(tmp_path: Path) -> None:
    def source(feeds: Feeds) -> dict[str, np.ndarray]:
        return {"y": feeds["x"] @ WEIGHT}

    def fails(feeds: Feeds) -> dict[str, np.ndarray]:
        raise RuntimeError("no kernel")

    model = _model(tmp_path)
    with pytest.raises(GateFailed, match="no kernel"):
        parity.check(model, fails, source, None)
    with pytest.raises(GateFailed, match="another shape"):
        parity.check(model, lambda feeds: {"y": source(feeds)["y"][:1]}, source, None)
    with pytest.raises(EdgerunError, match="refuses every random input"):
        parity.check(model, source, fails, None)


def _found(path: Path, run: Runner, run64: Runner | None = None) -> Conversion:
    return Conversion(Model.load(save_linear(path, WEIGHT)), run, run64)


def test_data_may_show_what_random_inputs_do_not(tmp_path: Path) -> None:
    """A source with a branch that N(0, 1) never takes."""

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        return {"y": feeds["x"] @ WEIGHT if np.abs(feeds["x"]).max() < 9 else feeds["x"] @ -WEIGHT}

    found = _found(tmp_path / "m.onnx", run)
    assert list(proving.proven(found, tmp_path / "m.onnx")) == ["parity"]
    usual, rare = ({"x": np.full((2, 3), value, np.float32)} for value in (1, 10))
    assert list(proving.proven(found, tmp_path / "m.onnx", usual)) == ["parity", "parity on data"]
    with pytest.raises(GateFailed, match="relative error 2, allowed 0.0001"):
        proving.proven(found, tmp_path / "m.onnx", rare)


def test_a_source_that_loses_its_own_precision_proves_nothing(tmp_path: Path) -> None:
    """Off from float64 by a tenth itself: four times that would let anything pass. Data on which it is exact decide."""

    def run64(feeds: Feeds) -> dict[str, np.ndarray]:
        return {"y": feeds["x"].astype(np.float64) @ WEIGHT}

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        lost = 1.0 if (feeds["x"] == 1).all() else 1.1
        return {"y": (run64(feeds)["y"] * lost).astype(np.float32)}

    found = _found(tmp_path / "m.onnx", run, run64)
    judged = parity.check(found.model, run, run, run64)
    assert not judged.passed and judged.outputs[0].bound == 0.01 and "'y' is off by 0.1" in judged.inconclusive
    tilted = replace(found, run64=lambda feeds: {"y": run(feeds)["y"] * 0.98}, run=run)
    with pytest.raises(GateFailed, match="random inputs cannot prove this conversion") as caught:
        proving.proven(tilted, tmp_path / "m.onnx")
    assert "--data" in (caught.value.do or "")
    told = proving.proven(found, tmp_path / "m.onnx", {"x": np.ones((2, 3), np.float32)})
    assert list(told) == ["parity", "parity on data"]  # the converted model itself is exact
    refusing = replace(found, run=_only_ones(run))
    told = proving.proven(refusing, tmp_path / "m.onnx", {"x": np.ones((2, 3), np.float32)})
    assert list(told) == ["parity"] and "data given" in told["parity"].data


def _only_ones(run: Runner) -> Runner:
    def picky(feeds: Feeds) -> dict[str, np.ndarray]:
        if not (feeds["x"] == 1).all():
            raise ValueError("ones alone")
        return run(feeds)

    return picky
