"""Peak memory against an allocation of known size."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from edgerun.measure.memory import children_peak_rss, peak_rss

MIB = 2**20


def test_peak_grows_by_what_is_touched_and_stays() -> None:
    before = peak_rss()
    rows = np.ones(before // 8 + 8 * MIB)  # larger than everything so far
    peak = peak_rss()
    assert peak - before >= 60 * MIB
    del rows
    assert peak_rss() >= peak - MIB  # the kernel counts pages per processor and adds up later


def test_a_child_reports_its_own_peak_and_the_parent_sees_it() -> None:
    code = "b = bytearray(b'1') * (200 * 2**20); from edgerun.measure.memory import peak_rss; print(peak_rss())"
    own = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 200 * MIB <= own <= 300 * MIB
    assert children_peak_rss() >= own * 0.99
