"""The proof of what compress makes: one more look, over more of the data, before an engine is called wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgerun.errors import GateFailed
from edgerun.verbs import proof
from edgerun.verbs.compress import compress

EMPTY = 0.01  # of what other samples hold


def data() -> np.ndarray:
    """200 samples, of which batches of 4 at the first places hold empty ones alone."""
    x = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    x[:4] *= EMPTY
    x[20:24] *= EMPTY
    return x


@pytest.mark.parametrize("wrong", [False, True])
def test_a_few_samples_do_not_decide(place: Any, monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
    """The first look passes over empty samples. An engine that it alone speaks against is right; one that all samples
    do is wrong, and nothing is written."""
    looks: list[int] = []
    proven = proof.proven

    def strict(result: Any, original: Any, target: str, feeds: Sequence[Any], *others: Any) -> Any:
        looks.append(len(feeds))
        assert max(np.abs(feed["x"]).max() for feed in feeds) > 0.1
        if wrong or len(looks) == 1:
            raise GateFailed("the engine does not compute what the model says")
        return proven(result, original, target, feeds, *others)

    monkeypatch.setattr(proof, "proven", strict)
    output = place.folder / "small.onnx"
    if wrong:
        with pytest.raises(GateFailed):
            compress(place.a, calibration={"x": data()}, output=output)
    else:
        compress(place.a, calibration={"x": data()}, output=output)
    assert looks == [2, 12] and output.exists() != wrong
