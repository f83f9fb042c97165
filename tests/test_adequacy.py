"""FeedCheck: what is refused, what is warned of, and that batches make no difference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.adequacy import FEW, FeedCheck
from edgerun.errors import EdgerunError

X = np.random.default_rng(0).standard_normal((40, 3, 5)).astype(np.float32)


def report(*batches: dict[str, np.ndarray], batched: bool = True) -> dict[str, Any]:
    check = FeedCheck(batched)
    for feeds in batches:
        check.add(feeds)
    return check.report()


def test_good_data_gives_no_word() -> None:
    assert report({"x": X}) == {"samples": 40, "duplicates": 0, "warnings": []}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=FEW, max_size=40), st.integers(1, 8))
def test_duplicates_are_counted_exactly(chosen: list[int], size: int) -> None:
    """Against numpy's unique, in any batches."""
    rows = X[chosen]
    unique = len(np.unique(rows.reshape(len(rows), -1), axis=0))
    batches = [{"x": rows[i : i + size]} for i in range(0, len(rows), size)]
    if unique == 1:
        with pytest.raises(EdgerunError, match="constant"):
            report(*batches)
        return
    found = report(*batches)
    assert (found["samples"], found["duplicates"]) == (len(rows), len(rows) - unique)
    assert any("repeat others exactly" in w for w in found["warnings"]) == (unique < len(rows))


def test_one_changed_bit_is_another_sample() -> None:
    rows = np.repeat(X[:1], 20, axis=0)
    rows[np.arange(20), np.arange(20) % 3, np.arange(20) % 5] += np.float32(1e-6) * (1 + np.arange(20))
    assert report({"x": rows})["duplicates"] == 0


def test_samples_differ_by_any_input() -> None:
    same = np.zeros((20, 4), np.int64)
    found = report({"x": X[:20], "types": same})
    assert found == {"samples": 20, "duplicates": 0, "warnings": []}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float) -> None:
    rows = X.copy()
    rows[25, 1, 2] = bad
    with pytest.raises(EdgerunError, match="(?s)'x' holds NaN or infinity.*sample 25"):
        report({"x": rows[:20]}, {"x": rows[20:]})


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"x": np.repeat(X[:1], 20, axis=0)}, "20 times the same sample"),
        ({"x": np.zeros((1, 3), np.float32)}, "'x' is 0 everywhere"),
        ({"x": np.full((9, 3), 2.5, np.float32), "t": np.arange(9)}, "'x' is 2.5 everywhere"),
        ({"t": np.full((9, 3), 7)}, "9 times the same sample"),
        ({"x": X[:0]}, "empty"),
    ],
)
def test_constant_or_empty_is_refused(feeds: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(EdgerunError, match=words):
        report(feeds)


def test_one_constant_input_of_several_is_told() -> None:
    found = report({"x": X, "state": np.zeros((40, 8), np.float32), "rate": np.full((40, 1), 16000.0, np.float32)})
    assert found["warnings"] == ["input 'state' is the same number in all calibration samples"]


def test_blank_samples_are_told() -> None:
    rows = X.copy()
    rows[[3, 9]] = np.array([0.0, 1.0], np.float32)[:, None, None]
    assert report({"x": rows})["warnings"] == ["2 of 40 calibration samples are blank: one number throughout"]


def test_few_samples_say_what_to_expect() -> None:
    (warning,) = report({"x": X[:7]})["warnings"]
    assert "7 calibration samples are few" in warning and "25%" in warning  # 2/(7+1)
    assert not report({"x": X[:FEW]})["warnings"]


def test_whole_feeds_without_a_batch_axis() -> None:
    """Each feed is a sample, also where the inputs have no axis at all."""
    feeds = [{"x": row, "rate": np.array(16000)} for row in X[:20]]
    assert report(*feeds, feeds[4], batched=False)["duplicates"] == 1


def test_strings_are_compared() -> None:
    words = np.array([["a"], ["b"], ["a"]] * 6, object)
    assert report({"w": words})["duplicates"] == 16
