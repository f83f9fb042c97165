"""Comparisons with the source: what passes, what fails, what proves nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun import parity
from edgerun.errors import EdgerunError, GateFailed
from edgerun.metrics import Difference
from edgerun.model import Model
from edgerun.parity import Parity
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


def _off(by: float, seed: int = 0) -> Runner:
    """The exact product with an error of `by`, of its largest value, on an element drawn anew in every run."""
    rng = np.random.default_rng(seed)

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        y = feeds["x"].astype(np.float64) @ WEIGHT
        y.flat[rng.integers(y.size)] += by * np.abs(y).max() * rng.choice([-1, 1])
        return {"y": y}

    return run


def _counted(run: Runner) -> tuple[Runner, list[Feeds]]:
    seen: list[Feeds] = []

    def counting(feeds: Feeds) -> dict[str, np.ndarray]:
        seen.append(feeds)
        return run(feeds)

    return counting, seen


@pytest.mark.parametrize(
    ("by", "own", "exact"), [(0, 0, 1), (3e-6, 3e-6, 1), (8e-6, 8e-6, 3), (0, 3e-3, 3), (0, 2e-3, 1)]
)
def test_float64_runs_on_one_draw_where_the_others_are_near(tmp_path: Path, by: float, own: float, exact: int) -> None:
    """The others are within 7e-6 of a source that keeps its precision: 4 times its own error is below a hundredth."""
    model = _model(tmp_path)

    def source(feeds: Feeds) -> dict[str, np.ndarray]:
        return {"y": _off(own)(feeds)["y"].astype(np.float32)}

    def converted(feeds: Feeds) -> dict[str, np.ndarray]:
        return {"y": (source(feeds)["y"].astype(np.float64) * (1 + by)).astype(np.float32)}

    exactly, seen = _counted(_off(0))
    found = parity.check(model, converted, source, exactly)
    assert found.passed and found.reference == "float64" and found.exact == len(seen) == exact
    assert found.outputs[0].source_error == pytest.approx(own, rel=0.1, abs=1e-7)
    assert Parity.from_json(found.to_json()) == found


@given(own=st.floats(0, 2.5e-3), by=st.floats(0, 7e-6), seed=st.integers(0, 99))
def test_what_is_near_float64_would_pass(own: float, by: float, seed: int) -> None:
    """d + o <= max(4·o, 1e-5) for every o: whatever passes without float64 on a draw passes with it on that draw."""
    feeds = {"x": np.random.default_rng(seed).standard_normal((3, 3))}
    exact, source = _off(0)(feeds)["y"], _off(own, seed)(feeds)["y"]
    value = source + by * np.abs(source).max() * np.random.default_rng(seed + 1).choice([-1, 1], source.shape)
    assert Difference.of(source, value).relative_error <= parity.NEAR * (1 + 1e-9)
    error, allowed = Difference.of(exact, value).relative_error, 4 * Difference.of(exact, source).relative_error
    assert error <= max(allowed, parity.FLOOR)


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
