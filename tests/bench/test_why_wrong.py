"""A handful of the bench's plants, with seeds of their own: found, named and repaired."""

from __future__ import annotations

import pytest

from bench import plant_suite, why_wrong

SEED = 31


@pytest.mark.parametrize(
    "name",
    [
        "chain/clipped range",
        "chain/dead weight channels",
        "chain/colours reversed",
        "chain/outlier channel",
        "branches/mixed Concat 48",
        "perceptron/constant calibration",
        "perceptron/bias shift",
        "perceptron/one weight scale",
        "perceptron/saturation",
    ],
)
def test_what_is_planted_is_found_and_repaired(name: str) -> None:
    result = why_wrong.run(name, plant_suite.suite()[name], SEED)
    assert result is not None, "the plant does no damage"
    assert result.found, f"{result.found_layer}: {result.found_cause} ({result.evidence})"
    assert result.recovered >= 0.8


def test_every_cause_is_planted() -> None:
    assert len(plant_suite.suite()) >= 30
