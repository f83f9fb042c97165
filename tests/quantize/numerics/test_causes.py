"""Numbers in, a cause's name out."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.quantize.numerics import causes, grid
from edgerun.quantize.numerics.causes import Seen

DRAW = np.random.default_rng(0)
SAMPLE = np.abs(DRAW.standard_normal(20_000)).astype(np.float32)
HIGH = float(SAMPLE.max())


def _seen(sample: np.ndarray = SAMPLE, op: str = "Conv", parts: tuple[float, ...] = (), peaks: object = None) -> Seen:
    found = np.full(8, np.abs(sample).max()) if peaks is None else np.asarray(peaks, np.float64)
    return Seen(float(sample.min()), float(sample.max()), found, sample, op, parts)


def _named(seen: Seen, high: float) -> causes.Cause:
    return causes.of_activation(seen, grid.asymmetric(0, high), 0.0, high)


@pytest.mark.parametrize(
    ("seen", "high", "cause"),
    [
        (_seen(), HIGH, causes.ROUNDING),
        (_seen(), 0.99 * HIGH, causes.ROUNDING),
        (_seen(), HIGH / 4, causes.CLIPPING),
        (_seen(), HIGH / 1000, causes.CALIBRATION),
        (_seen(), HIGH * 40, causes.CALIBRATION),
        (_seen(peaks=[HIGH, *[HIGH / 20] * 9]), HIGH, causes.OUTLIER),
        (_seen(peaks=[HIGH, *[HIGH / 4] * 9]), HIGH, causes.ROUNDING),
        (_seen(op="Concat", parts=(HIGH, HIGH / 50), peaks=[HIGH, *[HIGH / 50] * 9]), HIGH, causes.CONCAT),
        (_seen(op="Concat", parts=(HIGH, HIGH / 2)), HIGH, causes.ROUNDING),
        (_seen((SAMPLE / HIGH) ** 12, op="Softmax"), 1.0, causes.SOFTMAX),
    ],
)
def test_activations(seen: Seen, high: float, cause: str) -> None:
    found = _named(seen, high)
    assert found.name == cause and found.evidence


def test_fit_parts_the_noise() -> None:
    """Clipping and rounding noise against their definitions, to 1e-6 of the signal."""
    made = grid.asymmetric(0, 2.0)
    found = causes.fit(SAMPLE, made, 0.0, 2.0)
    x = SAMPLE.astype(np.float64)
    power = float(x @ x)
    assert found.clipped == pytest.approx(float((np.maximum(x - 2, 0) ** 2).sum()) / power, abs=1e-6)
    assert found.rounded == pytest.approx((2 / 255) ** 2 / 12 * float((x <= 2).sum()) / power, rel=0.05)
    assert found.outside == pytest.approx(float((x > 2 + 1 / 255).mean()), abs=1e-3)


def _weight(gains: np.ndarray) -> np.ndarray:
    return np.asarray(DRAW.standard_normal((16, 8, 3, 3)) * gains.reshape(-1, 1, 1, 1), np.float32)


def test_weights() -> None:
    even = _weight(np.ones(16))
    fine = grid.symmetric(grid.channel_bounds(even, 0), axis=0)
    assert causes.of_weight(even, fine, fine.quantize(even), 0).name == causes.ROUNDING
    uneven = _weight(np.array([30.0, *np.ones(15)]))
    coarse = grid.symmetric(grid.channel_bounds(uneven, None))
    assert causes.of_weight(uneven, coarse, coarse.quantize(uneven), 0).name == causes.SPREAD
    wide = grid.Grid(fine.scale * np.array([300, *[1] * 15], np.float32), fine.zero_point, 0)
    dead = causes.of_weight(even, wide, wide.quantize(even), 0)
    assert dead.name == causes.DEAD and dead.number == 1
    narrow = grid.Grid(fine.scale * np.float32(0.3), fine.zero_point, 0)
    assert causes.of_weight(even, narrow, narrow.quantize(even), 0).name == causes.CLIPPING


def test_a_mistake_that_fits_the_ranges_explains_them() -> None:
    mine = np.log(np.array([1.0, 5.0, 9.0, 3.0]))
    given = mine + np.array([0.5, -0.4, 0.8, 0.1])
    assert causes.explains(mine, given, mine) == 1.0
    assert causes.explains(mine, given, mine - 0.1) > 0.9  # an estimator that shrinks all ranges alike
    assert causes.explains(mine, given, given) == 0.0
    assert causes.explains(mine, mine + 0.01, mine) == 0.0  # nothing to explain
