"""Ranges that end before the extremes: taken only where this also holds in samples that did not judge them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgerun.data import open_data
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.verbs.compress import compress

SAMPLES, LOUD = 200, 12.0
LATE = np.arange(70, SAMPLES, 8)  # every eighth sample behind those that judge
DOOR = "(float[n,8,16,16] x) => (float[n,p] y)"


@pytest.fixture
def model(net: Any, weights: Any) -> Model:
    made: Model = net(
        f"{DOOR} {{ a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) c = Conv(r, w2, b2) s = Relu(c)"
        " f = Flatten(s) y = Gemm(f, fc) }",
        w=weights(1, 16, 8, 3, 3), b=weights(2, 16), w2=weights(3, 8, 16, 3, 3), b2=weights(4, 8),
        fc=weights(5, 8 * 14 * 14, 10),
    )  # fmt: skip
    return made


def _drawn(seed: int) -> np.ndarray:
    """Noise, and in some samples a patch that is far louder."""
    x = np.random.default_rng(seed).standard_normal((SAMPLES, 8, 16, 16)).astype(np.float32)
    x[LATE, :, 4:10, 4:10] += LOUD
    return x


def _compressed(model: Model, x: np.ndarray, target: str, **more: Any) -> Model:
    data = open_data({"x": x}, model.inputs)
    return compress(model, target=target, calibration=data, scheme="w8a8", placement="rules", **more)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_rare_loud_samples_are_not_clipped(model: Model, evaluate: Any, target: str) -> None:
    """No sample that judges is loud: by these alone `mse` wins, and leaves 3 dB of the others (35 without clipping)."""
    made = _compressed(model, _drawn(1), target)
    told = made.history[-1].options
    assert told["tried (dB)"]["mse"] > told["tried (dB)"]["minmax"] + 3, "the samples that judge like it better"
    assert told["clipped farther"]["batches"] > 0
    x = _drawn(2)[LATE]
    (reference,), (value,) = evaluate(model, {"x": x}), evaluate(made, {"x": x})
    assert sqnr_db(reference, value) > 30


def test_peaks_are_clipped_where_that_helps_most_samples(model: Model, evaluate: Any) -> None:
    """Values by Student's t with 3 degrees of freedom: 26 dB of a sample on average, 19 with the extremes."""
    x, fresh = (_peaked(seed) for seed in (3, 4))
    (reference,) = evaluate(model, {"x": fresh})

    def decibels(ranges: str) -> float:
        (value,) = evaluate(_compressed(model, x, "onnxruntime", ranges=ranges), {"x": fresh})
        return float(np.mean([sqnr_db(one, other) for one, other in zip(reference, value, strict=True)]))

    assert decibels("auto") > decibels("minmax") + 5


def test_samples_that_are_all_that_comes_out_are_kept(model: Model, evaluate: Any) -> None:
    """One in 32 is 40 times as loud: without it the others would be 30 dB nearer, and it would be cut to nothing."""
    x, fresh = (np.random.default_rng(seed).standard_normal((SAMPLES, 8, 16, 16)).astype(np.float32) for seed in (5, 6))
    for one in (x, fresh):
        one[::32] *= 40
    made = _compressed(model, x, "onnxruntime")
    (reference,), (value,) = evaluate(model, {"x": fresh}), evaluate(made, {"x": fresh})
    assert sqnr_db(reference, value) > 15
    assert made.history[-1].options["ranges"] in ("minmax", "shrink90", "shrink80")


def _peaked(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, (SAMPLES, 8, 16, 16)).astype(np.float32)
