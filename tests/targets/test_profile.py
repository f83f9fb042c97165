"""Times out of profilers' rounded counts, and nodes out of fused kernels."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.targets._profile import covers, from_running_means, typical


def test_a_typical_time_is_finer_than_a_tick_and_ignores_interruptions() -> None:
    """True times 12.3 ± 0.5 µs, cut to whole ones, one run in ten interrupted for 20 ms: right to 0.3 µs."""
    generator = np.random.default_rng(0)
    times = 12.3 + generator.uniform(-0.5, 0.5, 2000)
    times[::10] += 20_000
    assert typical(np.floor(times).tolist()) == pytest.approx(12.3e-6, abs=0.3e-6)
    assert typical([7.0]) == pytest.approx(7.5e-6)


@pytest.mark.parametrize("true", [0.4, 3.7, 80.2, 5000.9])
def test_running_means_give_the_time_back(true: float) -> None:
    """As OpenVINO counts: each run cut to whole microseconds and the mean of all so far cut again; the first run is ten
    times as long and every ninth one interrupted. Right to 1.5 µs from 40 runs."""
    generator = np.random.default_rng(1)
    for _ in range(20):
        runs = np.floor(true * generator.uniform(0.98, 1.02, 40) + generator.uniform(0, 1e-3, 40))
        runs[0] += 9 * true
        runs[4::9] += 20_000
        means = np.floor(np.cumsum(runs) / np.arange(1, 41))
        expected = true if true > 1 else 0.5
        assert from_running_means(means.tolist()) * 1e6 == pytest.approx(expected, abs=1.5 + 0.01 * true)
    assert from_running_means([7.0]) == pytest.approx(7.5e-6)


def test_running_means_that_are_seldom_read_give_it_too() -> None:
    """Read after every fifteenth of 200 runs, of which three were interrupted: right to 1.5 µs."""
    generator = np.random.default_rng(2)
    for true in (3.7, 80.2, 5000.9):
        runs = np.floor(true * generator.uniform(0.98, 1.02, 200) + generator.uniform(0, 1e-3, 200))
        runs[[20, 77, 78]] += 20_000
        after = np.array([1, 2, *range(17, 200, 15), 200])
        means = np.floor(np.cumsum(runs) / np.arange(1, 201))[after - 1]
        found = from_running_means(means.tolist(), after.tolist())
        assert found * 1e6 == pytest.approx(true, abs=1.5 + 0.01 * true)


def test_nodes_that_no_kernel_names_belong_to_the_kernel_behind_them() -> None:
    readers = {
        "conv": ["bn"],
        "bn": ["relu"],
        "relu": ["q"],
        "q": ["dq"],
        "dq": ["fc"],
        "fc": ["bias"],
        "bias": [],
    }
    found = covers(readers, {0: {"relu"}, 1: {"q"}, 2: {"fc"}}, {"q", "dq"}, {})
    assert found == {0: ("conv", "bn", "relu"), 1: ("q",), 2: ("fc", "bias")}
    assert covers({"a": ["b"], "b": []}, {0: {"b"}, 1: {"b"}}, (), {}) == {0: ("a", "b"), 1: ("b",)}


def test_a_fused_sum_belongs_to_the_kernel_that_reads_the_other_summand() -> None:
    readers = {"a": ["b", "sum"], "b": ["sum"], "sum": ["c"], "c": []}
    named = {0: {"a"}, 1: {"b"}, 2: {"c"}}
    fused_behind_b = covers(readers, named, (), {1: (0,), 2: (1,)})
    assert fused_behind_b == {0: ("a",), 1: ("b", "sum"), 2: ("c",)}
    readers = {"a": ["sum"], "b": ["sum"], "sum": ["c"], "c": []}
    assert covers(readers, named, (), {2: (0, 1)}) == {0: ("a",), 1: ("b",), 2: ("sum", "c")}
