"""Calibration data is read once for all passes, as far as it fits beside the model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from edgerun.data import open_data
from edgerun.quantize.graphs.looks import Judgement
from edgerun.runtime import TensorSpec
from edgerun.verbs import making

ROWS = np.arange(60, dtype=np.float32).reshape(20, 3)


@pytest.mark.parametrize(("room", "read"), [(1 << 24, 3), (100, 5), (0, 6)], ids=["all", "a part", "nothing"])
def test_every_pass_gives_the_same_and_reads_no_more_than_it_must(
    monkeypatch: pytest.MonkeyPatch, room: int, read: int
) -> None:
    """Five batches of 48 bytes, four passes, one of which ends early, of a source that fills one buffer every time."""
    monkeypatch.setattr(making, "BESIDE", room)
    passes, buffer = [0], np.zeros(3, np.float32)

    def source() -> Iterator[dict[str, np.ndarray]]:
        passes[0] += 1
        for row in ROWS:
            buffer[:] = row
            yield {"x": buffer}

    known = making.Known(open_data(source, [TensorSpec("x", "float32", ("n", 3))], batch=4), Judgement())
    assert [len(feeds["x"]) for feeds in known] == [4] * 5
    for most in (5, 2, 5, 5):
        taken = [np.array(feeds["x"]) for feeds in itertools.islice(known.again(), most)]
        np.testing.assert_array_equal(np.concatenate(taken), ROWS[: 4 * most])
    assert passes[0] == read
