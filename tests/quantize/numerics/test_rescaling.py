"""Factors between float weights and stored ones, found again from the rounded integers."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.quantize.numerics import rescaling
from edgerun.quantize.numerics.rescaling import Tie

RELATIVE = 2e-3  # 8-bit weights, some hundred of them to each channel


def _rounded(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 per output channel, dequantized, and its steps."""
    step = np.abs(weight).reshape(len(weight), -1).max(axis=1).reshape(-1, 1, 1) / 127
    return np.rint(weight / step) * step, np.broadcast_to(step, weight.shape)


def tie(logs: np.ndarray, precision: np.ndarray, writes: int, reads: int, groups: int = 1) -> Tie:
    """A layer that writes all of an unknown, and reads all of another."""
    rows, columns = np.arange(len(logs)), np.arange(logs.shape[1] * groups)
    return Tie(logs, precision, writes, reads, groups, rows, columns)


def _ties(factors: list[np.ndarray], rounded: bool, seed: int = 0) -> list[Tie]:
    """Three layers in a row, 16 -> 32 -> 24 channels; `factors` belong to the two tensors between them."""
    draw = np.random.default_rng(seed)
    first, second = factors
    scalings = [(first, np.ones(8)), (second, 1 / first), (np.ones(10), 1 / second)]
    ties = []
    for index, (outputs, inputs) in enumerate(scalings):
        weight = draw.standard_normal((len(outputs), len(inputs), 9))
        stored = weight * outputs[:, None, None] * inputs[None, :, None]
        values, steps = _rounded(stored) if rounded else (stored, np.full(stored.shape, 1e-6))
        logs, precision = rescaling.log_ratios(weight, values, steps)
        ties.append(tie(logs, precision, index if index < 2 else -1, index - 1))
    return ties


@pytest.mark.parametrize("rounded", [False, True])
def test_factors_up_to_64_are_found_again(rounded: bool) -> None:
    draw = np.random.default_rng(1)
    factors = [np.exp(draw.uniform(0, np.log(64), size)) for size in (32, 24)]
    logs, _ = rescaling.solve(_ties(factors, rounded), [32, 24])
    for log, wanted in zip(logs, factors, strict=True):
        assert np.abs(np.exp(log) / wanted - 1).max() < (RELATIVE * 5 if rounded else 1e-6)
        assert np.median(np.abs(np.exp(log) / wanted - 1)) < (RELATIVE if rounded else 1e-6)


def test_grouped_layers_tie_their_own_channels() -> None:
    """A depthwise layer between two dense ones: 12 channels, one input each."""
    draw = np.random.default_rng(2)
    before, behind = np.exp(draw.uniform(-2, 2, 12)), np.exp(draw.uniform(-2, 2, 12))
    ties = []
    for outputs, inputs, groups, writes, reads in (
        (before, np.ones(5), 1, 0, -1), (behind, 1 / before, 12, 1, 0), (np.ones(7), 1 / behind, 1, -1, 1),
    ):  # fmt: skip
        weight = draw.standard_normal((len(outputs), len(inputs) // groups, 9))
        by = inputs[None, :, None] if groups == 1 else inputs[:, None, None]
        stored = weight * outputs[:, None, None] * by
        ratios = rescaling.log_ratios(weight, stored, np.full(stored.shape, 1e-6))
        ties.append(tie(*ratios, writes, reads, groups))
    logs, _ = rescaling.solve(ties, [12, 12])
    np.testing.assert_allclose(np.exp(logs[0]), before, rtol=1e-6)
    np.testing.assert_allclose(np.exp(logs[1]), behind, rtol=1e-6)


def test_a_layer_behind_two_values_side_by_side() -> None:
    """8 and 6 channels in one unknown, written apart and read together."""
    draw = np.random.default_rng(4)
    factors = np.exp(draw.uniform(-2, 2, 14))
    ties = []
    for rows, columns in ((np.arange(8), None), (np.arange(8, 14), None), (None, np.arange(14))):
        outputs, inputs = (np.ones(5) if at is None else factors[at] for at in (rows, columns))
        weight = draw.standard_normal((len(outputs), len(inputs), 9))
        stored = weight * outputs[:, None, None] / inputs[None, :, None]
        told = rescaling.log_ratios(weight, stored, np.full(stored.shape, 1e-6))
        none = np.zeros(0, np.int64)
        ends = (-1 if rows is None else 0, -1 if columns is None else 0)
        ties.append(Tie(*told, *ends, 1, none if rows is None else rows, none if columns is None else columns))
    logs, _ = rescaling.solve(ties, [14])
    np.testing.assert_allclose(np.exp(logs[0]), factors, rtol=1e-6)


def test_a_channel_of_zeros_is_told_by_its_reader() -> None:
    """The writer's channel 3 is all zero (a dead channel): the reader still knows its factor."""
    factors = [np.full(32, 2.0), np.full(24, 0.5)]
    ties = _ties(factors, rounded=False)
    precision = ties[0].precision.copy()
    precision[3] = 0
    ties[0] = tie(ties[0].logs, precision, 0, -1)
    logs, _ = rescaling.solve(ties, [32, 24])
    assert np.exp(logs[0][3]) == pytest.approx(2.0, rel=1e-6)


def test_rounding_alone_is_a_factor_of_one() -> None:
    logs, precision = rescaling.solve(_ties([np.ones(32), np.ones(24)], rounded=True), [32, 24])
    assert all(rescaling.is_one(log, p) for log, p in zip(logs, precision, strict=True))
    far, precision = rescaling.solve(_ties([np.linspace(1, 3, 32), np.ones(24)], rounded=True), [32, 24])
    assert not rescaling.is_one(far[0], precision[0])
    assert rescaling.is_one(np.zeros(3), np.zeros(3))
