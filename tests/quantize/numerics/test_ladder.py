"""The ladder of layers to keep in float."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.quantize.numerics.ladder import HALVINGS, changed, holds, ladder

LAYERS = st.lists(st.tuples(st.floats(0, 1, width=16), st.floats(0, 1, width=16)), max_size=12)


@given(LAYERS)
def test_every_rung_leaves_the_noise_it_may_and_needs_all_it_keeps(drawn: list[tuple[float, float]]) -> None:
    noise, cost = ({f"l{i}": pair[at] for i, pair in enumerate(drawn)} for at in (0, 1))
    rungs = ladder(noise, cost)
    assert len(rungs) == len(set(rungs)) <= HALVINGS + 1
    if len(drawn) < 2:
        assert rungs == []
        return
    assert len(rungs[0]) == len(drawn) - 1 and all(rungs)
    total = sum(noise.values())
    for kept in rungs[1:]:
        left = math.fsum(noise[name] for name in noise if name not in kept)
        assert left <= total / 2 + 1e-9
        # No layer can be let go without leaving more than some rung below may leave.
        assert all(left + noise[name] > total / 2**HALVINGS for name in kept)


def test_the_fewest_that_do() -> None:
    """Keeping c and a first is cheap but not enough; with b, which makes most of the noise, they are not needed."""
    noise, cost = {"a": 1.0, "b": 8.0, "c": 2.0, "d": 0.01}, {"a": 0.01, "b": 0.9, "c": 0.01, "d": 0.08}
    assert ladder(noise, cost) == [("c", "a", "b"), ("c", "b"), ("b",)]


def test_no_smaller_set_of_equal_layers() -> None:
    """Equal cost: the greedy solution is the best of all subsets."""
    noise = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.06, "e": 0.04}
    for kept in ladder(noise, dict.fromkeys(noise, 0.2))[1:]:
        left = 1 - sum(noise[name] for name in kept)
        smaller = itertools.combinations(noise, len(kept) - 1)
        least = min(1 - sum(noise[name] for name in names) for names in smaller)
        assert least > left


@pytest.mark.parametrize("noise", [0.01, 0.3, 4.0])
def test_the_share_of_answers_that_noise_changes(noise: float) -> None:
    """Against 200,000 draws: logits of two classes with noise of their own; within four standard errors."""
    generator = np.random.default_rng(0)
    margins = generator.exponential(1.5, 400)
    drawn = generator.normal(0, math.sqrt(noise), (500, 400, 2))
    share = float(np.mean(margins + drawn[..., 0] < drawn[..., 1]))
    assert changed(margins, noise) == pytest.approx(share, abs=4 * math.sqrt(share / drawn.shape[0] / 400) + 1e-9)
    assert changed(margins, 0.0) == 0.0


@given(st.floats(0, 1), st.floats(0, 1), st.integers(10, 10_000), st.floats(0.001, 0.5))
def test_fewer_changes_and_more_samples_hold_better(a: float, b: float, n: int, bound: float) -> None:
    less, more = sorted((a, b))
    assert holds(less, n, bound, 2.2) or not holds(more, n, bound, 2.2)
    assert holds(less, 2 * n, bound, 2.2) or not holds(less, n, bound, 2.2)
